"""TAFIM (Aneja et al., ECCV 2022; facts: TAFIM 4), slice by slice.

A pix2pix U-Net of six levels (4 x 4 convolutions, instance normalisation, tanh) on the image and a learned global
perturbation gives a perturbation for this image. Both, it and the global one alone, are trained to drive the
forged image to a target, with weight `fidelity` on their size. Published on faces of 256 x 256, without a budget.
On CT: one channel; the global perturbation is a square that repeats over the slice, trained at all phases; a budget in
HU holds both; the target is set over the masked core, where the forging answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ctguard.core.errors import RecipeError
from ctguard.protect.network import Batch, ProtectorNet, as_blocks, as_slices, masked_square, without_level
from ctguard.protect.protector import round_straight

LEVELS = 6
MULTIPLE = 2**LEVELS
_UNIT_HU = 1312.0
"""HU of one unit of network range: -1..1 is the generators' window, -1024..1600."""


class UNetLevel(nn.Module):
    """One level of pix2pix's U-Net (Isola et al., CVPR 2017): down, what lies below it, up, and the skip."""

    def __init__(self, outer: int, inner: int, inputs: int | None = None, below: nn.Module | None = None) -> None:
        super().__init__()
        outermost = inputs is not None
        down: list[nn.Module] = [] if outermost else [nn.LeakyReLU(0.2)]
        down.append(nn.Conv2d(inputs or outer, inner, 4, 2, 1))
        if not outermost and below is not None:
            down.append(nn.InstanceNorm2d(inner))
        up = [nn.ReLU(), nn.ConvTranspose2d(inner if below is None else 2 * inner, outer, 4, 2, 1)]
        up.append(nn.Tanh() if outermost else nn.InstanceNorm2d(outer))
        self.down, self.below, self.up = nn.Sequential(*down), below or nn.Identity(), nn.Sequential(*up)
        self.outermost = outermost

    def forward(self, x: Tensor) -> Tensor:
        """(b, outer, y, x) to twice as many channels; the outermost to its own number."""
        made: Tensor = self.up(self.below(self.down(x)))
        return made if self.outermost else torch.cat([x, made], dim=1)


def unet(width: int) -> nn.Module:
    """pix2pix's U-Net of six levels, two channels to one; width 64 is published."""
    level = UNetLevel(8 * width, 8 * width)
    for outer, inner in ((8, 8), (4, 8), (2, 4), (1, 2)):
        level = UNetLevel(outer * width, inner * width, below=level)
    return UNetLevel(1, width, inputs=2, below=level)


class TAFIM(ProtectorNet):
    """Protection network and global perturbation.

    width: of the first level (published: 64). side: of the global perturbation, in pixels. fidelity: weight of the
    mean squared perturbation (published: 10). target: "uniform", which the forged core shall become (published, at
    target_hu), or "original", the tissue that was there. level_px: side of the square over which the perturbation has
    no mean (0, published: it may have one), see `without_level`.
    """

    def __init__(
        self,
        width: int = 64,
        side: int = 256,
        budget_hu: float = 5.0,
        fidelity: float = 10.0,
        target: Literal["uniform", "original"] = "uniform",
        target_hu: float = 1600.0,
        level_px: int = 0,
    ) -> None:
        super().__init__()
        if target not in ("uniform", "original"):
            raise RecipeError(f"TAFIM has no target {target!r}", remedy="choose uniform or original")
        self.budget_hu, self.fidelity, self.target, self.target_hu = budget_hu, fidelity, target, target_hu
        self.level_px = level_px
        self.tile_zyx, self.overlap_zyx = (4, side, side), (0, side // 4, side // 4)
        self.protector = unet(width)
        self.universal = nn.Parameter(torch.rand(1, 1, side, side))

    def forward(self, hu: Tensor, budget_hu: float | None = None) -> Tensor:
        """See ProtectorNet.forward; slices (b, 1, y, x). The perturbation of each slice."""
        y, x = hu.shape[2:]
        pads = (0, -x % MULTIPLE, 0, -y % MULTIPLE)
        norm = nn.functional.pad((hu - 288) / _UNIT_HU, pads, mode="replicate").clamp(-1, 1)
        pattern = self._pattern(norm).expand_as(norm)
        added: Tensor = self.protector(torch.cat([norm, pattern], dim=1)).float()[:, :, :y, :x]
        return self._held(added, budget_hu)

    def global_perturbation(self, hu: Tensor, budget_hu: float | None = None) -> Tensor:
        """The learned pattern alone, the same for every slice (b, 1, y, x)."""
        return self._held(self._pattern(hu), budget_hu).expand_as(hu)

    def optimizers(self, settings: Mapping[str, Any]) -> dict[str, torch.optim.Optimizer]:
        """Adam over both, jointly. settings: "lr" (published: 1e-4)."""
        return {"protector": torch.optim.Adam(self.parameters(), lr=float(settings.get("lr", 1e-4)))}

    def step(self, batch: Batch, turn: str) -> dict[str, Tensor]:
        """Losses of one batch, the published sum; see ProtectorNet.step."""
        hu = batch["hu"]
        alone = round_straight(as_blocks(self.global_perturbation(as_slices(hu)), len(hu)))
        loss, parts = torch.zeros((), device=hu.device), {}
        wanted = hu if self.target == "original" else torch.full_like(hu, self.target_hu)
        for name, added in (("image", self.rounded(hu)), ("global", alone)):
            distance = masked_square(self.forge(hu + added, batch) - wanted, batch["core"]).mean() / _UNIT_HU**2
            price = added.square().mean() / _UNIT_HU**2
            loss = loss + distance + self.fidelity * price
            parts[f"distance_{name}"] = distance.detach()
        return {"loss": loss, **parts}

    def _held(self, made: Tensor, budget_hu: float | None) -> Tensor:
        bound = self.bound(budget_hu)
        return (bound * without_level(made, self.level_px)).clamp(-bound, bound)

    def _pattern(self, slices: Tensor) -> Tensor:
        """The global perturbation over slices (b, 1, y, x), at a phase of its own while it trains: (1, 1, y, x)."""
        side = self.universal.shape[-1]
        # Clamped, with a gradient beyond: what once was clamped may come back.
        pattern = self.universal + (self.universal.clamp(-1, 1) - self.universal).detach()
        y, x = slices.shape[2:]
        if self.training:
            dy, dx = (int(n) for n in torch.randint(side, (2,)))
            pattern = pattern.roll((dy, dx), dims=(2, 3))
        return pattern.repeat(1, 1, -(-y // side), -(-x // side))[:, :, :y, :x]


class TAFIMGlobal(TAFIM):
    """The same weights, and the global perturbation alone."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.tile_zyx, self.overlap_zyx = (1, 1 << 16, 1 << 16), (0, 0, 0)  # whole slices: the pattern has one phase

    def forward(self, hu: Tensor, budget_hu: float | None = None) -> Tensor:
        """See ProtectorNet.forward; the learned pattern at its own phase."""
        return self.global_perturbation(hu, budget_hu)
