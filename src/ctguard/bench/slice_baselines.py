"""Two hand-made features that need no training, for scale beside the detectors on single forged slices.

Both are measured in aerated lung alone, in a window of 10 mm. A place without enough aerated lung around it takes the
slice's median, so that it counts as ordinary.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
Baseline = Callable[[NDArray[np.float32], Mask, tuple[float, float]], NDArray[np.float32]]

WINDOW_MM = 10.0
AERATED_HU = (-950.0, -500.0)
_LEAST_SHARE = 0.1
"""Of a window that must be aerated lung."""


def difference_ratio(hu: NDArray[np.float32], lung: Mask, spacing_yx_mm: tuple[float, float]) -> NDArray[np.float32]:
    """Local SD of second over that of first differences: high where noise is whiter than the scan's own.

    hu, lung: (y, x). Noise that was generated, or added to touch a paste up, lacks the correlation that the kernel
    gives, and raises it; interpolation lowers it.
    """
    values, usable = hu.astype(np.float64), _aerated(hu, lung)
    sums = {1: [np.zeros(hu.shape), np.zeros(hu.shape)], 2: [np.zeros(hu.shape), np.zeros(hu.shape)]}
    for axis in (0, 1):
        for order in (1, 2):
            step, inside = _difference(values, usable, axis, order)
            sums[order][0] += _windowed(np.where(inside, step**2, 0.0), spacing_yx_mm)
            sums[order][1] += _windowed(inside.astype(np.float64), spacing_yx_mm)
    first, second = (_root_mean(*sums[order]) for order in (1, 2))
    with np.errstate(invalid="ignore", divide="ignore"):
        return _filled(second / first, lung)


def low_residual(hu: NDArray[np.float32], lung: Mask, spacing_yx_mm: tuple[float, float]) -> NDArray[np.float32]:
    """Minus the local SD of what a 3 x 3 median takes away: high where tissue is smoother than the scan's own.

    hu, lung: (y, x).
    """
    values = hu.astype(np.float64)
    residual, usable = values - ndimage.median_filter(values, 3, mode="nearest"), _aerated(hu, lung)
    power = _windowed(np.where(usable, residual**2, 0.0), spacing_yx_mm)
    return _filled(-_root_mean(power, _windowed(usable.astype(np.float64), spacing_yx_mm)), lung)


BASELINES: dict[str, Baseline] = {
    "second over first differences": difference_ratio,
    "low residual SD": low_residual,
}


def _aerated(hu: NDArray[np.float32], lung: Mask) -> Mask:
    aerated: Mask = lung & (hu > AERATED_HU[0]) & (hu < AERATED_HU[1])
    return aerated


def _difference(values: Floats, usable: Mask, axis: int, order: int) -> tuple[Floats, Mask]:
    """Differences along an axis on the grid of the slice, and where all pixels that they take are usable."""
    step, inside = np.zeros(values.shape), np.zeros(values.shape, dtype=bool)
    at = [slice(None), slice(None)]
    at[axis] = slice(order // 2, values.shape[axis] - order + order // 2)
    step[tuple(at)] = np.diff(values, order, axis)
    count = values.shape[axis] - order
    parts = [np.take(usable, range(k, k + count), axis) for k in range(order + 1)]
    inside[tuple(at)] = np.logical_and.reduce(parts)
    return step, inside


def _windowed(values: Floats, spacing_yx_mm: tuple[float, float]) -> Floats:
    side = [2 * max(1, round(WINDOW_MM / mm / 2)) + 1 for mm in spacing_yx_mm]
    mean: Floats = ndimage.uniform_filter(values, side, mode="constant")
    return mean


def _root_mean(power: Floats, share: Floats) -> Floats:
    """Root of the mean square over usable pixels, NaN where too few are."""
    enough = share >= _LEAST_SHARE
    mean: Floats = np.full(power.shape, np.nan)
    np.divide(np.maximum(power, 0), share, out=mean, where=enough)
    return np.sqrt(mean)


def _filled(values: Floats, lung: Mask) -> NDArray[np.float32]:
    known = np.isfinite(values) & lung
    ordinary = float(np.median(values[known])) if known.any() else 0.0
    return np.where(known, values, ordinary).astype(np.float32)
