"""Verify with the key alone: find grid, nonce and slices in the pixels, for files that lost their header.

Beacon pairs depend on key and content only. On the right orientation and start of the tile grid they all agree on
one message: 64 bits of nonce and, slice by slice, 12 bits of slice number. With these, the bound pairs tell the place
of the tiles, and then where the pattern is missing.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctguard.core.errors import DataError
from ctguard.core.provenance import Json
from ctguard.core.volume import Volume
from ctguard.protect.align import Placement
from ctguard.protect.compare import tiles_to_voxels, whitener_for
from ctguard.protect.evidence import (
    FALSE_SIGMA,
    Evidence,
    bound_steps,
    differences,
    missing_tiles,
    scores,
    slice_evidence,
)
from ctguard.protect.keys import SealKey
from ctguard.protect.lattice import Lattice, find_lattice
from ctguard.protect.pattern import NONCE_BITS, SLICE_BITS, PatternKey, SliceFrame, message_of
from ctguard.protect.strength import USUAL_MOST_HU, USUAL_SHARE, strength_of
from ctguard.protect.tiles import FLOOR_HU, Pair, Tiling, cell_means, codes_of, eligible, tiling_for
from ctguard.protect.verdict import SealState, SealVerdict, regions_of
from ctguard.protect.whiten import Whitener

_BITS = NONCE_BITS + SLICE_BITS
_FOUND_SIGMAS = 8.0
_PROBES = 3
_PROBE_TILES = 160
_MORE_PROBES, _MORE_TILES, _TRIED_AGAIN = 48, 640, 8
_PLACES = 64
_PLACE_SIGMAS = 6.5
_JUMP_SIGMAS = 6.0
_GONE_GAIN = 0.2
_FLIPS = ((False, False), (False, True), (True, False), (True, True))


@dataclass(frozen=True, eq=False)
class _Beacons:
    """Sums and variances of what the beacons of one slice say of each message bit, (76,)."""

    total: NDArray[np.float64]
    variance: NDArray[np.float64]

    @property
    def surplus(self) -> float:
        """Energy beyond what random signs give, in sigmas, whatever the message."""
        used = self.variance > 0
        count = int(used.sum())
        energy = float((self.total[used] ** 2 / self.variance[used]).sum())
        return (energy - count) / float(np.sqrt(2 * max(count, 1)))

    @property
    def bits(self) -> NDArray[np.float64]:
        """Each bit in sigmas; its sign is the message's."""
        bits: NDArray[np.float64] = self.total / np.sqrt(np.maximum(self.variance, 1e-12))
        return bits


def verify_blind(volume: Volume, key: SealKey) -> SealVerdict:
    """`never-sealed`, or what the pattern alone says: intact, broken, resampled or geometry-changed, and the nonce.

    A scan of few slices or of much noise may hold too little of the pattern: that too reads `never-sealed`, with a
    note where beacons were seen but no message could be read.
    """
    secret = PatternKey(key, tiling_for(volume.geometry.shape_zyx, volume.geometry.spacing_zyx_mm))
    probes = _probes(volume)
    whiten = whitener_for(volume, probes)
    grid = _grid(volume, secret, probes, whiten)
    if grid is None:
        return SealVerdict("never-sealed", key.key_id)
    flip, start = grid
    turned = [plane[:: -1 if flip[0] else 1, :: -1 if flip[1] else 1] for plane in volume.hu]
    beacons = [_beacons(secret, plane, whiten(plane), start) for plane in turned]
    total, variance = (
        np.stack(rows).sum(axis=0) for rows in zip(*((b.total, b.variance) for b in beacons), strict=True)
    )
    whole = _Beacons(total, variance)
    # a wrong bit makes a wrong nonce, whose bound pairs agree nowhere
    nonce = np.packbits(whole.bits[:NONCE_BITS] < 0).tobytes()
    numbers = _numbers(beacons)
    shift = _shift(secret, nonce, [(turned[i], numbers[i]) for i in probes], whiten, start)
    if shift is None:
        return SealVerdict("never-sealed", key.key_id, notes=("traces of a seal were seen, too weak to be read",))
    placement = Placement(flip, shift, tuple(numbers), 0.0)
    return _judged(volume, placement, secret, nonce, whiten)


