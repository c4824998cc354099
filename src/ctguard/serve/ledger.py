"""Fingerprints of images: whether two have the same pixels, and if not, where they differ.

A fingerprint is made of the decoded stored values, their shape and their rescaling, so that lossless transcoding does
not change it. It is keyed: who has the database alone can neither look an image up in it nor make an entry that fits.
Beside it stand the means of blocks of 8 mm, which say where an image was changed. Neither tells who the patient is.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import struct
import zlib
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from ctguard.core.errors import CtguardError, ReadError, WriteError
from ctguard.io.dicom_pixels import decoded
from ctguard.io.dicom_slices import load
from ctguard.io.dicom_values import PARSE_ERRORS, REWRITE, one_line
from ctguard.protect.keys import SealKey, new_key, read_key

BLOCK_MM = 8.0
_NO_SPACING_PX = 16
_HEAD = struct.Struct("<5I")
_LARGEST = 1 << 28


@dataclass(frozen=True)
class Fingerprint:
    """pixel_hmac: HMAC-SHA-256 of the pixels, hexadecimal. block_digest: means of blocks of stored values, packed."""

    pixel_hmac: str
    block_digest: bytes


@dataclass(frozen=True)
class NodeKey:
    """The sub-keys of the node's key: for fingerprints, and for pseudonyms of patients. key_id tells nothing of it."""

    pixels: bytes = field(repr=False)
    names: bytes = field(repr=False)
    key_id: str

    def pseudonym(self, text: str) -> str:
        """The same for the same text, and nothing about it without the key; empty for an empty text."""
        return hmac.new(self.names, text.encode(), hashlib.sha256).hexdigest()[:16] if text else ""


def open_key(path: Path) -> NodeKey:
    """The node's key, made (mode 0600) where there is none. Raises what `protect.keys` raises."""
    try:
        key = read_key(path) if path.exists() else new_key(path)
    except WriteError:  # another process was faster
        key = read_key(path)
    return sub_keys(key)


def sub_keys(key: SealKey) -> NodeKey:
    """What a key file holds, for the purposes of the node."""
    return NodeKey(key.derive("node pixels"), key.derive("node names"), key.key_id)


def fingerprint(source: Path | bytes, key: NodeKey) -> Fingerprint:
    """Of a DICOM file, or of its bytes. Raises ReadError or MissingExtraError where its pixels cannot be decoded."""
    if isinstance(source, bytes):
        return _fingerprint(BytesIO(source), "image", key)
    with source.open("rb") as stream:
        return _fingerprint(stream, str(source), key)


def _fingerprint(stream: BinaryIO, where: str, key: NodeKey) -> Fingerprint:
    ds = load(stream, where)
    mac = hmac.new(key.pixels, digestmod=hashlib.sha256)
    means = []
    try:
        frames = int(ds.get("NumberOfFrames") or 1)
        side = _side_yx(ds)
        mac.update(json.dumps([frames, _rescaling(ds)]).encode())
        for plane in decoded(ds, where, frames):
            values = np.ascontiguousarray(plane, dtype="<i4")
            mac.update(struct.pack("<2I", *values.shape) + values.tobytes())
            means.append(_block_means(values, side))
    except CtguardError:
        raise
    except PARSE_ERRORS as error:
        raise ReadError(f"is damaged ({one_line(error)})", where=where, remedy=REWRITE) from error
    blocks = np.stack(means)
    packed = _HEAD.pack(*blocks.shape, *side) + zlib.compress(blocks.tobytes(), 6)
    return Fingerprint(mac.hexdigest(), packed)


def changed_region(before: bytes, after: bytes) -> dict[str, Any]:
    """Where two images differ, of their block digests: frames (from 1), and rows and columns as [first, last + 1].

    {"whole": True} where they have no blocks in common, or the difference is below what a mean shows.
    """
    one, side = _unpacked(before)
    other, side_of_other = _unpacked(after)
    if one.shape != other.shape or side != side_of_other:
        return {"whole": True}
    changed = one != other
    if not changed.any():
        return {"whole": True}
    frames, rows, columns = (np.flatnonzero(changed.any(axis=axes)) for axes in ((1, 2), (0, 2), (0, 1)))
    return {
        "frames": [int(f) + 1 for f in frames],
        "rows": [int(rows[0]) * side[0], (int(rows[-1]) + 1) * side[0]],
        "columns": [int(columns[0]) * side[1], (int(columns[-1]) + 1) * side[1]],
    }


def _unpacked(packed: bytes) -> tuple[NDArray[np.float32], tuple[int, int]]:
    frames, rows, columns, side_y, side_x = _HEAD.unpack_from(packed)
    size = frames * rows * columns * 4
    if size > _LARGEST:
        raise ReadError("a block digest of the ledger is damaged", remedy="restore the database")
    raw = zlib.decompressobj().decompress(packed[_HEAD.size :], size)
    return np.frombuffer(raw, "<f4").reshape(frames, rows, columns), (side_y, side_x)


def _block_means(values: NDArray[Any], side_yx: tuple[int, int]) -> NDArray[np.float32]:
    """Means over blocks; those at the far ends are smaller."""
    starts = [np.arange(0, n, side) for n, side in zip(values.shape, side_yx, strict=True)]
    sums = np.add.reduceat(np.add.reduceat(values, starts[0], axis=0, dtype=np.int64), starts[1], axis=1)
    counts = [np.diff([*start, n]) for start, n in zip(starts, values.shape, strict=True)]
    return (sums / np.outer(*counts)).astype("<f4")


def _side_yx(ds: Any) -> tuple[int, int]:
    """Pixels to a block."""
    spacing = ds.get("PixelSpacing")
    if spacing is None and "SharedFunctionalGroupsSequence" in ds:
        measures = ds.SharedFunctionalGroupsSequence[0].get("PixelMeasuresSequence")
        spacing = measures[0].get("PixelSpacing") if measures else None
    if not spacing or not all(float(mm) > 0 for mm in spacing):
        return _NO_SPACING_PX, _NO_SPACING_PX
    side_y, side_x = (max(1, round(BLOCK_MM / float(mm))) for mm in spacing)
    return side_y, side_x


def _rescaling(ds: Any) -> list[tuple[float, float]]:
    """Slope and intercept, of each frame where frames have their own."""
    groups = [*ds.get("SharedFunctionalGroupsSequence", []), *ds.get("PerFrameFunctionalGroupsSequence", [])]
    places: list[Dataset] = [ds, *(item for group in groups for item in group.get(_TRANSFORMATION, []))]
    return [(float(at.get("RescaleSlope") or 1), float(at.get("RescaleIntercept") or 0)) for at in places]


_TRANSFORMATION = "PixelValueTransformationSequence"
