"""What lies under a folder: DICOM series by their headers, volume files and XML, in one pass without pixels.

Which slices make a series, and whether they make a whole one, is decided by io.dicom_series: what the index keeps,
io.read reads.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydicom.dataset import FileDataset

from ctguard.core.console import progress
from ctguard.core.errors import DataError, ReadError
from ctguard.core.geometry import Geometry
from ctguard.io.dicom_series import arrange, choose
from ctguard.io.dicom_slices import Aside, Slice, load, slices_of
from ctguard.io.dicom_values import PARSE_ERRORS

VOLUME_SUFFIXES = (".mha", ".mhd", ".nii", ".nii.gz", ".nrrd")
DICOM_SUFFIXES = (".dcm", ".ima", ".dicom")
_UNCOMPRESSED = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2")


@dataclass(frozen=True)
class Problem:
    """Something under the root that did not become a case, or became one with a caveat."""

    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


@dataclass(frozen=True, eq=False)
class Series:
    """One CT series by its headers.

    name: its SeriesInstanceUID, with "#n" behind it where several reconstructions share that (io.read takes it).
    slices: along the normal, feet first for an axial series. sop_uids: SOPInstanceUID to slice, one-frame files.
    """

    name: str
    patient: str
    study_uid: str
    slices: tuple[Slice, ...]
    geometry: Geometry
    sop_uids: Mapping[str, Slice] = field(repr=False)

    @property
    def series_uid(self) -> str:
        """SeriesInstanceUID."""
        return self.slices[0].series_uid

    @cached_property
    def path(self) -> Path:
        """The one file that holds the series, or the folder that holds all its files."""
        files = {item.file for item in self.slices}
        return Path(files.pop()) if len(files) == 1 else Path(os.path.commonpath(files))

    @property
    def slice_step_mm(self) -> float:
        """Distance of neighbouring slices, by their positions."""
        return self.geometry.spacing_zyx_mm[0]

    def slice_of(self, sop_uid: str) -> Slice | None:
        """The slice with this SOPInstanceUID."""
        return self.sop_uids.get(sop_uid)

    def slice_at_z(self, z_mm: float, tolerance_mm: float = 0.1) -> Slice | None:
        """The slice with this z of ImagePositionPatient."""
        best = min(self.slices, key=lambda item: abs(item.position_mm[2] - z_mm))
        return best if abs(best.position_mm[2] - z_mm) <= tolerance_mm else None


def pixels_to_lps_mm(item: Slice, xy: ArrayLike) -> NDArray[np.float64]:
    """Pixels (..., 2) of a slice, (column, row) from 0 at pixel centres, to LPS points (..., 3).

    DICOM PS3.3 C.7.6.2.1.1, equation C.7.6.2.1-1.
    """
    pixel = np.asarray(xy, dtype=float)
    y_mm, x_mm = item.spacing_yx_mm
    x_axis, y_axis = (np.asarray(axis) for axis in item.axes_lps)
    offset: NDArray[np.float64] = pixel[..., :1] * x_mm * x_axis + pixel[..., 1:] * y_mm * y_axis
    return np.asarray(item.position_mm) + offset


@dataclass(frozen=True, eq=False)
class Found:
    """Everything under a root, sorted by path: whole CT series, volume files, XML files, and what was wrong."""

    series: tuple[Series, ...]
    volumes: tuple[Path, ...]
    xml: tuple[Path, ...]
    problems: tuple[Problem, ...]


@dataclass(eq=False)
class _Group:
    """What was seen of one SeriesInstanceUID. Only what Series needs is kept: an archive has many headers."""

    patient: str
    study_uid: str
    slices: list[Slice] = field(default_factory=list)
    sop_of: dict[str, str] = field(default_factory=dict)


@dataclass(eq=False)
class _Walk:
    """What one pass over the files collects."""

    groups: dict[str, _Group] = field(default_factory=dict)
    broken: set[str] = field(default_factory=set)
    left_out: Counter[str] = field(default_factory=Counter)
    problems: list[Problem] = field(default_factory=list)


def find(root: str | Path, *, allow_gaps: bool = False, quiet: bool = True) -> Found:
    """Walk `root` once and read DICOM headers only.

    Series that io.read would refuse (gaps unless allowed, duplicates, a truncated slice) are left out and reported
    with the reason; objects that are no CT slices are left out and counted; the rest goes on.
    Raises DataError where root is not a folder.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError("there is no such folder", where=root, remedy="give the folder that holds the scans")
    walk = _Walk()
    volumes: list[Path] = []
    xml: list[Path] = []
    files = list(_files(root))
    for path in progress(files, "headers", len(files), quiet=quiet):
        name = path.name.lower()
        if name.endswith(VOLUME_SUFFIXES):
            volumes.append(path)
        elif name.endswith(".xml"):
            xml.append(path)
        elif name.endswith(".zip"):
            walk.left_out["zip archives (unpack them)"] += 1
        else:
            _take_dicom(path, walk)
    series = [one for uid, group in walk.groups.items() for one in _whole_series(uid, group, allow_gaps, walk)]
    walk.problems += [Problem(str(root), f"left out {n} x {what}") for what, n in sorted(walk.left_out.items())]
    ordered = sorted(series, key=lambda one: (str(one.path), one.name))
    return Found(tuple(ordered), tuple(volumes), tuple(xml), tuple(walk.problems))