def _probes(volume: Volume, count: int = _PROBES) -> list[int]:
    share = np.array([((p[::4, ::4] > -950) & (p[::4, ::4] < 200)).mean() for p in volume.hu])
    parts = np.array_split(np.arange(len(volume.hu)), min(count, len(volume.hu)))
    return [int(part[share[part].argmax()]) for part in parts]


def _content(
    secret: PatternKey, plane: NDArray[Any], error: NDArray[np.float32], start: Pair, most: int | None
) -> tuple[NDArray[np.int16], NDArray[np.int16], NDArray[np.float32], NDArray[np.bool_]]:
    """Places, codes, differences and which of them count, for the tiles of a slice from `start` on."""
    tiles = secret.tiling.cut(plane, start)
    means = cell_means(tiles)
    place = np.argwhere(eligible(means)).astype(np.int16)
    if most is not None and len(place) > most:
        place = place[np.linspace(0, len(place) - 1, most).astype(int)]
    rows, columns = place[:, 0], place[:, 1]
    codes = codes_of(means[rows, columns], secret.dither_hu)
    cut = secret.tiling.cut(error, start)[rows, columns].reshape(len(place), -1)
    return (place, codes, *differences(secret, cut))


def _beacons(
    secret: PatternKey, plane: NDArray[Any], error: NDArray[np.float32], start: Pair, most: int | None = None
) -> _Beacons:
    _, codes, d, counts = _content(secret, plane, error, start, most)
    if len(codes) == 0:
        return _Beacons(np.zeros(_BITS), np.zeros(_BITS))
    beacon = secret.pairs.beacon
    d = d[:, beacon] * counts[:, beacon]
    signs, _, bit = secret.beacon_signs(codes)
    weight = 1 / (np.square(d).mean(axis=1) + 1)
    correlation = (signs * d).sum(axis=1) * weight
    variance = np.square(d).sum(axis=1) * weight**2
    sums = [np.asarray(np.bincount(bit, values, _BITS), dtype=np.float64) for values in (correlation, variance)]
    return _Beacons(*sums)


def _grid(
    volume: Volume, secret: PatternKey, probes: list[int], whiten: Whitener
) -> tuple[tuple[bool, bool], Pair] | None:
    """Orientation and start of the tile grid; None where no beacons are seen.

    All are tried on a few tiles; where none stands out, because the pattern is weak or the noise strong, the best and
    the place where nothing was moved are tried on many.
    """
    ty, tx = secret.tiling.tile_yx
    errors = {i: whiten(volume.hu[i]) for i in probes}
    tried: list[tuple[float, tuple[bool, bool], Pair]] = []
    for flip, start in product(_FLIPS, product(range(ty), range(tx))):
        tried.append((_surplus(volume, secret, errors, (flip, start), _PROBE_TILES), flip, start))
        if tried[-1][0] > 2 * _FOUND_SIGMAS:
            return flip, start
    best = max(tried)
    if best[0] < _FOUND_SIGMAS:
        errors = {i: whiten(volume.hu[i]) for i in _probes(volume, _MORE_PROBES)}
        again = [tried[0], *sorted(tried[1:], reverse=True)[:_TRIED_AGAIN]]
        best = max((_surplus(volume, secret, errors, one[1:], _MORE_TILES), *one[1:]) for one in again)
    return None if best[0] < _FOUND_SIGMAS else best[1:]


def _surplus(
    volume: Volume,
    secret: PatternKey,
    errors: dict[int, NDArray[np.float32]],
    grid: tuple[tuple[bool, bool], Pair],
    most: int,
) -> float:
    """How far the beacons of some slices (their whitened voxels by number) lie above chance on a grid, in sigmas."""
    (flip_y, flip_x), start = grid
    turn = (slice(None, None, -1 if flip_y else 1), slice(None, None, -1 if flip_x else 1))
    found = [_beacons(secret, volume.hu[i][turn], error[turn], start, most).surplus for i, error in errors.items()]
    return sum(found) / float(np.sqrt(len(found)))


