"""What both adversarial stand-ins share: layers with equalised learning rates, and the losses of the two sides."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

TURNS = ("discriminator", "generator")
SLOPE = 0.2
_R1_WEIGHT, _R1_EVERY = 10.0, 4


class EqualConv(nn.Module):
    """A 2-D convolution whose weights have unit SD and are scaled when used (Karras et al., ICLR 2018, section 4.1)."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.scale = math.sqrt(2 / (inputs * kernel**2))

    def forward(self, x: Tensor) -> Tensor:
        """(b, inputs, y, x) to (b, outputs, y, x)."""
        return F.conv2d(x, self.weight * self.scale, self.bias, padding=self.weight.shape[-1] // 2)


class EqualLinear(nn.Module):
    """The same for vectors. bias: what it starts from."""

    def __init__(self, inputs: int, outputs: int, bias: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs))
        self.bias = nn.Parameter(torch.full((outputs,), bias))
        self.scale = math.sqrt(1 / inputs)

    def forward(self, x: Tensor) -> Tensor:
        """(b, inputs) to (b, outputs)."""
        return F.linear(x, self.weight * self.scale, self.bias)


def leaky(x: Tensor) -> Tensor:
    """LeakyReLU 0.2."""
    return F.leaky_relu(x, SLOPE)


def normalised(x: Tensor) -> Tensor:
    """Each pixel's (or vector's) channels at unit mean square."""
    return x * torch.rsqrt(x.square().mean(dim=1, keepdim=True) + 1e-8)


def with_batch_sd(x: Tensor) -> Tensor:
    """One more channel: the mean SD over the batch, by which lack of variety shows (Karras 2018, section 3)."""
    spread = (x.var(dim=0, unbiased=False) + 1e-8).sqrt().mean()
    return torch.cat([x, spread.expand(len(x), 1, *x.shape[2:])], dim=1)


def adversarial_loss(
    discriminator: nn.Module, real: Tensor, fake: Tensor, turn: str, seen: int, **how: Any
) -> dict[str, Tensor]:
    """Non-saturating logistic losses, with an R1 penalty every fourth step (Karras et al., CVPR 2020, section 3.1).

    real, fake: (b, 1, y, x) in -1..1. seen: the step. how: further arguments of the discriminator.
    """
    if turn == "generator":
        return {"loss": F.softplus(-discriminator(fake, **how)).mean()}
    penalised = seen % _R1_EVERY == 0
    real = real.detach().requires_grad_(penalised)
    said = discriminator(real, **how)
    loss = F.softplus(-said).mean() + F.softplus(discriminator(fake.detach(), **how)).mean()
    if penalised:
        (slope,) = torch.autograd.grad(said.sum(), real, create_graph=True)
        loss = loss + _R1_EVERY * _R1_WEIGHT / 2 * slope.square().flatten(1).sum(dim=1).mean()
    return {"loss": loss}


def adversarial_optimizers(module: nn.Module, settings: Mapping[str, Any]) -> dict[str, torch.optim.Optimizer]:
    """Adam without momentum for both sides. settings: "lr". The module keeps its critic in `discriminator`."""
    sides: dict[str, list[nn.Parameter]] = {turn: [] for turn in TURNS}
    for name, parameter in module.named_parameters():
        sides["discriminator" if name.startswith("discriminator.") else "generator"].append(parameter)
    lr = float(settings.get("lr", 2e-3))
    return {turn: torch.optim.Adam(sides[turn], lr=lr, betas=(0.0, 0.99)) for turn in TURNS}
