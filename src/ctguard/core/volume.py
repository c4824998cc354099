"""A CT volume in Hounsfield units."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctguard.core.errors import GeometryError
from ctguard.core.geometry import Geometry
from ctguard.core.marks import Mark
from ctguard.core.provenance import Provenance, Step


@dataclass(frozen=True, eq=False)
class Volume:
    """Voxels, where they lie, and where they come from.

    hu: (z, y, x); int16 where the source's slope and intercept are whole numbers, else float32. Read-only:
        nothing mutates a volume.
    Raises GeometryError where the grid and the array differ in shape.
    """

    hu: NDArray[Any]
    geometry: Geometry
    provenance: Provenance

    def __post_init__(self) -> None:
        if self.hu.shape != self.geometry.shape_zyx:
            raise GeometryError(f"voxels of shape {self.hu.shape} on a grid of shape {self.geometry.shape_zyx}")
        if self.hu.dtype not in (np.dtype(np.int16), np.dtype(np.float32)):
            raise GeometryError(f"voxels of type {self.hu.dtype}", remedy="give int16 or float32 Hounsfield units")
        view = self.hu.view()
        view.flags.writeable = False
        object.__setattr__(self, "hu", view)

    def changed(self, hu: NDArray[Any], step: Step, *marks: Mark) -> Volume:
        """A new volume on the same grid, with one more provenance step and its marks."""
        return Volume(hu, self.geometry, self.provenance.then(step, *marks))
