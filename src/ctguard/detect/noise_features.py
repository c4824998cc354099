"""Fixed features of CT noise: differences at several lags, and their local energy against the level of the lung around.

Forged tissue keeps what the eye sees and loses what the scanner made: the level, the spectrum and the grid of the
noise. Each filter below answers to another part of the spectrum, so that a spectrum which does not fit shows as a
ratio between them, and interpolation as a loss in the shortest lags.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

CELL = 2
"""Energies are taken in cells of CELL x CELL pixels."""
NEAR, WIDE = 3, 7
"""Sides, in cells, of the windows in which energies are averaged: of all tissue, and of aerated lung alone."""
_AERATED_HU = (-975.0, -600.0)
_SOFT_HU = 30.0
_EDGE_HU = 60.0
_CLIP = 4.0
_FLOOR = 0.02
_LEAST_SHARE = 0.05
_LEAST_VOXELS = 400.0
_LEVEL_CELL, _LEVEL_WINDOW, _LEVEL_SLICES = 8, 13, 13
_LEVEL_PRIOR = 0.1


def _kernels() -> Tensor:
    """(k, 1, 5, 5): first and second differences along x, y and both diagonals, at lags of 1 and 2, and two more."""
    rows: list[Tensor] = []

    def add(*taps: tuple[int, int, float]) -> None:
        kernel = torch.zeros(5, 5)
        for dy, dx, weight in taps:
            kernel[2 + dy, 2 + dx] += weight
        rows.append(kernel / kernel.square().sum().sqrt())

    for dy, dx in ((0, 1), (1, 0), (1, 1), (1, -1)):
        add((0, 0, -1), (dy, dx, 1))
        add((-dy, -dx, 1), (0, 0, -2), (dy, dx, 1))
    for dy, dx in ((0, 2), (2, 0)):
        add((-dy, -dx, 1), (0, 0, -2), (dy, dx, 1))
    for dy, dx in ((0, 1), (1, 0)):
        add((-2 * dy, -2 * dx, 1), (-dy, -dx, -4), (0, 0, 6), (dy, dx, -4), (2 * dy, 2 * dx, 1))
    return torch.stack(rows)[:, None]


IN_PLANE = len(_kernels())
CHANNELS = IN_PLANE + 2
"""Residuals: those in the plane, and the first and second difference between slices (0 in a single slice)."""


def residuals(hu: Tensor) -> Tensor:
    """HU (b, 1, z, y, x) to residuals (b, CHANNELS, z, y, x), of unit gain on white noise; borders repeat."""
    b, _, z, y, x = hu.shape
    found = hu.new_empty(b, CHANNELS, z, y, x)
    kernels = _kernels().to(hu)
    for plane in range(z):  # one at a time: a copy of a wide block with all its channels is what memory goes into
        padded = F.pad(hu[:, :, plane], (2, 2, 2, 2), mode="replicate")
        found[:, :IN_PLANE, plane] = F.conv2d(padded, kernels)
    before = torch.cat((hu[:, :, :1], hu[:, :, :-1]), dim=2)
    after = torch.cat((hu[:, :, 1:], hu[:, :, -1:]), dim=2)
    found[:, IN_PLANE] = ((after - hu) / 2**0.5)[:, 0]
    found[:, IN_PLANE + 1] = ((before - 2 * hu + after) / 6**0.5)[:, 0]
    return found


def aerated_weight(hu: Tensor) -> Tensor:
    """0..1 (b, 1, z, y, x): aerated lung without vessels, walls and their edges, soft at its limits."""
    smooth = _mean(hu, 5)
    low, high = _AERATED_HU
    inside = torch.sigmoid((smooth - low) / _SOFT_HU) * torch.sigmoid((high - smooth) / _SOFT_HU)
    wide = F.pad(smooth, (1, 1, 1, 1, 0, 0), mode="replicate")
    slope_x = (wide[..., 1:-1, 2:] - wide[..., 1:-1, :-2]) / 2
    slope_y = (wide[..., 2:, 1:-1] - wide[..., :-2, 1:-1]) / 2
    return inside * torch.exp(-(slope_x.square() + slope_y.square()) / _EDGE_HU**2)


def normalised(found: Tensor, weight: Tensor) -> Tensor:
    """Residuals over their own SD in the aerated lung around (in all tissue where a sample has hardly any lung).

    Around: 104 pixels and 13 slices. A forged cube is a fifth of that, and the noise of a chest is level over it, which
    over the whole chest it is not: it grows towards the shoulders. Where there is little lung
    around, the sample's own level counts, too. Clipped at 4 SD: vessels and edges exceed any noise, and one of them
    would fill its window.
    """
    enough = weight.sum(dim=(1, 2, 3, 4), keepdim=True) >= _LEAST_VOXELS
    used = torch.where(enough, weight, torch.ones_like(weight))
    over, around = used.sum(dim=(2, 3, 4), keepdim=True), _around(used)
    noise = []
    for one in torch.split(found, 1, dim=1):
        power = one.square() * used
        own = power.sum(dim=(2, 3, 4), keepdim=True) / over
        level = ((_around(power) + _LEVEL_PRIOR * own) / (around + _LEVEL_PRIOR)).sqrt().clamp(min=1.0)
        level = level.repeat_interleave(_LEVEL_CELL, dim=-2).repeat_interleave(_LEVEL_CELL, dim=-1)
        noise.append((one / level[..., : one.shape[-2], : one.shape[-1]]).clamp(-_CLIP, _CLIP))
    return torch.cat(noise, dim=1)


def _around(values: Tensor) -> Tensor:
    """Means (b, c, z, y / 8, x / 8) over the windows in which noise is taken to be level, inside the sample."""
    cells = F.avg_pool2d(values.flatten(1, 2), _LEVEL_CELL, ceil_mode=True)
    mean = _mean(cells.reshape(*values.shape[:3], *cells.shape[-2:]), _LEVEL_WINDOW)
    half = min(_LEVEL_SLICES, values.shape[2] - 1 + values.shape[2] % 2) // 2
    return F.avg_pool3d(mean, (2 * half + 1, 1, 1), stride=1, padding=(half, 0, 0), count_include_pad=False)


def energies(noise: Tensor, weight: Tensor) -> Tensor:
    """Log local energy of normalised residuals, (b, 2 * CHANNELS, z, y / 2, x / 2), 0 at the level of the lung around.

    First the energy of all tissue in 6 pixels, then that of aerated lung in 14, which is 0 where there is none.
    Odd sides are rounded up.
    """
    share = _mean(in_cells(weight), WIDE)
    lung = share >= _LEAST_SHARE
    near, wide = [], []
    for one in torch.split(noise, 1, dim=1):
        square = one.square()
        near.append(torch.log(_mean(in_cells(square), NEAR) + _FLOOR))
        inside = torch.log(_mean(in_cells(square * weight), WIDE) / share.clamp(min=_LEAST_SHARE) + _FLOOR)
        wide.append(torch.where(lung, inside, torch.zeros_like(inside)))
    return torch.cat((*near, *wide), dim=1)


def in_cells(values: Tensor) -> Tensor:
    """Means (b, c, z, y / 2, x / 2) over cells; the last cell of an odd side is half a one."""
    cells = F.avg_pool2d(values.flatten(1, 2), CELL, ceil_mode=True)
    return cells.reshape(*values.shape[:3], *cells.shape[-2:])


def _mean(values: Tensor, side: int) -> Tensor:
    """Means over side x side pixels of each slice, without what lies beyond the border."""
    planes = values.flatten(1, 2)
    rows = F.avg_pool2d(planes, (side, 1), stride=1, padding=(side // 2, 0), count_include_pad=False)
    mean = F.avg_pool2d(rows, (1, side), stride=1, padding=(0, side // 2), count_include_pad=False)
    return mean.reshape(values.shape)
