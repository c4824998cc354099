"""How well a map says where: overlap with the changed voxels, their average precision, and the pointing game."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ctguard.core.geometry import FloatTriple, Geometry
from ctguard.core.records import Edit
from ctguard.tamper.cube import CUBE_MM

Mask = NDArray[np.bool_]
POINTING_MM = 16.0


@dataclass(frozen=True)
class Counts:
    """Voxels that a map marks, that are forged, and both."""

    found: int
    truth: int
    both: int

    @classmethod
    def of(cls, found: Mask, truth: Mask) -> Counts:
        """Count two masks."""
        return cls(int(found.sum()), int(truth.sum()), int((found & truth).sum()))

    @property
    def f1(self) -> float:
        """2 TP / (2 TP + FP + FN)."""
        return 2 * self.both / max(self.found + self.truth, 1)

    @property
    def iou(self) -> float:
        """TP / (TP + FP + FN)."""
        return self.both / max(self.found + self.truth - self.both, 1)


@dataclass(frozen=True, eq=False)
class Truth:
    """What of a scan is forged, bool (z, y, x) on its grid.

    mask: changed voxels inside the nominal 32 mm cube, holes filled. ignored: changed voxels beyond it, which count
    neither way (protocols.md "Forgeries"). cube: the nominal cube.
    """

    mask: Mask
    ignored: Mask
    cube: Mask

    @classmethod
    def of(cls, edit: Edit, geometry: Geometry) -> Truth:
        """The truth of one edit of a scan of this geometry."""
        cube = cube_mask(geometry, edit.center_zyx)
        changed = edit.full_mask(geometry.shape_zyx)
        return cls(changed & cube, changed & ~cube, cube)

    def slab(self, z: slice) -> Truth:
        """The same of some slices."""
        return Truth(self.mask[z], self.ignored[z], self.cube[z])

    def counts(self, found: Mask) -> Counts:
        """Against the changed voxels."""
        return Counts.of(found & ~self.ignored, self.mask)

    def cube_counts(self, found: Mask) -> Counts:
        """Against the nominal cube."""
        return Counts.of(found & ~self.ignored, self.cube)


def cube_mask(geometry: Geometry, center_zyx: FloatTriple) -> Mask:
    """The nominal 32 mm cube around a site: bool (z, y, x)."""
    z, y, x = (
        np.abs(np.arange(n) - c) * mm <= CUBE_MM / 2
        for n, c, mm in zip(geometry.shape_zyx, center_zyx, geometry.spacing_zyx_mm, strict=True)
    )
    inside: Mask = z[:, None, None] & y[None, :, None] & x[None, None, :]
    return inside


def average_precision(map_: NDArray[np.float32], truth: Mask, ignored: Mask | None = None) -> float:
    """Mean over the forged voxels of the precision at their own score, ties taken together; NaN without any.

    map_: raw scores, any shape. ignored: voxels that count neither way.
    """
    positive = np.sort(map_[truth])
    if len(positive) == 0:
        return float("nan")
    rest = map_[~truth] if ignored is None else map_[~truth & ~ignored]
    levels, counts = np.unique(positive, return_counts=True)
    # negatives at or above each level: those below the lowest one never matter
    place = np.searchsorted(levels, rest[rest >= levels[0]], side="right")
    false = np.bincount(place, minlength=len(levels) + 1)[1:][::-1].cumsum()[::-1]
    true = counts[::-1].cumsum()[::-1]
    return float(np.sum(counts * true / (true + false)) / len(positive))


def points_at(map_: NDArray[np.float32], geometry: Geometry, center_zyx: FloatTriple) -> bool:
    """Whether the map's maximum lies within 16 mm of a place; a map that marks nothing points nowhere."""
    peak = np.unravel_index(int(np.argmax(map_)), map_.shape)
    distance = np.linalg.norm(np.subtract(peak, center_zyx) * geometry.spacing_zyx_mm)
    return bool(map_[peak] > 0 and distance <= POINTING_MM)
