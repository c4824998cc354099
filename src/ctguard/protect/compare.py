"""Compare what a scan shows with what the digest of its seal says, tile by tile, with a tolerance for lossy coding.

The tolerance is the scan's own: the median deviation of all tiles, which benign operations leave small and even. A
tile is changed where it lies seven of them off, and so is a block of about 8 mm whose mean is. A scan in which every
projection is off has been resampled or filtered.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ctguard.core.geometry import FloatTriple
from ctguard.core.volume import Volume
from ctguard.protect.align import Placement
from ctguard.protect.digest import decoded, grid_shape, secret_images, tile_counts, tile_numbers, tile_sums
from ctguard.protect.evidence import Evidence, slice_evidence
from ctguard.protect.keys import SealKey
from ctguard.protect.pattern import PatternKey
from ctguard.protect.record import Seal
from ctguard.protect.whiten import Whitener, fit_whitener

_SIGMAS = 7.0
_FLOORS_HU = (2.0, 8.0, 8.0)
"""Least deviation of mean and projections that counts: rounding of the record is 0.25 and 1 HU."""
_BLOCK_FLOOR_HU = 1.0
_BLOCK_MM = 8.0
_RESAMPLED_SHARE = 0.11
_RESAMPLED_HU = 4.0
_TISSUE_HU = -950.0
_LOSSY_HU = 1.0
_LEAST_LOSS, _MOST_LOSS = 2.0, 4.0


@dataclass(frozen=True, eq=False)
class Comparison:
    """Tiles on the sealed grid, (z, rows, columns). changed: bool. shown: compared at all.

    spread_hu: robust SD of the deviation of the means and of the projections; content_hu: of the projections
    themselves, which is the scan's own fine structure.
    """

    changed: NDArray[np.bool_]
    shown: NDArray[np.bool_]
    spread_hu: tuple[float, float]
    content_hu: float

    @property
    def lossy(self) -> bool:
        """Whether voxels differ all over, if little."""
        return self.spread_hu[1] > _LOSSY_HU

    @property
    def resampled(self) -> bool:
        """Whether the fine structure as a whole is another."""
        return self.spread_hu[1] > max(_RESAMPLED_HU, _RESAMPLED_SHARE * self.content_hu)


def compare(volume: Volume, placement: Placement, seal: Seal, key: SealKey) -> Comparison:
    """Digest against voxels, for every slice that was found and has a record."""
    header = seal.header
    tiling, nonce = header.tiling, header.nonce_bytes
    shape = (header.geometry.shape_zyx[0], *grid_shape(tiling))
    off = np.zeros((*shape, 3), dtype=np.float32)
    content = np.zeros((*shape, 3), dtype=np.float32)
    shown = np.zeros(shape, dtype=bool)
    counts = tile_counts(tiling)
    for i, z in placement.found:
        if z not in seal.slices:
            continue
        plane, covered = placement.canvas(volume.hu[i], tiling.shape_yx)
        images = secret_images(key, nonce, z, tiling.shape_yx)
        content[z] = decoded(seal.slices[z].digest, key, nonce, z, tiling)
        here = tile_numbers(plane, images, tiling) - content[z]
        # where two slices claim to be the same one, the worse counts
        off[z] = np.where(np.abs(here) > np.abs(off[z]), here, off[z])
        shown[z] = True if covered.all() else tile_sums(covered.astype(np.float32), tiling) == counts
    tissue = shown & (content[..., 0] > _TISSUE_HU)
    # the numbers of a tile that the border cuts off are less certain: what coding does to it is all of a piece
    off *= (counts / counts.max())[..., None]
    return _judged(off, content, shown, tissue, header.geometry.spacing_zyx_mm)


def _judged(off: Any, content: Any, shown: Any, tissue: Any, spacing_zyx_mm: FloatTriple) -> Comparison:
    at = tissue if tissue.sum() >= 16 else shown
    spread = [float(np.median(np.abs(off[at][:, k]))) / 0.6745 if at.any() else 0.0 for k in range(3)]
    fine = float(np.median(np.abs(content[at][:, 1:]))) / 0.6745 if at.any() else 0.0
    changed = np.zeros(shown.shape, dtype=bool)
    loss = _slice_loss(off, at, spread)
    off[..., 0] = _without_lift(off[..., 0], content[..., 0] <= _TISSUE_HU, max(spread[1:]) * loss)
    for k in range(3):
        changed |= np.abs(off[..., k]) > np.maximum(_FLOORS_HU[k], _SIGMAS * spread[k] * loss)
    depth = max(1, round(_BLOCK_MM / spacing_zyx_mm[0]))
    size = (depth, 2, 2)
    weight = ndimage.uniform_filter(shown.astype(np.float32), size, mode="constant")
    mean = ndimage.uniform_filter(np.where(shown, off[..., 0], 0), size, mode="constant")
    mean = np.divide(mean, weight, out=np.zeros_like(mean), where=weight > 0.2)
    inside = mean[at] if at.any() else np.zeros(1)
    limit = np.maximum(_BLOCK_FLOOR_HU, _SIGMAS * float(np.median(np.abs(inside))) / 0.6745 * loss)
    # only tiles that themselves lie off that way, so that the map stays where the change is
    near = ndimage.maximum_filter(np.abs(mean) > limit, size)
    changed |= near & (np.abs(off[..., 0]) > np.maximum(0.5 * limit, 0.6 * _SIGMAS * spread[0] * loss))
    return Comparison(changed & shown, shown, (spread[0], max(spread[1:])), fine)


def _without_lift(off_hu: Any, air: Any, error_hu: Any) -> Any:
    """Deviation of means in air, less what coding explains: of an error of SD `error_hu` the half that falls below the
    digest's floor of -1024 HU is cut off, and the mean rises by up to error_hu / sqrt(2 pi)."""
    lift = error_hu / np.sqrt(2 * np.pi)
    return np.where(air, np.minimum(off_hu, np.maximum(off_hu - lift, 0)), off_hu)


