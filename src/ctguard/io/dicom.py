"""Read a CT series from DICOM: a folder, a zip of one, or a single file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ctguard.core.carried import Carried
from ctguard.core.errors import ReadError
from ctguard.core.marks import Mark
from ctguard.core.provenance import Provenance, Source, Step
from ctguard.core.volume import Volume
from ctguard.io import zipped
from ctguard.io.dicom_pixels import rescaled
from ctguard.io.dicom_series import Stack, arrange, choose
from ctguard.io.dicom_slices import Aside, Slice, load, slices_of

_SUFFIXES = (".dcm", ".dicom", ".ima")


def read_dicom(path: Path, *, allow_gaps: bool = False, series_uid: str | None = None) -> Volume:
    """A CT series as a Volume: hu (z, y, x) in Hounsfield units, int16 where every slope and intercept is whole.

    path: a folder (searched recursively), a zip of one, or one file (a one-slice volume).
    allow_gaps: interpolate missing slices linearly; a provenance step `interpolate_gaps` names them (z indices).
    series_uid: which series, where there are several; as the error message lists them.

    Slices are sorted along the slice normal by ImagePositionPatient (PS3.3 C.7.6.2.1.1), rescaled each with its
    own slope and intercept (C.11.1); padding (C.7.5.1.1.2) is kept. Scouts and objects without voxels (reports,
    segmentations) are set aside. Raises ReadError naming file and remedy, MissingExtraError for a compression
    that needs ctguard[gdcm].
    """
    path = Path(path)
    # One expression, so that no list outlives it: voxels are let go slice by slice.
    stack = arrange(choose(*_collect(path, series_uid), series_uid, path), allow_gaps)
    provenance = _provenance(stack)
    return Volume(_filled(stack), stack.geometry, provenance)


def holds_dicom(folder: Path) -> bool:
    """Whether a folder, or a folder inside it, holds a DICOM file."""
    return any(_is_dicom(file) for file in _files(folder))


@contextmanager
def opened(file: str) -> Iterator[BinaryIO]:
    """A DICOM file, or a member of a zip archive, by the name that Source.files gives. Raises ReadError."""
    path = Path(file)
    if not path.is_file():
        yield zipped.open_member(file)
        return
    try:
        with path.open("rb") as stream:
            yield stream
    except OSError as error:
        raise ReadError(f"cannot be opened ({error.strerror})", where=file, remedy="check its permissions") from error


def _files(folder: Path) -> Iterator[Path]:
    """Every visible file below a folder, in the order of names."""
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(root) / name for name in sorted(names) if not name.startswith("."))


def _is_dicom(file: Path) -> bool:
    try:
        with file.open("rb") as stream:
            return _magic(stream)
    except OSError as error:
        raise ReadError(f"cannot be opened ({error.strerror})", where=file, remedy="check its permissions") from error


def _magic(stream: BinaryIO) -> bool:
    """Whether a stream begins with the preamble of PS3.10 7.1; leaves it at its start."""
    head = stream.read(132)
    stream.seek(0)
    return head[128:] == b"DICM"


def _streams(path: Path) -> Iterator[tuple[str, BinaryIO]]:
    """Every candidate file with its name, opened for as long as the caller looks at it."""
    if path.is_dir():
        for file in _files(path):
            with opened(str(file)) as stream:
                yield str(file), stream
    elif not path.is_file():
        raise ReadError("does not exist", where=path, remedy="give a DICOM folder, a zip of one, or a file")
    elif zipped.is_zip(path):
        yield from zipped.members(path)
    else:
        with opened(str(path)) as stream:
            yield str(path), stream


def _collect(path: Path, series_uid: str | None) -> tuple[list[Slice], list[Aside]]:
    """Read every file once, header and pixels together; keep the pixels of slices alone."""
    slices: list[Slice] = []
    asides: list[Aside] = []
    wanted = None if series_uid is None else series_uid.partition("#")[0]
    for name, stream in _streams(path):
        if not _magic(stream):
            if name == str(path) or name.lower().endswith(_SUFFIXES):
                raise ReadError(
                    "is not DICOM: no DICM preamble",
                    where=name,
                    remedy="give a DICOM folder or file; add a lost file header with dcmconv",
                )
            continue
        ds = load(stream, name)
        found = slices_of(ds, name, pixels=wanted is None or ds.get("SeriesInstanceUID") == wanted)
        if isinstance(found, Aside):
            asides.append(found)
        else:
            slices.extend(found)
    return slices, asides


def _provenance(stack: Stack) -> Provenance:
    present = [item for item in stack.planes if item is not None]
    first = present[0]
    padding = next((s.padding * s.slope + s.intercept for s in present if s.padding is not None), None)
    marks: tuple[Mark, ...] = ()
    for item in present:  # One marked slice marks the volume.
        marks += tuple(mark for mark in item.marks if mark not in marks)
    carried = Carried(
        steps=next((item.carried.steps for item in present if item.carried.steps), ()),
        marks=marks,
        padding_hu=next((item.carried.padding_hu for item in present if item.carried.padding_hu is not None), None),
    )
    source = Source(
        format="dicom",
        files=tuple("" if item is None else item.file for item in stack.planes),
        series_uid=first.series_uid,
        patient_id=first.patient_id,
        kernel=first.kernel,
        padding_hu=padding,
        deidentified=all(item.deidentified for item in present),
    )
    provenance = carried.onto(source)
    missing = [z for z, item in enumerate(stack.planes) if item is None]
    return provenance.then(Step("interpolate_gaps", {"slices": list(missing)})) if missing else provenance


def _filled(stack: Stack) -> NDArray[Any]:
    """The voxels; stored slices are let go one by one, so that both never exist whole."""
    planes = stack.planes
    whole = all(item.whole for item in planes if item is not None)
    hu = np.empty(stack.geometry.shape_zyx, dtype=np.int16 if whole else np.float32)
    missing = []
    for z, item in enumerate(planes):
        if item is None:
            missing.append(z)
        elif item.stored is not None:
            rescaled(item.stored, item.slope, item.intercept, hu[z])
        planes[z] = None
    _interpolate(hu, missing)
    return hu


def _interpolate(hu: NDArray[Any], missing: list[int]) -> None:
    present = np.setdiff1d(np.arange(len(hu)), missing)
    for z in missing:
        below, above = present[present < z].max(), present[present > z].min()
        weight = (z - below) / (above - below)
        plane = (1 - weight) * hu[below].astype(np.float64) + weight * hu[above].astype(np.float64)
        hu[z] = np.rint(plane) if hu.dtype == np.int16 else plane
