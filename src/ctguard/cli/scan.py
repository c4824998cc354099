"""Verbs on one scan: tamper, detect, protect, report."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ctguard.cli.common import (
    TAMPERED,
    AllowGaps,
    AsJson,
    Device,
    Quiet,
    Scan,
    Seed,
    Series,
    command_line,
    show,
    torch_device,
    triple,
    verb,
)

if TYPE_CHECKING:
    from ctguard.core.geometry import FloatTriple, Geometry
    from ctguard.core.records import Verdict
    from ctguard.core.volume import Volume

At = Annotated[str | None, typer.Option("--at", metavar="Z,Y,X", help="The site as voxel index.")]
AtMm = Annotated[str | None, typer.Option("--at-mm", metavar="X,Y,Z", help="The site in patient space (LPS), mm.")]
Weights = Annotated[Path | None, typer.Option(help="Your own weights, a .safetensors with its card beside it.")]
Format = Annotated[
    Literal["dicom", "mha", "nifti", "nrrd", "tiff"], typer.Option(help="Of the series that is written.")
]
_SERIES = {
    "dicom": "series",
    "mha": "series.mha",
    "nifti": "series.nii.gz",
    "nrrd": "series.nrrd",
    "tiff": "series.tiff",
}


@verb
def tamper(
    scan: Scan,
    out: Annotated[Path, typer.Argument(help="A new folder for series/, edit.json, mask.nii.gz and run.json.")],
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
    from ctguard.io.atomic import atomic_folder
    from ctguard.io.manifest import RunManifest
    from ctguard.synth import Request, edit_summary, log_forging, tamper_scan

    torch_device("cpu")
    volume = io.read(scan, allow_gaps=allow_gaps, series_uid=series)
    request = Request(task, _site(volume.geometry, at, at_mm), generator, mode, core_mm, seed)
    with atomic_folder(out) as stage, RunManifest(stage, command_line.get(), {"plan": seed}) as run:
        place = None if donor is None else triple(donor, "--donor")
        forged, edit, seconds = tamper_scan(volume, request, weights=weights, donor_zyx=place)
        written = io.write(forged, stage / _SERIES[format])
        truth = edit_summary(volume, edit)
        (stage / "edit.json").write_text(json.dumps(truth, indent=1) + "\n", encoding="utf-8")
        mask = edit.full_mask(volume.geometry.shape_zyx).astype("int16")
        io.write(type(forged)(mask, forged.geometry, forged.provenance), stage / "mask.nii.gz")
        source_sha = run.add_input(scan)
        forged_sha = run.add_output(written)
        run.add_output(stage / "edit.json")
        run.add_output(stage / "mask.nii.gz")
        run.note("seconds", {name: round(value, 3) for name, value in seconds.items()})
        log_forging(edit.plan, source_sha, forged_sha)
    words = f"{out}: {task} by {generator} at {truth['center_zyx']} (z, y, x), {truth['changed_mm3']:.0f} mm3 changed"
    show({"scan": str(scan), "out": str(out), **truth}, words, as_json)


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
    detector: Annotated[str, typer.Option(help="A detector of `ctguard models`.")] = "unet",
    out: Annotated[Path | None, typer.Option(help="New folder for verdict.json, map.nii.gz, report.html.")] = None,
    fast: Annotated[bool, typer.Option("--fast", help="The lungs only, and fewer of thin slices.")] = False,
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
    from ctguard.core.errors import ModelError
    from ctguard.detect.infer import detect_volume
    from ctguard.io.manifest import peak_mb

    started = time.perf_counter()
    place = torch_device(device)
    volume = io.read(scan, allow_gaps=allow_gaps, series_uid=series)
    network, card = zoo.load(zoo.find(detector, "detector"), weights)
    if card.threshold is None:
        raise ModelError("its card has no threshold", where=card.name, remedy="calibrate it on pristine scans")
    verdict = detect_volume(
        volume, network, name=detector, model_id=card.sha256, threshold=card.threshold, fast=fast, device=place
    )
    facts = verdict_facts(scan, verdict)
    facts |= {"seconds": round(time.perf_counter() - started, 2), "peak_mb": peak_mb()}
    if out is not None:
        _write_verdict(out, scan, volume, verdict, facts)
    show(facts, verdict_words(verdict), as_json)
    if fail_if_tampered and verdict.tampered:
        raise typer.Exit(TAMPERED)


def verdict_facts(scan: Path, verdict: Verdict) -> dict[str, Any]:
    """A verdict as `detect --json` prints it, without seconds and memory."""
    return {
        "scan": str(scan),
        "detector": verdict.detector,
        "score": round(verdict.score, 6),
        "threshold": verdict.threshold,
        "tampered": verdict.tampered,
        "regions": [region.to_json() for region in verdict.regions],
    }


def verdict_words(verdict: Verdict) -> str:
    """A verdict for people, a line for each region."""
    lines = [f"{verdict.words} ({verdict.detector}: score {verdict.score:.3f}, threshold {verdict.threshold:.3f})"]
    for region in verdict.regions:
        site, extent = (", ".join(f"{v:.0f}" for v in values) for values in (region.center_zyx, region.extent_mm))
        lines.append(f"  score {region.score:.3f} at {site} (z, y, x), {extent} mm")
    return "\n".join(lines)


def _write_verdict(out: Path, scan: Path, volume: Volume, verdict: Verdict, facts: dict[str, Any]) -> None:
    """The folder of `detect --out`."""
    from ctguard import io
    from ctguard.io.atomic import atomic_folder
    from ctguard.io.manifest import RunManifest

    with atomic_folder(out) as stage, RunManifest(stage, command_line.get()) as run:
        run.add_input(scan)
        fixed = {key: value for key, value in facts.items() if key not in ("seconds", "peak_mb")}
        (stage / "verdict.json").write_text(json.dumps(fixed, indent=1) + "\n", encoding="utf-8")
        io.write(type(volume)(verdict.map, verdict.geometry, volume.provenance), stage / "map.nii.gz")
        for name in ("verdict.json", "map.nii.gz"):
            run.add_output(stage / name)


@verb
def protect(
    scan: Scan,
    out: Annotated[Path, typer.Argument(help="A new folder for series/ and run.json.")],
    protector: Annotated[str, typer.Option(help="A protector of `ctguard models`.")],
    budget_hu: Annotated[float, typer.Option("--budget-hu", min=1.0, help="No voxel changes by more.")],
    series: Series = None,
    allow_gaps: AllowGaps = False,
    seed: Seed = 0,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """A copy of the scan that is hard to forge."""
    raise NotImplementedError


@verb
def report(
    run: Annotated[Path, typer.Argument(help="A run folder of demo, tamper, detect or protect.")],
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Build the HTML report of a run folder again."""
    raise NotImplementedError
