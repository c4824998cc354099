"""The 2-D U-Net of Ronneberger et al. (MICCAI 2015), as a localiser of forged tissue."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from ctguard.core.errors import RecipeError
from ctguard.detect.detector import Batch, Detector, expect_prior
from ctguard.detect.losses import counted_pixels, dice_loss, maximum_score, maximum_score_loss, pixel_loss

LEVELS = 4
MULTIPLE = 2**LEVELS


def _double_conv(inputs: int, outputs: int) -> nn.Sequential:
    # Batch norm, not group norm: at inference its statistics are constants, so what the map says of a pixel depends
    # on its receptive field alone. A patch, a lung crop and a whole slice then agree, and training may use patches.
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
        nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class UNet2d(Detector):
    """Slices at their own resolution in, a map of forged pixels out. Nothing is resampled: that would erase the traces.

    width: channels of the first level, doubled at each of four levels; 64 is the published network (31.0 M
        parameters), 16 the CPU size (1.94 M, 3.9 MB in fp16).
    window_hu: lung and soft tissue; -1150 lies below the -1024 at which most scanners clip.
    smooth: side, in pixels, of the mean that the map passes before its maximum becomes the slice's score. The U-Net
        has no head for a score; the maximum of the bare map would follow single noisy pixels.
    score_weight: weight of the cross-entropy of that score beside the map's losses. It trains the hottest pixel of
        every slice, so that a pristine slice has no hot pixel.

    Differs from the paper in three ways: batch norm, convolutions that pad (so that the map has the size of the
    slice), and one sigmoid output instead of a softmax.
    Raises RecipeError where a parameter makes no network.
    """

    def __init__(
        self,
        width: int = 64,
        window_hu: tuple[float, float] = (-1150.0, 350.0),
        smooth: int = 5,
        score_weight: float = 0.1,
    ) -> None:
        super().__init__()
        if width < 1 or smooth < 1 or smooth % 2 == 0 or window_hu[0] >= window_hu[1]:
            raise RecipeError(
                f"no U-Net has width {width}, smooth {smooth} and window {window_hu} HU",
                remedy="give a width >= 1, an odd smooth and a window (low, high)",
            )
        self.dims: Literal[2, 3] = 2
        self.window_hu = (float(window_hu[0]), float(window_hu[1]))
        self.smooth = smooth
        self.score_weight = score_weight
        widths = [width * 2**level for level in range(LEVELS + 1)]
        self.down = nn.ModuleList(_double_conv(a, b) for a, b in zip([1, *widths[:-2]], widths[:-1], strict=True))
        self.bottom = _double_conv(widths[-2], widths[-1])
        self.rise = nn.ModuleList(nn.ConvTranspose2d(2 * w, w, 2, stride=2) for w in reversed(widths[:-1]))
        self.up = nn.ModuleList(_double_conv(2 * w, w) for w in reversed(widths[:-1]))
        self.head = nn.Conv2d(width, 1, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        nn.init.normal_(self.head.weight, std=0.01)
        expect_prior(self.head)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """HU (b, 1, y, x), any size, to the score's logit (b) and the map's logit (b, 1, y, x).

        The score is the maximum of the smoothed map, so it grows with the area that is looked at.
        """
        map_logit = self.map_logit(x)
        return self.score_logit(map_logit), map_logit

    def map_logit(self, x: Tensor) -> Tensor:
        """HU (b, 1, y, x) to the logit (b, 1, y, x) of each pixel being forged."""
        low, high = self.window_hu
        norm = x.clamp(low, high).sub(low).mul(2 / (high - low)).sub(1)  # HU -> -1..1
        y, left, top = _pad_to_multiple(norm)
        skips = []
        for level in self.down:
            y = level(y)
            skips.append(y)
            y = F.max_pool2d(y, 2)
        y = self.bottom(y)
        for rise, level in zip(self.rise, self.up, strict=True):
            y = level(torch.cat((skips.pop(), rise(y)), dim=1))
        logit: Tensor = self.head(y)
        return logit[..., top : top + x.shape[-2], left : left + x.shape[-1]]

    def score_logit(self, map_logit: Tensor, ignore: Tensor | None = None) -> Tensor:
        """The maximum (b) of the smoothed map, over the pixels that are not ignored."""
        return maximum_score(map_logit, self.smooth, ignore)

    def step(self, batch: Batch, turn: str) -> dict[str, Tensor]:
        """Cross-entropy and Dice of the map, and cross-entropy of the slice's score; ignored pixels count in none.

        Raises RecipeError for a turn that the U-Net does not have.
        """
        if turn not in self.turns:
            raise RecipeError(f"the U-Net has no turn {turn!r}", remedy=f"use one of {self.turns}")
        logit, mask = self.map_logit(batch["x"]), batch["mask"].float()
        counted = counted_pixels(mask, batch.get("ignore"))
        bce, dice = pixel_loss(logit, mask, counted), dice_loss(logit, mask, counted)
        score = maximum_score_loss(logit, self.smooth, batch["label"].float(), counted)
        return {"loss": bce + dice + self.score_weight * score, "bce": bce, "dice": dice, "score": score}


def _pad_to_multiple(x: Tensor) -> tuple[Tensor, int, int]:
    """The slices reflected at their borders to a multiple of 16, and the pixels added at the left and at the top."""
    height, width = int(x.shape[-2]), int(x.shape[-1])
    tall, wide = -height % MULTIPLE, -width % MULTIPLE
    top, left = tall // 2, wide // 2
    if tall == 0 and wide == 0:
        return x, 0, 0
    # Reflection needs more pixels than it adds; slivers below 9 pixels repeat their border instead.
    mode = "reflect" if min(height, width) > MULTIPLE // 2 else "replicate"
    return F.pad(x, (left, wide - left, top, tall - top), mode=mode), left, top
