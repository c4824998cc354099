"""How strongly a place looks forged: the map's logits, averaged over the least that a forger changes; and the map
without what no such place supports."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, special

from ctguard.core.geometry import FloatTriple

WINDOW_MM = 12.0
"""Side of the cube that is averaged over: published forgers change a cube of 26 to 32 mm, while what misleads a
detector in untouched lung (the rim of a nodule, a vessel's end) is smaller, or ends within a slice or two."""
_NEAREST_1 = float(np.nextafter(np.float32(1), np.float32(0)))


def evidence(map_: NDArray[np.float32], spacing_zyx_mm: FloatTriple) -> NDArray[np.float32]:
    """Of each voxel of a map (z, y, x) in 0..1, the mean logit of the cube around it, as a value in 0..1.

    The map's border is repeated. Values within 6e-8 of 0 or 1, what float32 tells from 1, count as that far from it.
    """
    mean = np.clip(map_, 1 - _NEAREST_1, _NEAREST_1)
    special.logit(mean, out=mean)
    for axis, width in _widths(map_, spacing_zyx_mm):
        ndimage.uniform_filter1d(mean, width, axis=axis, output=mean, mode="nearest")
    special.expit(mean, out=mean)
    return mean


def supported(
    map_: NDArray[np.float32], weighed: NDArray[np.float32], spacing_zyx_mm: FloatTriple
) -> NDArray[np.float32]:
    """The map, where no voxel says more than the strongest cube that it lies in: an opening that keeps edges.

    weighed: the map's `evidence`. What is smaller than a cube goes; a forged cube stays as it is, corners and all.
    """
    strongest = weighed.copy()
    for axis, width in _widths(map_, spacing_zyx_mm):
        # a mean over an even number of voxels reaches one further to the front: its voxels look one further back
        ndimage.maximum_filter1d(
            strongest, width, axis=axis, output=strongest, mode="nearest", origin=-1 if width % 2 == 0 else 0
        )
    return np.minimum(map_, strongest, out=strongest)


def _widths(map_: NDArray[np.float32], spacing_zyx_mm: FloatTriple) -> list[tuple[int, int]]:
    """The axes along which a cube holds several voxels, and how many."""
    counts = [
        min(max(round(WINDOW_MM / spacing), 1), count)
        for count, spacing in zip(map_.shape, spacing_zyx_mm, strict=True)
    ]
    return [(axis, width) for axis, width in enumerate(counts) if width > 1]
