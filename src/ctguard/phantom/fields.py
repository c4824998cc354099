"""Scalar fields in patient space that can be evaluated on any axial grid, and the separable maths that makes it fast.

A smooth field (a signed distance, a texture) is computed on a coarse lattice tied to patient millimetres and
interpolated to the voxels by three small matrix products, so that the same point of a patient has the same
value whatever the grid.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ctguard.core.errors import GeometryError
from ctguard.core.geometry import AXIAL_AXES, Geometry

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Axes = tuple[F64, F64, F64]
"""z, y and x coordinates (LPS mm) of the planes of an axial grid."""

_SPLINE_VARIANCE = 0.4794**3
"""Mean of the squared weights of a tricubic B-spline: what interpolation leaves of unit variance."""


def grid_axes(geometry: Geometry) -> Axes:
    """LPS coordinates (mm) along z, y and x of an axial grid. Raises GeometryError where the grid is oblique."""
    if not np.allclose(geometry.axes_lps, AXIAL_AXES):
        raise GeometryError("a phantom is rendered on axial grids only", remedy="resample it afterwards")
    x0, y0, z0 = geometry.origin_lps_mm
    starts = (z0, y0, x0)
    grid = zip(starts, geometry.spacing_zyx_mm, geometry.shape_zyx, strict=True)
    z, y, x = (np.float64(start) + step * np.arange(count, dtype=np.float64) for start, step, count in grid)
    return z, y, x


def coarse_axis(fine: F64, step_mm: float) -> F64:
    """Multiples of `step_mm` that enclose an axis."""
    first, last = np.floor(fine.min() / step_mm), np.ceil(fine.max() / step_mm)
    return np.arange(first, max(last, first + 1) + 1) * step_mm


def linear_weights(coarse: F64, fine: F64) -> F32:
    """(fine, coarse) matrix of linear interpolation between equidistant planes."""
    position = np.clip((fine - coarse[0]) / (coarse[1] - coarse[0]), 0, len(coarse) - 1)
    low = np.minimum(position.astype(int), len(coarse) - 2)
    part = position - low
    weights = np.zeros((len(fine), len(coarse)), np.float32)
    rows = np.arange(len(fine))
    weights[rows, low] = 1 - part
    weights[rows, low + 1] = part
    return weights


def separable(lattice: F32, wz: F32, wy: F32, wx: F32) -> F32:
    """Interpolate a (z, y, x) lattice by one weight matrix per axis."""
    rows = np.matmul(lattice, wx.T)
    rows = np.matmul(wy, rows)
    flat = wz @ rows.reshape(len(rows), -1)
    result: F32 = flat.reshape(len(wz), *rows.shape[1:])
    return result


def refine(coarse: F32 | F64, coarse_axes: Axes, axes: Axes) -> F32:
    """A field of a coarse grid on a fine one, linearly interpolated."""
    wz, wy, wx = (linear_weights(c, f) for c, f in zip(coarse_axes, axes, strict=True))
    return separable(coarse.astype(np.float32), wz, wy, wx)


def texture(seed: int, grain_mm: float, axes: Axes) -> F32:
    """Gaussian texture of unit variance and grain `grain_mm`, a function of patient position: float32 (z, y, x).

    Values of an endless integer lattice come from a hash of their indices, so that nothing repeats; cubic B-splines
    join them.
    """
    lattices, weights = [], []
    for fine in axes:
        low = int(np.floor(fine.min() / grain_mm)) - 2
        high = int(np.floor(fine.max() / grain_mm)) + 3
        lattices.append(np.arange(low, high + 1))
        weights.append(_spline_weights(fine / grain_mm - low, high - low + 1))
    values = _hashed(seed, lattices[0], lattices[1], lattices[2])
    values *= np.float32(1 / np.sqrt(_SPLINE_VARIANCE))
    return separable(values, weights[0], weights[1], weights[2])


def _spline_weights(position: F64, count: int) -> F32:
    cell = np.floor(position).astype(int)
    t = position - cell
    parts = ((1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3)
    weights = np.zeros((len(position), count), np.float32)
    rows = np.arange(len(position))
    for k, part in enumerate(parts):
        weights[rows, cell - 1 + k] = part / 6
    return weights


def _mix(state: NDArray[np.uint32]) -> NDArray[np.uint32]:
    state ^= state >> np.uint32(16)
    state *= np.uint32(0x7FEB352D)
    state ^= state >> np.uint32(15)
    state *= np.uint32(0x846CA68B)
    state ^= state >> np.uint32(16)
    return state


def _hashed(seed: int, iz: NDArray[np.int64], iy: NDArray[np.int64], ix: NDArray[np.int64]) -> F32:
    """Uniform values of unit variance at integer positions; the spline's mean of 64 of them is as good as Gaussian."""
    start = np.uint32((seed * 0x9E3779B1 + 0x7F4A7C15) % 2**32)
    z = _mix((iz % 2**32).astype(np.uint32) * np.uint32(0x9E3779B9) ^ start)
    y = _mix(z[:, None] + (iy % 2**32).astype(np.uint32) * np.uint32(0xC2B2AE3D))
    bits = _mix(y[:, :, None] + (ix % 2**32).astype(np.uint32) * np.uint32(0x27D4EB2F))
    values = bits.astype(np.float32)
    values *= np.float32(np.sqrt(12.0) / 2**32)
    values -= np.float32(np.sqrt(3.0))
    return values


def smooth_max(a: F64, b: F64, round_mm: float) -> F64:
    """Intersection of two signed distances with the edge rounded."""
    h = np.maximum(round_mm - np.abs(a - b), 0) / round_mm
    result: F64 = np.maximum(a, b) + h * h * round_mm / 4
    return result


def smooth_min(a: F64, b: F64, round_mm: float) -> F64:
    """Union of two signed distances with the edge rounded."""
    return -smooth_max(-a, -b, round_mm)


def coverage(distance: F32, width_mm: float) -> F32:
    """Share of a voxel of `width_mm` that lies inside a surface, from the signed distance of its centre."""
    share: F32 = np.clip(0.5 - distance / np.float32(width_mm), 0, 1).astype(np.float32, copy=False)
    return share


def blend(hu: F32, share: F32, value: float | F32) -> None:
    """Replace `share` of each voxel by `value`, in place."""
    hu += share * (value - hu)
