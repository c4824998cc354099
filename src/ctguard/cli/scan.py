"""Verbs on one scan: tamper, detect, protect, report."""

from __future__ import annotations

import json
import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ctguard.cli.common import (
    DETECTOR,
    TAMPERED,
    AllowGaps,
    AsJson,
    Device,
    Quiet,
    Scan,
    Seed,
    Series,
    show,
    torch_device,
    triple,
    verb,
)
from ctguard.cli.runs import (
    EDIT,
    rebuild,
    run_folder,
    sign_series,
    verdict_facts,
    write_dicom_results,
    write_forgery,
    write_protected,
    write_verdict,
)
from ctguard.cli.seal import SEAL, SEAL_HU, Sealing, only_sealed, protect_seal

if TYPE_CHECKING:
    from ctguard.core.geometry import FloatTriple, Geometry
    from ctguard.core.provenance import Json
    from ctguard.core.records import Verdict

At = Annotated[str | None, typer.Option("--at", metavar="Z,Y,X", help="The site as voxel index.")]
AtMm = Annotated[str | None, typer.Option("--at-mm", metavar="X,Y,Z", help="The site in patient space (LPS), mm.")]
Weights = Annotated[Path | None, typer.Option(help="Your own weights, a .safetensors with its card beside it.")]
Format = Annotated[
    Literal["dicom", "mha", "nii.gz", "nrrd", "tiff"], typer.Option(help="Of the series that is written.")
]


