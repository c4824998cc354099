"""Xception (Chollet, CVPR 2017), as FaceForensics++ and M3Dsynth use it: whether a slice is forged, never where."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from ctguard.core.errors import RecipeError
from ctguard.detect.detector import Batch, Detector

PUBLISHED_WIDTH = 32
MIDDLE_BLOCKS = 8
STRIDE = 32
"""Pixels between two cells of the last features."""
NOWHERE = -100.0
"""The map's logit everywhere: this detector marks no pixel."""


class _Separable(nn.Sequential):
    """A depthwise 3x3 convolution, a pointwise one and batch norm; nothing between the two (section 4.6)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(
            nn.Conv2d(inputs, inputs, 3, padding=1, groups=inputs, bias=False),
            nn.Conv2d(inputs, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )


class _Block(nn.Module):
    """Separable convolutions with ReLU before each, and a shortcut (figure 5). stride 2 halves by max pooling."""

    def __init__(self, widths: tuple[int, ...], stride: int, relu_first: bool = True) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for index, (inputs, outputs) in enumerate(pairwise(widths)):
            # not in place: the shortcut needs the block's input as it came
            layers += [nn.ReLU(inplace=index > 0)] if index > 0 or relu_first else []
            layers.append(_Separable(inputs, outputs))
        if stride > 1:
            layers.append(nn.MaxPool2d(3, stride, padding=1))
        self.body = nn.Sequential(*layers)
        changes = stride > 1 or widths[0] != widths[-1]
        self.shortcut: nn.Module = nn.Identity()
        if changes:
            convolution = nn.Conv2d(widths[0], widths[-1], 1, stride, bias=False)
            self.shortcut = nn.Sequential(convolution, nn.BatchNorm2d(widths[-1]))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.body(x) + self.shortcut(x)
        return result


class Xception(Detector):
    """Slices at their own resolution in, one score each out.

    width: channels of the first convolution; all others keep the published proportions (32, 64, 128, 256, 728, 1024,
        1536, 2048). 32 is the published network (20.8 M parameters), 10 the CPU size (2.1 M, 4.2 MB in fp16), 4 the
        smallest (0.35 M).
    window_hu: scaled to -1..1, the published range. One channel in place of the photograph's three.
    window_px: side of the squares over which the last features are averaged, rounded to 32 pixels; the score is that
        of the highest square. Give the side of the training patches: on those it is the published global average, and
        a 20 mm nodule on a slice of 512 pixels weighs what it weighed in training instead of a hundredth of it.
        0 averages over the whole slice, as published; for networks that are trained on whole slices.

    localises is False: there is no localisation in Xception, in M3Dsynth's table neither. The map's logit is one very
    low constant and a verdict has an empty map and no regions; a map of the slice's score, or of class activations
    32 pixels wide, would look like an answer to a question that it was never trained on.
    Differs from the paper in that the first two convolutions pad, so that small slices pass, and in one sigmoid output
    for 1,000 classes. Raises RecipeError where a parameter makes no network.
    """

    localises = False

    def __init__(
        self, width: int = PUBLISHED_WIDTH, window_hu: tuple[float, float] = (-1150.0, 350.0), window_px: int = 0
    ) -> None:
        super().__init__()
        if width < 1 or window_px < 0 or window_hu[0] >= window_hu[1]:
            raise RecipeError(
                f"no Xception has width {width}, window_px {window_px} and window {window_hu} HU",
                remedy="give a width >= 1, a window_px >= 0 and a window (low, high)",
            )
        self.dims: Literal[2, 3] = 2
        self.window_hu = (float(window_hu[0]), float(window_hu[1]))
        self.cells = max(1, round(window_px / STRIDE)) if window_px else 0

        def scaled(*channels: int) -> tuple[int, ...]:
            return tuple(max(1, round(count * width / PUBLISHED_WIDTH)) for count in channels)

        first, second = scaled(32, 64)
        self.root = nn.Conv2d(1, first, 3, stride=2, padding=1, bias=False)
        self.stem = nn.Sequential(
            nn.BatchNorm2d(first),
            nn.ReLU(inplace=True),
            nn.Conv2d(first, second, 3, padding=1, bias=False),
            nn.BatchNorm2d(second),
            nn.ReLU(inplace=True),
        )
        self.entry = nn.Sequential(
            _Block(scaled(64, 128, 128), 2, relu_first=False),
            _Block(scaled(128, 256, 256), 2),
            _Block(scaled(256, 728, 728), 2),
        )
        self.middle = nn.Sequential(*(_Block(scaled(728, 728, 728, 728), 1) for _ in range(MIDDLE_BLOCKS)))
        wide, last = scaled(1536, 2048)
        self.exit = nn.Sequential(
            _Block(scaled(728, 728, 1024), 2),
            _Separable(*scaled(1024, 1536)),
            nn.ReLU(inplace=True),
            _Separable(wide, last),
            nn.ReLU(inplace=True),
        )
        self.head = nn.Linear(last, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """HU (b, 1, y, x), any size, to the score's logit (b) and a map's logit (b, 1, y, x) that marks nothing."""
        return self.score_logit(x), torch.full_like(x, NOWHERE)

    def score_logit(self, x: Tensor) -> Tensor:
        """HU (b, 1, y, x) to the logit (b) of the slice being forged: that of its highest square."""
        low, high = self.window_hu
        norm = x.clamp(low, high).sub(low).mul(2 / (high - low)).sub(1)  # HU -> -1..1
        with torch.autocast(x.device.type, enabled=False):  # an HU is an eighth of a bf16 step
            features = self.root(norm.float())
        features = self.exit(self.middle(self.entry(self.stem(features))))
        height, width = features.shape[-2:]
        side = (min(self.cells, height), min(self.cells, width)) if self.cells else (height, width)
        pooled = F.avg_pool2d(features, side, stride=1)
        logits: Tensor = self.head(pooled.permute(0, 2, 3, 1)).flatten(1)
        return logits.float().amax(dim=1)

    def step(self, batch: Batch, turn: str) -> dict[str, Tensor]:
        """Cross-entropy of the score. A slice of which every pixel is ignored does not count.

        Raises RecipeError for a turn that Xception does not have.
        """
        if turn not in self.turns:
            raise RecipeError(f"Xception has no turn {turn!r}", remedy=f"use one of {self.turns}")
        score, ignore = self.score_logit(batch["x"]), batch.get("ignore")
        loss = F.binary_cross_entropy_with_logits(score, batch["label"].float(), reduction="none")
        seen = torch.ones_like(loss) if ignore is None else (ignore <= 0).flatten(1).any(dim=1).float()
        return {"loss": (loss * seen).sum() / seen.sum().clamp(min=1)}
