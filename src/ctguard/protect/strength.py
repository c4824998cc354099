"""How strong the pattern may be where: a share of the scan's own local noise, on a coarse grid that is kept.

Local noise is the SD of the residual after a 3 x 3 x 3 median (image/noise.py) in each tile of 8 mm; a block of about
32 mm takes the tenth percentile of its tiles, so that the quiet tissue of a mixed block decides.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ctguard.core.geometry import IntTriple
from ctguard.core.volume import Volume
from ctguard.image.noise import median_residual
from ctguard.protect.tiles import Tiling, cell_means, eligible

USUAL_SHARE, USUAL_MOST_HU = 0.185, 3.0
"""SD of the pattern over local noise, and its cap: what a seal has, and what a key alone looks for."""
_BLOCK_MM = 32.0
_BLOCK_TILES = 4
_QUIET_PERCENTILE = 10
_EIGHTHS = 8
_SLICES = 3


@dataclass(frozen=True, eq=False)
class Strength:
    """SD of the pattern in eighths of one HU: uint8 (blocks z, y, x). block: slices and tiles (y, x) of a block."""

    eighths: NDArray[np.uint8]
    block: IntTriple

    def of_slice(self, z: int, tiling: Tiling) -> NDArray[np.float64]:
        """SD in HU of each tile (rows, columns) of slice z of the sealed scan."""
        depth, tall, wide = self.block
        plane = self.eighths[min(z // depth, len(self.eighths) - 1)] / _EIGHTHS
        rows, columns = np.arange(tiling.rows) // tall, np.arange(tiling.columns) // wide
        taken: NDArray[np.float64] = plane[np.ix_(rows, columns)]
        return taken


def strength_of(volume: Volume, tiling: Tiling, share: float, most_hu: float) -> Strength:
    """`share` of the local noise, at most `most_hu`, for each block of a volume. Blocks without tissue get none."""
    nz = volume.geometry.shape_zyx[0]
    depth = max(1, min(nz, round(_BLOCK_MM / volume.geometry.spacing_zyx_mm[0])))
    blocks = (-(-nz // depth), -(-tiling.rows // _BLOCK_TILES), -(-tiling.columns // _BLOCK_TILES))
    found = np.zeros(blocks)
    for number in range(blocks[0]):
        noise = _noise(volume, tiling, number * depth, min(nz, (number + 1) * depth))
        padding = [(0, 0)] + [(0, n * _BLOCK_TILES - m) for n, m in zip(blocks[1:], noise.shape[1:], strict=True)]
        wide = np.pad(noise, padding, constant_values=np.nan)
        cut = wide.reshape(len(wide), blocks[1], _BLOCK_TILES, blocks[2], _BLOCK_TILES)
        tiles = cut.transpose(1, 3, 0, 2, 4).reshape(blocks[1], blocks[2], -1)
        some = np.isfinite(tiles).any(axis=2)
        found[number][some] = np.nanpercentile(tiles[some], _QUIET_PERCENTILE, axis=1)
    found = _neighbours(found)
    eighths = np.floor(np.clip(share * found, 0, most_hu) * _EIGHTHS).astype(np.uint8)
    return Strength(eighths, (depth, _BLOCK_TILES, _BLOCK_TILES))


def _noise(volume: Volume, tiling: Tiling, start: int, stop: int) -> NDArray[Any]:
    """Local noise of each tile of the middle slices of a block, (slices, rows, columns), NaN where there is no tissue.

    Three slices stand for 32 mm: noise changes slowly along z.
    """
    first = start + max(0, (stop - start - _SLICES) // 2)
    last = min(first + _SLICES, stop)
    low, high = max(0, first - 1), min(len(volume.hu), last + 1)
    residual = median_residual(volume.hu[low:high])
    noise = np.full((last - first, tiling.rows, tiling.columns), np.nan, dtype=np.float32)
    for z in range(first, last):
        tiles = tiling.cut(volume.hu[z])
        at = eligible(cell_means(tiles))
        spread = tiling.cut(residual[z - low])[at].reshape(int(at.sum()), -1).std(axis=1, dtype=np.float32)
        noise[z - first][at] = spread
    return noise


def _neighbours(found: NDArray[np.float64]) -> NDArray[np.float64]:
    """Blocks with few tiles, at the skin, may look quieter or louder than they are: none exceeds its neighbours' mean
    twice, and empty ones stay empty."""
    known = (found > 0).astype(float)
    total = ndimage.uniform_filter(found, 3, mode="constant") * 27
    count = ndimage.uniform_filter(known, 3, mode="constant") * 27
    mean = np.divide(total, count, out=np.zeros_like(found), where=count > 0.5)
    return np.asarray(np.minimum(found, 2 * mean), dtype=np.float64)
