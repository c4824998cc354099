"""The integers behind Hounsfield units: stored values lie on a lattice, offset + n x quantum, in each slice.

The seal adds whole steps of it, so that a written file holds exactly what was added and `restore` can take exactly
that away again, whatever the rescale slope, its sign and the stored type.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctguard.core.errors import DataError

Ints = NDArray[np.int32]
_LEAST_QUANTUM = 1 / 256
_DECIMAL_TOLERANCE = 0.2
_ROUNDING = 1e-3
"""Of a step: float32 copies may differ by their last digit, stored values do not."""


@dataclass(frozen=True)
class Lattice:
    """hu = offset_hu + n * quantum_hu, in whole numbers n."""

    quantum_hu: float
    offset_hu: float

    def ints(self, plane: NDArray[Any]) -> Ints:
        """The whole numbers n of a slice (y, x) in HU, rounded to nearest."""
        if self.quantum_hu == 1 and plane.dtype == np.int16:
            return plane.astype(np.int32) - np.int32(self.offset_hu)
        return np.rint((plane.astype(np.float64) - self.offset_hu) / self.quantum_hu).astype(np.int32)

    def hu(self, ints: Ints, dtype: np.dtype[Any]) -> NDArray[Any]:
        """Whole numbers (y, x) back to HU."""
        if self.quantum_hu == 1 and dtype == np.int16:
            return (ints + np.int32(self.offset_hu)).astype(np.int16)
        return np.asarray(ints * self.quantum_hu + self.offset_hu, dtype=dtype)


def find_lattice(plane: NDArray[Any]) -> Lattice:
    """The coarsest lattice that holds every voxel of a slice (y, x), int16 exactly, float32 to its last digit.

    Raises DataError where there is none of at least 1/256 HU (voxels that were interpolated in floating point).
    """
    if plane.dtype == np.int16:
        low = int(plane.min())
        present = np.flatnonzero(np.bincount(plane.ravel().astype(np.int32) - low))
        return Lattice(float(np.gcd.reduce(present) or 1), float(low))
    values = np.unique(plane).astype(np.float64)
    if len(values) == 1:
        return Lattice(1.0, float(values[0]))
    for quantum in (_dense(values), *_decimal(values)):
        if quantum < _LEAST_QUANTUM:
            continue
        for digits in (9, 7, 6, 5, 4):  # a slope in a header is a short decimal
            slope = float(f"{quantum:.{digits}g}")
            # the offset is a header's intercept plus whole steps: a short decimal as well
            for offset in (float(values[0]), *(float(f"{values[0]:.{d}f}") for d in (6, 4, 3, 2, 1))):
                lattice = Lattice(slope, offset)
                if np.abs(lattice.hu(lattice.ints(values), plane.dtype) - values).max() < _ROUNDING * quantum:
                    return lattice
    raise DataError(
        "its values lie on no lattice of stored numbers (they were interpolated)",
        remedy="seal the original DICOM series, or round it to whole HU",
    )


def _dense(values: NDArray[np.float64]) -> float:
    """The step of sorted values between which no step is left out everywhere."""
    steps = np.diff(values)
    quantum = float(steps[steps < 1.5 * steps.min()].mean())
    # over wider and wider spans, so that float32 rounding counts less and less
    for last in np.unique(np.geomspace(1, len(steps), 12).astype(int)):
        span = float(values[last] - values[0])
        quantum = span / max(1, round(span / quantum))
    return quantum


def _decimal(values: NDArray[np.float64]) -> list[float]:
    """The greatest common step of sorted values that are short decimals."""
    found = []
    for digits in (0, 1, 2, 3):
        scaled = (values - values[0]) * 10**digits
        whole = np.rint(scaled)
        if np.abs(scaled - whole).max() < _DECIMAL_TOLERANCE:
            found.append(float(np.gcd.reduce(whole.astype(np.int64)) or 1) / 10**digits)
    return found
