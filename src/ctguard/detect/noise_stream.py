"""The 3-D network of the volumetric detector that looks at noise."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from ctguard.detect import noise_features
from ctguard.detect.detector import expect_prior

LEVELS = 3
TISSUES_HU = ((-1150.0, -550.0), (-700.0, 300.0))


class _Level(nn.Module):
    """Two convolutions in the plane and one between slices, which adds to what the slices say themselves."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first = nn.Conv3d(inputs, outputs, (1, 3, 3), padding=(0, 1, 1), bias=False)
        self.second = nn.Conv3d(outputs, outputs, (1, 3, 3), padding=(0, 1, 1), bias=False)
        self.between = nn.Conv3d(outputs, outputs, (3, 1, 1), bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm3d(outputs) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norms[0](self.first(x)), inplace=True)
        x = F.relu(self.norms[1](self.second(x)), inplace=True)
        # the first and the last slice stand for their missing neighbours, in a single slice for both
        stacked = torch.cat((x[:, :, :1], x, x[:, :, -1:]), dim=2)
        # in two dimensions, slices and all pixels of one: five times as fast on a CPU, and channels stay last
        mixed = F.conv2d(stacked.flatten(3), self.between.weight.flatten(3)).reshape(x.shape)
        return F.relu(x + self.norms[2](mixed), inplace=True)


class NoiseStream(nn.Module):
    """A small 3-D U-Net on cells of two pixels that reads noise features, and of the HU two wide windows alone.

    width: channels of the first level.

    Every feature is divided by what the aerated lung around has (`noise_features`), so that dose, kernel and slice
    thickness fall out and a place is judged against its surroundings. The windows tell it which tissue it is.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        seen = noise_features.CHANNELS + len(TISSUES_HU) + 1
        self.stem = nn.Conv3d(seen, width, (1, 4, 4), stride=(1, 2, 2), padding=(0, 1, 1), bias=False)
        self.stem_norm = nn.BatchNorm3d(width)
        widths = [width * (level + 2) // 2 for level in range(LEVELS + 1)]
        inputs = [width + 2 * noise_features.CHANNELS, *widths[:-2]]
        self.down = nn.ModuleList(_Level(a, b) for a, b in zip(inputs, widths[:-1], strict=True))
        self.bottom = _Level(widths[-2], widths[-1])
        self.up = nn.ModuleList(
            _Level(deep + level, level) for deep, level in zip(widths[:0:-1], widths[-2::-1], strict=True)
        )
        self.head = nn.Conv3d(width, 1, 1)
        nn.init.normal_(self.head.weight, std=0.01)
        expect_prior(self.head)

    def forward(self, x: Tensor) -> Tensor:
        """HU (b, 1, z, y, x) to the logit (b, 1, z, y, x) of each voxel being forged."""
        y = self._cells(x)
        rows, columns = y.shape[-2:]
        skips = []
        for level in self.down:
            y = level(y)
            skips.append(y)
            y = F.max_pool3d(y, (1, 2, 2), ceil_mode=True)
        y = self.bottom(y)
        for level in self.up:
            y = level(_joined(skips.pop(), y))
        logit: Tensor = self.head(y)
        logit = F.interpolate(logit.float(), size=(x.shape[-3], 2 * rows, 2 * columns), mode="trilinear")
        return logit[..., : x.shape[-2], : x.shape[-1]]

    def _cells(self, x: Tensor) -> Tensor:
        """HU (b, 1, z, y, x) to what the U-Net sees of each cell, (b, c, z, y / 2, x / 2)."""
        with torch.autocast(x.device.type, enabled=False):
            hu = x.float().clamp(min=-1100.0)
            weight = noise_features.aerated_weight(hu)
            noise = noise_features.normalised(noise_features.residuals(hu), weight)
            energy = noise_features.energies(noise, weight)
            tissues = [(hu.clamp(low, high) - low) * (2 / (high - low)) - 1 for low, high in TISSUES_HU]
            pixels = torch.cat((noise, *tissues, weight), dim=1)
        rows, columns = energy.shape[-2:]
        if (2 * rows, 2 * columns) != tuple(x.shape[-2:]):
            pixels = F.pad(pixels, (0, 2 * columns - x.shape[-1], 0, 2 * rows - x.shape[-2], 0, 0), mode="replicate")
        return torch.cat((F.relu(self.stem_norm(self.stem(pixels))), energy.to(x.dtype)), dim=1)


def _joined(skip: Tensor, deep: Tensor) -> Tensor:
    """A level's own channels and those of the level below it, enlarged."""
    return torch.cat((skip, F.interpolate(deep, size=skip.shape[-3:], mode="nearest")), dim=1)
