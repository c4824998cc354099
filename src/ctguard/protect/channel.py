"""What a protected block may go through before it is forged, differentiable: no perturbation is trained on one path.

Each function takes HU (z, y, x) and gives HU of the same shape.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ctguard.core.geometry import FloatTriple, IntTriple
from ctguard.image.resample import apply_matrices, grid_matrices

Passage = Callable[[Tensor, FloatTriple], Tensor]
"""HU and spacing (z, y, x) to HU."""
_BLUR_VOXELS = 0.5
_STEPS_HU = (24.0, 12.0, 12.0, 8.0)
"""Quantiser steps of a stand-in for JPEG 2000 near 6:1: the finest details of both levels, then their means."""


def unchanged(block: Tensor, spacing_zyx_mm: FloatTriple) -> Tensor:
    """The block itself."""
    return block


def blurred(block: Tensor, spacing_zyx_mm: FloatTriple) -> Tensor:
    """A Gaussian of half a voxel along all axes."""
    side = float(np.exp(-0.5 / _BLUR_VOXELS**2))
    kernel = torch.tensor([side, 1.0, side], device=block.device) / (1 + 2 * side)
    padded = torch.nn.functional.pad(block[None, None], (1,) * 6, mode="replicate")
    for shape in ((3, 1, 1), (1, 3, 1), (1, 1, 3)):
        padded = torch.nn.functional.conv3d(padded, kernel.reshape(1, 1, *shape))
    return padded[0, 0]


def resampled(block: Tensor, spacing_zyx_mm: FloatTriple) -> Tensor:
    """To 1 mm voxels and back, cubic splines both ways."""
    shape: IntTriple = (block.shape[0], block.shape[1], block.shape[2])
    z, y, x = (int((n - 1) * mm) + 1 for n, mm in zip(shape, spacing_zyx_mm, strict=True))
    step = (1 / spacing_zyx_mm[0], 1 / spacing_zyx_mm[1], 1 / spacing_zyx_mm[2])
    there = grid_matrices(shape, (0.0, 0.0, 0.0), step, (z, y, x))
    back = grid_matrices((z, y, x), (0.0, 0.0, 0.0), spacing_zyx_mm, shape)
    return apply_matrices(apply_matrices(block, there), back)


def compressed(block: Tensor, spacing_zyx_mm: FloatTriple) -> Tensor:
    """A stand-in for lossy compression: two levels of Haar wavelets in each slice, quantised with a dead zone.

    Straight through: where a coefficient is kept its gradient is 1, where it is quantised to nothing 0.
    """
    y, x = block.shape[1:]
    padded = torch.nn.functional.pad(block[:, None], (0, -x % 4, 0, -y % 4), mode="replicate")
    fine = _haar(padded)
    coarse = _haar(fine[:, :1])
    kept = torch.cat([coarse[:, :1], *(_quantised(coarse[:, k : k + 1], _STEPS_HU[3]) for k in (1, 2, 3))], dim=1)
    steps = (_STEPS_HU[1], _STEPS_HU[2], _STEPS_HU[0])
    details = [_quantised(fine[:, k : k + 1], step) for k, step in zip((1, 2, 3), steps, strict=True)]
    return _haar_back(torch.cat([_haar_back(kept), *details], dim=1))[:, 0, :y, :x]


PASSAGES: tuple[Passage, ...] = (unchanged, unchanged, blurred, resampled, compressed)
"""Drawn from with equal chances: two in five blocks go as they are."""


def _quantised(values: Tensor, step: float) -> Tensor:
    kept = values * (values.abs() >= step).float()
    return kept + (torch.trunc(kept / step) * step + 0.5 * step * torch.sign(kept) - kept).detach()


def _haar(planes: Tensor) -> Tensor:
    """(n, 1, y, x) to mean and three details (n, 4, y / 2, x / 2), orthonormal."""
    a, b = planes[:, :, ::2, ::2], planes[:, :, ::2, 1::2]
    c, d = planes[:, :, 1::2, ::2], planes[:, :, 1::2, 1::2]
    return torch.cat([a + b + c + d, a - b + c - d, a + b - c - d, a - b - c + d], dim=1) / 2


def _haar_back(parts: Tensor) -> Tensor:
    """The inverse of `_haar`."""
    m, h, v, d = (parts[:, k] for k in range(4))
    quads = torch.stack([m + h + v + d, m - h + v - d, m + h - v - d, m - h - v + d], dim=1) / 2
    return torch.nn.functional.pixel_shuffle(quads, 2)
