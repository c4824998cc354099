"""The keyed pattern: pairs of voxels, one up and one down by the same few HU, signs from a keyed hash of content.

In each cell of 4 mm the voxels are paired by a secret permutation. Three pairs of four are **bound**: their signs come
from SHAKE-256 over a sub-key, the nonce of the series, the slice, the place of the tile and the quantised content of
its four cells, so that another content, another place or another scan carries the wrong signs. Every fourth pair is
a **beacon** that depends on key and content alone, times one bit of a message (nonce and slice number): who has the
key finds nonce and slice in the pixels alone, after the header is lost (protect/sync.py).

A pair adds up to zero, so cell means and with them the hashed content stay as they were: the pattern is a function of
the sealed pixels too, and `erase` takes away exactly what `embed` added. Pairs that would cross a limit of the
stored values are left out; the few that cannot be told apart afterwards are listed by one bit each.
"""

from __future__ import annotations

import hashlib
import zlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ctguard.core.errors import DataError, ReadError
from ctguard.protect.keys import SealKey
from ctguard.protect.lattice import Ints, Lattice
from ctguard.protect.tiles import STEP_HU, Tiling, codes_of, eligible

NONCE_BITS = 64
SLICE_BITS = 12
_MESSAGE_BITS = NONCE_BITS + SLICE_BITS
_EIGHTH = 8


@dataclass(frozen=True)
class Pairs:
    """Which voxels of a tile are partners, as indices into 4 * cell voxels. Every fourth pair is a beacon."""

    first: NDArray[np.intp]
    second: NDArray[np.intp]
    beacon: NDArray[np.bool_]


