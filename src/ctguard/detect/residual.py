"""A residual of CT noise that tells acquisitions apart: what takes the place of Noiseprint++ in TruFor.

Noiseprint++ is a fingerprint of camera models, learned from photographs; CT has no such fingerprint. What CT has is
noise whose size and spectrum follow dose, kernel and reconstruction, and this network learns to show those: patches of
one series, one kind of tissue and one history of processing get like residuals, all others unlike ones. It sees
pristine scans alone, and never a forgery.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ctguard.core.errors import RecipeError

RIM = 4
"""Pixels at a patch's border that the loss leaves out: padding, not tissue, speaks there."""


class CTResidual(nn.Module):
    """A DnCNN (Zhang et al., IEEE TIP 2017) from HU to one channel, taught by contrast. Not Noiseprint++.

    width: features of its layers, 64 in Noiseprint++; depth: convolutions, 17 there (0.56 M parameters). CPU size: 12
        features, 9 layers (0.01 M, 0.02 MB in fp16).
    window_hu: lung and soft tissue, scaled to -1..1.
    temperature: of the contrast, in squared units of the residual.

    Source: Guillaro et al., TruFor, CVPR 2023, section 3.1, whose classes are camera model, position and editing
    history; here they are series (so dose and kernel), kind of tissue and history (zoom, blur, added noise).
    Raises RecipeError where a parameter makes no network.
    """

    turns: tuple[str, ...] = ("residual",)

    def __init__(
        self,
        width: int = 64,
        depth: int = 17,
        window_hu: tuple[float, float] = (-1150.0, 350.0),
        temperature: float = 0.1,
    ) -> None:
        super().__init__()
        if width < 1 or depth < 3 or temperature <= 0 or window_hu[0] >= window_hu[1]:
            raise RecipeError(
                f"no residual has width {width}, depth {depth}, temperature {temperature} and window {window_hu} HU",
                remedy="give a width >= 1, a depth >= 3, a temperature > 0 and a window (low, high)",
            )
        self.window_hu = (float(window_hu[0]), float(window_hu[1]))
        self.temperature = temperature
        layers: list[nn.Module] = [nn.Conv2d(1, width, 3, padding=1), nn.ReLU(inplace=True)]
        for _ in range(depth - 2):
            layers += [
                nn.Conv2d(width, width, 3, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
            ]
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, 1, 3, padding=1))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """HU (b, 1, y, x), any size, to the residual (b, 1, y, x), whose scale is the network's own."""
        low, high = self.window_hu
        norm = x.clamp(low, high).sub(low).mul(2 / (high - low)).sub(1)  # HU -> -1..1
        residual: Tensor = self.layers(norm)
        return residual

    def optimizers(self, settings: Mapping[str, Any]) -> dict[str, torch.optim.Optimizer]:
        """AdamW over all parameters. settings: "lr". Raises RecipeError without it."""
        if "lr" not in settings:
            raise RecipeError("no learning rate", where="recipe", remedy="set lr, for example lr = 1e-3")
        return {"residual": torch.optim.AdamW(self.parameters(), lr=float(settings["lr"]))}

    def step(self, batch: dict[str, Tensor], turn: str) -> dict[str, Tensor]:
        """The contrast of a batch: "x" HU (b, 1, y, x), and "group" (b), equal where residuals are to be alike.

        Raises RecipeError for a turn that the network does not have.
        """
        if turn not in self.turns:
            raise RecipeError(f"the residual has no turn {turn!r}", remedy=f"use one of {self.turns}")
        distance = distances(self(batch["x"]))
        return {
            "loss": contrastive_loss(distance, batch["group"], self.temperature),
            "retrieval": retrieval(distance.detach(), batch["group"]),
        }


def distances(residual: Tensor) -> Tensor:
    """Mean squared difference (b, b) of the residuals (b, 1, y, x) of patches, pixel by pixel, without their rim."""
    inner = residual[..., RIM:-RIM, RIM:-RIM] if min(residual.shape[-2:]) > 2 * RIM else residual
    flat = inner.flatten(1).float()
    squares = flat.square().mean(dim=1)
    return (squares[:, None] + squares - 2 * flat @ flat.T / flat.shape[1]).clamp(min=0)


def contrastive_loss(distance: Tensor, group: Tensor, temperature: float = 0.1) -> Tensor:
    """InfoNCE with several positives: -log of the share of a patch's own group in exp(-distance / temperature).

    distance: (b, b); group: (b). A patch without a partner in the batch does not count; 0 where none has one.
    """
    itself = torch.eye(len(group), dtype=torch.bool, device=group.device)
    alike = (group[:, None] == group) & ~itself
    paired = alike.any(dim=1)
    if not bool(paired.any()):
        return distance.sum() * 0.0
    logit = (-distance / temperature).masked_fill(itself, -math.inf)
    positive = logit.masked_fill(~alike, -math.inf)[paired].logsumexp(dim=1)
    return (logit[paired].logsumexp(dim=1) - positive).mean()


def retrieval(distance: Tensor, group: Tensor) -> Tensor:
    """Share of patches whose nearest other patch is of their own group."""
    itself = torch.eye(len(group), dtype=torch.bool, device=group.device)
    nearest = distance.masked_fill(itself, math.inf).argmin(dim=1)
    return (group[nearest] == group).float().mean()


def judge_residual(model: nn.Module, batches: list[dict[str, Tensor]]) -> dict[str, float]:
    """Retrieval over held-out batches; "score" is maximised."""
    found = [float(retrieval(distances(model(batch["x"])), batch["group"])) for batch in batches]
    value = math.fsum(found) / max(len(found), 1)
    return {"score": value, "retrieval": value}
