"""A small style-based GAN (Karras et al., CVPR 2020, StyleGAN2): mapping, modulated convolutions, noise at every layer.

As published: a learned constant, demodulated weights, outputs of all levels summed (skips), a residual discriminator,
up-sampling by [1, 3, 3, 1] (bilinear). Not: its size (grey, 32 or 64 pixels, four mapping layers, `width` channels at
every level), style mixing and path length regularisation.
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

FIRST, MAPPING = 4, 4


class _Modulated(nn.Module):
    """A convolution whose weights are scaled by a style and brought back to unit gain (section 2.2, equations 1 and 3).

    Inputs are scaled by the style and outputs by the demodulation, which gives the same values as scaled weights.
    """

    def __init__(self, inputs: int, outputs: int, latent: int, kernel: int = 3, demodulate: bool = True) -> None:
        super().__init__()
        self.style = EqualLinear(latent, inputs, bias=1.0)
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.scale, self.demodulate = math.sqrt(1 / (inputs * kernel**2)), demodulate

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """(b, inputs, y, x) and w (b, latent) to (b, outputs, y, x)."""
        style, weight = self.style(w), self.weight * self.scale
        y = F.conv2d(x * style[..., None, None], weight, padding=weight.shape[-1] // 2)
        if self.demodulate:
            gain = torch.rsqrt(style.square() @ weight.square().sum(dim=(2, 3)).T + 1e-8)
            y = y * gain[..., None, None]
        return y + self.bias[:, None, None]


class _Layer(nn.Module):
    """A modulated convolution and its noise."""

    def __init__(self, width: int, latent: int) -> None:
        super().__init__()
        self.convolution = _Modulated(width, width, latent)
        self.strength = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, w: Tensor, generator: torch.Generator | None) -> Tensor:
        y: Tensor = self.convolution(x, w)
        device = "cpu" if generator is None else generator.device
        noise = torch.randn(len(y), 1, *y.shape[2:], generator=generator, device=device).to(y.device)
        return math.sqrt(2) * leaky(y + self.strength * noise)


class _Critic(nn.Module):
    """Residual blocks that halve, then a dense head."""

    def __init__(self, levels: int, width: int) -> None:
        super().__init__()
        self.root = EqualConv(1, width, 1)
        self.first = nn.ModuleList(EqualConv(width, width) for _ in range(levels - 1))
        self.second = nn.ModuleList(EqualConv(width, width) for _ in range(levels - 1))
        self.skip = nn.ModuleList(EqualConv(width, width, 1) for _ in range(levels - 1))
        self.last = EqualConv(width + 1, width)
        self.head = nn.Sequential(EqualLinear(width * FIRST**2, width), nn.LeakyReLU(0.2), EqualLinear(width, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(b, 1, y, x) to (b)."""
        y = leaky(self.root(x))
        for first, second, skip in zip(self.first, self.second, self.skip, strict=True):
            y = (F.avg_pool2d(leaky(second(leaky(first(y)))), 2) + skip(F.avg_pool2d(y, 2))) / math.sqrt(2)
        said: Tensor = self.head(leaky(self.last(with_batch_sd(y))).flatten(1))
        return said.flatten()


class StyleBased(nn.Module):
    """Trainable by train.fit. side: 4 times a power of 2."""

    turns = TURNS
    seen: Tensor

    def __init__(self, side: int = 32, width: int = 32, latent: int = 64) -> None:
        super().__init__()
        self.latent = latent
        levels = round(math.log2(side / FIRST)) + 1
        mapping: list[nn.Module] = []
        for _ in range(MAPPING):
            mapping += [EqualLinear(latent, latent), nn.LeakyReLU(0.2)]
        self.mapping = nn.Sequential(*mapping)
        self.constant = nn.Parameter(torch.randn(1, width, FIRST, FIRST))
        self.layers = nn.ModuleList(_Layer(width, latent) for _ in range(2 * levels - 1))
        self.to_grey = nn.ModuleList(_Modulated(width, 1, latent, 1, demodulate=False) for _ in range(levels))
        self.discriminator = _Critic(levels, width)
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))

    def forward(self, z: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """(b, latent) to (b, 1, side, side) around -1..1. generator: of the layers' noise."""
        w = self.mapping(normalised(z))
        x = self.layers[0](self.constant.expand(len(z), -1, -1, -1), w, generator)
        made: Tensor = self.to_grey[0](x, w)
        for k, grey in enumerate(list(self.to_grey)[1:]):
            x = self.layers[2 * k + 1](_doubled(x), w, generator)
            x = self.layers[2 * k + 2](x, w, generator)
            made = _doubled(made) + grey(x, w)
        return made

    def draw(self, z: Tensor, generator: torch.Generator) -> Tensor:
        """Pictures (b, 1, side, side)."""
        made: Tensor = self(z, generator)
        return made

    def optimizers(self, settings: Mapping[str, Any]) -> dict[str, torch.optim.Optimizer]:
        """One Adam per side."""
        return adversarial_optimizers(self, settings)

    def step(self, batch: dict[str, Tensor], turn: str) -> dict[str, Tensor]:
        """batch: x (b, 1, side, side) in -1..1, z (b, latent)."""
        losses = adversarial_loss(self.discriminator, batch["x"], self(batch["z"]), turn, int(self.seen))
        if turn == "generator":
            self.seen += 1
        return losses


def _doubled(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear")