@verb
def tamper(
    scan: Scan,
    out: Annotated[Path, typer.Argument(help="A new folder: series/, edit.json, mask.nii.gz, report.html …")],
    task: Annotated[Literal["inject", "remove"], typer.Option(help="A nodule in, or a nodule out.")],
    at: At = None,
    at_mm: AtMm = None,
    generator: Annotated[str, typer.Option(help="A generator of `ctguard models`.")] = "pix2pix",
    mode: Annotated[Literal["clean", "m3dsynth", "ctgan"], typer.Option(help="Which forging chain.")] = "clean",
    core_mm: Annotated[float | None, typer.Option(help="Side of the masked core, 16 to 20; else the mode's.")] = None,
    donor: Annotated[str | None, typer.Option(metavar="Z,Y,X", help="copy-move: where the tissue comes from.")] = None,
    weights: Weights = None,
    format: Format = "dicom",
    series: Series = None,
    allow_gaps: AllowGaps = False,
    seed: Seed = 0,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Forge one site of a scan, to measure the defence (MISUSE.md).

    SCAN must be a phantom or say that it is de-identified. The result is marked as forged in its metadata, is a study
    of its own, and is logged; its ground truth lies beside it.
    """
    _refuse_wrong_site(at, at_mm, donor, generator)
    from ctguard import io
    from ctguard.synth.forge import Clock, Request, tamper_scan

    torch_device("cpu")
    reading: dict[str, Any] = {"allow_gaps": allow_gaps, "series_uid": series}
    clock = Clock()
    volume = io.read(scan, **reading)
    clock.lap("read")
    request = Request(task, _site(volume.geometry, at, at_mm), generator, mode, core_mm, seed)
    tissue = None if donor is None else triple(donor, "--donor")
    with run_folder(out, scan, reading, {"plan": seed}) as run:
        clock.lap("hash")
        forged, edit, stages = tamper_scan(volume, request, weights=weights, donor_zyx=tissue)
        clock.take(stages)
        for path in write_forgery(run.folder, volume, forged, edit, format, clock):
            run.add_output(path)
        clock.lap("hash")
        seconds = {name: round(value, 3) for name, value in clock.seconds.items()}
        run.note("seconds", dict(seconds))
    truth = json.loads((out / EDIT).read_text(encoding="utf-8"))
    place = ", ".join(f"{v:.0f}" for v in edit.center_zyx)
    words = f"{out}: {task} by {generator} at {place} (z, y, x), {truth['changed_mm3']:.0f} mm3 changed"
    show({"scan": str(scan), "out": str(out), **truth, "seconds": seconds}, words, as_json)


def _refuse_wrong_site(at: str | None, at_mm: str | None, donor: str | None, generator: str) -> None:
    """What is wrong use (exit 2) whatever the scan holds."""
    if (at is None) == (at_mm is None):
        raise typer.BadParameter("give the site by one of --at and --at-mm", param_hint="--at")
    for option, text in (("--at", at), ("--at-mm", at_mm), ("--donor", donor)):
        if text is not None:
            triple(text, option)
    if donor is not None and generator != "copy-move":
        raise typer.BadParameter("only copy-move takes tissue from elsewhere", param_hint="--donor")


def _site(geometry: Geometry, at: str | None, at_mm: str | None) -> FloatTriple:
    """The site in voxels, from --at or --at-mm. Raises GeometryError where it lies outside the scan."""
    from ctguard.core.errors import GeometryError
    from ctguard.core.geometry import as_float_triple, lps_mm_to_index

    site = as_float_triple(lps_mm_to_index(geometry, triple(at_mm, "--at-mm"))) if at_mm else triple(at or "", "--at")
    if not geometry.contains(site):
        place = ", ".join(f"{v:g}" for v in site)
        raise GeometryError(
            f"the site {place} (z, y, x) lies outside the scan of {geometry.shape_zyx}", remedy="see `ctguard info`"
        )
    return site


@verb
def detect(
    scan: Scan,
    detector: Annotated[
        str | None,
        typer.Option(help="A detector of `ctguard models`: unet, or what the card of --weights names."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="New folder: verdict.json, report.html, map.nii.gz, DICOM SEG, map and SR.")
    ] = None,
    fast: Annotated[bool, typer.Option("--fast", help="Leave out slices of thin series.")] = False,
    fail_if_tampered: Annotated[bool, typer.Option("--fail-if-tampered", help="Exit 3 if tampered.")] = False,
    weights: Weights = None,
    series: Series = None,
    allow_gaps: AllowGaps = False,
    device: Device = "auto",
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Has this scan been tampered with, and where?"""
    from ctguard import io, zoo
    from ctguard.detect.infer import detect_volume
    from ctguard.io.manifest import peak_mb
    from ctguard.train.checkpoint import read_card

    started = time.perf_counter()
    place = torch_device(device)
    reading: dict[str, Any] = {"allow_gaps": allow_gaps, "series_uid": series}
    volume = io.read(scan, **reading)
    name = detector or (DETECTOR if weights is None else read_card(weights.with_suffix(".json")).model)
    network, card = zoo.load(zoo.find(name, "detector"), weights)
    names: dict[str, Any] = {"name": name, "model_id": card.sha256, "threshold": card.scan_threshold}
    with nullcontext() if out is None else run_folder(out, scan, reading, {}) as run:
        verdict = detect_volume(volume, network, **names, fast=fast, device=place)
        if run is not None:
            made = write_verdict(run.folder, scan, volume, verdict)
            for path in (*made, *write_dicom_results(run.folder, volume, verdict)):
                run.add_output(path)
    facts = verdict_facts(scan, verdict)
    facts |= {"seconds": round(time.perf_counter() - started, 2), "peak_mb": peak_mb()}
    show(facts, verdict_words(verdict), as_json)
    if fail_if_tampered and verdict.tampered:
        raise typer.Exit(TAMPERED)


def verdict_words(verdict: Verdict) -> str:
    """A verdict for people, a line for each region."""
    lines = [f"{verdict.words} ({verdict.detector}: score {verdict.score:.5f}, threshold {verdict.threshold:.5f})"]
    for region in verdict.regions:
        site, extent = (", ".join(f"{v:.0f}" for v in values) for values in (region.center_zyx, region.extent_mm))
        lines.append(f"  score {region.score:.3f} at {site} (z, y, x), {extent} mm")
    return "\n".join(lines)


@verb
def protect(
    scan: Scan,
    out: Annotated[Path, typer.Argument(help="A new folder for series/, report.html and run.json.")],
    protector: Annotated[str, typer.Option(help="A protector of `ctguard models`, or shield+seal.")],
    budget_hu: Annotated[
        float | None, typer.Option("--budget-hu", min=1.0, help="No voxel changes by more.  [seal: 3]")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="ascent: attacks that it works against [200]; shield: steps of refining.")
    ] = None,
    refine: Annotated[
        float | None, typer.Option(metavar="MINUTES", min=0.0, help="shield: refine it for this scan.")
    ] = None,
    against: Annotated[
        Path | None, typer.Option(help="ascent, shield: folder with weights of other generators.")
    ] = None,
    weights: Weights = None,
    key: Annotated[Path | None, typer.Option(help="seal: key file of `ctguard keygen`, mode 0600.")] = None,
    ledger: Annotated[Path | None, typer.Option(help="seal: append to this file, outside the archive.")] = None,
    digest_only: Annotated[bool, typer.Option("--digest-only", help="seal: change no pixel.")] = False,
    sign: Annotated[
        tuple[Path, Path] | None,
        typer.Option("--sign", metavar="KEY CERT", help="Sign the copy with DCMTK's dcmsign; key, certificate: PEM."),
    ] = None,
    format: Format = "dicom",
    series: Series = None,
    allow_gaps: AllowGaps = False,
    seed: Seed = 0,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """A copy of the scan that is hard to forge."""
    from ctguard import io
    from ctguard.defence import SHIELD_SEAL, protect_scan, shield_and_seal
    from ctguard.protect.shield_refine import Effort

    if refine and protector not in ("shield", SHIELD_SEAL):
        raise typer.BadParameter("only the shield is refined", param_hint="--refine")
    if sign is not None:
        from ctguard.export.sign import check_signing

        if format != "dicom":
            raise typer.BadParameter("only DICOM carries signatures: leave --format out", param_hint="--sign")
        check_signing(*sign)
    reading: dict[str, Any] = {"allow_gaps": allow_gaps, "series_uid": series}
    rest: dict[str, Any] = {"reading": reading, "format": format, "ledger": ledger, "sign": sign}
    if protector == SEAL:
        bound = 0.0 if digest_only else budget_hu or SEAL_HU
        show(*protect_seal(scan, out, key, only_sealed(bound, seed), **rest), as_json)
        return
    if budget_hu is None:
        raise typer.BadParameter("say by how much voxels may change", param_hint="--budget-hu")
    torch_device("cpu")
    effort = Effort(None if refine else steps, refine or None) if refine or steps else None
    settings: dict[str, Any] = {"against": against, "weights": weights, "quiet": quiet}
    if protector == SHIELD_SEAL:
        make = partial(shield_and_seal, budget_hu=budget_hu, seed=seed, effort=effort, **settings)
        both = Sealing(SHIELD_SEAL, budget_hu, seed, make)
        show(*protect_seal(scan, out, key, both, **rest), as_json)
        return
    volume = io.read(scan, **reading)
    with run_folder(out, scan, reading, {"protect": seed}) as run:
        if protector == "shield" and effort is not None:
            settings["steps"] = effort
        elif steps is not None:
            settings["steps"] = steps
        protected, added = protect_scan(volume, protector, budget_hu=budget_hu, seed=seed, **settings)
        facts: dict[str, Json] = {"protector": protector, "budget_hu": budget_hu, **added.to_json()}
        done = protected.provenance.steps[-1].params
        facts |= {name: done[name] for name in ("refine_steps",) if name in done}
        run.note("protection", facts)
        made = write_protected(run.folder, volume, protected, facts, format)
        sign_series(run.folder, sign)
        for path in made:
            run.add_output(path)
    words = f"{out}: {protector} added at most {added.max_hu:.0f} HU, SD {added.sd_hu:.2f} HU"
    show({"scan": str(scan), "out": str(out), **facts}, words, as_json)


@verb
def report(
    run: Annotated[Path, typer.Argument(help="A run folder of tamper, detect or protect.")],
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Build the HTML report of a run folder again."""
    page = rebuild(run)
    show({"run": str(run), "report": str(page)}, str(page), as_json)
