"""HP-FCN, the high-pass fully convolutional network of Li and Huang (ICCV 2019), made to localise deep inpainting."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from ctguard.core.errors import RecipeError
from ctguard.detect.detector import Batch, Detector, expect_prior
from ctguard.detect.losses import counted_pixels, maximum_score, maximum_score_loss

PUBLISHED_WIDTH = 32
BLOCKS = 4
MULTIPLE = 2**BLOCKS
EXPANSION = 4
FIRST_DIFFERENCES = (
    ((0, 0, 0), (0, -1, 0), (0, 1, 0)),
    ((0, 0, 0), (0, -1, 1), (0, 0, 0)),
    ((0, 0, 0), (0, -1, 0), (0, 0, 1)),
)
"""What the learnable filters start as (section 3.1): to the pixel below, to the right, and diagonally."""


class _Unit(nn.Module):
    """A bottleneck with its norms and ReLU before the convolutions (He et al., ECCV 2016)."""

    def __init__(self, inputs: int, inner: int, stride: int) -> None:
        super().__init__()
        outputs = EXPANSION * inner
        self.before = nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU())
        self.body = nn.Sequential(
            nn.Conv2d(inputs, inner, 1, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(inplace=True),
            nn.Conv2d(inner, inner, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(inplace=True),
            nn.Conv2d(inner, outputs, 1),
        )
        self.project = nn.Conv2d(inputs, outputs, 1, stride) if inputs != outputs else None
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        active = self.before(x)
        shortcut = x[..., :: self.stride, :: self.stride] if self.project is None else self.project(active)
        result: Tensor = shortcut + self.body(active)
        return result


class HPFCN(Detector):
    """Slices at their own resolution in, a map of forged pixels out.

    width: channels inside the first block's bottlenecks, doubled at each of four blocks; blocks put out four times as
        many. 32 is the published network (7.7 M parameters), 16 the CPU size (1.9 M, 3.9 MB in fp16), 7 the smallest
        (0.37 M).
    window_hu: scaled to 0..1, the published range. One channel in place of the photograph's three, so that the three
        filters give three residuals instead of nine.
    smooth: side, in pixels, of the mean that the map passes before its maximum becomes the slice's score. HP-FCN has
        no head for a score.
    score_weight: weight of the cross-entropy of that score beside the map's loss, as our U-Net has it; 0 trains the
        published loss alone.

    The filters are learned along, as in the paper, and only start with zero sum. Differs from the paper in that they
    repeat the border (zeros outside of it would be an edge around the slice), in one sigmoid output for a softmax of
    two, which is the same function, and in the score. Raises RecipeError where a parameter makes no network.
    """

    def __init__(
        self,
        width: int = PUBLISHED_WIDTH,
        window_hu: tuple[float, float] = (-1150.0, 350.0),
        smooth: int = 5,
        score_weight: float = 0.1,
        gamma: float = 2.0,
    ) -> None:
        super().__init__()
        if width < 1 or smooth < 1 or smooth % 2 == 0 or gamma < 0 or window_hu[0] >= window_hu[1]:
            raise RecipeError(
                f"no HP-FCN has width {width}, smooth {smooth}, gamma {gamma} and window {window_hu} HU",
                remedy="give a width >= 1, an odd smooth, a gamma >= 0 and a window (low, high)",
            )
        self.dims: Literal[2, 3] = 2
        self.window_hu = (float(window_hu[0]), float(window_hu[1]))
        self.smooth, self.score_weight, self.gamma = smooth, score_weight, gamma
        self.filters = nn.Conv2d(1, len(FIRST_DIFFERENCES), 3, bias=False)
        inners = [width * 2**block for block in range(BLOCKS)]
        inputs = [len(FIRST_DIFFERENCES), *(EXPANSION * inner for inner in inners[:-1])]
        # each block halves in its second unit, so that its first one sees every pixel
        self.blocks = nn.ModuleList(
            nn.Sequential(_Unit(a, inner, 1), _Unit(EXPANSION * inner, inner, 2))
            for a, inner in zip(inputs, inners, strict=True)
        )
        self.rise = nn.Sequential(
            nn.ConvTranspose2d(EXPANSION * inners[-1], 2 * width, 8, stride=4, padding=2, bias=False),
            nn.ConvTranspose2d(2 * width, 4, 8, stride=4, padding=2, bias=False),
            nn.BatchNorm2d(4),
            nn.ReLU(inplace=True),
        )
        self.head = nn.Conv2d(4, 1, 5, padding=2)
        self._start()

    def _start(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            if isinstance(module, nn.ConvTranspose2d):
                module.weight.data.copy_(bilinear_kernels(module.in_channels, module.out_channels))
        self.filters.weight.data.copy_(torch.tensor(FIRST_DIFFERENCES, dtype=torch.float32)[:, None])
        expect_prior(self.head)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """HU (b, 1, y, x), any size, to the score's logit (b) and the map's logit (b, 1, y, x).

        The score is the maximum of the smoothed map, so it grows with the area that is looked at.
        """
        map_logit = self.map_logit(x)
        return maximum_score(map_logit, self.smooth), map_logit

    def residuals(self, x: Tensor) -> Tensor:
        """HU (b, 1, y, x) to what the filters leave of it (b, 3, y, x)."""
        low, high = self.window_hu
        norm = x.clamp(low, high).sub(low).div(high - low)  # HU -> 0..1
        with torch.autocast(x.device.type, enabled=False):  # an HU is an eighth of a bf16 step
            kept: Tensor = self.filters(F.pad(norm.float(), (1, 1, 1, 1), mode="replicate"))
        return kept

    def map_logit(self, x: Tensor) -> Tensor:
        """HU (b, 1, y, x) to the logit (b, 1, y, x) of each pixel being forged."""
        y = self.residuals(_pad_to_multiple(x))
        for block in self.blocks:
            y = block(y)
        logit: Tensor = self.head(self.rise(y))
        return logit[..., : x.shape[-2], : x.shape[-1]].float()

    def step(self, batch: Batch, turn: str) -> dict[str, Tensor]:
        """Focal loss of the map without class weights (section 3.3), and cross-entropy of the slice's score.

        Ignored pixels count in neither. Raises RecipeError for a turn that HP-FCN does not have.
        """
        if turn not in self.turns:
            raise RecipeError(f"HP-FCN has no turn {turn!r}", remedy=f"use one of {self.turns}")
        logit, mask = self.map_logit(batch["x"]), batch["mask"].float()
        counted = counted_pixels(mask, batch.get("ignore"))
        focal = (focal_loss(logit, mask, self.gamma) * counted).sum() / counted.sum().clamp(min=1)
        score = maximum_score_loss(logit, self.smooth, batch["label"].float(), counted)
        return {"loss": focal + self.score_weight * score, "focal": focal, "score": score}


def focal_loss(logit: Tensor, mask: Tensor, gamma: float) -> Tensor:
    """Cross-entropy times (1 - probability of the truth) ** gamma, per pixel (Lin et al., ICCV 2017)."""
    entropy = F.binary_cross_entropy_with_logits(logit, mask, reduction="none")
    return (1 - torch.exp(-entropy)) ** gamma * entropy if gamma else entropy


def bilinear_kernels(inputs: int, outputs: int, factor: int = 4) -> Tensor:
    """Weights (inputs, outputs, 2 factor, 2 factor) of a transposed convolution that interpolates.

    Output i is input i, enlarged; inputs beyond the outputs begin at 0 and are learned (Long et al., CVPR 2015).
    """
    line = 1 - (torch.arange(2 * factor, dtype=torch.float32) - (factor - 0.5)).abs() / factor
    weight = torch.zeros(inputs, outputs, 2 * factor, 2 * factor)
    same = torch.arange(min(inputs, outputs))
    weight[same, same] = line[:, None] * line[None, :]
    return weight


def _pad_to_multiple(x: Tensor) -> Tensor:
    """The slices, reflected at the right and at the bottom to a multiple of 16; slivers repeat their border."""
    tall, wide = -x.shape[-2] % MULTIPLE, -x.shape[-1] % MULTIPLE
    if tall == 0 and wide == 0:
        return x
    mode = "reflect" if min(x.shape[-2:]) >= MULTIPLE else "replicate"
    return F.pad(x, (0, wide, 0, tall), mode=mode)
