"""The 3-D deep leaky noisy-or network of Liao et al. (TNNLS 2019, arXiv 1711.08324): nodules and their malignancy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from ctguard.core.errors import RecipeError

Batch = Mapping[str, Tensor]

STRIDE = 4
"""Millimetres from one cell of the features to the next."""
MULTIPLE = 16
STRONGEST = 5
"""Proposals that make up a case."""
_MISSED = 0.03
_POSITIVE_MM = 3.5
_IGNORED_MM = 6.0
_HARD = 8
_LEAK = -30.0


@dataclass(frozen=True)
class Seen:
    """What the backbone and the detector head make of blocks.

    features: (b, channels, z, y, x), one cell per 4 mm. boxes: (b, anchors, 5, z, y, x): logit of a nodule, offset of
    its centre (z, y, x) and log of its diameter, both relative to the anchor.
    """

    features: Tensor
    boxes: Tensor


class ResidualBlock(nn.Module):
    """Conv, BN, ReLU, conv, BN, plus the input (through a 1 x 1 convolution where the width changes), ReLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv3d(inputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm3d(outputs),
            nn.ReLU(inplace=True),
            nn.Conv3d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm3d(outputs),
        )
        self.skip: nn.Module = nn.Identity()
        if inputs != outputs:
            self.skip = nn.Sequential(nn.Conv3d(inputs, outputs, 1, bias=False), nn.BatchNorm3d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """(b, inputs, z, y, x) to (b, outputs, z, y, x)."""
        out: Tensor = F.relu(self.body(x) + self.skip(x))
        return out


def _blocks(inputs: int, outputs: int, count: int) -> nn.Sequential:
    return nn.Sequential(*(ResidualBlock(inputs if k == 0 else outputs, outputs) for k in range(count)))


def _stem(width: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs in (1, width):
        layers += [nn.Conv3d(inputs, width, 3, padding=1, bias=False), nn.BatchNorm3d(width), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def _rise(width: int) -> nn.Sequential:
    return nn.Sequential(nn.ConvTranspose3d(width, width, 2, stride=2), nn.BatchNorm3d(width), nn.ReLU(inplace=True))


class NoisyOr3d(nn.Module):
    """Blocks at 1 mm in; proposals, and the malignancy of what lies at one place of each block, out.

    width: channels of the first level, the others in proportion 24/32/64/64/64 and 128 behind the feedback path; 24 is
        the published network (5.4 M parameters), 12 the CPU size.
    block_mm: side of the blocks that it is trained on and that a place is scored in; a multiple of 16. 96 as published.
    window_hu: as published.
    anchors_mm: diameters of the detector's anchors, as published.
    find_above: probability from which on a proposal counts as a nodule found.

    Differs from the publication: it sees the scan without the lung mask painted over, so that a nodule at the pleura
    does not hang on a segmentation; the target of an anchor is set by distance and size instead of overlap, so that
    small nodules have one; a nodule has a label of its own beside that of its case.
    Raises RecipeError where a parameter makes no network.
    """

    turns = ("scorer",)

    def __init__(
        self,
        width: int = 24,
        block_mm: int = 96,
        window_hu: tuple[float, float] = (-1200.0, 600.0),
        anchors_mm: tuple[float, ...] = (10.0, 30.0, 60.0),
        dropout: float = 0.5,
        find_above: float = 0.5,
    ) -> None:
        super().__init__()
        if width < 3 or width % 3 or block_mm < MULTIPLE or block_mm % MULTIPLE or window_hu[0] >= window_hu[1]:
            raise RecipeError(
                f"no scorer has width {width}, blocks of {block_mm} mm and window {window_hu} HU",
                remedy="give a width that 3 divides, block_mm that 16 divides and a window (low, high)",
            )
        self.block_mm = block_mm
        self.window_hu = (float(window_hu[0]), float(window_hu[1]))
        self.anchors_mm = tuple(float(a) for a in anchors_mm)
        self.find_above = find_above
        low, deep = 4 * width // 3, 8 * width // 3
        self.stem = _stem(width)
        self.down = nn.ModuleList(
            [_blocks(width, low, 2), _blocks(low, deep, 2), _blocks(deep, deep, 3), _blocks(deep, deep, 3)]
        )
        self.rise = nn.ModuleList([_rise(deep), _rise(deep)])
        self.up = nn.ModuleList([_blocks(2 * deep, deep, 3), _blocks(2 * deep + 3, 2 * deep, 3)])
        self.detector = nn.Sequential(
            nn.Dropout3d(0.2), nn.Conv3d(2 * deep, deep, 1), nn.ReLU(), nn.Conv3d(deep, 5 * len(self.anchors_mm), 1)
        )
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(2 * deep, deep), nn.ReLU(), nn.Linear(deep, 1))
        self.leak = nn.Parameter(torch.tensor(_LEAK))
        # An untrained detector expects few nodules, and a nodule to have the size of its anchor.
        last = self.detector[-1]
        nn.init.normal_(last.weight, std=0.01)  # type: ignore[arg-type]
        with torch.no_grad():
            last.bias.zero_()  # type: ignore[operator]
            last.bias[::5] = -3.0  # type: ignore[operator]

    def look(self, hu: Tensor, location: Tensor) -> Seen:
        """Features and boxes of blocks.

        hu: (b, 1, z, y, x) at 1 mm, sides that 16 divides. location: (b, 2, 3), middle and half extent (z, y, x) of
        the block in the box of the lungs, which reaches from -1 to 1; zeros where the place is not known.
        """
        low, high = self.window_hu
        x = hu.clamp(low, high).sub(low).mul(2 / (high - low)).sub(1)  # HU -> -1..1
        x = x.contiguous(memory_format=torch.channels_last_3d)  # twice as fast on a CPU
        levels = [self.stem(x)]
        for blocks in self.down:
            levels.append(blocks(F.max_pool3d(levels[-1], 2)))
        y = self.up[0](torch.cat((self.rise[0](levels[4]), levels[3]), dim=1))
        y = self.rise[1](y)
        y = self.up[1](torch.cat((y, levels[2], location_map(location, y).to(y.dtype)), dim=1))
        boxes = self.detector(y)
        return Seen(y, boxes.unflatten(1, (len(self.anchors_mm), 5)).float())

    def classify(self, features: Tensor, site_mm: Tensor | None = None) -> Tensor:
        """Logit (b) of malignancy at one place of each block: its middle, or `site_mm` (b, 3), voxels (z, y, x).

        The 2 x 2 x 2 cells around the place are pooled by their maximum.
        """
        shape = torch.tensor(features.shape[2:], device=features.device)
        if site_mm is None:
            first = (shape // 2 - 1).expand(len(features), 3)
        else:
            first = torch.round((site_mm + 0.5) / STRIDE - 1).long()
            first = torch.minimum(first.clamp(min=0), shape - 2)
        cells = [
            f[:, z : z + 2, y : y + 2, x : x + 2].amax(dim=(1, 2, 3))
            for f, (z, y, x) in zip(features, first.tolist(), strict=True)
        ]
        logit: Tensor = self.classifier(torch.stack(cells)).squeeze(1).float()
        return logit

    def forward(self, hu: Tensor, location: Tensor) -> Tensor:
        """Logit (b) of the malignancy of what lies in the middle of each block; arguments as `look`."""
        return self.classify(self.look(hu, location).features)

    def case_probability(self, logits: Tensor) -> Tensor:
        """Leaky noisy-or of proposals' logits (..., proposals), the first five: probability of cancer (...).

        They come in the order of the detector's confidence.
        """
        spared = F.logsigmoid(-logits[..., :STRONGEST]).sum(-1) + F.logsigmoid(-self.leak)
        return 1 - spared.exp()

    def step(self, batch: Batch, turn: str) -> dict[str, Tensor]:
        """Losses of a batch; "loss" is the one to minimise.

        batch: hu (b, 1, z, y, x); location (b, 2, 3); site_mm (b, 3) in voxels; diameter_mm (b), 0 where no nodule is;
        malignant (b), 0 or 1; case (b), equal for the blocks of one case.
        Cross-entropy of nodules and of cases, the publication's penalty for malignant nodules that are missed, and the
        detector's cross-entropy with hard negatives and its smooth L1. Raises RecipeError for another turn.
        """
        if turn not in self.turns:
            raise RecipeError(f"the scorer has no turn {turn!r}", remedy=f"use one of {self.turns}")
        seen = self.look(batch["hu"], batch["location"])
        logit = self.classify(seen.features, batch["site_mm"])
        malignant = batch["malignant"].float()
        nodule = F.binary_cross_entropy_with_logits(logit, malignant)
        case, missed = self._case_losses(logit, malignant, batch["case"])
        found, shape = self._detector_losses(seen.boxes, batch["site_mm"], batch["diameter_mm"])
        loss = nodule + 0.5 * case + missed + found + shape
        return {"loss": loss, "nodule": nodule, "case": case, "missed": missed, "found": found, "shape": shape}

    def _case_losses(self, logit: Tensor, malignant: Tensor, case: Tensor) -> tuple[Tensor, Tensor]:
        losses = []
        for name in sorted(set(case.tolist())):
            inside = case == name
            spared = F.logsigmoid(-logit[inside]).sum() + F.logsigmoid(-self.leak)
            sick = malignant[inside].max()
            ill = torch.log(-torch.expm1(spared.clamp(max=-1e-6)))
            losses.append(-(sick * ill + (1 - sick) * spared))
        probability = logit.sigmoid()
        lost = (malignant > 0) & (probability < _MISSED)
        missed = -(probability + 1e-3).log()[lost].sum() / max(len(logit), 1)
        return torch.stack(losses).mean(), missed

    def _detector_losses(self, boxes: Tensor, site_mm: Tensor, diameter_mm: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy of anchors and smooth L1 of offsets and sizes."""
        anchors = boxes.new_tensor(self.anchors_mm)
        offset = site_mm.view(-1, 1, 1, 1, 3) - cell_centers(boxes.shape[3:], boxes.device)  # b z y x 3
        distance = offset.norm(dim=-1)
        present = (diameter_mm > 0).view(-1, 1, 1, 1)
        at_nodule = (distance < _POSITIVE_MM) & present
        near = (distance < (diameter_mm / 2 + _IGNORED_MM).view(-1, 1, 1, 1)) & present
        best = (diameter_mm.clamp(min=1)[:, None].log() - anchors.log()).abs().argmin(1)
        own = F.one_hot(best, len(anchors)).bool().view(-1, len(anchors), 1, 1, 1)
        positive = at_nodule[:, None] & own
        logit = boxes[:, :, 0]
        hard = logit.masked_fill(near[:, None], -torch.inf).flatten(1).topk(_HARD, dim=1).values
        zero = boxes.sum() * 0.0
        yes = F.softplus(-logit[positive]).mean() if bool(positive.any()) else zero
        found = 0.5 * (yes + F.softplus(hard).mean())
        if not bool(positive.any()):
            return found, zero
        scale = anchors.view(1, -1, 1, 1, 1)
        wanted = torch.cat(
            (
                (offset.movedim(-1, 1)[:, None] / scale[:, :, None]),
                (diameter_mm.clamp(min=1).view(-1, 1, 1, 1, 1, 1) / scale[:, :, None])
                .log()
                .expand(-1, -1, 1, *boxes.shape[3:]),
            ),
            dim=2,
        )
        chosen = positive[:, :, None].expand_as(wanted)
        return found, F.smooth_l1_loss(boxes[:, :, 1:][chosen], wanted[chosen])

    def optimizers(self, settings: Mapping[str, Any]) -> dict[str, torch.optim.Optimizer]:
        """AdamW over all parameters. settings: "lr", "weight_decay" (1e-4). Raises RecipeError without a rate."""
        if "lr" not in settings:
            raise RecipeError("no learning rate", where="recipe", remedy="set lr, for example lr = 1e-3")
        decay = float(settings.get("weight_decay", 1e-4))
        return {"scorer": torch.optim.AdamW(self.parameters(), lr=float(settings["lr"]), weight_decay=decay)}


def cell_centers(shape_zyx: tuple[int, ...] | torch.Size, device: torch.device | str = "cpu") -> Tensor:
    """Voxel coordinates (z, y, x, 3) of the cells' centres."""
    axes = [(torch.arange(n, device=device) + 0.5) * STRIDE - 0.5 for n in shape_zyx]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)


def location_map(location: Tensor, like: Tensor) -> Tensor:
    """Coordinates (b, 3, z, y, x) of the cells of `like` in the box of the lungs; location as `NoisyOr3d.look`."""
    sides = like.shape[2:]
    maps = []
    for axis, n in enumerate(sides):
        line = (torch.arange(n, device=like.device) + 0.5) * 2 / n - 1
        values = location[:, 0, axis, None] + location[:, 1, axis, None] * line
        shape = [len(location), 1, 1, 1, 1]
        shape[2 + axis] = n
        maps.append(values.view(shape).expand(len(location), 1, *sides))
    return torch.cat(maps, dim=1)
