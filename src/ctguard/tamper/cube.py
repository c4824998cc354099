"""The 32 mm cube around a site: cut at native spacing, resample to 1 mm, and back.

Two grids. `exact` (clean and m3dsynth modes) samples at exact millimetres around the site, and only voxels whose
centre lies in the cube may change. `zoomed` (ctgan mode) follows CT-GAN's released steps: a block of
round(32 / spacing) voxels, zoomed end to end onto 32 samples, padded with -1000 HU at the border (facts: CT-GAN 2.3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ctguard.core.errors import GeometryError
from ctguard.core.geometry import FloatTriple, Geometry, IntTriple
from ctguard.image.resample import Matrices, apply_matrices, grid_matrices, zoom_matrices

CUBE_VOXELS = 32
CUBE_MM = 32.0
_SUPPORT_VOXELS = 4
_PAD_HU = -1000.0


@dataclass(frozen=True)
class Box:
    """A block of voxels: first index and shape, both (z, y, x). It may reach beyond the volume."""

    start_zyx: IntTriple
    shape_zyx: IntTriple

    def inside(self, shape_zyx: IntTriple) -> Box:
        """The part of it that lies in a volume of that shape."""
        start = np.maximum(self.start_zyx, 0)
        stop = np.minimum(np.add(self.start_zyx, self.shape_zyx), shape_zyx)
        return _box(start, stop - start)

    def widened(self, voxels: int) -> Box:
        """Grown by that many voxels on every side."""
        return _box(np.subtract(self.start_zyx, voxels), np.add(self.shape_zyx, 2 * voxels))

    def slices(self, origin_zyx: IntTriple = (0, 0, 0)) -> tuple[slice, slice, slice]:
        """Index expression of the box in an array whose first voxel is `origin_zyx`."""
        z, y, x = (slice(a - o, a - o + n) for a, o, n in zip(self.start_zyx, origin_zyx, self.shape_zyx, strict=True))
        return z, y, x


@dataclass(frozen=True)
class Cube:
    """How one site's cube is cut and put back.

    support: what is read (may reach beyond the volume: padded); paste: the voxels that may change, inside the volume.
    to_cube, to_native: resampling between the support and 32^3, and from 32^3 to the paste box.
    """

    center_zyx: FloatTriple
    spacing_zyx_mm: FloatTriple
    support: Box
    paste: Box
    to_cube: Matrices
    to_native: Matrices

    def cut(self, hu: Tensor) -> Tensor:
        """The cube at 1 mm, float32 (32, 32, 32), out of a volume in HU (z, y, x)."""
        return apply_matrices(cut_box(hu, self.support), self.to_cube)

    def back(self, cube: Tensor) -> Tensor:
        """A (32, 32, 32) cube on the paste box's native voxels."""
        return apply_matrices(cube, self.to_native)

    def offsets_mm(self) -> list[NDArray[np.floating[Any]]]:
        """Signed distance of the paste box's voxels from the site along z, y and x."""
        return [
            (start + np.arange(n) - center) * spacing
            for start, n, center, spacing in zip(
                self.paste.start_zyx, self.paste.shape_zyx, self.center_zyx, self.spacing_zyx_mm, strict=True
            )
        ]


def cut_box(hu: Tensor, box: Box) -> Tensor:
    """A block of a (z, y, x) tensor; -1000 HU where it reaches beyond."""
    shape: IntTriple = (hu.shape[0], hu.shape[1], hu.shape[2])
    inner = box.inside(shape)
    block = hu[inner.slices()]
    if inner == box:
        return block
    before = np.subtract(inner.start_zyx, box.start_zyx)
    after = np.subtract(np.add(box.start_zyx, box.shape_zyx), np.add(inner.start_zyx, inner.shape_zyx))
    pads = [int(p) for axis in (2, 1, 0) for p in (before[axis], after[axis])]
    return torch.nn.functional.pad(block, pads, value=_PAD_HU)


def exact_cube(geometry: Geometry, center_zyx: FloatTriple, core_mm: float) -> Cube:
    """The cube of clean and m3dsynth modes. Raises GeometryError where the core leaves the volume."""
    spacing = np.asarray(geometry.spacing_zyx_mm)
    center = np.asarray(center_zyx)
    shape = np.asarray(geometry.shape_zyx)
    room = np.minimum(center + 0.5, shape - 0.5 - center) * spacing
    if np.any(room < core_mm / 2):
        raise GeometryError(
            f"site {_floats(center.round(1))} (z, y, x) lies {room.min():.1f} mm from the border of the scan",
            remedy=f"choose a site with at least {core_mm / 2:g} mm of scan on every side",
        )
    start = np.ceil(center - CUBE_MM / 2 / spacing)
    stop = np.floor(center + CUBE_MM / 2 / spacing) + 1
    paste = _box(start, stop - start).inside(geometry.shape_zyx)
    support = paste.widened(_SUPPORT_VOXELS).inside(geometry.shape_zyx)
    first = center - support.start_zyx - (CUBE_VOXELS - 1) / 2 / spacing
    to_cube = grid_matrices(support.shape_zyx, _floats(first), _floats(1 / spacing), (CUBE_VOXELS,) * 3)
    first = (np.asarray(paste.start_zyx) - center) * spacing + (CUBE_VOXELS - 1) / 2
    to_native = grid_matrices((CUBE_VOXELS,) * 3, _floats(first), _floats(spacing), paste.shape_zyx)
    return Cube(_floats(center), geometry.spacing_zyx_mm, support, paste, to_cube, to_native)


def zoomed_cube(geometry: Geometry, center_zyx: FloatTriple) -> Cube:
    """The cube of ctgan mode. Raises GeometryError where the site lies outside the volume."""
    if not geometry.contains(center_zyx):
        raise GeometryError(f"site {center_zyx} (z, y, x) lies outside the scan", remedy="choose a site inside it")
    center = np.round(center_zyx)
    shape = np.maximum(np.round(CUBE_MM / np.asarray(geometry.spacing_zyx_mm)), 1)
    whole = _box(center - shape // 2, shape)
    paste = whole.inside(geometry.shape_zyx)
    to_cube = zoom_matrices(whole.shape_zyx, (CUBE_VOXELS,) * 3)
    back = zoom_matrices((CUBE_VOXELS,) * 3, whole.shape_zyx)
    rows = paste.slices(whole.start_zyx)
    to_native = (back[0][rows[0]], back[1][rows[1]], back[2][rows[2]])
    return Cube(_floats(center), geometry.spacing_zyx_mm, whole, paste, to_cube, to_native)


def core_mask(core_mm: float) -> Tensor:
    """1 in the masked core, 0 in the shell: float32 (32, 32, 32)."""
    distance = (torch.arange(CUBE_VOXELS) - (CUBE_VOXELS - 1) / 2).abs()
    inside = (distance < core_mm / 2).float()
    return inside[:, None, None] * inside[None, :, None] * inside[None, None, :]


def _box(start: NDArray[np.float64], shape: NDArray[np.float64]) -> Box:
    (a, b, c), (i, j, k) = (int(v) for v in start), (int(v) for v in shape)
    return Box((a, b, c), (i, j, k))


def _floats(values: NDArray[np.float64]) -> FloatTriple:
    a, b, c = (float(v) for v in values)
    return a, b, c
