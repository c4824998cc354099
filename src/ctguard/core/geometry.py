"""Where a voxel lies: index (z, y, x) on one side, patient space (LPS, millimetres) on the other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ctguard.core.errors import GeometryError

IntTriple = tuple[int, int, int]
FloatTriple = tuple[float, float, float]

AXIAL_AXES: tuple[FloatTriple, FloatTriple, FloatTriple] = ((0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0))


@dataclass(frozen=True)
class Geometry:
    """A regular voxel grid in patient space.

    axes_lps: the unit vectors, in LPS, along which the z, y and x index grow. They are orthogonal, and
        z points along the slice normal x cross y (DICOM PS3.3 C.7.6.2.1.1), so that slice 0 has the smallest
        projection on the normal: the feet, for an axial series.
    origin_lps_mm: the centre of voxel (0, 0, 0).

    Raises GeometryError where a size is not positive or the axes are not such a frame.
    """

    shape_zyx: IntTriple
    spacing_zyx_mm: FloatTriple
    origin_lps_mm: FloatTriple = (0.0, 0.0, 0.0)
    axes_lps: tuple[FloatTriple, FloatTriple, FloatTriple] = AXIAL_AXES

    def __post_init__(self) -> None:
        if any(n < 1 for n in self.shape_zyx):
            raise GeometryError(f"a grid of shape {self.shape_zyx} holds no voxels")
        if not all(np.isfinite(s) and s > 0 for s in self.spacing_zyx_mm):
            raise GeometryError(f"spacing {self.spacing_zyx_mm} mm is not positive")
        axes = np.asarray(self.axes_lps)
        if not np.allclose(axes @ axes.T, np.eye(3), atol=1e-3):
            raise GeometryError(f"axes {self.axes_lps} are not orthogonal unit vectors")
        if np.dot(axes[0], np.cross(axes[2], axes[1])) < 0:
            raise GeometryError("slices run against the slice normal", remedy="reverse the slice order when reading")

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Geometry:
        """The grid whose fields JSON holds by their names, as lists. Raises KeyError, TypeError or ValueError."""
        z, y, x = (as_float_triple(axis) for axis in values["axes_lps"])
        spacing, origin = as_float_triple(values["spacing_zyx_mm"]), as_float_triple(values["origin_lps_mm"])
        return cls(as_int_triple(values["shape_zyx"]), spacing, origin, (z, y, x))

    @property
    def affine(self) -> NDArray[np.float64]:
        """4 x 4: homogeneous index (z, y, x, 1) to homogeneous LPS millimetres."""
        matrix = np.eye(4)
        matrix[:3, :3] = np.asarray(self.axes_lps).T * np.asarray(self.spacing_zyx_mm)
        matrix[:3, 3] = self.origin_lps_mm
        return matrix

    @property
    def voxel_mm3(self) -> float:
        """Volume of one voxel."""
        return float(np.prod(self.spacing_zyx_mm))

    def crop(self, start_zyx: IntTriple, shape_zyx: IntTriple) -> Geometry:
        """The grid of a block that starts at `start_zyx`; it may reach beyond this one."""
        origin = index_to_lps_mm(self, start_zyx)
        return Geometry(shape_zyx, self.spacing_zyx_mm, as_float_triple(origin), self.axes_lps)

    def contains(self, index_zyx: ArrayLike) -> bool:
        """Whether an index lies within the outer faces of the grid."""
        index = np.asarray(index_zyx, dtype=float)
        return bool(np.all(index >= -0.5) and np.all(index <= np.asarray(self.shape_zyx) - 0.5))

    def agrees(self, other: Geometry, tolerance_mm: float = 1e-2) -> bool:
        """Whether both grids put every voxel at the same place."""
        if self.shape_zyx != other.shape_zyx:
            return False
        corners = np.array([[0, 0, 0], [n - 1 for n in self.shape_zyx]], dtype=float)
        gap = index_to_lps_mm(self, corners) - index_to_lps_mm(other, corners)
        return bool(np.abs(gap).max() <= tolerance_mm) and bool(np.allclose(self.axes_lps, other.axes_lps, atol=1e-3))


def as_float_triple(values: ArrayLike) -> FloatTriple:
    """Three plain floats out of any array of three."""
    a, b, c = (float(v) for v in np.asarray(values, dtype=float).ravel())
    return a, b, c


def as_int_triple(values: ArrayLike) -> IntTriple:
    """Three plain ints out of any array of three, rounded to nearest."""
    a, b, c = (round(float(v)) for v in np.asarray(values, dtype=float).ravel())
    return a, b, c


def index_to_lps_mm(geometry: Geometry, index_zyx: ArrayLike) -> NDArray[np.float64]:
    """Indices (..., 3) in (z, y, x) to points (..., 3) in LPS millimetres."""
    matrix = geometry.affine
    return np.asarray(index_zyx, dtype=float) @ matrix[:3, :3].T + matrix[:3, 3]


def lps_mm_to_index(geometry: Geometry, point_lps_mm: ArrayLike) -> NDArray[np.float64]:
    """Points (..., 3) in LPS millimetres to fractional indices (..., 3) in (z, y, x)."""
    offset = np.asarray(point_lps_mm, dtype=float) - np.asarray(geometry.origin_lps_mm)
    index: NDArray[np.float64] = (offset @ np.asarray(geometry.axes_lps).T) / np.asarray(geometry.spacing_zyx_mm)
    return index


def sphere_diameter_mm(volume_mm3: float) -> float:
    """Diameter of the sphere of this volume: how the size of a nodule of any shape is given."""
    return float((6 * volume_mm3 / np.pi) ** (1 / 3))
