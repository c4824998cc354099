"""From a file's array and affine to a Volume: types, finite values and handedness, the same for every format."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctguard.core.carried import Carried
from ctguard.core.errors import GeometryError, ReadError, WriteError
from ctguard.core.geometry import Geometry, as_float_triple, as_int_triple
from ctguard.core.provenance import Source
from ctguard.core.volume import Volume

_EXACT_IN_FLOAT32 = 2**24


def assemble(
    voxels: NDArray[Any], affine_xyz: NDArray[np.float64], source: Source, carried: Carried, where: str
) -> Volume:
    """A Volume from voxels (z, y, x) and the 4 x 4 affine that takes (x, y, z, 1) to LPS millimetres.

    A left-handed grid is read with its slices reversed, so that z runs along the slice normal (core.geometry).
    Integer voxels that fit become int16, all others float32. Raises ReadError for what is no finite scalar
    volume and for axes that are not orthogonal.
    """
    if voxels.ndim != 3 or voxels.size == 0:
        raise ReadError(f"an array of shape {voxels.shape} is no volume", where=where, remedy="give one 3-D CT volume")
    hu = as_hu(voxels, where)
    columns, origin = affine_xyz[:3, :3], affine_xyz[:3, 3]
    spacing = np.linalg.norm(columns, axis=0)
    if not np.all(np.isfinite(affine_xyz)) or np.any(spacing <= 0):
        raise ReadError("its voxel spacing is missing or not positive", where=where, remedy="repair its header")
    if np.linalg.det(columns) < 0:
        origin = origin + columns[:, 2] * (hu.shape[0] - 1)
        columns = columns * np.array([1.0, 1.0, -1.0])
        hu = np.ascontiguousarray(hu[::-1])
    x, y, z = (as_float_triple(axis) for axis in (columns / spacing).T)
    try:
        geometry = Geometry(as_int_triple(hu.shape), as_float_triple(spacing[::-1]), as_float_triple(origin), (z, y, x))
    except GeometryError as error:
        raise ReadError(error.what, where=where, remedy="resample it to an orthogonal grid") from error
    return Volume(hu, geometry, carried.onto(source))


def affine_xyz(geometry: Geometry) -> NDArray[np.float64]:
    """The 4 x 4 affine from (x, y, z, 1) to LPS millimetres."""
    return geometry.affine[:, [2, 1, 0, 3]]


def as_hu(voxels: NDArray[Any], where: str) -> NDArray[Any]:
    """Voxels as int16 where they are integers that fit, else as float32, in C order.

    Raises ReadError for other than real numbers, for integers that float32 would round and for NaN or infinity.
    """
    kind = voxels.dtype.kind
    if kind == "b":
        return np.ascontiguousarray(voxels, dtype=np.int16)
    if kind in "iu":
        low, high = int(voxels.min()), int(voxels.max())
        limits = np.iinfo(np.int16)
        if limits.min <= low and high <= limits.max:
            return np.ascontiguousarray(voxels, dtype=np.int16)
        if max(-low, high) > _EXACT_IN_FLOAT32:
            raise ReadError(f"it holds values from {low} to {high}", where=where, remedy="give Hounsfield units")
    elif kind != "f":
        raise ReadError(f"its voxels are of type {voxels.dtype}", where=where, remedy="give one number per voxel")
    with np.errstate(over="ignore"):
        hu = np.ascontiguousarray(voxels, dtype=np.float32)
    if not np.isfinite(hu.min()) or not np.isfinite(hu.max()):
        raise ReadError("it holds NaN or infinite voxels", where=where, remedy="replace them by the padding value")
    return hu


def check_finite(volume: Volume, where: str) -> None:
    """Raise WriteError where a volume holds NaN or infinity."""
    if volume.hu.dtype.kind == "f" and not (np.isfinite(volume.hu.min()) and np.isfinite(volume.hu.max())):
        raise WriteError("the volume holds NaN or infinite voxels", where=where, remedy="repair it before writing")


@contextmanager
def hushed(logger: str) -> Iterator[None]:
    """Keep a library's own lines off stderr while it reads: what matters of them is in the ReadError."""
    found = logging.getLogger(logger)
    before, found.disabled = found.disabled, True
    try:
        yield
    finally:
        found.disabled = before
