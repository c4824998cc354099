"""From a map to suspected regions: connected parts, each with a place, a size and a score."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ctguard.core.errors import GeometryError
from ctguard.core.geometry import Geometry, as_float_triple, index_to_lps_mm
from ctguard.core.records import Region, Verdict

MAP_THRESHOLD = 0.5
"""Where the map says forged (protocols: F1 and IoU at 0.5)."""

MIN_MM3 = 30.0
"""A 4 mm sphere: nothing smaller is a nodule that somebody would forge."""


def find_regions(
    map_: NDArray[np.float32],
    geometry: Geometry,
    threshold: float,
    *,
    values: NDArray[np.float32] | None = None,
    peak: float = 0.0,
    min_mm3: float = MIN_MM3,
) -> tuple[Region, ...]:
    """Connected parts (26 neighbours) of a map at or above a threshold, the highest score first.

    map_: (z, y, x), 0..1, on `geometry`. threshold: > 0; what belongs to a region. values: (z, y, x), what a region's
    score is the highest of, by default the map. peak: what that score must reach. min_mm3: smaller regions are left
    out.
    A region's centre is the mean of its voxels weighted by the map, and its extent that of its box between outer
    voxel faces, along z, y and x.
    """
    found = [
        region for _, region in _parts(map_, geometry, threshold, map_ if values is None else values, peak, min_mm3)
    ]
    return tuple(sorted(found, key=lambda region: -region.score))


def region_level(threshold: float) -> float:
    """What belongs to a region of a verdict: the map at 0.5 (protocols: F1 and IoU), or at a lower threshold."""
    return max(min(MAP_THRESHOLD, threshold), 1e-6)


def label_regions(verdict: Verdict) -> NDArray[np.uint16]:
    """The voxels of a verdict's regions, (z, y, x): n where the n-th region lies, 0 elsewhere.

    Raises GeometryError where a region is no part of the map: the two are not of one verdict.
    """
    labels = np.zeros(verdict.map.shape, dtype=np.uint16)
    numbers = {_place(region): number for number, region in enumerate(verdict.regions, start=1)}
    if not numbers:
        return labels
    for mask, region in _parts(verdict.map, verdict.geometry, region_level(verdict.threshold), verdict.map, 0.0, 0.0):
        number = numbers.pop(_place(region), None)
        if number is not None:
            box, inside = mask
            labels[box][inside] = number
    if numbers:
        raise GeometryError(
            f"region {min(numbers.values())} of the verdict is no part of its map", remedy="run detect again"
        )
    return labels


def _place(region: Region) -> tuple[float, ...]:
    """What tells the parts of one map apart; rounded, because JSON and float sums may differ in the last digits."""
    return tuple(round(v, 3) for v in (*region.center_zyx, *region.extent_mm))


def _parts(
    map_: NDArray[np.float32],
    geometry: Geometry,
    threshold: float,
    values: NDArray[np.float32],
    peak: float,
    min_mm3: float,
) -> Iterator[tuple[tuple[tuple[slice, ...], NDArray[np.bool_]], Region]]:
    """Each part of the map that is kept: its box, the mask inside it, and its region."""
    if threshold <= 0:
        raise ValueError(f"a region threshold of {threshold} would take in the whole map; give one above 0")
    hot = map_ >= threshold
    if not hot.any():
        return
    # Suspected voxels lie close together: labels of the block that holds them all are small.
    block = tuple(_span(np.any(hot, axis=others)) for others in ((1, 2), (0, 2), (0, 1)))
    hot, map_, values = hot[block], map_[block], values[block]
    labels, count = ndimage.label(hot, structure=np.ones((3, 3, 3)))
    numbers = labels[hot] - 1
    sizes = np.bincount(numbers, minlength=count)
    peaks = np.zeros(count, dtype=np.float32)
    np.maximum.at(peaks, numbers, values[hot])
    kept = (sizes * geometry.voxel_mm3 >= min_mm3) & (peaks >= peak)
    boxes = ndimage.find_objects(labels)
    for index in np.flatnonzero(kept):
        box, score = boxes[index], float(peaks[index])
        inside = labels[box] == index + 1
        weights = np.where(inside, map_[box], 0.0).astype(np.float64)
        box_on_map = tuple(slice(a.start + b.start, a.start + b.stop) for a, b in zip(block, box, strict=True))
        start = np.array([part.start for part in box_on_map])
        center = start + np.array(ndimage.center_of_mass(weights))
        extent = np.array(inside.shape) * np.asarray(geometry.spacing_zyx_mm)
        point = index_to_lps_mm(geometry, center)
        region = Region(as_float_triple(center), as_float_triple(point), as_float_triple(extent), score)
        yield (box_on_map, inside), region


def _span(present: NDArray[np.bool_]) -> slice:
    where = np.flatnonzero(present)
    return slice(int(where[0]), int(where[-1]) + 1)
