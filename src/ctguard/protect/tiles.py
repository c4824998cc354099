"""Squares of 8 mm in a slice, each of four cells of 4 mm: the unit of digest and pattern.

All is done slice by slice, so that a sub-range, a reordered or an incomplete series can still be judged. What a cell
holds is bound by its mean in HU, in steps of `STEP_HU`: the pattern adds up to zero in each cell, so that the mean,
and with it the code, is the same before and after it was added, to the last bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctguard.core.geometry import FloatTriple, IntTriple

STEP_HU = 24.0
CELL_MM = 4.0
FLOOR_HU = -1024
_AIR_HU = -960.0  # air around the patient and in wide airways carries no pattern
_DENSE_HU = 1500.0

Pair = tuple[int, int]


@dataclass(frozen=True)
class Tiling:
    """Cells of `cell_yx` voxels on slices of `shape_yx`, two by two in a tile; whole tiles only, from (0, 0) on."""

    shape_yx: Pair
    cell_yx: Pair

    @property
    def tile_yx(self) -> Pair:
        """Voxels of a tile."""
        return 2 * self.cell_yx[0], 2 * self.cell_yx[1]

    @property
    def rows(self) -> int:
        """Whole tiles along y."""
        return self.shape_yx[0] // self.tile_yx[0]

    @property
    def columns(self) -> int:
        """Whole tiles along x."""
        return self.shape_yx[1] // self.tile_yx[1]

    @property
    def cell_size(self) -> int:
        """Voxels of a cell."""
        return self.cell_yx[0] * self.cell_yx[1]

    def cut(self, plane: NDArray[Any], start_yx: Pair = (0, 0)) -> NDArray[Any]:
        """A slice (y, x) as tiles (rows, columns, 4, cell voxels), from `start_yx` on."""
        (cy, cx), (y0, x0) = self.cell_yx, start_yx
        rows, columns = (plane.shape[0] - y0) // (2 * cy), (plane.shape[1] - x0) // (2 * cx)
        part = plane[y0 : y0 + rows * 2 * cy, x0 : x0 + columns * 2 * cx]
        cells = part.reshape(rows, 2, cy, columns, 2, cx).transpose(0, 3, 1, 4, 2, 5)
        return cells.reshape(rows, columns, 4, cy * cx)

    def join(self, tiles: NDArray[Any], onto: NDArray[Any]) -> NDArray[Any]:
        """A copy of a slice (y, x) with its tiles replaced."""
        (cy, cx), (rows, columns) = self.cell_yx, tiles.shape[:2]
        plane = onto.copy()
        cells = tiles.reshape(rows, columns, 2, 2, cy, cx).transpose(0, 2, 4, 1, 3, 5)
        plane[: rows * 2 * cy, : columns * 2 * cx] = cells.reshape(rows * 2 * cy, columns * 2 * cx)
        return plane


def tiling_for(shape_zyx: IntTriple, spacing_zyx_mm: FloatTriple) -> Tiling:
    """The tiling of a grid: cells of about 4 mm, at least 4 and at most 16 voxels wide."""
    cy, cx = (int(np.clip(round(CELL_MM / mm), 4, 16)) for mm in spacing_zyx_mm[1:])
    return Tiling((shape_zyx[1], shape_zyx[2]), (cy, cx))


def cell_means(tiles_hu: NDArray[Any], floor_hu: float = FLOOR_HU) -> NDArray[np.float64]:
    """Mean of each cell (…, 4), HU, for tiles (…, 4, n), with padding taken for air."""
    return np.asarray(np.maximum(tiles_hu, np.asarray(floor_hu, dtype=tiles_hu.dtype)).mean(axis=-1, dtype=np.float64))


def eligible(means_hu: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which tiles (…) carry the pattern, by their cell means (…, 4): tissue and lung.

    The same before and after the pattern, which leaves cell means alone.
    """
    whole = means_hu.mean(axis=-1)
    inside: NDArray[np.bool_] = (whole > _AIR_HU) & (whole < _DENSE_HU)
    return inside


def codes_of(means_hu: NDArray[np.float64], dither_hu: NDArray[np.float64]) -> NDArray[np.int16]:
    """Quantised content: (…, 4) cell means to (…, 4) whole numbers. dither_hu: (4,), secret places of the steps."""
    return np.floor((means_hu + dither_hu) / STEP_HU).astype(np.int16)


def other_codes(
    means_hu: NDArray[np.float64], dither_hu: NDArray[np.float64]
) -> tuple[NDArray[np.int16], NDArray[np.float64]]:
    """The second most likely codes after a lossy step: the cell nearest to a step's edge crosses it.

    Returns codes (…, 4) and the distance of that cell from the edge in HU (…).
    """
    level = (means_hu + dither_hu) / STEP_HU
    base = np.floor(level)
    part = level - base
    distance = np.minimum(part, 1 - part)
    nearest = distance.argmin(axis=-1)[..., None]
    codes = base.astype(np.int16)
    move = np.where(np.take_along_axis(part, nearest, -1) < 0.5, -1, 1).astype(np.int16)
    np.put_along_axis(codes, nearest, np.take_along_axis(codes, nearest, -1) + move, -1)
    return codes, np.take_along_axis(distance, nearest, -1)[..., 0] * STEP_HU
