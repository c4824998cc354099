"""Find which voxels of a sealed scan a received one shows: integer shifts, flips, crops, slices left out or reordered.

The tile means of the digest are a coarse picture of each sealed slice. A few probe slices are looked for in all of
them, in four orientations, by normalised correlation on the tile grid; the best place is then refined to the voxel,
where the means agree to within what benign operations change.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from ctguard.protect.digest import clipped, grid_shape, tile_counts, tile_sums
from ctguard.protect.tiles import Pair, Tiling

Means = NDArray[np.float32]
"""(slices, rows, columns), HU; NaN for a slice whose record is missing."""

_PROBES = 3
_BEST = 4
_TISSUE_HU = -950.0
_LEAST_TILES = 12
_SAME_HU = 3.0
"""Median difference of tile means of the same place after benign operations; another place or slice shows more."""
_ALIKE_HU = 12.0
_CLEAR_HU = 1.0  # above this, another slice may agree better
_FLIPS = ((False, False), (False, True), (True, False), (True, True))


@dataclass(frozen=True)
class Placement:
    """Where received voxels lie in the sealed scan.

    flip_yx: whether rows and columns are mirrored first. shift_yx: voxel (0, 0) of a received slice, after that, lies
    at this index of the sealed one. slices: for each received slice the sealed one, None where it is none of them.
    median_hu: how well tile means agree.
    """

    flip_yx: tuple[bool, bool]
    shift_yx: Pair
    slices: tuple[int | None, ...]
    median_hu: float

    @property
    def found(self) -> list[tuple[int, int]]:
        """(received, sealed) slice numbers."""
        return [(i, z) for i, z in enumerate(self.slices) if z is not None]

    def canvas(self, plane: NDArray[Any], shape_yx: Pair) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """A received slice (y, x) on the sealed grid, and which voxels of that it shows; the rest is air."""
        for axis, flip in enumerate(self.flip_yx):
            plane = np.flip(plane, axis) if flip else plane
        if self.shift_yx == (0, 0) and plane.shape == shape_yx:
            return plane, np.ones(shape_yx, dtype=bool)
        onto = np.full(shape_yx, -1024, dtype=plane.dtype)
        covered = np.zeros(shape_yx, dtype=bool)
        source, target = [], []
        for shift, size, room in zip(self.shift_yx, plane.shape, shape_yx, strict=True):
            start, stop = max(0, shift), min(room, shift + size)
            target.append(slice(start, max(start, stop)))
            source.append(slice(start - shift, max(start, stop) - shift))
        onto[tuple(target)] = plane[tuple(source)]
        covered[tuple(target)] = True
        return onto, covered


def received_means(plane: NDArray[Any], covered: NDArray[np.bool_], tiling: Tiling) -> NDArray[np.float32]:
    """Tile means (rows, columns) of a slice on the sealed grid, NaN where it does not show a tile whole."""
    counts = tile_counts(tiling)
    means = tile_sums(clipped(plane), tiling) / counts
    if covered.all():
        return means
    shown = tile_sums(covered.astype(np.float32), tiling) == counts
    return np.where(shown, means, np.nan).astype(np.float32)


def agreement(one: NDArray[Any], other: NDArray[Any]) -> float:
    """Median difference in HU of tile means (rows, columns) over those that hold tissue; inf where too few do."""
    at = np.isfinite(one) & np.isfinite(other)
    at &= np.fmax(one, other) > _TISSUE_HU
    if at.sum() < _LEAST_TILES:
        return float("inf")
    return float(np.median(np.abs(one[at] - other[at])))


def place(hu: NDArray[Any], means: Means, tiling: Tiling) -> Placement | None:
    """Where the received slices (z, y, x) lie in the sealed scan; None where they are not of it at all."""
    same = Placement((False, False), (0, 0), (), 0.0)
    if hu.shape[1:] == tiling.shape_yx:
        found = _slices(hu, means, tiling, same)
        if found is not None and found.median_hu < _SAME_HU:
            return found
    best: Placement | None = found if hu.shape[1:] == tiling.shape_yx else None
    for probe in _probes(hu):
        for _, flip, z, coarse in _candidates(hu[probe], means, tiling):
            shift, error = _refined(hu[probe], means[z], tiling, flip, coarse)
            if error < (_ALIKE_HU if best is None else min(_ALIKE_HU, best.median_hu)):
                found = _slices(hu, means, tiling, Placement(flip, shift, (), error))
                if found is not None and (best is None or found.median_hu < best.median_hu):
                    best = found
        if best is not None and best.median_hu < _SAME_HU:
            break
    return best


def _slices(hu: NDArray[Any], means: Means, tiling: Tiling, at: Placement) -> Placement | None:
    """The sealed slice of each received one, for a given orientation and shift; None where most have none."""
    numbers: list[int | None] = []
    errors: list[float] = []  # of the slices that have a number
    guess, step = None, 1
    for i, plane in enumerate(hu):
        mine = received_means(*at.canvas(plane, tiling.shape_yx), tiling)
        expected = i if guess is None else guess + step
        order = [expected] if 0 <= expected < len(means) else []
        error = agreement(mine, means[order[0]]) if order else float("inf")
        z: int | None = order[0] if order else None
        if error >= _CLEAR_HU:
            every = [agreement(mine, other) for other in means]
            nearest = int(np.argmin(every))
            if every[nearest] < error:
                z, error = nearest, every[nearest]
        if error >= _ALIKE_HU:
            z = None
        if z is not None:
            step = -1 if guess is not None and z == guess - 1 else 1
            guess = z
            errors.append(error)
        elif guess is not None:
            guess += step
        numbers.append(z)
    if len(errors) < max(1, len(hu) // 4):
        return None
    # A slice that agrees far less than the others is none of the sealed ones: it stands for the one it replaced.
    median = float(np.median(errors))
    known = iter(errors)
    kept = [z if z is None or next(known) < max(_SAME_HU, 4 * median) else None for z in numbers]
    return Placement(at.flip_yx, at.shift_yx, tuple(_filled(kept, len(means))), median)


def _filled(numbers: list[int | None], count: int) -> list[int | None]:
    """A slice of air or padding alone agrees with none: it goes where its neighbours say, if that is free."""
    out = list(numbers)
    taken = {z for z in numbers if z is not None}
    for indices in (range(1, len(out)), range(len(out) - 2, -1, -1)):
        back = -1 if indices.step > 0 else 1
        for i in indices:
            near, far = out[i + back], out[i + 2 * back] if 0 <= i + 2 * back < len(out) else None
            if out[i] is None and near is not None:
                z = near + ((near - far) if far is not None and abs(near - far) == 1 else -back)
                if 0 <= z < count and z not in taken:
                    out[i] = z
                    taken.add(z)
    return out


def _probes(hu: NDArray[Any]) -> list[int]:
    """A few slices with much tissue, apart from each other."""
    share = np.array([(plane[::4, ::4] > _TISSUE_HU).mean() for plane in hu])
    parts = np.array_split(np.arange(len(hu)), min(_PROBES, len(hu)))
    middle_first = sorted(parts, key=lambda part: abs(int(part.mean()) - len(hu) // 2))
    return [int(part[share[part].argmax()]) for part in middle_first]


def _candidates(plane: NDArray[Any], means: Means, tiling: Tiling) -> list[tuple[float, tuple[bool, bool], int, Pair]]:
    """The best (correlation, flip, sealed slice, shift in voxels) for a probe, on the grid of tiles."""
    ty, tx = tiling.tile_yx
    own = Tiling((plane.shape[0], plane.shape[1]), tiling.cell_yx)
    sealed = np.nan_to_num(means, nan=-1024.0) + 1024
    rows, columns = grid_shape(own)
    size = (fft.next_fast_len(sealed.shape[1] + rows), fft.next_fast_len(sealed.shape[2] + columns))
    theirs = fft.rfft2(sealed, s=size)
    squares = fft.rfft2(sealed**2, s=size)
    window = fft.rfft2(np.ones((rows, columns), dtype=np.float32), s=size)
    energy = np.sqrt(np.maximum(fft.irfft2(squares * window.conj(), s=size), 1.0))
    found = []
    for flip in _FLIPS:
        turned = plane[:: -1 if flip[0] else 1, :: -1 if flip[1] else 1]
        mine = tile_sums(clipped(turned), own) / tile_counts(own) + 1024
        norm = float(np.sqrt((mine**2).sum()))
        if norm == 0:
            continue
        product_ = theirs * fft.rfft2(mine, s=size).conj()
        score = fft.irfft2(product_, s=size) / (energy * norm)
        for z in np.argsort(-score.max(axis=(1, 2)))[:_BEST]:
            y, x = np.unravel_index(score[z].argmax(), score[z].shape)
            coarse = tuple(
                int(n if n <= limit else n - full)
                for n, limit, full in zip((y, x), sealed.shape[1:], size, strict=True)
            )
            found.append((float(score[z, y, x]), flip, int(z), (coarse[0] * ty, coarse[1] * tx)))
    return sorted(found, key=lambda row: -row[0])[: 2 * _BEST]


def _refined(
    plane: NDArray[Any], means: NDArray[np.float32], tiling: Tiling, flip: tuple[bool, bool], coarse: Pair
) -> tuple[Pair, float]:
    """The shift in voxels near a coarse one at which tile means agree best, and the median difference there."""
    ty, tx = tiling.tile_yx
    turned = clipped(plane[:: -1 if flip[0] else 1, :: -1 if flip[1] else 1])
    table = np.pad(turned, ((1, 0), (1, 0))).cumsum(axis=0, dtype=np.float64).cumsum(axis=1)
    rows, columns = np.nonzero(means > _TISSUE_HU)
    best, shift = float("inf"), coarse
    for dy, dx in product(range(-ty, ty + 1), range(-tx, tx + 1)):
        y0, x0 = rows * ty - coarse[0] - dy, columns * tx - coarse[1] - dx
        inside = (y0 >= 0) & (x0 >= 0) & (y0 + ty <= turned.shape[0]) & (x0 + tx <= turned.shape[1])
        inside &= (rows * ty + ty <= tiling.shape_yx[0]) & (columns * tx + tx <= tiling.shape_yx[1])
        if inside.sum() < _LEAST_TILES:
            continue
        y, x = y0[inside], x0[inside]
        sums = table[y + ty, x + tx] - table[y, x + tx] - table[y + ty, x] + table[y, x]
        error = float(np.median(np.abs(sums / (ty * tx) - means[rows[inside], columns[inside]])))
        if error < best:
            best, shift = error, (coarse[0] + dy, coarse[1] + dx)
    return shift, best
