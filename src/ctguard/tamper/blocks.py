"""Layers that generators share: 4^3 convolutions with TensorFlow's "same" padding, in CT-GAN's order."""

from __future__ import annotations

import torch
from torch import Tensor, nn

KERNEL = 4
BATCH_NORM_MOMENTUM = 0.2
"""Keras' 0.8 counts the other way round."""


NOISE_GRAIN_MM = 10.0


def smooth_noise(noise: Tensor) -> Tensor:
    """White noise (b, 1, z, y, x) at 1 mm made smooth: unit SD, a Gaussian grain of 10 mm full width at half maximum.

    Finer noise in a masked core comes out as speckles; what varies between lesions is coarser.
    """
    sigma = NOISE_GRAIN_MM / 2.355
    reach = int(3 * sigma)
    offsets = torch.arange(-reach, reach + 1, device=noise.device, dtype=noise.dtype)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = kernel / kernel.square().sum().sqrt()
    for axis in range(3):
        pads = [reach if k // 2 == 2 - axis else 0 for k in range(6)]
        shape = [len(kernel) if k == axis else 1 for k in range(3)]
        padded = nn.functional.pad(noise, pads, mode="circular")
        noise = nn.functional.conv3d(padded, kernel.reshape(1, 1, *shape))
    return noise


class SameConv3d(nn.Module):
    """A 4^3 convolution, stride 1 or 2, output size ceil(n / stride) as TensorFlow's "same" gives."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv3d(inputs, outputs, KERNEL, stride)
        nn.init.xavier_uniform_(self.conv.weight)  # Keras' default
        nn.init.zeros_(self.conv.bias) if self.conv.bias is not None else None
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, z, y, x) to (b, outputs, ...)."""
        pads: list[int] = []
        for n in reversed(x.shape[2:]):
            total = max((-(-n // self.stride) - 1) * self.stride + KERNEL - n, 0)
            pads += [total // 2, total - total // 2]
        y: Tensor = self.conv(nn.functional.pad(x, pads))
        return y


class Down(nn.Module):
    """Convolution with stride 2, LeakyReLU 0.2, then batch normalisation (none in the first layer)."""

    def __init__(self, inputs: int, outputs: int, norm: bool = True) -> None:
        super().__init__()
        self.conv = SameConv3d(inputs, outputs, stride=2)
        self.norm = nn.BatchNorm3d(outputs, momentum=BATCH_NORM_MOMENTUM) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Halves each side."""
        y: Tensor = self.norm(nn.functional.leaky_relu(self.conv(x), 0.2))
        return y


class UpConv3d(nn.Module):
    """Nearest up-sampling by 2 and a 4^3 "same" convolution, computed on the coarse grid.

    On a doubled grid neighbouring samples are equal, so the 4 taps of an even output fall on 3 coarse samples
    (1, 2, 1 of them) and those of an odd output on 2 (2, 2). One 3^3 convolution to 8 x outputs channels and a
    shuffle give the same values for less than half of the multiplications.
    """

    taps: Tensor

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs, KERNEL, KERNEL, KERNEL))
        self.bias = nn.Parameter(torch.zeros(outputs))
        nn.init.xavier_uniform_(self.weight)
        even = [[1, 0, 0, 0], [0, 1, 1, 0], [0, 0, 0, 1]]
        odd = [[0, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1]]
        self.register_buffer("taps", torch.tensor([even, odd], dtype=torch.float32), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(b, inputs, z, y, x) to (b, outputs, 2z, 2y, 2x)."""
        outputs, inputs = self.weight.shape[:2]
        coarse = torch.einsum("puk,qvl,rwm,oiklm->opqriuvw", self.taps, self.taps, self.taps, self.weight)
        y = nn.functional.conv3d(x, coarse.reshape(outputs * 8, inputs, 3, 3, 3), padding=1)
        b, _, d, h, w = y.shape
        y = y.reshape(b, outputs, 2, 2, 2, d, h, w).permute(0, 1, 5, 2, 6, 3, 7, 4)
        return y.reshape(b, outputs, 2 * d, 2 * h, 2 * w) + self.bias[:, None, None, None]


class Up(nn.Module):
    """Nearest up-sampling by 2, convolution, ReLU, dropout 0.5, batch normalisation, then the skip."""

    def __init__(self, inputs: int, outputs: int, dropout: float = 0.5) -> None:
        super().__init__()
        self.conv = UpConv3d(inputs, outputs)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.BatchNorm3d(outputs, momentum=BATCH_NORM_MOMENTUM)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Doubles each side and appends the skip's channels."""
        return torch.cat([self.norm(self.dropout(nn.functional.relu(self.conv(x)))), skip], dim=1)
