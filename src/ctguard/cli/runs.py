"""What the run folders of tamper, detect and protect hold, and how their reports are built again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctguard.cli.common import command_line
from ctguard.core.console import log
from ctguard.core.errors import CtguardError, ReadError

if TYPE_CHECKING:
    from ctguard.core.provenance import Json
    from ctguard.core.records import Edit, Verdict
    from ctguard.core.volume import Volume
    from ctguard.io.manifest import RunManifest
    from ctguard.report.html import Section
    from ctguard.synth.forge import Clock

RUN, REPORT, VERDICT, EDIT = "run.json", "report.html", "verdict.json", "edit.json"
MAP, MASK, STRONG, WORST = "map.nii.gz", "mask.nii.gz", "strong.nii.gz", "worst.png"
SERIES = {"dicom": "series", **{ending: f"series.{ending}" for ending in ("mha", "nii.gz", "nrrd", "tiff")}}
VERDICT_TITLE, FORGERY_TITLE, PROTECTED_TITLE = "Has this scan been tampered with?", "A forgery", "A protected copy"


@contextmanager
def run_folder(out: Path, scan: Path, reading: dict[str, Json], seeds: dict[str, int]) -> Iterator[RunManifest]:
    """A folder that becomes `out` at the end, with its run.json; nothing is left where the work fails.

    reading: the options of io.read, so that the report can be built again.
    """
    from ctguard.io.atomic import atomic_folder
    from ctguard.io.manifest import RunManifest

    with atomic_folder(out) as stage, RunManifest(stage, command_line.get(), seeds) as run:
        run.add_input(scan)
        run.note("reading", reading)
        yield run


def write_forgery(
    folder: Path, volume: Volume, forged: Volume, edit: Edit, format: str = "dicom", clock: Clock | None = None
) -> list[Path]:
    """The forged series, its ground truth and the report; the forging is logged (MISUSE.md).

    edit.json holds site, sizes and Plan; mask.nii.gz is 1 where a voxel changed (holes filled), strong.nii.gz where it
    changed by more than half the local noise. Both lie on the scan's grid.
    """
    from ctguard import io
    from ctguard.core.geometry import index_to_lps_mm
    from ctguard.io.manifest import sha256_array
    from ctguard.report.html import tamper_sections, write_report
    from ctguard.synth.forge import Clock, edit_summary, log_forging

    clock = clock or Clock()
    folder.mkdir(parents=True, exist_ok=True)
    point = index_to_lps_mm(volume.geometry, edit.center_zyx).round(2).tolist()
    made = [io.write(forged, folder / SERIES[format]), folder / EDIT]
    clock.lap("write")
    _write_json(folder / EDIT, {**edit_summary(volume, edit), "center_lps_mm": point})
    for name, part in ((MASK, edit), (STRONG, replace(edit, mask=edit.strong))):
        mask = part.full_mask(volume.geometry.shape_zyx).astype("int16")
        made.append(io.write(type(forged)(mask, forged.geometry, forged.provenance), folder / name))
    clock.lap("masks")
    made.append(write_report(folder, FORGERY_TITLE, tamper_sections(volume, forged, edit)))
    clock.lap("report")
    log_forging(edit.plan, sha256_array(volume.hu), sha256_array(forged.hu))
    clock.lap("log")
    return made


def write_verdict(folder: Path, scan: Path, volume: Volume, verdict: Verdict) -> list[Path]:
    """verdict.json, map.nii.gz (float32, 0..1, on the scan's grid), the report, and its first picture as worst.png."""
    from ctguard import io
    from ctguard.report.html import Picture, verdict_sections, write_report

    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / VERDICT, {**verdict_facts(scan, verdict), "model_id": verdict.model_id})
    map_ = io.write(type(volume)(verdict.map, verdict.geometry, volume.provenance), folder / MAP)
    sections = verdict_sections(volume, verdict)
    (folder / WORST).write_bytes(next(block.png for block in sections[0].blocks if isinstance(block, Picture)))
    return [folder / VERDICT, map_, write_report(folder, VERDICT_TITLE, sections), folder / WORST]


def write_dicom_results(folder: Path, volume: Volume, verdict: Verdict) -> list[Path]:
    """seg.dcm, map.dcm, key.dcm and sr.dcm, where the scan was read from DICOM; else it says why there are none."""
    if volume.provenance.source.format != "dicom":
        log.info("no seg.dcm, map.dcm and sr.dcm: they refer to the images of a DICOM series, and this scan is none")
        return []
    from ctguard.export.results import MAP as HEAT
    from ctguard.export.results import SEG, write_results

    try:
        made = write_results(volume, verdict, folder)
    except CtguardError as error:
        log.warning("no seg.dcm, map.dcm and sr.dcm: %s", error)
        return []
    names = [path.name for path in made]
    if SEG not in names:
        log.info("no %s: the verdict names no region, and a segmentation cannot be empty", SEG)
    if HEAT not in names:
        log.info("no %s: this detector does not say where", HEAT)
    return made