def _slice_loss(off: Any, at: Any, spread: list[float]) -> NDArray[np.float64]:
    """How much more than the scan as a whole each slice lost to coding, (z, 1, 1), 1 to 4; to 2 where there was none.

    Codecs share out their bits slice by slice. A slice that is off by more was not coded but changed.
    """
    most = _MOST_LOSS if max(spread[1:]) > _LOSSY_HU else _LEAST_LOSS
    loss = np.ones((len(off), 1, 1))
    for z, tiles in enumerate(at):
        if tiles.sum() >= 16:
            own = [float(np.median(np.abs(off[z][tiles][:, k]))) / 0.6745 / max(spread[k], 1e-6) for k in range(3)]
            loss[z] = np.clip(max(own), 1, most)
    return loss


def pattern_evidence(volume: Volume, placement: Placement, seal: Seal, key: SealKey, *, lossy: bool) -> Evidence | None:
    """How much of the pattern the found slices show; None where the seal has none."""
    header = seal.header
    if header.strength is None:
        return None
    tiling, secret = header.tiling, PatternKey(key, header.tiling)
    shape = (header.geometry.shape_zyx[0], tiling.rows, tiling.columns)
    arrays = [np.zeros(shape, dtype=np.float32) for _ in range(3)]
    found = placement.found
    whiten = whitener_for(volume, [i for i, _ in found])
    # tiles at the border of what is shown lack the neighbours that whitening needs
    covered = placement.canvas(volume.hu[0], tiling.shape_yx)[1]
    inner = ndimage.binary_erosion(covered, np.ones((3, 3)), iterations=2)
    shown = np.asarray(tiling.cut(inner).all(axis=(2, 3)), dtype=bool)
    for i, z in found:
        if z not in seal.slices:
            continue
        plane, _ = placement.canvas(volume.hu[i], tiling.shape_yx)
        frame = seal.slices[z].frame(header)
        rows = slice_evidence(secret, header.nonce_bytes, frame, plane, whiten(plane), covered=shown, lossy=lossy)
        for array, row in zip(arrays, rows, strict=True):
            array[z] = row
    return Evidence(*arrays)


def whitener_for(volume: Volume, slices: list[int]) -> Whitener:
    """A predictor fitted to three of the slices."""
    chosen = {slices[len(slices) * part // 4] for part in (1, 2, 3)} if slices else {0}
    return fit_whitener([volume.hu[i] for i in sorted(chosen)])


def tiles_to_voxels(
    tiles: NDArray[np.bool_], volume: Volume, placement: Placement, tile_yx: tuple[int, int]
) -> NDArray[np.float32]:
    """A map on the received grid: 1 where tiles (z, rows, columns) on the sealed grid are set."""
    out = np.zeros(volume.hu.shape, dtype=np.float32)
    _, ny, nx = volume.hu.shape
    rows = np.clip((np.arange(ny) + placement.shift_yx[0]) // tile_yx[0], -1, tiles.shape[1])
    columns = np.clip((np.arange(nx) + placement.shift_yx[1]) // tile_yx[1], -1, tiles.shape[2])
    wide = np.pad(tiles, ((0, 0), (0, 1), (0, 1)))  # index -1 and the one past the end both fall outside
    for i, z in placement.found:
        if wide[z].any():
            plane = wide[z][np.ix_(rows, columns)].astype(np.float32)
            for axis, flip in enumerate(placement.flip_yx):
                plane = np.flip(plane, axis) if flip else plane
            out[i] = plane
    return out
