"""Checks of MetaImage and NRRD files that ITK leaves out: missing geometry, cut-off data, damaged compression.

ITK reads a compressed MetaImage whose stream is damaged without an error and leaves the rest of the voxels empty,
and it assumes 1 mm where a header names no spacing. A volume is read whole or refused.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import BinaryIO

from ctguard.core.errors import ReadError
from ctguard.io.bounded import MAX_VOLUME_BYTES
from ctguard.io.dicom_values import one_line

_HEADER_LIMIT = 1 << 22
_CHUNK = 1 << 20
_NRRD_LINE = 250
"""The longest line of a field (key/value pairs may be longer): in ITK some values overrun a buffer, which ends the
process."""
_BYTES = {
    "char": 1,
    "int8": 1,
    "short": 2,
    "shortint": 2,
    "int16": 2,
    "int": 4,
    "int32": 4,
    "longlong": 8,
    "longlongint": 8,
    "int64": 8,
    "float": 4,
    "double": 8,
}
"""Bytes per voxel by type name, without sign, blanks and `_t`; MetaImage's LONG (4) is looked up as int."""


def check_metaimage(path: Path) -> None:
    """Raise ReadError unless a .mha or .mhd names its grid and all of its data is there and undamaged."""
    with path.open("rb") as stream:
        fields = _fields(stream, path, "=", last="ElementDataFile")
        body = stream.tell()
    for key in ("NDims", "DimSize", "ElementType", "ElementDataFile"):
        _demand(fields, key, path)
    if "ElementSpacing" not in fields and "ElementSize" not in fields:
        _demand(fields, "ElementSpacing", path)
    dims = _product(fields["NDims"], path)
    for key, count in {"DimSize": dims, "ElementSpacing": dims, "Offset": dims, "TransformMatrix": dims * dims}.items():
        if key in fields and len(fields[key].split()) != count:
            raise ReadError(
                f"its {key} {one_line(fields[key])} has not {count} numbers", where=path, remedy="repair its header"
            )
    data = fields["ElementDataFile"]
    if data == "LIST" or "%" in data:
        return  # one file per slice: ITK reports each that is missing
    local = data.upper() == "LOCAL"
    source = path if local else path.parent / data
    if not source.is_file():
        raise ReadError(f"its data file {one_line(data)} is missing", where=path, remedy="put it beside the header")
    kind = fields["ElementType"].removeprefix("MET_").lower().replace("_", "")
    kind = "int" if kind in ("long", "ulong") else kind
    sizes = f"{fields['DimSize']} {fields.get('ElementNumberOfChannels', '1')}"
    want = _bytes_per_voxel(kind, path) * _product(sizes, path)
    start = body if local else max(0, _product(fields.get("HeaderSize", "0"), path))
    if fields.get("CompressedData", "False")[:1] in ("T", "t", "1"):  # as ITK reads it
        _demand(fields, "CompressedDataSize", path)
        _check_size(source, start, _product(fields["CompressedDataSize"], path), at_end=False)
        _check_stream(source, start, want, zlib.MAX_WBITS)
    else:
        _check_size(source, start, want, at_end=fields.get("HeaderSize") == "-1")


def check_nrrd(path: Path) -> None:
    """Raise ReadError unless a .nrrd names its grid in patient space and its compressed data is undamaged."""
    with path.open("rb") as stream:
        if not stream.readline(_CHUNK).startswith(b"NRRD"):
            raise ReadError("it is no NRRD file", where=path, remedy="check where it comes from")
        fields = _fields(stream, path, ":", last=None)
        body = stream.tell()
    for key in ("type", "sizes", "space", "space directions", "space origin"):
        _demand(fields, key, path)
    want = _bytes_per_voxel(fields["type"].lower(), path) * _product(fields["sizes"], path)
    detached = "data file" in fields or "datafile" in fields
    if not detached and fields.get("encoding") in ("gzip", "gz"):
        _check_stream(path, body, want, zlib.MAX_WBITS | 16)
    elif not detached and fields.get("encoding") == "raw":
        _check_size(path, body, want, at_end="byte skip" in fields or "byteskip" in fields)


def _fields(stream: BinaryIO, path: Path, separator: str, last: str | None) -> dict[str, str]:
    """Header lines as a mapping, up to and with the line `last`, or to the first empty line."""
    fields: dict[str, str] = {}
    while stream.tell() < _HEADER_LIMIT:
        line = stream.readline(_CHUNK)
        text = line.decode("latin-1").strip()
        if not line or (last is None and not text):
            return fields
        key, found, value = text.partition(separator)
        if last is None and len(line) > _NRRD_LINE and not value.startswith("="):
            raise ReadError(f"a line of its header has {len(line)} bytes", where=path, remedy="repair its header")
        if found and not text.startswith("#"):
            fields[key.strip()] = value.strip()
        if last is not None and key.strip() == last:
            return fields
    raise ReadError("its header has no end", where=path, remedy="check where the file comes from")


def _demand(fields: Mapping[str, str], key: str, path: Path) -> None:
    if not fields.get(key):
        raise ReadError(f"its header names no {key}", where=path, remedy="write it again with its geometry")


def _bytes_per_voxel(kind: str, path: Path) -> int:
    plain = kind.replace("unsigned", "").replace("signed", "").replace(" ", "").removeprefix("u").removesuffix("_t")
    if plain not in _BYTES:
        raise ReadError(f"its voxels are of type {one_line(kind)}", where=path, remedy="give one number per voxel")
    return _BYTES[plain]


def _product(sizes: str, path: Path) -> int:
    try:
        return prod(int(size) for size in sizes.split())
    except ValueError as error:
        what = f"its sizes {one_line(sizes)} are no numbers"
        raise ReadError(what, where=path, remedy="repair its header") from error


def _check_stream(path: Path, start: int, want: int, wbits: int) -> None:
    """Inflate a zlib or gzip stream to its checksum, keeping nothing."""
    if want > MAX_VOLUME_BYTES:
        raise ReadError(
            f"its header asks for {want} bytes of voxels", where=path, remedy="write it without compression"
        )
    inflate = zlib.decompressobj(wbits)
    got = 0
    with path.open("rb") as stream:
        stream.seek(start)
        try:
            while got <= want and not inflate.eof and (chunk := stream.read(_CHUNK)):
                while chunk and got <= want:
                    got += len(inflate.decompress(chunk, _CHUNK))
                    chunk = inflate.unconsumed_tail
        except zlib.error as error:
            raise ReadError(f"its compressed voxels are damaged ({error})", where=path, remedy=_AGAIN) from error
    if got != want or not inflate.eof:
        raise _damaged(path, got, want)


def _check_size(path: Path, start: int, want: int, at_end: bool) -> None:
    """at_end: the voxels are the last bytes of the file, with others before them."""
    got = path.stat().st_size - start
    if got < want or (got > want and not at_end):
        raise _damaged(path, got, want)


_AGAIN = "copy it again from where it came"


def _damaged(path: Path, got: int, want: int) -> ReadError:
    what = "it is cut off" if got < want else "its header and its voxels do not fit"
    return ReadError(f"{what}: {got} bytes of voxels where there should be {want}", where=path, remedy=_AGAIN)
