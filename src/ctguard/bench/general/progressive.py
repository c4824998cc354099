"""A small progressive GAN (Karras et al., ICLR 2018): grows from 4 x 4 pixels to its full side while it learns.

As published: equalised learning rates, pixel normalisation, nearest up-sampling, new levels faded in, batch SD in the
discriminator. Not: its size (grey, 32 or 64 pixels, `width` channels at every level), and R1 in place of WGAN-GP.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from ctguard.bench.general.adversary import (
    TURNS,
    EqualConv,
    EqualLinear,
    adversarial_loss,
    adversarial_optimizers,
    leaky,
    normalised,
    with_batch_sd,
)

FIRST = 4


class _Critic(nn.Module):
    """The generator's mirror image."""

    def __init__(self, levels: int, width: int) -> None:
        super().__init__()
        self.from_grey = nn.ModuleList(EqualConv(1, width, 1) for _ in range(levels))
        self.blocks = nn.ModuleList(_pair(width) for _ in range(levels - 1))
        self.last = EqualConv(width + 1, width)
        self.head = nn.Sequential(EqualLinear(width * FIRST**2, width), nn.LeakyReLU(0.2), EqualLinear(width, 1))

    def forward(self, x: Tensor, level: int, fade: float) -> Tensor:
        """(b, 1, y, x) at the side of a level to (b)."""
        y = leaky(self.from_grey[level](x))
        for k in range(level, 0, -1):
            y = F.avg_pool2d(self.blocks[k - 1](y), 2)
            if k == level and fade < 1:
                y = torch.lerp(leaky(self.from_grey[k - 1](F.avg_pool2d(x, 2))), y, fade)
        said: Tensor = self.head(leaky(self.last(with_batch_sd(y))).flatten(1))
        return said.flatten()


class Progressive(nn.Module):
    """Trainable by train.fit; `steps` is how long, for the levels share them. side: 4 times a power of 2."""

    turns = TURNS
    seen: Tensor

    def __init__(self, side: int = 32, width: int = 32, latent: int = 64, steps: int = 1000) -> None:
        super().__init__()
        self.latent, self.steps = latent, max(steps, 1)
        self.levels = round(math.log2(side / FIRST)) + 1
        self.first = EqualLinear(latent, width * FIRST**2)
        self.second = EqualConv(width, width)
        self.blocks = nn.ModuleList(_pair(width, nn.Upsample(scale_factor=2)) for _ in range(self.levels - 1))
        self.to_grey = nn.ModuleList(EqualConv(width, 1, 1) for _ in range(self.levels))
        self.discriminator = _Critic(self.levels, width)
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))

    def growth(self) -> tuple[int, float]:
        """The level that is learned now, and how much of it is faded in: through the first half of its share."""
        done = int(self.seen) * self.levels / self.steps
        level = min(int(done), self.levels - 1)
        return level, 1.0 if level == 0 else min(2 * (done - level), 1.0)

    def forward(self, z: Tensor) -> Tensor:
        """(b, latent) to (b, 1, y, x) around -1..1, at the side of the level that is learned."""
        level, fade = self.growth()
        y = leaky(self.first(normalised(z))).reshape(len(z), -1, FIRST, FIRST)
        y = normalised(leaky(self.second(normalised(y))))
        for k in range(1, level):
            y = self.blocks[k - 1](y)
        made: Tensor
        if level == 0:
            made = self.to_grey[0](y)
            return made
        made = self.to_grey[level](self.blocks[level - 1](y))
        return made if fade == 1 else torch.lerp(F.interpolate(self.to_grey[level - 1](y), scale_factor=2), made, fade)

    def draw(self, z: Tensor, generator: torch.Generator) -> Tensor:
        """Pictures (b, 1, side, side) of a trained network; it has no randomness besides z."""
        made: Tensor = self(z)
        return made

    def optimizers(self, settings: Mapping[str, Any]) -> dict[str, torch.optim.Optimizer]:
        """One Adam per side."""
        return adversarial_optimizers(self, settings)

    def step(self, batch: dict[str, Tensor], turn: str) -> dict[str, Tensor]:
        """batch: x (b, 1, side, side) in -1..1, z (b, latent)."""
        level, fade = self.growth()
        real = F.avg_pool2d(batch["x"], 2 ** (self.levels - 1 - level))
        if fade < 1:
            real = torch.lerp(F.interpolate(F.avg_pool2d(real, 2), scale_factor=2), real, fade)
        how = {"level": level, "fade": fade}
        losses = adversarial_loss(self.discriminator, real, self(batch["z"]), turn, int(self.seen), **how)
        if turn == "generator":
            self.seen += 1
        return losses


class _Normalised(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return normalised(leaky(x))


def _pair(width: int, before: nn.Module | None = None) -> nn.Sequential:
    """Two convolutions; with `before`, the generator's: up-sampled first, and normalised."""
    after = nn.LeakyReLU(0.2) if before is None else _Normalised()
    start = [] if before is None else [before]
    return nn.Sequential(*start, EqualConv(width, width), after, EqualConv(width, width), after)