def _files(root: Path) -> Iterator[Path]:
    """Every visible file once, in a fixed order; linked folders are followed, each once."""
    seen: set[str] = set()
    for folder, names, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            names.clear()
            continue
        seen.add(real)
        names[:] = sorted(name for name in names if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith("."):
                yield Path(folder) / name


def _take_dicom(path: Path, walk: _Walk) -> None:
    """File a CT slice under its series, count what is none, report what is broken."""
    try:
        with path.open("rb") as stream:
            if stream.read(132)[128:] != b"DICM":
                if path.suffix.lower() in DICOM_SUFFIXES:
                    walk.problems.append(Problem(str(path), "is not DICOM: no DICM preamble"))
                return
            stream.seek(0)
            header = load(stream, str(path), pixels=False)
        found = slices_of(header, str(path), pixels=False)
        if isinstance(found, Aside):
            walk.left_out[found.what] += 1
            return
        if found[0].modality != "CT":
            walk.left_out[f"modality {found[0].modality}"] += 1
            return
        uid = found[0].series_uid
        study, patient = str(header.get("StudyInstanceUID") or ""), str(header.get("PatientID") or "").strip()
        group = walk.groups.setdefault(uid, _Group(patient, study))
        group.slices += found
        if len(found) == 1:
            group.sop_of[str(path)] = str(header.get("SOPInstanceUID") or "")
        if _is_cut_off(header, path):
            walk.broken.add(uid)
            walk.problems.append(Problem(str(path), "is truncated: shorter than its pixels"))
    except (ReadError, *PARSE_ERRORS) as error:
        what = error.what if isinstance(error, ReadError) else str(error)
        walk.problems.append(Problem(str(path), what))


def _is_cut_off(header: FileDataset, path: Path) -> bool:
    """Whether an uncompressed file is shorter than its pixels alone; no pixel is read for it."""
    if header.file_meta.get("TransferSyntaxUID") not in _UNCOMPRESSED:
        return False
    frames, samples = int(header.get("NumberOfFrames") or 1), int(header.get("SamplesPerPixel") or 1)
    bits = int(header.Rows) * int(header.Columns) * frames * samples * int(header.get("BitsAllocated") or 16)
    return path.stat().st_size < bits // 8


def _whole_series(uid: str, group: _Group, allow_gaps: bool, walk: _Walk) -> Iterator[Series]:
    """The series that share a SeriesInstanceUID: one, or several reconstructions; each whole, or reported."""
    where = f"{Path(group.slices[0].file).parent} (series {uid})"
    if uid in walk.broken:
        walk.problems.append(Problem(where, "a slice is truncated; left out"))
        return
    for name, slices in _reconstructions(uid, group.slices, Path(where)):
        try:
            stack = arrange(slices, allow_gaps)
        except ReadError as error:
            walk.problems.append(Problem(where, f"{error.what}; left out"))
            continue
        planes = tuple(item for item in stack.planes if item is not None)
        sop_uids = {group.sop_of[item.file]: item for item in planes if item.file in group.sop_of}
        yield Series(name, group.patient, group.study_uid, planes, stack.geometry, sop_uids)


def _reconstructions(uid: str, slices: list[Slice], where: Path) -> Iterator[tuple[str, list[Slice]]]:
    try:
        yield uid, choose(slices, (), uid, where)
    except ReadError:
        for n in range(1, len(slices) + 1):
            try:
                yield f"{uid}#{n}", choose(slices, (), f"{uid}#{n}", where)
            except ReadError:  # there are n - 1
                return


def stem(path: Path) -> str:
    """The file name without its volume suffix (.nii.gz counts as one)."""
    return re.sub(r"(\.nii\.gz|\.[^.]+)$", "", path.name, flags=re.IGNORECASE)
