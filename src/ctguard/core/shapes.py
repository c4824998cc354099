"""Array types that name their axes. Imported for type checking and by code that already needs torch."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

VolumeHU = Float[Tensor, "z y x"]
"""A volume or block in HU."""

CubeNorm = Float[Tensor, "b 1 z y x"]
"""Cubes in network range."""
