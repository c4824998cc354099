"""ManTraNet (Wu et al., CVPR 2019): traces of manipulation, and what is anomalous among them."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from ctguard.core.errors import RecipeError
from ctguard.detect.bayar import bayar_kernels
from ctguard.detect.detector import Batch, Detector, expect_prior
from ctguard.detect.losses import counted_pixels, dice_loss, maximum_score, maximum_score_loss, pixel_loss

FREE, FIXED, BAYAR = 4, 9, 3
WINDOWS = (31, 15, 7)
"""Sides, in pixels, of the windows of local Z-scores, far to near (section 4.3)."""
MULTIPLES = (1, 2, 2, 4, 4, 4, 8, 8, 8, 8, 8, 8)
"""Channels of the twelve 3x3 convolutions, in widths (32 in the paper: 32, 64, 64, 128 x 3, 256 x 6)."""


class ManTraNet(Detector):
    """Trace features of each pixel, their Z-scores against windows of growing size, and a ConvLSTM from far to near.

    width: channels of the first 3x3 convolution; 32 is the published network (3.8 M parameters), 8 the CPU size
        (0.26 M, 0.5 MB in fp16). Nothing is down-sampled, so that any size goes in, and time grows with pixels.
    hidden: channels of the ConvLSTM (8 in the paper).
    window_hu: lung and soft tissue, scaled to -1..1.
    smooth, score_weight: side of the mean that the map passes before its maximum becomes the score, and the weight of
        that score's loss; the paper has no head for a score.

    Differs from the paper. One channel of HU replaces RGB: nine different SRM kernels look at it, where the paper lets
    three look at each of three colours, so that the first layer keeps its 16 maps. Batch norm follows the convolutions,
    for the traces are learned together with the map, from scratch: the paper first teaches them 385 kinds of
    manipulation of photographs, without which its network does not start. Dice is added to the cross-entropy, because
    forged pixels are few. Raises RecipeError where a parameter makes no network.
    """

    def __init__(
        self,
        width: int = 32,
        hidden: int = 8,
        window_hu: tuple[float, float] = (-1150.0, 350.0),
        smooth: int = 5,
        score_weight: float = 0.1,
    ) -> None:
        super().__init__()
        if width < 1 or hidden < 1 or smooth < 1 or smooth % 2 == 0 or window_hu[0] >= window_hu[1]:
            raise RecipeError(
                f"no ManTraNet has width {width}, hidden {hidden}, smooth {smooth} and window {window_hu} HU",
                remedy="give a width and hidden >= 1, an odd smooth and a window (low, high)",
            )
        self.dims: Literal[2, 3] = 2
        self.window_hu = (float(window_hu[0]), float(window_hu[1]))
        self.smooth, self.score_weight = smooth, score_weight
        self.traces = TraceExtractor(width)
        self.adapt = nn.Conv2d(8 * width, 2 * width, 1, bias=False)
        self.adapt_norm = nn.BatchNorm2d(2 * width)
        self.zpool = ZPool(2 * width)
        self.memory = ConvLSTM(2 * width, hidden)
        self.head = nn.Conv2d(hidden, 1, 7, padding=3, padding_mode="replicate")
        nn.init.normal_(self.head.weight, std=0.01)
        expect_prior(self.head)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """HU (b, 1, y, x), any size, to the score's logit (b), the smoothed map's maximum, and the map's logit."""
        map_logit = self.map_logit(x)
        return maximum_score(map_logit, self.smooth), map_logit

    def map_logit(self, x: Tensor) -> Tensor:
        """HU (b, 1, y, x) to the logit (b, 1, y, x) of each pixel being forged."""
        low, high = self.window_hu
        norm = x.clamp(low, high).sub(low).mul(2 / (high - low)).sub(1)  # HU -> -1..1
        features = self.adapt_norm(self.adapt(self.traces(norm)))
        logit: Tensor = self.head(self.memory(self.zpool(features)))
        return logit

    def step(self, batch: Batch, turn: str) -> dict[str, Tensor]:
        """Cross-entropy and Dice of the map and cross-entropy of the score; ignored pixels count in none of them.

        Raises RecipeError for a turn that the network does not have.
        """
        if turn not in self.turns:
            raise RecipeError(f"ManTraNet has no turn {turn!r}", remedy=f"use one of {self.turns}")
        logit, mask = self.map_logit(batch["x"]), batch["mask"].float()
        counted = counted_pixels(mask, batch.get("ignore"))
        bce, dice = pixel_loss(logit, mask, counted), dice_loss(logit, mask, counted)
        score = maximum_score_loss(logit, self.smooth, batch["label"].float(), counted)
        return {"loss": bce + dice + self.score_weight * score, "bce": bce, "dice": dice, "score": score}