@dataclass(frozen=True)
class PatternKey:
    """What the pattern of every series under one key and tiling is made from. Never printed."""

    key: SealKey
    tiling: Tiling

    @cached_property
    def pairs(self) -> Pairs:
        """The secret pairing, the same in every tile."""
        size = self.tiling.cell_size
        seed = self.key.derive("pairs", bytes(self.tiling.cell_yx))
        rng = np.random.default_rng(int.from_bytes(seed, "big"))
        first, second = [], []
        for cell in range(4):
            order = rng.permutation(size) + cell * size
            first.append(order[0 : size - 1 : 2])
            second.append(order[1:size:2])
        beacon = np.tile(np.arange(size // 2) % 4 == 3, 4)
        return Pairs(np.concatenate(first), np.concatenate(second), beacon)

    @cached_property
    def dither_hu(self) -> NDArray[np.float64]:
        """Where the steps of quantised content lie, one place for each cell of a tile."""
        raw = np.frombuffer(self.key.derive("dither", length=8), dtype="<u2")
        dither: NDArray[np.float64] = raw * (STEP_HU / 65536)
        return dither

    @cached_property
    def _beacon_key(self) -> bytes:
        return self.key.derive("beacon")

    def beacon_signs(self, codes: NDArray[np.int16]) -> tuple[NDArray[np.int8], NDArray[np.uint8], NDArray[np.intp]]:
        """Signs (n, beacon pairs), eighths (the same) and number of the message bit (n,) for contents (n, 4)."""
        raw = _hashed(self._beacon_key, codes, None, 2 + (int(self.pairs.beacon.sum()) + 1) // 2)
        bit = (raw[:, 0].astype(np.intp) * 256 + raw[:, 1]) % (2 * NONCE_BITS)
        # half of the tiles carry the nonce, the other half the slice number
        bit = np.where(bit < NONCE_BITS, bit, NONCE_BITS + (bit - NONCE_BITS) % SLICE_BITS)
        signs, eighths = _nibbles(raw[:, 2:], int(self.pairs.beacon.sum()))
        return signs, eighths, bit

    def bound_signs(
        self, codes: NDArray[np.int16], nonce: bytes, z: int, place: NDArray[np.int16]
    ) -> tuple[NDArray[np.int8], NDArray[np.uint8]]:
        """Signs (n, bound pairs) and eighths for contents (n, 4) at tile places (n, 2) of slice z."""
        sub_key = self.key.derive("bound", nonce + z.to_bytes(4, "big"))
        count = int((~self.pairs.beacon).sum())
        return _nibbles(_hashed(sub_key, codes, place, (count + 1) // 2), count)


def _hashed(
    sub_key: bytes, codes: NDArray[np.int16], place: NDArray[np.int16] | None, length: int
) -> NDArray[np.uint8]:
    """SHAKE-256 of sub-key and content (and place) of each of n tiles: (n, length) bytes."""
    rows = codes if place is None else np.concatenate([codes, place], axis=1)
    width = 2 * rows.shape[1]
    text = np.ascontiguousarray(rows, dtype="<i2").tobytes()
    shake = hashlib.shake_256
    made = [shake(sub_key + text[i : i + width]).digest(length) for i in range(0, len(text), width)]
    return np.frombuffer(b"".join(made), dtype=np.uint8).reshape(len(rows), length)


def _nibbles(raw: NDArray[np.uint8], count: int) -> tuple[NDArray[np.int8], NDArray[np.uint8]]:
    """Half bytes as a sign and a number of eighths, 0..7."""
    nibbles = np.stack([raw >> 4, raw & 15], axis=2).reshape(len(raw), -1)[:, :count]
    return (1 - 2 * (nibbles & 1)).astype(np.int8), (nibbles >> 1).astype(np.uint8)


def message_of(nonce: bytes, z: int) -> NDArray[np.int8]:
    """Nonce and slice number as signs (76,): what the beacons carry."""
    bits = np.unpackbits(np.frombuffer(nonce[: NONCE_BITS // 8], dtype=np.uint8))
    number = [z >> i & 1 for i in range(SLICE_BITS)]
    return (1 - 2 * np.concatenate([bits, number]).astype(np.int8)).astype(np.int8)


@dataclass(frozen=True)
class SliceFrame:
    """What decides about one slice: where its numbers lie, what they may reach, and how strong the pattern is.

    limits: least and greatest whole number that a voxel may have. barred: whole numbers that no voxel may come to be
    (the padding value). strength: (rows, columns) amplitude in whole steps, fractions allowed.
    """

    z: int
    lattice: Lattice
    limits: tuple[int, int]
    barred: tuple[int, ...]
    strength: NDArray[np.float64]

    @property
    def reach(self) -> int:
        """The greatest number of steps that the pattern adds in this slice."""
        return int(np.ceil(self.strength.max())) if self.strength.size else 0


def template(
    secret: PatternKey, nonce: bytes, frame: SliceFrame, codes: NDArray[np.int16], at: NDArray[np.bool_]
) -> NDArray[np.int32]:
    """Whole steps (n, pairs) for the n tiles `at` (rows, columns), before any pair is left out."""
    place = np.argwhere(at).astype(np.int16)
    beacon = secret.pairs.beacon
    signs = np.empty((len(place), len(beacon)), dtype=np.int8)
    eighths = np.empty(signs.shape, dtype=np.uint8)
    own, own_eighths, bit = secret.beacon_signs(codes)
    signs[:, beacon] = own * message_of(nonce, frame.z)[bit][:, None]
    eighths[:, beacon] = own_eighths
    signs[:, ~beacon], eighths[:, ~beacon] = secret.bound_signs(codes, nonce, frame.z, place)
    strength = frame.strength[at]
    whole = np.floor(strength)
    # mixing two amplitudes so that the mean square is strength squared, in eighths, never more than asked for
    share = np.floor(_EIGHTH * (strength**2 - whole**2) / (2 * whole + 1))
    steps = whole[:, None] + (eighths < share[:, None])
    made: NDArray[np.int32] = signs * steps.astype(np.int32)
    return made


def embed(secret: PatternKey, nonce: bytes, frame: SliceFrame, ints: Ints) -> tuple[Ints, bytes]:
    """The slice (y, x) with the pattern added, and the list of skipped pairs that `erase` needs.

    Raises DataError where `erase` would not find the same content again.
    """
    tiles, at, codes = _content(secret, frame, ints)
    chosen = tiles[at].reshape(len(codes), -1)
    steps = template(secret, nonce, frame, codes, at)
    first, second = chosen[:, secret.pairs.first], chosen[:, secret.pairs.second]
    free = _free(first, frame) & _free(second, frame)
    steps = steps * free
    sealed = _added(chosen, steps, secret.pairs)
    unclear = ~(_free(first + steps, frame) & _free(second - steps, frame))
    skips = zlib.compress(np.packbits(free[unclear]).tobytes(), 9)
    tiles[at] = sealed.reshape(tiles[at].shape)
    joined = secret.tiling.join(tiles, ints)
    _, at_after, codes_after = _content(secret, frame, joined)
    if not (np.array_equal(at, at_after) and np.array_equal(codes, codes_after)):
        raise DataError(
            f"the pattern changes what it depends on in slice {frame.z}, so it could not be taken off again",
            remedy="seal the scan with the digest alone",
        )
    return joined, skips


def erase(secret: PatternKey, nonce: bytes, frame: SliceFrame, sealed: Ints, skips: bytes) -> Ints:
    """What the slice was before `embed`. Raises ReadError where the list of skipped pairs does not fit the slice."""
    tiles, at, codes = _content(secret, frame, sealed)
    chosen = tiles[at].reshape(len(codes), -1)
    steps = template(secret, nonce, frame, codes, at)
    free = _free(chosen[:, secret.pairs.first], frame) & _free(chosen[:, secret.pairs.second], frame)
    unclear = ~free
    try:
        bits = np.unpackbits(np.frombuffer(zlib.decompress(skips), dtype=np.uint8))
    except zlib.error as error:
        raise ReadError(
            f"the seal of slice {frame.z} is damaged ({error})", remedy="restore from another copy"
        ) from None
    count = int(unclear.sum())
    if not count <= len(bits) < count + 8:
        raise ReadError(f"slice {frame.z} was changed after it was sealed", remedy="restore from an unchanged copy")
    free[unclear] = bits[:count].astype(bool)
    tiles[at] = _added(chosen, -steps * free, secret.pairs).reshape(tiles[at].shape)
    return secret.tiling.join(tiles, sealed)


def _content(secret: PatternKey, frame: SliceFrame, ints: Ints) -> tuple[Ints, NDArray[np.bool_], NDArray[np.int16]]:
    """Tiles of a slice, which of them carry the pattern, and the codes (n, 4) of those."""
    tiles = np.ascontiguousarray(secret.tiling.cut(ints))
    # from whole sums, padding taken for air: the same number before and after, to the last bit
    sums = np.maximum(tiles, frame.limits[0]).sum(axis=3, dtype=np.int64)
    means = sums * (frame.lattice.quantum_hu / tiles.shape[3]) + frame.lattice.offset_hu
    at = eligible(means) & (frame.strength > 0)
    return tiles, at, codes_of(means[at], secret.dither_hu)


def _free(values: Ints, frame: SliceFrame) -> NDArray[np.bool_]:
    """Voxels that the pattern moves neither across a limit nor onto a barred value."""
    reach = frame.reach
    free: NDArray[np.bool_] = (values >= frame.limits[0] + reach) & (values <= frame.limits[1] - reach)
    for barred in frame.barred:
        free &= np.abs(values - barred) > reach
    return free


def _added(chosen: Ints, steps: Ints, pairs: Pairs) -> Ints:
    out = chosen.copy()
    out[:, pairs.first] += steps
    out[:, pairs.second] -= steps
    return out
