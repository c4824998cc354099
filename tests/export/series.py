"""An asymmetric phantom as DICOM, with bright voxels where tampering is suspected, and readers that share no code.

Where the bright voxels lie in the patient is told by the source's files alone, with pydicom and the equation of
PS3.3 C.7.6.2.1.1: neither the reader under test nor highdicom has a hand in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from ctguard.core.records import Verdict
from ctguard.core.volume import Volume
from ctguard.detect.regions import find_regions
from tests.io.dicom_factory import AXIAL, CORONAL, SAGITTAL, Edit, make_series

BRIGHT, LESS_BRIGHT = 3000, 2500
"""Stored values of the first and of the second suspected region."""
_C, _S = float(np.cos(0.5)), float(np.sin(0.5))
OBLIQUE = (_C, _S * 0.6, -_S * 0.8, -_S, _C * 0.6, -_C * 0.8)
ORIENTATIONS: dict[str, Sequence[float]] = {
    "axial": AXIAL,
    "normal points to the feet": (1.0, 0.0, 0.0, 0.0, -1.0, 0.0),
    "feet first": (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0),
    "coronal": CORONAL,
    "sagittal": SAGITTAL,
    "oblique": OBLIQUE,
}
MODEL = "0123456789abcdef" * 4

Points = set[tuple[float, float, float]]


def marked_values(slices: int = 9, shape_yx: tuple[int, int] = (24, 36)) -> NDArray[Any]:
    """Stored values (z, y, x): two L-shaped bodies, no two axes or directions of which look alike."""
    stored = np.random.default_rng(5).integers(0, 500, (slices, *shape_yx))
    stored[1:4, 3:5, 2:12] = BRIGHT
    stored[1, 3:14, 2:4] = BRIGHT
    stored[3:6, 18:22, 25:33] = LESS_BRIGHT
    stored[5, 12:22, 31:33] = LESS_BRIGHT
    return stored


def make_marked(
    folder: Path, orientation: Sequence[float] = AXIAL, edit: Edit | None = None, *, from_the_head: bool = False
) -> Path:
    """The phantom as a series; from_the_head: names and instance numbers run against the normal."""
    stored = marked_values()
    names = [f"IM-{len(stored) - z if from_the_head else z:04d}.dcm" for z in range(len(stored))]

    def numbered(ds: Dataset, z: int) -> None:
        ds.InstanceNumber = len(stored) - z if from_the_head else z + 1
        if edit is not None:
            edit(ds, z)

    return make_series(folder, stored, numbered, orientation=orientation, names=names)


def verdict_of(volume: Volume, *, tampered: bool = True, localises: bool = True) -> Verdict:
    """What a detector would say that sees bright voxels; the map tells the two bodies apart and is never flat."""
    map_ = np.zeros(volume.hu.shape, dtype=np.float32)
    score = 0.9 if tampered else 0.2
    if localises:
        map_ = (0.01 + np.abs(volume.hu.astype(np.float32)) / 1e5).astype(np.float32)
        map_[volume.hu == BRIGHT - 1024] = score
        map_[volume.hu == LESS_BRIGHT - 1024] = 0.8 * score
    regions = find_regions(map_, volume.geometry, 0.5, peak=0.6) if tampered and localises else ()
    return Verdict("unet", MODEL, score, 0.6, map_, volume.geometry, regions)


def bright_points(files: Sequence[Path], stored: int) -> Points:
    """Where voxels of this stored value lie, LPS mm, told by single-frame files."""
    found: Points = set()
    for file in files:
        ds = pydicom.dcmread(file)
        pixels = np.frombuffer(ds.PixelData, "<u2").reshape(ds.Rows, ds.Columns)
        found |= points(np.argwhere(pixels == stored), ds.ImagePositionPatient, ds.ImageOrientationPatient)
    return found


def points(rows_columns: NDArray[Any], position: Any, orientation: Any, spacing: Any = (0.7, 0.8)) -> Points:
    """PS3.3 C.7.6.2.1.1: pixels (row, column) of one plane to LPS millimetres, to a hundredth."""
    along_row, along_column = np.array(orientation, dtype=float).reshape(2, 3)
    between_rows, between_columns = (float(v) for v in spacing)
    place = np.array(position, dtype=float)
    return {
        _rounded(place + column * between_columns * along_row + row * between_rows * along_column)
        for row, column in rows_columns
    }


def affine_points(indices: NDArray[Any], affine: NDArray[Any]) -> Points:
    """Indices (n, 3) through a 4 x 4 affine, as highdicom's volumes have one."""
    return {_rounded(affine[:3, :3] @ index + affine[:3, 3]) for index in indices}


def frame_points(ds: Dataset, frame: int, wanted: NDArray[np.bool_]) -> Points:
    """Where the wanted pixels of one frame of a multi-frame object lie, from its functional groups."""
    shared, own = ds.SharedFunctionalGroupsSequence[0], ds.PerFrameFunctionalGroupsSequence[frame]
    return points(
        np.argwhere(wanted),
        own.PlanePositionSequence[0].ImagePositionPatient,
        shared.PlaneOrientationSequence[0].ImageOrientationPatient,
        shared.PixelMeasuresSequence[0].PixelSpacing,
    )


def _rounded(point: NDArray[Any]) -> tuple[float, float, float]:
    x, y, z = (round(float(v), 2) + 0.0 for v in point)
    return x, y, z
