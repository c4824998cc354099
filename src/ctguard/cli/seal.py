"""Verbs of the seal: keygen, verify, restore; and what `protect --protector seal` does."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ctguard.cli.common import TAMPERED, AllowGaps, AsJson, Quiet, Scan, Series, show, verb
from ctguard.cli.runs import MAP, run_folder, sign_series, write_protected

if TYPE_CHECKING:
    from ctguard.core.provenance import Json
    from ctguard.core.volume import Volume
    from ctguard.defence import Protection
    from ctguard.io.manifest import RunManifest
    from ctguard.protect.keys import SealKey
    from ctguard.protect.record import Seal
    from ctguard.protect.seal import SealPrice
    from ctguard.protect.verdict import SealVerdict

    MakeSealed = Callable[[Volume, SealKey], tuple[Volume, Seal, SealPrice | Protection]]

SEAL, LEDGER, VERDICT = "seal", "seal.jsonl", "verdict.json"
"""The protector's name; the seal's own record and the verdict in a run folder."""

SEAL_HU = 3.0
"""--budget-hu of a seal where none is given."""

Key = Annotated[Path, typer.Option(help="Key file of `ctguard keygen`, mode 0600.")]
Ledger = Annotated[
    Path | None, typer.Option(help="Ledger that sealing wrote: finds scans that lost their header, and replays.")
]


@verb
def keygen(
    out: Annotated[Path, typer.Argument(help="The new key file; never overwritten.")],
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """A new seal key: 32 random bytes in a file that only you can read.

    Keep a copy where the archive's own back-up does not reach: without it no seal made with it can be verified or
    taken off.
    """
    from ctguard.protect.keys import new_key

    key = new_key(out)
    show({"key": str(out), "key_id": key.key_id}, f"{out}: key {key.key_id}", as_json)


@verb
def verify(
    scan: Scan,
    key: Annotated[Path | None, typer.Option(help="Key file of `ctguard keygen`, mode 0600.")] = None,
    ledger: Ledger = None,
    cert: Annotated[Path | None, typer.Option(help="Certificate (PEM) that DICOM signatures are trusted by.")] = None,
    out: Annotated[Path | None, typer.Option(help="New folder for verdict.json and map.nii.gz.")] = None,
    fail_if_broken: Annotated[
        bool, typer.Option("--fail-if-broken", help="Exit 3 if broken, missing, geometry-changed or signed wrongly.")
    ] = False,
    series: Series = None,
    allow_gaps: AllowGaps = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Is this sealed or signed scan unchanged, and if not, where?"""
    from ctguard import io
    from ctguard.export.sign import check_files
    from ctguard.io.manifest import peak_mb
    from ctguard.io.private import read_blocks
    from ctguard.protect.keys import read_key
    from ctguard.protect.record import from_blocks, read_ledger
    from ctguard.protect.verdict import ALARMS
    from ctguard.protect.verify import verify_volume

    if ledger is not None and key is None:
        raise typer.BadParameter("a ledger is read with its key: give --key", param_hint="--ledger")
    started = time.perf_counter()
    secret = None if key is None else read_key(key)
    reading: dict[str, Any] = {"allow_gaps": allow_gaps, "series_uid": series}
    volume = io.read(scan, **reading)
    known = [] if ledger is None or secret is None else read_ledger(ledger, secret.key_id)
    verdict = verify_volume(volume, secret, from_blocks(read_blocks(volume), str(scan)), known)
    signature = check_files(volume.provenance.source.files if volume.provenance.source.format == "dicom" else (), cert)
    facts = {"scan": str(scan), "signature": signature.state, "signature_words": signature.words, **verdict.to_json()}
    if out is not None:
        with run_folder(out, scan, reading, {}) as run:
            _write_verdict(run, volume, verdict, facts)
    facts |= {"seconds": round(time.perf_counter() - started, 2), "peak_mb": peak_mb()}
    show(facts, f"{verdict_words(verdict)}\nsignature {signature.state}: {signature.words}", as_json)
    if fail_if_broken and (verdict.state in ALARMS or signature.state == "invalid"):
        raise typer.Exit(TAMPERED)


def verdict_words(verdict: SealVerdict) -> str:
    """A verdict for people, a line for each of the first twenty regions."""
    lines = [verdict.words]
    for region in verdict.regions[:20]:
        site, extent = (", ".join(f"{v:.0f}" for v in values) for values in (region.center_zyx, region.extent_mm))
        lines.append(f"  {region.score:.2f} cm3 at {site} (z, y, x), {extent} mm")
    return "\n".join(lines)


def _write_verdict(run: RunManifest, volume: Volume, verdict: SealVerdict, facts: dict[str, Any]) -> None:
    """verdict.json and, where voxels could be compared, map.nii.gz on the scan's grid."""
    from ctguard import io

    run.folder.mkdir(parents=True, exist_ok=True)
    path = run.folder / VERDICT
    path.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    run.add_output(path)
    if verdict.map is not None:
        map_ = type(volume)(verdict.map, volume.geometry, volume.provenance)
        run.add_output(io.write(map_, run.folder / MAP))