def write_protected(
    folder: Path, volume: Volume, protected: Volume, facts: dict[str, Json], format: str = "dicom"
) -> list[Path]:
    """The protected series and the report."""
    from ctguard import io
    from ctguard.report.html import write_report

    folder.mkdir(parents=True, exist_ok=True)
    report = write_report(folder, PROTECTED_TITLE, protect_sections(volume, protected, facts))
    return [io.write(protected, folder / SERIES[format]), report]


def sign_series(folder: Path, key_and_certificate: tuple[Path, Path] | None) -> None:
    """Sign the DICOM series that a run folder holds, where a key and its certificate were given."""
    if key_and_certificate is not None:
        from ctguard.export.sign import sign_files

        sign_files(sorted((folder / SERIES["dicom"]).glob("*.dcm")), *key_and_certificate)


def verdict_facts(scan: Path, verdict: Verdict) -> dict[str, Any]:
    """A verdict as `detect --json` prints it, without seconds and memory."""
    return {
        "scan": str(scan),
        "detector": verdict.detector,
        "score": verdict.score,
        "threshold": verdict.threshold,
        "tampered": verdict.tampered,
        "regions": [region.to_json() for region in verdict.regions],
    }


def protect_sections(original: Volume, protected: Volume, facts: dict[str, Any]) -> list[Section]:
    """What a protection added: its size in HU, and the middle of what it changed in three planes."""
    import numpy as np

    from ctguard.core.geometry import as_float_triple
    from ctguard.report.figures import site_figure
    from ctguard.report.html import Grid, Picture, Section

    changed = np.argwhere(protected.hu != original.hu)
    place = as_float_triple(changed.mean(axis=0) if len(changed) else np.zeros(3))
    picture = Picture(
        site_figure(original, protected, center_zyx=place),
        "Original, protected copy and their difference in three planes",
        "Original, protected copy and their difference in HU, at the middle of what was changed, lung window.",
    )
    return [Section("Protection", (Grid([(name.replace("_", " "), value) for name, value in facts.items()]), picture))]


def rebuild(run: Path) -> Path:
    """Write report.html into a run folder of detect, tamper or protect, and return its path.

    Raises ReadError where the folder is no such run, or the scan that it was made from is gone or another one.
    """
    from ctguard import io
    from ctguard.report.html import tamper_sections, verdict_sections, write_report

    record = _read_json(run / RUN)
    verb = (*record.get("command", ()), "", "")[1]
    if verb not in ("detect", "tamper", "protect"):
        raise ReadError("it is no run of detect, tamper or protect", where=run, remedy="give such a folder")
    volume = _source(run, record)
    if verb == "detect":
        return write_report(run, VERDICT_TITLE, verdict_sections(volume, _verdict(run)))
    changed = io.read(_series(run))
    if verb == "tamper":
        return write_report(run, FORGERY_TITLE, tamper_sections(volume, changed, _edit(run)))
    return write_report(run, PROTECTED_TITLE, protect_sections(volume, changed, record["notes"]["protection"]))


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        remedy = "give a run folder of detect, tamper or protect"
        raise ReadError("it is not there", where=path, remedy=remedy) from None
    except ValueError as error:
        raise ReadError(f"it is damaged ({error})", where=path, remedy="run the verb again") from error
    if not isinstance(found, dict):
        raise ReadError("it is damaged (no JSON object)", where=path, remedy="run the verb again")
    return found


def _source(run: Path, record: dict[str, Any]) -> Volume:
    """The scan that a run was made from, checked against its hash."""
    from ctguard import io
    from ctguard.io.manifest import sha256_path

    (name, sha), *_ = record["inputs"].items()
    if not Path(name).exists():
        raise ReadError(f"the scan {name} of this run is gone", where=run, remedy="call it from the same folder")
    if sha256_path(name) != sha:
        raise ReadError(f"the scan {name} is not that of this run any more", where=run, remedy="run the verb again")
    return io.read(name, **record["notes"]["reading"])


def _series(run: Path) -> Path:
    found = next((run / name for name in SERIES.values() if (run / name).exists()), None)
    if found is None:
        raise ReadError("it holds no series", where=run, remedy="run the verb again")
    return found


def _verdict(run: Path) -> Verdict:
    from ctguard import io
    from ctguard.core.records import Verdict

    map_ = io.read(run / MAP)
    return Verdict.from_json(_read_json(run / VERDICT), map_.hu, map_.geometry)


def _edit(run: Path) -> Edit:
    """The ground truth of a tamper run."""
    from ctguard import io
    from ctguard.core.records import Edit

    truth = _read_json(run / EDIT)
    box = tuple(slice(a, a + n) for a, n in zip(truth["box_start_zyx"], truth["box_shape_zyx"], strict=True))
    mask, strong = (io.read(run / name).hu[box] > 0 for name in (MASK, STRONG))
    return Edit(
        task=truth["task"],
        generator=truth["generator"],
        mode=truth["mode"],
        seed=truth["plan"]["seed"],
        center_zyx=tuple(truth["center_zyx"]),
        box_start_zyx=tuple(truth["box_start_zyx"]),
        mask=mask,
        strong=strong,
        outside_cube=truth["changed_outside_cube"],
        plan=truth["plan"],
    )
