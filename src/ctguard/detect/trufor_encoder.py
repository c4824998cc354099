"""The two-stream encoder of TruFor: SegFormer's mix transformer, and CMX's rectification and fusion at each scale."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

MULTIPLES = (1, 2, 5, 8)
"""Channels of the four scales in widths (64 in mix transformer B2: 64, 128, 320, 512)."""
HEADS = (1, 2, 5, 8)
REDUCTIONS = (8, 4, 2, 1)
"""Keys and values are taken at this much lower resolution."""
EPS = 1e-6


class Encoder(nn.Module):
    """Image and residual to fused features at 1/4, 1/8, 1/16 and 1/32 (CMX: Zhang et al., IEEE T-ITS 2023)."""

    def __init__(self, width: int, depths: Sequence[int]) -> None:
        super().__init__()
        self.channels = tuple(width * multiple for multiple in MULTIPLES)
        self.image = nn.ModuleList(self._stages(depths))
        self.residual = nn.ModuleList(self._stages(depths))
        self.rectify = nn.ModuleList(Rectify(c) for c in self.channels)
        self.fuse = nn.ModuleList(Fuse(c, heads) for c, heads in zip(self.channels, HEADS, strict=True))

    def _stages(self, depths: Sequence[int]) -> list[nn.Module]:
        inputs = (1, *self.channels[:-1])
        return [
            Stage(a, c, depth, heads, reduction, first=number == 0)
            for number, (a, c, depth, heads, reduction) in enumerate(
                zip(inputs, self.channels, depths, HEADS, REDUCTIONS, strict=True)
            )
        ]

    def forward(self, image: Tensor, residual: Tensor) -> list[Tensor]:
        """Both (b, 1, y, x), sides multiples of 32; four tensors (b, c, y / s, x / s)."""
        fused = []
        for one, other, rectify, fuse in zip(self.image, self.residual, self.rectify, self.fuse, strict=True):
            image, residual = rectify(one(image), other(residual))
            fused.append(fuse(image, residual))
        return fused


class Stage(nn.Module):
    """Overlapping patch embedding and transformer blocks (Xie et al., SegFormer, NeurIPS 2021)."""

    def __init__(self, inputs: int, channels: int, depth: int, heads: int, reduction: int, first: bool) -> None:
        super().__init__()
        kernel, stride = (7, 4) if first else (3, 2)
        self.embed = nn.Conv2d(inputs, channels, kernel, stride=stride, padding=kernel // 2)
        self.embed_norm = nn.LayerNorm(channels)
        self.blocks = nn.ModuleList(Block(channels, heads, reduction) for _ in range(depth))
        self.norm = nn.LayerNorm(channels, eps=EPS)

    def forward(self, x: Tensor) -> Tensor:
        """(b, inputs, y, x) to (b, channels, y / stride, x / stride)."""
        x = self.embed(x)
        height, width = int(x.shape[2]), int(x.shape[3])
        tokens = self.embed_norm(_tokens(x))
        for block in self.blocks:
            tokens = block(tokens, height, width)
        return _plane(self.norm(tokens), height, width)


class Block(nn.Module):
    """Efficient self-attention and a mix feed-forward layer, each with a residual."""

    def __init__(self, channels: int, heads: int, reduction: int) -> None:
        super().__init__()
        self.heads, self.reduction = heads, reduction
        self.norm1, self.norm2 = nn.LayerNorm(channels, eps=EPS), nn.LayerNorm(channels, eps=EPS)
        self.query, self.key_value = nn.Linear(channels, channels), nn.Linear(channels, 2 * channels)
        self.project = nn.Linear(channels, channels)
        if reduction > 1:
            self.reduce = nn.Conv2d(channels, channels, reduction, stride=reduction)
            self.reduce_norm = nn.LayerNorm(channels)
        self.widen = nn.Linear(channels, 4 * channels)
        self.mix = nn.Conv2d(4 * channels, 4 * channels, 3, padding=1, groups=4 * channels)
        self.narrow = nn.Linear(4 * channels, channels)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        """Tokens (b, height x width, c) to the same."""
        x = x + self._attend(self.norm1(x), height, width)
        y = self.mix(_plane(self.widen(self.norm2(x)), height, width))
        out: Tensor = x + self.narrow(F.gelu(_tokens(y)))
        return out

    def _attend(self, x: Tensor, height: int, width: int) -> Tensor:
        source = x
        if self.reduction > 1:
            source = self.reduce_norm(_tokens(self.reduce(_plane(x, height, width))))
        key, value = self.key_value(source).chunk(2, dim=-1)
        query = self._split(self.query(x))
        attended = F.scaled_dot_product_attention(query, self._split(key), self._split(value))
        out: Tensor = self.project(attended.transpose(1, 2).reshape(x.shape))
        return out

    def _split(self, tokens: Tensor) -> Tensor:
        b, n, c = tokens.shape
        return tokens.reshape(b, n, self.heads, c // self.heads).transpose(1, 2)


class Rectify(nn.Module):
    """CMX's feature rectification: each stream takes from the other, weighted by channel and by place."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channel = nn.Sequential(
            nn.Linear(4 * channels, 4 * channels), nn.ReLU(), nn.Linear(4 * channels, 2 * channels), nn.Sigmoid()
        )
        self.place = nn.Sequential(
            nn.Conv2d(2 * channels, channels, 1), nn.ReLU(), nn.Conv2d(channels, 2, 1), nn.Sigmoid()
        )

    def forward(self, image: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """Both (b, c, y, x) to the same."""
        both = torch.cat((image, residual), dim=1)
        pooled = torch.cat((both.mean(dim=(2, 3)), both.amax(dim=(2, 3))), dim=1)
        of_image, of_residual = self.channel(pooled)[..., None, None].chunk(2, dim=1)
        at_image, at_residual = self.place(both).chunk(2, dim=1)
        return (
            image + 0.5 * (of_residual + at_residual) * residual,
            residual + 0.5 * (of_image + at_image) * image,
        )


class Fuse(nn.Module):
    """CMX's feature fusion: cross-attention between the streams, then a mixing convolution."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.split = nn.ModuleList(nn.Linear(channels, 2 * channels) for _ in range(2))
        self.key_value = nn.ModuleList(nn.Linear(channels, 2 * channels, bias=False) for _ in range(2))
        self.end = nn.ModuleList(nn.Linear(2 * channels, channels) for _ in range(2))
        self.norm = nn.ModuleList(nn.LayerNorm(channels) for _ in range(2))
        self.skip = nn.Conv2d(2 * channels, channels, 1, bias=False)
        self.mix = nn.Sequential(
            nn.Conv2d(2 * channels, channels, 1),
            nn.Conv2d(channels, channels, 3, padding=1, groups=channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 1),
            nn.BatchNorm2d(channels),
        )
        self.out_norm = nn.BatchNorm2d(channels)

    def forward(self, image: Tensor, residual: Tensor) -> Tensor:
        """Both (b, c, y, x) to one of the same shape."""
        height, width = int(image.shape[2]), int(image.shape[3])
        streams = (_tokens(image), _tokens(residual))
        halves = [F.relu(split(s)).chunk(2, dim=-1) for split, s in zip(self.split, streams, strict=True)]
        contexts = [self._context(layer(half[1])) for layer, half in zip(self.key_value, halves, strict=True)]
        mixed = []
        for number, (stream, (kept, query)) in enumerate(zip(streams, halves, strict=True)):
            b, n, c = query.shape
            heads = query.reshape(b, n, self.heads, c // self.heads).transpose(1, 2)
            crossed = (heads @ contexts[1 - number]).transpose(1, 2).reshape(b, n, c)
            mixed.append(self.norm[number](stream + self.end[number](torch.cat((kept, crossed), dim=-1))))
        both = _plane(torch.cat(mixed, dim=-1), height, width)
        fused: Tensor = self.out_norm(self.skip(both) + self.mix(both))
        return fused

    def _context(self, key_value: Tensor) -> Tensor:
        """What a stream knows, (b, heads, c / heads, c / heads): linear in its number of tokens."""
        b, n, c2 = key_value.shape
        side = c2 // 2 // self.heads
        key, value = key_value.reshape(b, n, 2, self.heads, side).permute(2, 0, 3, 1, 4)
        context: Tensor = (key.transpose(-2, -1) @ value * side**-0.5).softmax(dim=-2)
        return context


class Decoder(nn.Module):
    """SegFormer's all-MLP head: four scales to one width, at 1/4, fused; then `outputs` channels."""

    def __init__(self, channels: Sequence[int], embed: int, outputs: int) -> None:
        super().__init__()
        self.embed = nn.ModuleList(nn.Conv2d(c, embed, 1) for c in channels)
        self.fuse = nn.Sequential(
            nn.Conv2d(len(channels) * embed, embed, 1, bias=False), nn.BatchNorm2d(embed), nn.ReLU(inplace=True)
        )
        self.drop = nn.Dropout2d(0.1)
        self.predict = nn.Conv2d(embed, outputs, 1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """(b, outputs, y / 4, x / 4)."""
        size = features[0].shape[-2:]
        scaled = [
            F.interpolate(embed(f), size=size, mode="bilinear", align_corners=False)
            for embed, f in zip(self.embed, features, strict=True)
        ]
        out: Tensor = self.predict(self.drop(self.fuse(torch.cat(scaled, dim=1))))
        return out


def _tokens(plane: Tensor) -> Tensor:
    return plane.flatten(2).transpose(1, 2)


def _plane(tokens: Tensor, height: int, width: int) -> Tensor:
    return tokens.transpose(1, 2).reshape(tokens.shape[0], tokens.shape[2], height, width)