@verb
def restore(
    scan: Scan,
    out: Annotated[Path, typer.Argument(help="A folder name (DICOM), .mha, .nii.gz, .nrrd or NAME.tiff.")],
    key: Key,
    ledger: Ledger = None,
    series: Series = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """The original, bit for bit, from a sealed copy.

    Every slice is checked against the SHA-256 that was taken before it was sealed.
    """
    from ctguard import io
    from ctguard.protect.keys import read_key
    from ctguard.protect.seal import restore_volume

    secret = read_key(key)
    volume = io.read(scan, series_uid=series)
    seal = _seal_of(scan, volume, secret, ledger)
    restored = restore_volume(volume, seal, secret)
    write_restored(restored, out)
    facts = {"scan": str(scan), "out": str(out), "key_id": seal.header.key_id, "slices": len(seal.slices)}
    show(facts, f"{out}: {len(seal.slices)} slices, each as it was before it was sealed", as_json)


def _seal_of(scan: Path, volume: Volume, secret: Any, ledger: Path | None) -> Seal:
    """The seal of a scan: from its header, else the one of the ledger that its voxels fit to the bit."""
    from ctguard.core.errors import ReadError
    from ctguard.io.private import read_blocks
    from ctguard.protect.record import from_blocks, read_ledger
    from ctguard.protect.seal import check_key, sha256_slice

    seal = from_blocks(read_blocks(volume), str(scan))
    if seal is not None:
        check_key(seal.header, secret)
        return seal
    for known in reversed([] if ledger is None else read_ledger(ledger, secret.key_id)):
        same_grid = known.header.geometry.shape_zyx == volume.geometry.shape_zyx and known.whole
        if same_grid and sha256_slice(known.slices[0], volume.hu[0]) == known.slices[0].sha256_sealed:
            return known
    what = "it carries no seal" if ledger is None else "it carries no seal, and the ledger knows none that fits"
    raise ReadError(what, where=scan, remedy="give the sealed series, or --ledger with the file that sealing wrote")


def write_restored(restored: Volume, out: Path) -> None:
    """A restored volume in the format that `out` names; nothing in it says that it was sealed."""
    from ctguard import io
    from ctguard.core.marks import has
    from ctguard.io.atomic import atomic_folder
    from ctguard.io.private import remove_blocks

    if out.suffix:
        io.write(restored, out)
        return
    marks = restored.provenance.marks
    words = None if has(marks, "phantom") or has(marks, "protected") else "restored from a sealed copy"
    with atomic_folder(out) as stage:
        folder = stage / "series"
        io.write(restored, folder)
        remove_blocks(sorted(folder.glob("*.dcm")), words)
        for file in sorted(folder.iterdir()):
            file.rename(stage / file.name)
        folder.rmdir()


@dataclass(frozen=True)
class Sealing:
    """What `protect_seal` does: a protector that seals, its budget and seed, and how it makes the sealed volume."""

    protector: str
    budget_hu: float
    seed: int
    make: MakeSealed


def protect_seal(
    scan: Path,
    out: Path,
    key: Path | None,
    sealing: Sealing,
    *,
    reading: dict[str, Any],
    format: str,
    ledger: Path | None,
    sign: tuple[Path, Path] | None,
) -> tuple[dict[str, Any], str]:
    """What `protect --protector seal` and `shield+seal` do: facts for --json, and words."""
    from ctguard import io
    from ctguard.defence import check_unmarked
    from ctguard.protect.keys import read_key
    from ctguard.protect.record import append_ledger

    if key is None:
        raise typer.BadParameter("a seal needs a key: give --key", param_hint="--key")
    secret = read_key(key)
    volume = io.read(scan, **reading)
    check_unmarked(volume)
    with run_folder(out, scan, reading, {"protect": sealing.seed}) as run:
        sealed, seal, price = sealing.make(volume, secret)
        facts: dict[str, Json] = {
            "protector": sealing.protector,
            "budget_hu": sealing.budget_hu,
            "key_id": secret.key_id,
        }
        facts |= price.to_json()
        run.note("protection", facts)
        made = write_sealed(run.folder, volume, sealed, seal, facts, format)
        sign_series(run.folder, sign)
        for path in made:
            run.add_output(path)
    if ledger is not None:
        append_ledger(ledger, seal)
    done = "sealed" if sealing.protector == SEAL else "shielded, and sealed"
    words = f"{out}: {done} with key {secret.key_id}, at most {price.max_hu:.0f} HU, SD {price.sd_hu:.2f} HU"
    return {"scan": str(scan), "out": str(out), **facts}, words


def only_sealed(max_hu: float, seed: int) -> Sealing:
    """The seal without anything else. max_hu 0: the digest alone."""
    from ctguard.io.derived import stored_range_hu
    from ctguard.protect.seal import SealSettings, seal_volume

    settings = SealSettings(max_hu=max_hu, seed=seed)
    return Sealing(
        SEAL,
        max_hu,
        seed,
        lambda volume, key: seal_volume(volume, key, settings, stored_range_hu=stored_range_hu(volume)),
    )


def write_sealed(
    folder: Path, volume: Volume, sealed: Volume, seal: Seal, facts: dict[str, Json], format: str
) -> list[Path]:
    """The sealed series with the seal in its private blocks (DICOM), the report, and seal.jsonl for a ledger."""
    from ctguard.io.private import write_blocks
    from ctguard.protect.record import append_ledger, block_of

    made = write_protected(folder, volume, sealed, facts, format)
    if format == "dicom":
        blocks = [block_of(seal.header, seal.slices[z]) for z in sorted(seal.slices)]
        write_blocks(sorted((folder / "series").glob("*.dcm")), blocks)
    append_ledger(folder / LEDGER, seal)
    return [*made, folder / LEDGER]
