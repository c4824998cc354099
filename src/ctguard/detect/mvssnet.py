"""MVSS-Net, multi-view multi-scale supervision (Chen et al., ICCV 2021; Dong et al., IEEE TPAMI 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from ctguard.core.errors import RecipeError
from ctguard.detect.bayar import bayar_kernels
from ctguard.detect.detector import Batch, Detector
from ctguard.detect.losses import counted_pixels, maximum_score_loss

PUBLISHED_WIDTH = 64
UNITS = (3, 4, 6, 3)
LAST_DILATIONS = (1, 2, 4)
EXPANSION = 4
BAYAR_SIDE = 5
PUBLISHED_POSITIONS = 32 * 32
"""Cells of the last features at the published input of 512 pixels."""
LOSS_WEIGHTS = (0.16, 0.04, 0.80)
"""Of pixel, image and edge loss (ICCV 2021, section 3.2.4)."""
SOBEL = ((1.0, 0.0, -1.0), (2.0, 0.0, -2.0), (1.0, 0.0, -1.0))


class BayarConv(nn.Module):
    """Learnable high-pass filters, `bayar_kernels`: -1 in the centre, which is not stored, and the others sum to 1."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        free = torch.rand(outputs, inputs, BAYAR_SIDE**2 - 1)
        self.free = nn.Parameter(free / free.sum(dim=-1, keepdim=True))

    def weight(self) -> Tensor:
        """The filters (outputs, inputs, 5, 5), float32."""
        count = self.free.shape[-1]
        centre = torch.zeros_like(self.free[..., :1])
        whole = torch.cat((self.free[..., : count // 2], centre, self.free[..., count // 2 :]), dim=-1)
        return bayar_kernels(whole.reshape(*whole.shape[:2], BAYAR_SIDE, BAYAR_SIDE))

    def forward(self, x: Tensor) -> Tensor:
        """Borders are repeated: zeros outside would be an edge around the slice."""
        reach = BAYAR_SIDE // 2
        with torch.autocast(x.device.type, enabled=False):  # an HU is an eighth of a bf16 step
            kept: Tensor = F.conv2d(F.pad(x.float(), (reach,) * 4, mode="replicate"), self.weight())
        return kept


class SobelGate(nn.Module):
    """Features weighted by the sigmoid of their Sobel magnitude (section 3.2.1); 0 gradient weighs a half."""

    kernel: Tensor

    def __init__(self) -> None:
        super().__init__()
        across = torch.tensor(SOBEL)
        self.register_buffer("kernel", torch.stack((across, across.T))[:, None], persistent=False)
        self.norm = nn.BatchNorm2d(2)

    def gradients(self, x: Tensor) -> Tensor:
        """Features (b, c, y, x) to the derivatives along x and y (b, 2, y, x) of their mean over channels.

        Published: of their sum, which is the same after the norm, but leaves variances that half precision cannot hold.
        """
        with torch.autocast(x.device.type, enabled=False):
            mean = F.pad(x.float().mean(dim=1, keepdim=True), (1, 1, 1, 1), mode="replicate")
            derivatives: Tensor = F.conv2d(mean, self.kernel)
        return derivatives

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, y, x) to the same, weighted."""
        squares = self.norm(self.gradients(x)).float().square().sum(dim=1, keepdim=True)
        weight: Tensor = (squares + 1e-12).sqrt().sigmoid()  # a bare root has no slope at 0
        return x * weight.to(x.dtype)


class EdgeResidualBlock(nn.Module):
    """1x1, then 3x3, norm, ReLU, 3x3 beside a shortcut (section 3.2.1)."""

    def __init__(self, inputs: int, last: bool = False) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(inputs, 1, 1)
        self.body = nn.Sequential(
            nn.Conv2d(1, 1, 3, padding=1), nn.BatchNorm2d(1), nn.ReLU(inplace=True), nn.Conv2d(1, 1, 3, padding=1)
        )
        self.last = last

    def forward(self, x: Tensor) -> Tensor:
        """(b, inputs, y, x) to (b, 1, y, x)."""
        reduced = self.reduce(x)
        result: Tensor = reduced + self.body(reduced)
        return result if self.last else result.relu()


class _Bottleneck(nn.Module):
    """ResNet's unit (He et al., CVPR 2016), its stride in the 3x3 convolution."""

    def __init__(self, inputs: int, inner: int, stride: int, dilation: int) -> None:
        super().__init__()
        outputs = EXPANSION * inner
        self.body = nn.Sequential(
            nn.Conv2d(inputs, inner, 1, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(inplace=True),
            nn.Conv2d(inner, inner, 3, stride, padding=dilation, dilation=dilation, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(inplace=True),
            nn.Conv2d(inner, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            convolution = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(convolution, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """(b, inputs, y, x) to (b, 4 inner, y / stride, x / stride)."""
        result: Tensor = (self.body(x) + self.shortcut(x)).relu()
        return result


class DilatedResNet50(nn.Module):
    """ResNet-50 without its classifier; the last stage keeps a sixteenth of the input's size and dilates by 1, 2, 4."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.root = nn.Conv2d(inputs, width, 7, stride=2, padding=3, bias=False)
        self.stem = nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, padding=1))
        self.stages = nn.ModuleList()
        channels = width
        for index, units in enumerate(UNITS):
            inner, last = width * 2**index, index == len(UNITS) - 1
            dilations: Sequence[int] = LAST_DILATIONS if last else (1,) * units
            strides = (1 if index == 0 or last else 2, *(1,) * (units - 1))
            stage = []
            for stride, dilation in zip(strides, dilations, strict=True):
                stage.append(_Bottleneck(channels, inner, stride, dilation))
                channels = EXPANSION * inner
            self.stages.append(nn.Sequential(*stage))
        self.channels = channels

    def forward(self, x: Tensor) -> list[Tensor]:
        """The four stages' features, at 1/4, 1/8, 1/16 and 1/16 of the input's size."""
        with torch.autocast(x.device.type, enabled=False):  # an HU is an eighth of a bf16 step
            y = self.root(x.float())
        y = self.stem(y)
        features = []
        for stage in self.stages:
            y = stage(y)
            features.append(y)
        return features


def _position_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """For each position the values of all positions, weighted by softmax of key times query."""
    weights = torch.softmax(query.flatten(2).transpose(1, 2) @ key.flatten(2), dim=-1)
    return (value.flatten(2) @ weights.transpose(1, 2)).view_as(value)


def _channel_attention(x: Tensor) -> Tensor:
    """For each channel the other channels, the least like it first; any size weighs as the published 32 x 32."""
    flat = x.flatten(2)
    with torch.autocast(x.device.type, enabled=False):  # sums of a thousand products; their differences matter
        product = flat.float() @ flat.float().transpose(1, 2) * (PUBLISHED_POSITIONS / flat.shape[-1])
        weights = torch.softmax(product.amax(dim=-1, keepdim=True) - product, dim=-1)
    return (weights.to(x.dtype) @ flat).view_as(x)


class DualAttention(nn.Module):
    """Fusion of both branches by position and channel attention (Fu et al., CVPR 2019), to one logit a cell."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = max(1, channels // 4)
        small = max(1, inner // 8)

        def convolution(inputs: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Conv2d(inputs, inner, 3, padding=1, bias=False), nn.BatchNorm2d(inner), nn.ReLU(inplace=True)
            )

        self.position_in, self.position_out = convolution(channels), convolution(inner)
        self.channel_in, self.channel_out = convolution(channels), convolution(inner)
        self.query, self.key, self.value = (nn.Conv2d(inner, n, 1) for n in (small, small, inner))
        self.alpha, self.beta = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
        self.head = nn.Sequential(nn.Dropout(0.1), nn.Conv2d(inner, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Both branches' last features, on channels (b, c, y, x), to the logit (b, 1, y, x) of each cell."""
        place, kind = self.position_in(x), self.channel_in(x)
        place = place + self.alpha * _position_attention(self.query(place), self.key(place), self.value(place))
        kind = kind + self.beta * _channel_attention(kind)
        result: Tensor = self.head(self.position_out(place) + self.channel_out(kind))
        return result


class MVSSNet(Detector):
    """Slices at their own resolution in, a map of forged pixels out; in training also the edges of what is forged.

    width: channels of ResNet's first convolution. 64 is the published network (142.7 M parameters, two ResNet-50
        without classifiers among them), 8 the CPU size (2.2 M, 4.5 MB in fp16), 3 the smallest (0.32 M).
    window_hu: scaled to -1..1. One channel in place of the photograph's three in the edge branch; the noise branch
        works on grey in the paper too.
    loss_weights: of pixel, image and edge loss.

    A slice's score is the maximum of its map, as published (global max pooling). Differs from the paper in the
    BayarConv's projection, in filters that repeat the border, and in channel attention, whose weights would otherwise
    grow with the slice. ImageNet weights are not needed: it starts from random ones.
    Raises RecipeError where a parameter makes no network.
    """

    def __init__(
        self,
        width: int = PUBLISHED_WIDTH,
        window_hu: tuple[float, float] = (-1150.0, 350.0),
        loss_weights: tuple[float, float, float] = LOSS_WEIGHTS,
    ) -> None:
        super().__init__()
        if width < 1 or window_hu[0] >= window_hu[1] or len(loss_weights) != 3 or min(loss_weights) < 0:
            raise RecipeError(
                f"no MVSS-Net has width {width}, window {window_hu} HU and loss weights {loss_weights}",
                remedy="give a width >= 1, a window (low, high) and three weights >= 0: pixel, image, edge",
            )
        self.dims: Literal[2, 3] = 2
        self.window_hu = (float(window_hu[0]), float(window_hu[1]))
        self.loss_weights = tuple(float(weight) for weight in loss_weights)
        self.edge_branch = DilatedResNet50(1, width)
        self.bayar = BayarConv(1, 3)
        self.noise_branch = DilatedResNet50(3, width)
        channels = [EXPANSION * width * 2**stage for stage in range(len(UNITS))]
        self.gates = nn.ModuleList(SobelGate() for _ in channels)
        self.blocks = nn.ModuleList(EdgeResidualBlock(count) for count in channels)
        self.joins = nn.ModuleList(EdgeResidualBlock(1, last) for last in (False, False, True))
        self.fuse = DualAttention(2 * channels[-1])
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """HU (b, 1, y, x), any size, to the score's logit (b) and the map's logit (b, 1, y, x)."""
        map_logit, _ = self.views(x, edges=False)
        return map_logit.flatten(1).amax(dim=1), map_logit

    def views(self, x: Tensor, edges: bool = True) -> tuple[Tensor, Tensor | None]:
        """HU (b, 1, y, x) to the map's logit, same size, and the logit of forged edges at a quarter of the size."""
        low, high = self.window_hu
        norm = x.clamp(low, high).sub(low).mul(2 / (high - low)).sub(1)  # HU -> -1..1
        seen = self.edge_branch(norm)
        noise = self.noise_branch(self.bayar(norm))
        logit = self.fuse(torch.cat((seen[-1], noise[-1]), dim=1)).float()
        map_logit = F.interpolate(logit, size=x.shape[-2:], mode="bilinear", align_corners=False)
        return map_logit, self._edges(seen) if edges else None

    def _edges(self, features: Sequence[Tensor]) -> Tensor:
        """From the shallow stages to the deep ones (figure 4)."""
        edge: Tensor | None = None
        for index, (gate, block, stage) in enumerate(zip(self.gates, self.blocks, features, strict=True)):
            own = block(gate(stage))
            if edge is None:
                edge = own
                continue
            grown = F.interpolate(own, size=edge.shape[-2:], mode="bilinear", align_corners=False)
            edge = self.joins[index - 1](edge + grown)
        assert edge is not None  # there are four stages
        return edge.float()

    def step(self, batch: Batch, turn: str) -> dict[str, Tensor]:
        """Dice of the map and of its edges over forged slices, and cross-entropy of the score over all (section 3.2.4).

        Pristine slices enter the score's loss alone, as published. Ignored pixels count in none.
        Raises RecipeError for a turn that MVSS-Net does not have.
        """
        if turn not in self.turns:
            raise RecipeError(f"MVSS-Net has no turn {turn!r}", remedy=f"use one of {self.turns}")
        map_logit, edge_logit = self.views(batch["x"])
        assert edge_logit is not None
        mask = batch["mask"].float()
        counted = counted_pixels(mask, batch.get("ignore"))
        size = edge_logit.shape[-2:]
        truth = F.adaptive_max_pool2d(edge_of(mask), size)
        at_edge = 1 - F.adaptive_max_pool2d(1 - counted, size)
        forged = (mask * counted).flatten(1).amax(dim=1) > 0
        pixel = squared_dice_loss(map_logit[forged], mask[forged], counted[forged])
        edge = squared_dice_loss(edge_logit[forged], truth[forged], at_edge[forged])
        image = maximum_score_loss(map_logit, 1, batch["label"].float(), counted)
        pixels, images, edges = self.loss_weights
        return {"loss": pixels * pixel + images * image + edges * edge, "pixel": pixel, "image": image, "edge": edge}


def squared_dice_loss(logit: Tensor, truth: Tensor, counted: Tensor) -> Tensor:
    """1 - 2 sum(p t) / (sum(p p) + sum(t t)) over all counted pixels (Milletari et al., 3DV 2016); 0 without slices."""
    found, truth = logit.sigmoid() * counted, truth * counted
    return 1 - (2 * (found * truth).sum() + 1) / (found.square().sum() + truth.square().sum() + 1)


def edge_of(mask: Tensor) -> Tensor:
    """A 0/1 mask (b, 1, y, x) to the pixels on both sides of its border: dilated and not eroded (3 x 3)."""
    return F.max_pool2d(mask, 3, 1, 1) + F.max_pool2d(-mask, 3, 1, 1)
