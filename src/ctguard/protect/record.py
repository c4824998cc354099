"""What a seal leaves behind besides pixels: a header, one record a slice, their MACs, and the ledger.

The header and the record of a slice are bound by HMAC-SHA-256, so that a record cannot be edited, moved to another
slice or another series. They stand in a private block of each DICOM file (io/private.py) and as one line of JSON in a
ledger file outside; a ledger line holds no name, UID, path or picture: its digest is encrypted.
Keystreams never repeat: they depend on the nonce, and the nonce on the content.
"""

from __future__ import annotations

import base64
import binascii
import fcntl
import hashlib
import hmac
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from ctguard.core.errors import GeometryError, ReadError, WriteError
from ctguard.core.geometry import FloatTriple, Geometry, IntTriple
from ctguard.protect.keys import SealKey
from ctguard.protect.lattice import Lattice
from ctguard.protect.pattern import SliceFrame
from ctguard.protect.strength import Strength
from ctguard.protect.tiles import Pair, Tiling

VERSION = 1
STEP = "seal"
"""Name of the provenance step of a sealed volume."""
_REMEDY = "verify with the other copy, header or ledger"


@dataclass(frozen=True, eq=False)
class SealHeader:
    """What is common to all slices. key_id, nonce, subject: hexadecimal; subject: the series, hashed under the key."""

    key_id: str
    nonce: str
    subject: str
    geometry: Geometry
    cell_yx: Pair
    max_hu: float
    strength: Strength | None

    @property
    def tiling(self) -> Tiling:
        """The tiles of digest and pattern."""
        return Tiling((self.geometry.shape_zyx[1], self.geometry.shape_zyx[2]), self.cell_yx)

    @property
    def nonce_bytes(self) -> bytes:
        """The nonce as bytes."""
        return bytes.fromhex(self.nonce)


@dataclass(frozen=True)
class SliceSeal:
    """One slice: SHA-256 of its whole numbers before and after, how to take the pattern away, and its digest."""

    z: int
    quantum_hu: float
    offset_hu: float
    limits: Pair
    barred: tuple[int, ...]
    sha256_original: str
    sha256_sealed: str
    skips: bytes
    digest: bytes
    tag: str = ""

    @property
    def lattice(self) -> Lattice:
        """Where the whole numbers of the slice lie in HU."""
        return Lattice(self.quantum_hu, self.offset_hu)

    def frame(self, header: SealHeader) -> SliceFrame:
        """What the pattern of the slice was made with; no pair moves by more than the budget."""
        shape = (header.tiling.rows, header.tiling.columns)
        wanted = np.zeros(shape) if header.strength is None else header.strength.of_slice(self.z, header.tiling)
        strength = np.minimum(wanted / self.quantum_hu, np.floor(header.max_hu / self.quantum_hu))
        return SliceFrame(self.z, self.lattice, self.limits, self.barred, strength)


@dataclass(frozen=True, eq=False)
class Seal:
    """A header with the records of some slices of its series, by slice number."""

    header: SealHeader
    slices: dict[int, SliceSeal]

    @property
    def whole(self) -> bool:
        """Whether every slice has its record."""
        return sorted(self.slices) == list(range(self.header.geometry.shape_zyx[0]))


def tagged(header: SealHeader, record: SliceSeal, key: SealKey) -> SliceSeal:
    """The record with its MAC."""
    fields = {name: getattr(record, name) for name in SliceSeal.__dataclass_fields__}
    return SliceSeal(**{**fields, "tag": _tag(header, record, key)})


def authentic(header: SealHeader, record: SliceSeal, key: SealKey) -> bool:
    """Whether the MAC of a record holds under a key."""
    return hmac.compare_digest(_tag(header, record, key), record.tag)


def _tag(header: SealHeader, record: SliceSeal, key: SealKey) -> str:
    body = _line([header_json(header), {**slice_json(record), "tag": ""}])
    return hmac.new(key.derive("tag", header.nonce_bytes), body.encode(), hashlib.sha256).hexdigest()


def _line(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), sort_keys=True, allow_nan=False)


def header_json(header: SealHeader) -> dict[str, Any]:
    """A header as plain JSON values."""
    strength = header.strength
    return {
        "ctguard_seal": VERSION,
        "key_id": header.key_id,
        "nonce": header.nonce,
        "subject": header.subject,
        "geometry": asdict(header.geometry),
        "cell_yx": list(header.cell_yx),
        "max_hu": header.max_hu,
        "strength": None
        if strength is None
        else {"block": list(strength.block), "shape": list(strength.eighths.shape), "eighths": _text(strength.eighths)},
    }


def slice_json(record: SliceSeal) -> dict[str, Any]:
    """A record as plain JSON values."""
    fields = {name: getattr(record, name) for name in SliceSeal.__dataclass_fields__}
    return {**fields, "skips": _text(record.skips), "digest": _text(record.digest)}


def _text(data: Any) -> str:
    return base64.b64encode(data if isinstance(data, bytes) else data.tobytes()).decode()


