"""M3Dsynth's released stacks as a data set that `train` and `bench` take: changed blocks beside the pristine scans.

OUT holds index.csv (the pristine scans, with the published split), forgeries.jsonl and NAME.npz as `ctguard synth`
writes them. The label stack is the ground truth; what differs between the two stacks is the forgery. No Plan is known
that would replay it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctguard import io
from ctguard.cohort import m3dsynth
from ctguard.core.console import log
from ctguard.core.errors import DataError
from ctguard.core.geometry import as_float_triple, as_int_triple
from ctguard.core.provenance import Json
from ctguard.core.records import Case
from ctguard.core.volume import Volume
from ctguard.image.box import mask_box
from ctguard.io.cases import case_path, read_case, read_cases, write_cases
from ctguard.io.forgeries import Forgery, write_forgery, write_manifest
from ctguard.io.tiff import read_label_stack, read_tiff
from ctguard.parallel import map_cases
from ctguard.synth.forge import measure_edit
from ctguard.synth.sites import RELEASED_NAMES, entry_of
from ctguard.tamper.cube import Box
from ctguard.tamper.pipeline import make_plan

INDEX = "index.csv"
_WIDER = 8
_AGREE = 0.99
_OUR_NAMES = {theirs: ours for ours, theirs in RELEASED_NAMES.items()}


@dataclass(frozen=True)
class _Series:
    """A pristine scan, its stack and its sites. silent: the stacks hold stored values; the case is the original."""

    case: Case
    stack: Path
    sites: tuple[m3dsynth.Site, ...]
    silent: bool


def import_release(
    root: str | Path, tables: str | Path, out: str | Path, originals: str | Path | None = None, *, jobs: int = 1
) -> str:
    """Make the folder `out` of the download at `root`; return what was made, and what the download lacks, in words.

    tables: the folder of data.csv, sets.csv, LIDC.csv and centers.csv. originals: an index of LIDC-IDRI's series. The
    authors' stacks hold stored values and say neither what to add to them nor their spacing: then the scan is read from
    the original, and its stack is compared with it. Stacks of `ctguard synth --format tiff` say both themselves.

    A series that cannot be read or compared is reported and left out. Raises DataError where none is left.
    """
    root, out = Path(root), Path(out)
    out.mkdir(parents=True, exist_ok=True)
    series, missing = _pristine(root, m3dsynth.read_tables(tables), out, originals)
    done: list[Case] = []
    names: list[str] = []
    work = partial(_import_series, root=root, out=out)
    for result in map_cases(work, series, jobs=jobs, label="stacks"):
        if result.error is not None:
            log.warning("%s left out: %s", result.item.case.scan_id, " ".join(str(result.error).split()))
            continue
        made, lost = result.unwrap()
        done.append(result.item.case)
        names += made
        missing += lost
    if not names:
        raise DataError(
            "no forged scan could be taken from it", where=root, remedy="unpack real, scan and label stacks"
        )
    write_cases(done, out / INDEX)
    write_manifest([{"forgery": name} for name in names], INDEX, out)
    return f"{len(names)} forged scans of {len(done)} pristine ones; {missing} stacks are missing"


def _pristine(root: Path, known: m3dsynth.Tables, out: Path, originals: str | Path | None) -> tuple[list[_Series], int]:
    """The series whose pristine stack is there, and how many are not."""
    found: dict[tuple[str, str], Case] = {}
    for case in [] if originals is None else read_cases(originals):
        entry = entry_of(known, case)
        if entry is not None:
            path = os.path.relpath(case_path(Path(originals or ""), case), out)
            found[entry.patient, entry.series_number] = replace(case, path=Path(path).as_posix())
    series, missing = [], 0
    for entry in known.series:
        sites = known.of_entry(entry)
        stacks = [root / "real" / "scan" / site.site_id for site in sites]
        stack = next((path for path in stacks if path.is_dir()), None)
        if stack is None:
            missing += bool(sites)
            continue
        original = found.get((entry.patient, entry.series_number))
        path = Path(os.path.relpath(stack, out)).as_posix() if original is None else original.path
        case = Case(f"{entry.patient}_{entry.series_number}", entry.patient, path, "M3Dsynth")
        uid = "" if original is None else original.series_uid
        series.append(_Series(replace(case, series_uid=uid, split=sites[0].split), stack, sites, original is not None))
    return series, missing


def _import_series(item: _Series, *, root: Path, out: Path) -> tuple[list[str], int]:
    """Write the forgeries of one series; their names, and how many stacks are not there."""
    pristine = read_case(out / INDEX, item.case)
    offset = _offset(item.stack, pristine) if item.silent else None
    names, missing = [], 0
    for site in item.sites:
        for generator in site.generators:
            scan, label = m3dsynth.released_scan(root, site, generator)
            if not (scan.is_dir() and label.is_dir()):
                missing += 1
                continue
            forged = _hu(scan, pristine, offset)
            names.append(
                _write(item.case, site, generator, pristine, forged, read_label_stack(label, pristine.geometry), out)
            )
    return names, missing


def _write(
    case: Case,
    site: m3dsynth.Site,
    generator: str,
    pristine: Volume,
    forged: NDArray[Any],
    label: NDArray[np.bool_],
    out: Path,
) -> str:
    """Write one forgery: the smallest box that holds its label and all that changed."""
    center = as_float_triple(m3dsynth.place(site, pristine.geometry).center_zyx)
    name = _OUR_NAMES.get(generator, generator)
    plan = make_plan(site.task, name, center, mode="m3dsynth", core_mm=None, seed=0)
    touched = mask_box(label | (forged != pristine.hu))
    if touched is None:
        raise DataError(f"{generator} changed nothing at {site.site_id}", where=case.scan_id, remedy="copy it again")
    start = as_int_triple([side.start for side in touched])
    box = Box(start, as_int_triple([side.stop - side.start for side in touched]))
    context = box.widened(_WIDER).inside(pristine.geometry.shape_zyx)
    edit = measure_edit(pristine, context, forged[context.slices()], plan)
    strong = np.zeros(box.shape_zyx, dtype=bool)
    strong[Box(edit.box_start_zyx, as_int_triple(edit.strong.shape)).slices(start)] = edit.strong
    origin: dict[str, Json] = {"generator": name, "task": site.task, "site": site.site_id, "source": "M3Dsynth"}
    edit = replace(edit, box_start_zyx=start, mask=label[box.slices()], strong=strong, plan=origin)
    forgery = Forgery(case.scan_id, edit, forged[box.slices()].copy())
    write_forgery(forgery, out)
    return forgery.name


def _hu(stack: Path, pristine: Volume, offset: int | None) -> NDArray[Any]:
    """A stack in Hounsfield units on the pristine scan's grid. offset: of one that does not say it."""
    hu = io.read(stack).hu if offset is None else _pixels(stack, pristine) - offset
    if hu.shape != pristine.hu.shape:
        what = f"its shape {hu.shape} is not that of the pristine scan, {pristine.hu.shape}"
        raise DataError(what, where=stack, remedy="copy it again from where it came")
    return hu.astype(pristine.hu.dtype)


def _pixels(stack: Path, pristine: Volume) -> NDArray[Any]:
    return read_tiff(stack, spacing_zyx_mm=pristine.geometry.spacing_zyx_mm, offset=0).hu.astype(np.int32)


def _offset(stack: Path, original: Volume) -> int:
    """What the pristine stack has more than the original, everywhere. Raises DataError where that is not one number."""
    pixels = _pixels(stack, original)
    if pixels.shape == original.hu.shape:
        more = np.rint(pixels - original.hu).astype(np.int64)
        offset = int(np.median(more))
        if (more == offset).mean() >= _AGREE:
            return offset
    what = f"it is not the scan of {original.provenance.source.series_uid}, plus one number"
    raise DataError(what, where=stack, remedy="give the index of the series that it was made from")
