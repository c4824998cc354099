"""The keyed digest: what each tile of 8 mm holds, in numbers that benign operations leave nearly alone.

Three numbers a tile and slice: its mean, and two projections of what differs from it on secret +1/-1 images, divided
by the square root of the voxels. The mean finds changes that a person sees; whoever keeps all means still changes the
projections, which nobody can compute without the key. Values are clipped to -1024..3071 HU first, as 12-bit copies
do. The numbers are stored in encrypted form, because means of 8 mm are a picture of the patient and the ledger lies
outside the archive.
"""

from __future__ import annotations

import hashlib
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctguard.core.errors import ReadError
from ctguard.protect.keys import SealKey
from ctguard.protect.tiles import Pair, Tiling

MEAN_STEP_HU = 0.5
PROJECTION_STEP_HU = 2.0
NUMBERS = 3
_LOW_HU, _HIGH_HU = -1024.0, 3071.0
_LIMIT = 32767

Stats = NDArray[np.float32]
"""(rows, columns, 3): mean and two projections of each tile, whole or not, in HU."""


def grid_shape(tiling: Tiling) -> Pair:
    """Tiles (rows, columns) of the digest: the last ones of a row or column may be cut off by the border."""
    (ny, nx), (ty, tx) = tiling.shape_yx, tiling.tile_yx
    return -(-ny // ty), -(-nx // tx)


def secret_images(key: SealKey, nonce: bytes, z: int, shape_yx: Pair) -> NDArray[np.float32]:
    """The +1/-1 images (2, y, x) of one slice."""
    count = 2 * shape_yx[0] * shape_yx[1]
    sub_key = key.derive("projections", nonce + z.to_bytes(4, "big"))
    bits = np.unpackbits(np.frombuffer(hashlib.shake_256(sub_key).digest(-(-count // 8)), dtype=np.uint8), count=count)
    return (1 - 2 * bits.astype(np.float32)).reshape(2, *shape_yx)


def tile_sums(plane: NDArray[Any], tiling: Tiling) -> NDArray[np.float32]:
    """Sums over the tiles of a slice (…, y, x), those cut off by the border included: (…, rows, columns)."""
    (rows, columns), (ty, tx) = grid_shape(tiling), tiling.tile_yx
    ny, nx = plane.shape[-2:]
    if (rows * ty, columns * tx) != (ny, nx):
        edges = [(0, 0)] * (plane.ndim - 2) + [(0, rows * ty - ny), (0, columns * tx - nx)]
        plane = np.pad(plane, edges)
    cut = plane.reshape(*plane.shape[:-2], rows, ty, columns, tx)
    return np.asarray(cut.sum(axis=(-3, -1), dtype=np.float32))


def tile_counts(tiling: Tiling) -> NDArray[np.float32]:
    """Voxels in each tile (rows, columns)."""
    return tile_sums(np.ones(tiling.shape_yx, dtype=np.float32), tiling)


def clipped(plane: NDArray[Any]) -> NDArray[np.float32]:
    """HU (…, y, x) as the digest sees them."""
    return np.asarray(np.clip(plane, _LOW_HU, _HIGH_HU), dtype=np.float32)


def tile_numbers(plane: NDArray[Any], images: NDArray[np.float32], tiling: Tiling) -> Stats:
    """The three numbers of each tile of a slice (y, x) in HU."""
    hu, counts = clipped(plane), tile_counts(tiling)
    means = tile_sums(hu, tiling) / counts
    # of what differs from the mean: the mean itself is a number of its own
    projections = (tile_sums(images * hu, tiling) - tile_sums(images, tiling) * means) / np.sqrt(counts)
    return np.stack([means, *projections], axis=-1).astype(np.float32)


def encoded(stats: Stats, key: SealKey, nonce: bytes, z: int) -> bytes:
    """The numbers of a slice in steps of 0.5 and 2 HU, compressed and encrypted."""
    steps = np.array([MEAN_STEP_HU, PROJECTION_STEP_HU, PROJECTION_STEP_HU])
    whole = np.clip(np.rint(stats / steps), -_LIMIT, _LIMIT).astype("<i2")
    means = np.diff(whole[..., 0], axis=1, prepend=np.int16(0)).astype("<i2")
    # high and low bytes apart: the high ones are nearly constant
    planes = np.stack([means, whole[..., 1], whole[..., 2]]).astype("<i2").view(np.uint8).reshape(NUMBERS, -1, 2)
    return _crypted(zlib.compress(planes.transpose(0, 2, 1).tobytes(), 9), key, nonce, z)


def decoded(data: bytes, key: SealKey, nonce: bytes, z: int, tiling: Tiling) -> Stats:
    """The numbers that `encoded` wrote. Raises ReadError where they are damaged."""
    rows, columns = grid_shape(tiling)
    try:
        raw = zlib.decompress(_crypted(data, key, nonce, z))
        planes = np.frombuffer(raw, dtype=np.uint8).reshape(NUMBERS, 2, -1).transpose(0, 2, 1)
        whole = np.ascontiguousarray(planes).view("<i2").reshape(NUMBERS, rows, columns)
    except (zlib.error, ValueError) as error:
        raise ReadError(f"the digest of slice {z} is damaged ({error})", remedy="verify against the ledger") from None
    means = np.cumsum(whole[0], axis=1, dtype=np.int16).astype(np.float32) * MEAN_STEP_HU
    projections = whole[1:].astype(np.float32) * PROJECTION_STEP_HU
    return np.stack([means, *projections], axis=-1).astype(np.float32)


def _crypted(data: bytes, key: SealKey, nonce: bytes, z: int) -> bytes:
    """Exclusive or with a key stream of its own for each nonce and slice (SHAKE-256); its own inverse."""
    stream = hashlib.shake_256(key.derive("digest", nonce + z.to_bytes(4, "big"))).digest(len(data))
    return bytes(np.frombuffer(data, dtype=np.uint8) ^ np.frombuffer(stream, dtype=np.uint8))
