"""What every detector is: a network from HU to one score and one map, and the losses that train it.

Slices against volumes is the job of `infer`; thresholds are found by a benchmark and stored in the card. A detector
never learns which generator made a forgery, and reads nothing but voxels.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from ctguard.core.errors import RecipeError

Batch = dict[str, Tensor]
"""A training batch: "x" HU float32 (b, 1, ...), "mask" 0/1 (b, 1, ...), "label" 0/1 (b), and "ignore" 0/1
(b, 1, ...) where some voxels count neither way (changed voxels beyond the nominal cube, for one)."""

FORGED_PRIOR = 0.02
"""Share of forged pixels that an untrained network expects (Lin et al., ICCV 2017, section 3.3)."""


class Detector(nn.Module, ABC):
    """A detector. It is also trainable: `turns`, `optimizers` and `step` are all that the training loop knows of it.

    window_hu: what the network sees; HU outside it are clipped inside `forward`.
    dims: 2 where `forward` takes slices (b, 1, y, x), 3 where it takes blocks (b, 1, z, y, x).
    area: what of a scan it judges, which is what it is trained on: the lungs' box, or the whole body. A volume's score
        is a maximum, so that one look at tissue that it never saw could raise a false alarm.
    localises: whether it says where. One that does not gives a map that marks nothing, which nobody may read as a map
        of pristine tissue: `infer` leaves the verdict's map empty and lists no regions.
    turns: the parts that are trained one after the other within a step; each names its optimizer.
    starts_from: part to the (name, kind) of the model whose weights it starts from and keeps: it stays frozen.
    """

    window_hu: tuple[float, float]
    dims: Literal[2, 3]
    area: Literal["lungs", "body"] = "lungs"
    localises: bool = True
    turns: tuple[str, ...] = ("detector",)
    starts_from: ClassVar[Mapping[str, tuple[str, str]]] = {}

    def train(self, mode: bool = True) -> Self:
        """As any module's, but parts that are kept stay frozen, statistics included."""
        super().train(mode)
        for part in self.starts_from:
            self.get_submodule(part).eval()
        return self

    @abstractmethod
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """HU (b, 1, ...) of any size to the score's logit (b) and the map's logit (b, 1, ...), same size as x."""

    @abstractmethod
    def step(self, batch: Batch, turn: str) -> dict[str, Tensor]:
        """Scalar losses of one batch. "loss" is the one to minimise, the others are for the log."""

    def optimizers(self, settings: Mapping[str, Any]) -> dict[str, torch.optim.Optimizer]:
        """AdamW over all parameters. settings: "lr" and, unless 1e-4, "weight_decay".

        Raises RecipeError without a learning rate.
        """
        if "lr" not in settings:
            raise RecipeError("no learning rate", where="recipe", remedy="set lr, for example lr = 1e-3")
        decay = float(settings.get("weight_decay", 1e-4))
        return {self.turns[0]: torch.optim.AdamW(self.parameters(), lr=float(settings["lr"]), weight_decay=decay)}


def expect_prior(head: nn.Conv2d | nn.Conv3d) -> None:
    """Sets the bias of a map's last convolution, so that an untrained network expects FORGED_PRIOR of forged pixels.

    head: with one output, the logit of forged, or two, of pristine and of forged.
    """
    logit = math.log(FORGED_PRIOR / (1 - FORGED_PRIOR))
    assert head.bias is not None
    with torch.no_grad():
        head.bias.copy_(torch.tensor([logit] if head.out_channels == 1 else [-logit / 2, logit / 2]))


def channels_last(module: nn.Module) -> None:
    """Convolutions with their channels last in memory: narrow networks run up to twice as fast on a CPU."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.ConvTranspose2d):
            part.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        elif isinstance(part, nn.Conv3d | nn.ConvTranspose3d):
            part.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
