"""What every protector network is: from HU to a perturbation within a budget, and the step that trains it.

Tiles of a scan against the whole of it is the job of `perturb`. The attack that a network works against is given to it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ctguard.core.errors import RecipeError
from ctguard.core.geometry import IntTriple
from ctguard.protect.protector import round_straight

Batch = dict[str, Tensor]
"""A training batch of blocks: "hu" float32 (b, 1, z, y, x), "core" of that shape, 1 in the masked core and 0 elsewhere,
"spacing_zyx_mm" (b, 3), and what the attack reads of each block (its site, task, seed and generator)."""

ForgeBlocks = Callable[[Tensor, Batch], Tensor]
"""Forges every block of a batch by its own plan: float32 HU (b, 1, z, y, x) in and out, differentiable."""


class ProtectorNet(nn.Module, ABC):
    """A protector that is a network. It is also trainable: `turns`, `optimizers` and `step`.

    dims: 2 where `forward` takes slices (b, 1, y, x), 3 where it takes blocks (b, 1, z, y, x).
    budget_hu: no voxel changes by more, unless a call names another budget.
    tile_zyx, overlap_zyx: the tiles that a scan is cut into, in voxels, and by how many they overlap; of a network of
        slices, the first number says how many go through it at once.
    attack: what it trains against; frozen.
    """

    dims: Literal[2, 3] = 2
    tile_zyx: IntTriple = (4, 256, 256)
    overlap_zyx: IntTriple = (0, 32, 32)
    turns: tuple[str, ...] = ("protector",)
    budget_hu: float
    attack: ForgeBlocks | None = None

    @abstractmethod
    def forward(self, hu: Tensor, budget_hu: float | None = None) -> Tensor:
        """HU (b, 1, ...) of any size to what is added to it, in HU and of the same shape, |d| <= floor(budget_hu).

        Not rounded yet. Noise that it needs comes from torch's global generator.
        """

    @abstractmethod
    def step(self, batch: Batch, turn: str) -> dict[str, Tensor]:
        """Scalar losses of one batch. "loss" is the one to minimise, the others are for the log."""

    @abstractmethod
    def optimizers(self, settings: Mapping[str, Any]) -> dict[str, torch.optim.Optimizer]:
        """One optimiser per turn."""

    def bound(self, budget_hu: float | None) -> float:
        """The largest whole HU within a budget (None: the network's own)."""
        return float(math.floor(self.budget_hu if budget_hu is None else budget_hu))

    def blocks(self, hu: Tensor, budget_hu: float | None = None) -> Tensor:
        """`forward` on blocks (b, 1, z, y, x), whatever `dims` is; float32, not rounded."""
        if self.dims == 3:
            added: Tensor = self(hu, budget_hu).float()
            return added
        return as_blocks(self(as_slices(hu), budget_hu).float(), len(hu))

    def rounded(self, hu: Tensor, budget_hu: float | None = None) -> Tensor:
        """What is added to blocks (b, 1, z, y, x) in whole HU; gradients pass as if nothing were rounded."""
        return round_straight(self.blocks(hu, budget_hu))

    def rounded_batch(self, batch: Batch) -> Tensor:
        """`rounded` of a batch's blocks; for networks that read more of the batch than its HU."""
        return self.rounded(batch["hu"])

    def forge(self, hu: Tensor, batch: Batch) -> Tensor:
        """What the attack makes of blocks. Raises RecipeError where no attack was given."""
        if self.attack is None:
            raise RecipeError("a protector has no attack to train against", remedy="set its attack first")
        return self.attack(hu, batch)


def as_slices(blocks: Tensor) -> Tensor:
    """Blocks (b, 1, z, y, x) as slices (b * z, 1, y, x)."""
    b, _, z, y, x = blocks.shape
    return blocks.reshape(b * z, 1, y, x)


def as_blocks(slices: Tensor, blocks: int) -> Tensor:
    """The inverse of `as_slices`."""
    n, _, y, x = slices.shape
    return slices.reshape(blocks, 1, n // blocks, y, x)


def without_level(slices: Tensor, side: int) -> Tensor:
    """Slices (b, 1, y, x) minus their mean over a square of `side` pixels, odd; unchanged where side is 0.

    To lower all lung by some HU moves every generator and survives every filter, and no SD shows it: a change of
    calibration, which densitometry feels, is no protection.
    """
    if side == 0:
        return slices
    level = slices
    for window in ((side, 1), (1, side)):
        padding = (window[0] // 2, window[1] // 2)
        level = nn.functional.avg_pool2d(level, window, stride=1, padding=padding, count_include_pad=False)
    return slices - level


def masked_square(difference: Tensor, mask: Tensor) -> Tensor:
    """Mean square of a difference of blocks (b, 1, z, y, x) where the mask is 1, per block: (b)."""
    return (difference.square() * mask).flatten(1).sum(dim=1) / mask.flatten(1).sum(dim=1)