def _numbers(beacons: list[_Beacons]) -> list[int | None]:
    """Slice numbers: the best path that runs up or down by one, with a price for every jump (Viterbi)."""
    messages = np.stack([message_of(bytes(8), z)[NONCE_BITS:] for z in range(1 << SLICE_BITS)]).astype(np.float64)
    score = np.stack([messages @ b.bits[NONCE_BITS:] for b in beacons]) / np.sqrt(SLICE_BITS)
    _, numbers = max((_path(score, step) for step in (1, -1)), key=lambda path: path[0])
    return [*numbers]


def _path(score: NDArray[np.float64], step: int) -> tuple[float, list[int]]:
    """The best numbers for scores (slices, numbers) in sigmas, and what they add up to."""
    total, came = score[0], []
    for row in score[1:]:
        on = np.full(total.shape, -np.inf)
        there, here = (slice(1, None), slice(None, -1)) if step == 1 else (slice(None, -1), slice(1, None))
        on[there] = total[here]
        jump = float(total.max()) - _JUMP_SIGMAS
        came.append(np.where(on >= jump, np.arange(len(total)) - step, int(total.argmax())))
        total = row + np.maximum(on, jump)
    numbers = [int(total.argmax())]
    for back in reversed(came):
        numbers.append(int(back[numbers[-1]]))
    return float(total.max()), numbers[::-1]


def _shift(
    secret: PatternKey,
    nonce: bytes,
    probes: list[tuple[NDArray[Any], int | None]],
    whiten: Whitener,
    start: Pair,
) -> Pair | None:
    """Where voxel (0, 0) lies in the sealed slice: the place at which bound pairs agree; None where there is none."""
    contents = [(z, *_content(secret, plane, whiten(plane), start, _PROBE_TILES)) for plane, z in probes]
    bound = ~secret.pairs.beacon
    rows = max(int(places[:, 0].max(initial=0)) for _, places, *_ in contents) + _PLACES + 1
    columns = max(int(places[:, 1].max(initial=0)) for _, places, *_ in contents) + _PLACES + 1
    ones = np.ones((rows, columns))

    def sigmas(place_at: Pair, part: list[Any]) -> float:
        found = expected = 0.0
        for z, places, codes, d, counts in part:
            frame = SliceFrame(int(z), Lattice(1.0, 0.0), (0, 0), (), ones)
            steps = bound_steps(secret, nonce, frame, codes, places + np.asarray(place_at, dtype=np.int16))
            f, e = scores(steps, d[:, bound], counts[:, bound])
            found, expected = found + float(f.sum()), expected + float(e.sum())
        return found / float(np.sqrt(max(expected, 1e-9)))

    # all places for one slice, then the best of them for all
    order = sorted(product(range(_PLACES), range(_PLACES)), key=sum)
    tried: list[tuple[float, Pair]] = []
    for place_at in order:
        tried.append((sigmas(place_at, contents[:1]), place_at))
        if tried[-1][0] > 2 * _PLACE_SIGMAS:
            break
    for _, place_at in sorted(tried, reverse=True)[:8]:
        if sigmas(place_at, contents) > _PLACE_SIGMAS:
            ty, tx = secret.tiling.tile_yx
            return place_at[0] * ty - start[0], place_at[1] * tx - start[1]
    return None


