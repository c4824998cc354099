"""Control forgeries by the same chain: what a detector finds in them is the chain's trace, not a generator's."""

from __future__ import annotations

from torch import Tensor, nn

from ctguard.core.shapes import CubeNorm
from ctguard.tamper.intensity import Equaliser


class Identity(nn.Module):
    """The scan's own tissue, cut, resampled, equalised and pasted back: no generator at all."""

    makes_tissue = False

    def __init__(self) -> None:
        super().__init__()
        self.equaliser = Equaliser()

    def forward(self, cube_norm: CubeNorm, mask: CubeNorm, noise: CubeNorm) -> CubeNorm:
        """The cube as it came."""
        return cube_norm


class CopyMove(nn.Module):
    """Tissue from elsewhere in the scan. donor_hu: its cube at 1 mm, HU (32, 32, 32)."""

    makes_tissue = False

    def __init__(self, donor_hu: Tensor) -> None:
        super().__init__()
        self.equaliser = Equaliser()
        self.register_buffer("donor_norm", self.equaliser(donor_hu)[None, None])

    donor_norm: Tensor

    def forward(self, cube_norm: CubeNorm, mask: CubeNorm, noise: CubeNorm) -> CubeNorm:
        """The donor's cube in place of each cube."""
        return self.donor_norm.expand_as(cube_norm)
