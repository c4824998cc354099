"""Histogram equalisation of HU to network range, and back (CT-GAN's Equalizer, facts: CT-GAN 2.2).

CT-GAN maps HU through the cumulative histogram of its training cubes, subtracts the mean and divides by the range:
values lie in about -0.5 .. 0.5 and a masked voxel (0) is the mean equalised grey, not air.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

KNOTS = 256
HU_RANGE = (-1024.0, 1600.0)
UNIFORM_SHARE = 0.1
"""Part of a uniform distribution mixed into the histogram: a bound on the inverse's slope where tissue is rare."""
SOFT_HU = (-1024.0, 300.0)
"""From air to enhanced soft tissue: where `soft_share` is spread."""


class Equaliser(nn.Module):
    """A monotone piecewise linear map HU -> -0.5..0.5, differentiable both ways. Its knots travel with the weights.

    soft_share: part of a uniform distribution over SOFT_HU in the histogram (ours). With none, as published, a cube of
    mostly lung squeezes a nodule's 500 HU into a tenth of the range, and what a network leaves undecided there comes
    out as blotches of 50 HU.
    """

    hu_knots: Tensor
    norm_knots: Tensor

    def __init__(self, soft_share: float = 0.0) -> None:
        super().__init__()
        self.soft_share = soft_share
        self.register_buffer("hu_knots", torch.linspace(*HU_RANGE, KNOTS))
        self.register_buffer("norm_knots", torch.linspace(-0.5, 0.5, KNOTS))

    def fit(self, hu: NDArray[np.float32]) -> None:
        """Take the cumulative histogram of training voxels (any shape, HU, clipped to HU_RANGE)."""
        low, high = HU_RANGE
        values = np.sort(np.clip(hu.ravel(), low, high))
        fine = np.linspace(low, high, 4096)
        cumulative = np.searchsorted(values, fine, side="right") / values.size
        soft = np.clip((fine - SOFT_HU[0]) / (SOFT_HU[1] - SOFT_HU[0]), 0.0, 1.0)
        uniform = (fine - low) / (high - low)
        rest = 1 - UNIFORM_SHARE - self.soft_share
        cumulative = rest * cumulative + UNIFORM_SHARE * uniform + self.soft_share * soft
        cumulative = (cumulative - cumulative[0]) / (cumulative[-1] - cumulative[0])
        norm = np.linspace(0.0, 1.0, KNOTS)
        self.hu_knots.copy_(torch.from_numpy(np.interp(norm, cumulative, fine)).float())
        self.norm_knots.copy_(torch.from_numpy(norm - 0.5).float())

    def forward(self, hu: Tensor) -> Tensor:
        """HU (any shape, float32) to network range; values beyond the knots are clipped."""
        return _piecewise(hu, self.hu_knots, self.norm_knots)

    def inverse(self, norm: Tensor) -> Tensor:
        """Network range to HU; values beyond -0.5 .. 0.5 are clipped, as CT-GAN does."""
        return _piecewise(norm, self.norm_knots, self.hu_knots)


def _piecewise(x: Tensor, knots: Tensor, values: Tensor) -> Tensor:
    x = torch.clamp(x, float(knots[0]), float(knots[-1]))
    right = torch.searchsorted(knots, x.detach().contiguous()).clamp(1, len(knots) - 1)
    left = right - 1
    slope = (values[right] - values[left]) / (knots[right] - knots[left]).clamp_min(1e-9)
    return values[left] + slope * (x - knots[left])
