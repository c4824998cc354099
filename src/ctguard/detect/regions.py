"""From a map to suspected regions: connected parts, each with a place, a size and a score."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ctguard.core.geometry import Geometry, as_float_triple, index_to_lps_mm
from ctguard.core.records import Region

MIN_MM3 = 30.0
"""A 4 mm sphere: nothing smaller is a nodule that somebody would forge."""


def find_regions(
    map_: NDArray[np.float32], geometry: Geometry, threshold: float, *, peak: float = 0.0, min_mm3: float = MIN_MM3
) -> tuple[Region, ...]:
    """Connected parts (26 neighbours) of a map at or above a threshold, the highest score first.

    map_: (z, y, x), 0..1, on `geometry`. threshold: > 0; what belongs to a region. peak: what a region must reach
    somewhere. min_mm3: smaller regions are left out.
    A region's score is its highest value, its centre the mean of its voxels weighted by the map, and its extent
    that of its box between outer voxel faces, along z, y and x.
    """
    if threshold <= 0:
        raise ValueError(f"a region threshold of {threshold} would take in the whole map; give one above 0")
    hot = map_ >= threshold
    if not hot.any():
        return ()
    labels, count = ndimage.label(hot, structure=np.ones((3, 3, 3)))
    numbers = labels[hot] - 1
    sizes = np.bincount(numbers, minlength=count)
    peaks = np.zeros(count, dtype=np.float32)
    np.maximum.at(peaks, numbers, map_[hot])
    kept = (sizes * geometry.voxel_mm3 >= min_mm3) & (peaks >= peak)
    found = []
    boxes = ndimage.find_objects(labels)
    for index in np.flatnonzero(kept):
        box, score = boxes[index], float(peaks[index])
        inside = labels[box] == index + 1
        values = np.where(inside, map_[box], 0.0).astype(np.float64)
        start = np.array([part.start for part in box])
        center = start + np.array(ndimage.center_of_mass(values))
        extent = np.array(inside.shape) * np.asarray(geometry.spacing_zyx_mm)
        point = index_to_lps_mm(geometry, center)
        found.append(Region(as_float_triple(center), as_float_triple(point), as_float_triple(extent), score))
    return tuple(sorted(found, key=lambda region: -region.score))