def header_from(values: dict[str, Any], where: str) -> SealHeader:
    """A header out of JSON values. Raises ReadError where it is damaged or newer."""
    try:
        if values["ctguard_seal"] != VERSION:
            raise ReadError(f"its seal is of version {values['ctguard_seal']}", where=where, remedy="update ctguard")
        grid = values["geometry"]
        geometry = Geometry(
            cast(IntTriple, tuple(int(n) for n in grid["shape_zyx"])),
            cast(FloatTriple, tuple(float(n) for n in grid["spacing_zyx_mm"])),
            cast(FloatTriple, tuple(float(n) for n in grid["origin_lps_mm"])),
            cast(Any, tuple(tuple(float(n) for n in axis) for axis in grid["axes_lps"])),
        )
        kept, strength = values["strength"], None
        if kept is not None:
            eighths = np.frombuffer(base64.b64decode(kept["eighths"]), dtype=np.uint8).reshape(kept["shape"])
            strength = Strength(eighths, cast(IntTriple, tuple(int(n) for n in kept["block"])))
        cell = (int(values["cell_yx"][0]), int(values["cell_yx"][1]))
        names = [str(values[name]) for name in ("key_id", "nonce", "subject")]
        bytes.fromhex(names[1])
        return SealHeader(names[0], names[1], names[2], geometry, cell, float(values["max_hu"]), strength)
    except (ValueError, TypeError, KeyError, IndexError, GeometryError) as error:
        raise ReadError(f"the header of its seal is damaged ({error})", where=where, remedy=_REMEDY) from None


def slice_from(values: dict[str, Any], where: str) -> SliceSeal:
    """A record out of JSON values. Raises ReadError where it is damaged."""
    try:
        return SliceSeal(
            z=int(values["z"]),
            quantum_hu=float(values["quantum_hu"]),
            offset_hu=float(values["offset_hu"]),
            limits=(int(values["limits"][0]), int(values["limits"][1])),
            barred=tuple(int(n) for n in values["barred"]),
            sha256_original=str(values["sha256_original"]),
            sha256_sealed=str(values["sha256_sealed"]),
            skips=base64.b64decode(values["skips"], validate=True),
            digest=base64.b64decode(values["digest"], validate=True),
            tag=str(values["tag"]),
        )
    except (ValueError, TypeError, KeyError, IndexError, binascii.Error) as error:
        raise ReadError(f"the seal of a slice is damaged ({error})", where=where, remedy=_REMEDY) from None


def block_of(header: SealHeader, record: SliceSeal) -> bytes:
    """What stands in the private block of one DICOM file."""
    return _line({"header": header_json(header), "slice": slice_json(record)}).encode()


def from_blocks(blocks: Sequence[bytes | None], where: str) -> Seal | None:
    """The seal out of the private blocks of a series; None where no file has one.

    Blocks of other seals than the most frequent one are left out: their slices count as without a record.
    Raises ReadError where a block is damaged.
    """
    found: dict[str, list[tuple[SealHeader, SliceSeal]]] = {}
    for block in blocks:
        if block is not None:
            values = _parsed(block.decode("ascii", errors="replace"), where)
            header, record = (
                header_from(values.get("header") or {}, where),
                slice_from(values.get("slice") or {}, where),
            )
            found.setdefault(_line(header_json(header)), []).append((header, record))
    if not found:
        return None
    most = max(found.values(), key=len)
    return Seal(most[0][0], {record.z: record for _, record in most})


def _parsed(text: str, where: str) -> dict[str, Any]:
    try:
        values = json.loads(text.rstrip("\0 "))
    except ValueError as error:
        raise ReadError(f"its seal is damaged ({error})", where=where, remedy=_REMEDY) from None
    if not isinstance(values, dict):
        raise ReadError("its seal is damaged (no JSON object)", where=where, remedy=_REMEDY)
    return values


def append_ledger(path: Path, seal: Seal) -> None:
    """Append the seal as one line; the file is locked meanwhile, and made with mode 0600 where it is new.

    Raises WriteError where it cannot be written.
    """
    rows = [slice_json(record) for _, record in sorted(seal.slices.items())]
    line = _line({"header": header_json(seal.header), "slices": rows}) + "\n"
    try:
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        with os.fdopen(handle, "ab") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            stream.write(line.encode())
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        reason = error.strerror or str(error)
        raise WriteError(
            f"the ledger cannot be written ({reason})", where=path, remedy="choose a writable place"
        ) from error


def read_ledger(path: Path, key_id: str) -> list[Seal]:
    """All seals of one key in a ledger, oldest first. Raises ReadError where it is missing or a line is damaged."""
    seals = []
    try:
        with path.open("r", encoding="utf-8", errors="replace") as stream:
            for number, line in enumerate(stream, start=1):
                if not line.strip():
                    continue
                where = f"{path}, line {number}"
                values = _parsed(line, where)
                head = values.get("header")
                if not isinstance(head, dict) or head.get("key_id") != key_id:
                    continue
                header = header_from(head, where)
                rows = (slice_from(row, where) for row in values.get("slices") or ())
                seals.append(Seal(header, {row.z: row for row in rows}))
    except FileNotFoundError:
        raise ReadError("there is no such ledger", where=path, remedy="give the file that sealing wrote") from None
    except OSError as error:
        reason = error.strerror or str(error)
        raise ReadError(f"cannot be read ({reason})", where=path, remedy="check its permissions") from error
    return seals