def _judged(volume: Volume, placement: Placement, secret: PatternKey, nonce: bytes, whiten: Whitener) -> SealVerdict:
    ny, nx = volume.hu.shape[1:]
    (dy, dx), (ty, tx) = placement.shift_yx, secret.tiling.tile_yx
    shape = (max(ny + dy, ty), max(nx + dx, tx))
    tiling = Tiling(shape, secret.tiling.cell_yx)
    wide = PatternKey(secret.key, tiling)
    covered = placement.canvas(volume.hu[0], shape)[1]
    shown = np.asarray(tiling.cut(_inner(covered)).all(axis=(2, 3)), dtype=bool)
    planes = np.stack([placement.canvas(plane, shape)[0] for plane in volume.hu])
    grid = volume.geometry
    onto = Volume(planes, type(grid)((len(planes), *shape), grid.spacing_zyx_mm), volume.provenance)
    strength = strength_of(onto, tiling, USUAL_SHARE, USUAL_MOST_HU)
    arrays = [np.zeros((len(planes), tiling.rows, tiling.columns), dtype=np.float32) for _ in range(3)]
    for i, (plane, z) in enumerate(zip(planes, placement.slices, strict=True)):
        lattice = _lattice(plane)
        limits = (int(np.ceil((FLOOR_HU - lattice.offset_hu) / lattice.quantum_hu)), 1 << 30)
        frame = SliceFrame(int(z or 0), lattice, limits, (), strength.of_slice(i, tiling) / lattice.quantum_hu)
        rows = slice_evidence(wide, nonce, frame, plane, whiten(plane), covered=shown, lossy=True)
        for array, row in zip(arrays, rows, strict=True):
            array[i] = row
    evidence = Evidence(*arrays)
    tile_mm = (tiling.tile_yx[0] * grid.spacing_zyx_mm[1], tiling.tile_yx[1] * grid.spacing_zyx_mm[2])
    absent = missing_tiles(evidence, grid.spacing_zyx_mm, tile_mm, coarse=True)
    here = Placement(placement.flip_yx, placement.shift_yx, tuple(range(len(planes))), 0.0)
    foreign = _foreign(evidence)
    absent |= foreign[:, None, None] & (evidence.expected > 0)
    map_ = tiles_to_voxels(absent, volume, here, tiling.tile_yx)
    regions = regions_of(map_, grid)
    moved = _moved(placement)
    where: dict[str, Json] = {
        "flip_yx": [*placement.flip_yx],
        "shift_yx": [*placement.shift_yx],
        "slices": [*placement.slices],
    }
    state: SealState = "broken" if regions else "geometry-changed" if moved else "intact"
    return SealVerdict(
        "resampled" if evidence.gain < _GONE_GAIN else state,
        secret.key.key_id,
        map_,
        grid,
        regions,
        (*moved, "judged by the pattern alone: its header is gone"),
        evidence.gain,
        nonce.hex(),
        {"placement": where},
    )


def _foreign(evidence: Evidence) -> NDArray[np.bool_]:
    """Slices that carry less than a third of what they ought to, and enough to tell."""
    found, expected = (a.sum(axis=(1, 2)) for a in (evidence.found, evidence.expected))
    sigma = max(evidence.gain, 0) * np.sqrt(np.maximum(expected, 1e-9))
    foreign: NDArray[np.bool_] = (sigma > 2 * FALSE_SIGMA) & (found < max(evidence.gain, 0) * expected / 3)
    return foreign


def _inner(covered: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Two voxels less on every side of what is shown."""
    padded = np.pad(covered, 2)
    ny, nx = covered.shape
    parts = [padded[a : a + ny, b : b + nx] for a, b in product((0, 2, 4), repeat=2)]
    inner: NDArray[np.bool_] = np.logical_and.reduce(parts)
    return inner


def _lattice(plane: NDArray[Any]) -> Lattice:
    """The steps of the stored values; of 1 HU where lossy or floating-point work has left none."""
    try:
        return find_lattice(plane)
    except DataError:
        return Lattice(1.0, float(np.floor(plane.min())))


def _moved(placement: Placement) -> tuple[str, ...]:
    notes = ["its slices are mirrored"] if any(placement.flip_yx) else []
    steps = set(np.diff([z for z in placement.slices if z is not None]).tolist())
    if steps == {-1}:
        notes.append("its slices run the other way")
    elif not steps <= {1}:
        notes.append("slices are missing or in another order")
    return tuple(notes)