class TraceExtractor(nn.Module):
    """Section 3: free, SRM and Bayar filters side by side, then twelve 3x3 convolutions at full resolution.

    (b, 1, y, x) in -1..1 to features (b, 8 width, y, x) of unit length in each pixel. Borders repeat.
    """

    srm: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.free = nn.Parameter(torch.empty(FREE, 1, 5, 5))
        nn.init.kaiming_normal_(self.free)
        self.register_buffer("srm", srm_kernels())
        self.bayar = nn.Parameter(torch.rand(BAYAR, 1, 5, 5))
        self.first_norm = nn.BatchNorm2d(FREE + FIXED + BAYAR)
        channels = [FREE + FIXED + BAYAR, *(width * multiple for multiple in MULTIPLES)]
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, 3, padding=1, padding_mode="replicate", bias=False) for a, b in pairwise(channels)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(b) for b in channels[1:])
        for conv in self.convs:
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Image to features, see the class."""
        kernels = torch.cat((self.free, self.srm, bayar_kernels(self.bayar)))
        y = F.relu(self.first_norm(F.conv2d(F.pad(x, (2, 2, 2, 2), mode="replicate"), kernels)))
        last = len(self.convs) - 1
        for number, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            y = norm(conv(y))
            if number < last:
                y = F.relu(y, inplace=True)
        return F.normalize(y, dim=1)


class ZPool(nn.Module):
    """Section 4.2: how far each feature lies from its mean over the image and over windows, in standard deviations.

    (b, c, y, x) to (b, 4, c, y, x): the whole image first, then windows of 31, 15 and 7 pixels. One deviation serves
    all four, that of the image and not below a learned floor; windows end where the image does.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.log_floor = nn.Parameter(torch.full((1, channels, 1, 1), math.log(1e-2)))

    def forward(self, features: Tensor) -> Tensor:
        """Features to Z-scores, see the class."""
        x = features.float()  # a difference of near-equal numbers; mixed precision would leave noise
        mean = x.mean(dim=(2, 3), keepdim=True)
        deviation = (x - mean).square().mean(dim=(2, 3), keepdim=True).add(1e-12).sqrt()
        scale = torch.maximum(deviation, self.log_floor.exp())
        return torch.stack([(x - other) / scale for other in (mean, *(window_mean(x, side) for side in WINDOWS))], 1)


class ConvLSTM(nn.Module):
    """Shi et al. (NeurIPS 2015), 7x7, without peepholes: (b, steps, c, y, x) to its last hidden state (b, h, y, x)."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.gates = nn.Conv2d(channels + hidden, 4 * hidden, 7, padding=3, padding_mode="replicate")
        nn.init.constant_(self.gates.bias[hidden : 2 * hidden], 1.0)  # type: ignore[index]

    def forward(self, sequence: Tensor) -> Tensor:
        """The steps in their order: what comes last is remembered best."""
        b, _, _, y, x = sequence.shape
        state = sequence.new_zeros(b, self.hidden, y, x)
        cell = state
        for step in sequence.unbind(1):
            gates = self.gates(torch.cat((step, state.to(step.dtype)), dim=1)).chunk(4, dim=1)
            let_in, keep, out = (gate.sigmoid() for gate in gates[:3])
            cell = keep * cell + let_in * gates[3].tanh()
            state = out * cell.tanh()
        return state


def window_mean(x: Tensor, side: int) -> Tensor:
    """Mean over windows of side x side pixels (odd) that end at the image's border. x: (b, c, y, x), any size."""
    half = side // 2
    rows = F.avg_pool2d(x, (side, 1), stride=1, padding=(half, 0), count_include_pad=False)
    return F.avg_pool2d(rows, (1, side), stride=1, padding=(0, half), count_include_pad=False)


def srm_kernels() -> Tensor:
    """Nine residual filters (9, 1, 5, 5) of the spatial rich model (Fridrich and Kodovsky, IEEE TIFS 2012).

    First, second and third order along x and y, the 3x3 and the 5x5 square and the 3x3 edge. Each sums to 0, its
    largest weight is 1 in absolute value.
    """
    orders: tuple[tuple[tuple[int, ...], int], ...] = (((-1, 1), 2), ((1, -2, 1), 1), ((1, -3, 3, -1), 1))
    kernels = []
    for weights, start in orders:
        row = torch.zeros(5, 5)
        row[2, start : start + len(weights)] = torch.tensor(weights, dtype=torch.float32)
        kernels += [row, row.T]
    small = torch.tensor([[-1.0, 2, -1], [2, -4, 2], [-1, 2, -1]])
    edge = torch.tensor([[-1.0, 2, -1], [2, -4, 2], [0, 0, 0]])
    edge[1, 1] -= edge.sum()
    large = torch.tensor(
        [[-1.0, 2, -2, 2, -1], [2, -6, 8, -6, 2], [-2, 8, -12, 8, -2], [2, -6, 8, -6, 2], [-1, 2, -2, 2, -1]]
    )
    kernels += [F.pad(small, (1, 1, 1, 1)), large, F.pad(edge, (1, 1, 1, 1))]
    return torch.stack([kernel / kernel.abs().max() for kernel in kernels])[:, None]
