"""Damage to bytes, as accidents and attackers do it. Each function takes (generator, bytes) and returns bytes."""

from __future__ import annotations

import io
import lzma
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np

Rng = np.random.Generator
Mutate = Callable[[Rng, bytes], bytes]

INTEGERS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFE, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE)
FLOATS = (0.0, -0.0, -1.0, 1e-38, 1e-30, 1e30, float("nan"), float("inf"), -float("inf"), 3.4e38)
TEXTS = (
    *(b"", b" ", b"0", b"-1", b"1e400", b"nan", b"inf", b"-inf", b"1e-320", b"99999999999999999999", b"65535"),
    *(b"2147483648", b"1\\2", b"1\\\\3\\", b"\\" * 40, b"0x10", b"1.2.3", b"\x00\x00", b"\xff\xfe\xfd", b"\n", b"%s%n"),
    *(
        b"../../etc/passwd",
        b"YES",
        b"CT",
        b"A" * 70,
        b"1" * 5000,
        "\u0661\u00b2".encode(),
        b"true",
        b"[]",
        b"{}",
        b"null",
    ),
)
_LONG = frozenset((b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"))
_VRS = (b"US", b"SS", b"UL", b"DS", b"IS", b"UI", b"CS", b"PN", b"SQ", b"OW", b"OB", b"UN", b"AT", b"FD", b"LT", b"??")
_ALL = 0xFFFFFFFF
_SYNTAXES = (
    *("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2"),
    *("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70", "1.2.840.10008.1.2.4.80"),
    *("1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91", "1.2.840.10008.1.2.4.201", "1.2.840.10008.1.2.5"),
    *("1.2.840.10008.1.2.4.100", "1.2.840.10008.1.2.4.94", "1.2.3"),
)


def one_of(rng: Rng, choices: Sequence[Any]) -> Any:
    """Any of them."""
    return choices[rng.integers(len(choices))]


def flip(rng: Rng, data: bytes) -> bytes:
    """A few bits."""
    changed = bytearray(data)
    for _ in range(rng.integers(1, 9)):
        if changed:
            changed[rng.integers(len(changed))] ^= 1 << rng.integers(8)
    return bytes(changed)


def cut(rng: Rng, data: bytes) -> bytes:
    """The end is missing, or something is behind it."""
    if rng.random() < 0.8:
        return data[: rng.integers(len(data) + 1)]
    return data + rng.bytes(rng.integers(1, 5000))


def poke(rng: Rng, data: bytes) -> bytes:
    """A number that limits are made of, mostly within the first 500 bytes."""
    at = int(rng.integers(min(len(data), 500) if rng.random() < 0.7 else len(data)) if data else 0)
    kind, order = one_of(rng, "HIQfd"), one_of(rng, "<>")
    value = one_of(rng, FLOATS) if kind in "fd" else int(one_of(rng, INTEGERS)) % (1 << (8 * struct.calcsize(kind)))
    piece = struct.pack(order + kind, value)
    return data[:at] + piece + data[at + len(piece) :]


def move(rng: Rng, data: bytes) -> bytes:
    """A block is missing, stands twice, elsewhere, or is blank."""
    start, end = sorted(int(at) for at in rng.integers(len(data) + 1, size=2))
    end = min(end, start + int(one_of(rng, (2, 16, 256, 4096))))
    block, rest = data[start:end], data[:start] + data[end:]
    how, at = rng.integers(4), int(rng.integers(len(rest) + 1))
    if how == 0:
        return rest
    if how == 1:
        return data[:end] + block + data[end:]
    if how == 2:
        return rest[:at] + block + rest[at:]
    return data[:start] + bytes([int(one_of(rng, (0, 255)))]) * len(block) + data[end:]


def noise(rng: Rng, data: bytes) -> bytes:
    """Random bytes over a stretch."""
    start = int(rng.integers(len(data) + 1))
    return data[:start] + rng.bytes(rng.integers(1, 300)) + data[start + int(rng.integers(300)) :]


PLAIN: tuple[Mutate, ...] = (flip, cut, poke, move, noise)


def words(rng: Rng, data: bytes) -> bytes:
    """Text with a number replaced, or a line missing, doubled or emptied (MetaImage, NRRD, JSON)."""
    head, tail = data[:6000], data[6000:]
    if rng.random() < 0.6:
        found = list(re.finditer(rb"-?\d+(?:\.\d+)?(?:e-?\d+)?|[A-Za-z]{3,}", head))
        if found:
            match = one_of(rng, found)
            return head[: match.start()] + one_of(rng, TEXTS) + head[match.end() :] + tail
    lines = head.split(b"\n")
    at = int(rng.integers(min(len(lines), 30)))
    lines[at : at + 1] = one_of(rng, ([], [lines[at]] * 2, [lines[at][: len(lines[at]) // 2]], [one_of(rng, TEXTS)]))
    return b"\n".join(lines) + tail


@cache
def bomb(wbits: int = -zlib.MAX_WBITS) -> bytes:
    """Half a mebibyte that inflates to 512 MiB of zeros."""
    press = zlib.compressobj(9, zlib.DEFLATED, wbits)
    piece = bytes(1 << 24)
    return b"".join(press.compress(piece) for _ in range(32)) + press.flush()


_UNREADABLE = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, ValueError, RuntimeError)
_NAMES = ("../a.dcm", "/etc/a.dcm", "C:\\a.dcm", "a.dcm", "..\\a", "/", "", "\u0661/\u202e", "x" * 900, "a\x1b[2J.dcm")
Element = tuple[int, bytes, int, int]
"""Where an element of explicit VR little endian begins, its tag, where its value begins, and the value's length."""


def elements(data: bytes, start: int = 132) -> list[Element]:
    """Those of a DICOM file or dataset, nested ones too."""
    found = []
    at = start
    while at + 8 <= len(data):
        tag, vr = data[at : at + 4], data[at + 4 : at + 6]
        if tag[:2] == b"\xfe\xff":
            value, (length,) = at + 8, struct.unpack_from("<I", data, at + 4)
        elif vr in _LONG and at + 12 <= len(data):
            value, (length,) = at + 12, struct.unpack_from("<I", data, at + 8)
        else:
            value, (length,) = at + 8, struct.unpack_from("<H", data, at + 6)
        found.append((at, tag, value, 0 if length == _ALL else length))
        inside = (
            length == _ALL or vr == b"SQ" or (tag == b"\xfe\xff\x00\xe0" and data[value + 2 : value + 4] == b"\0\0")
        )
        at = value if inside or length == _ALL else value + length
    return found


def _with_value(data: bytes, element: Element, value: bytes) -> bytes:
    at, tag, start, length = element
    value += b" " * (len(value) % 2)
    short = start == at + 8 and tag[:2] != b"\xfe\xff"
    size = struct.pack("<H", len(value) % 65536) if short else struct.pack("<I", len(value))
    return data[: start - len(size)] + size + value + data[start + length :]


def dicom(rng: Rng, data: bytes) -> bytes:
    """An element deleted, doubled, moved, of another VR, length or value; sequences in sequences; another syntax."""
    found = elements(data)
    if not found:
        return flip(rng, data)
    image = [one for one in found if one[1][:2] in (b"\x28\x00", b"\x20\x00", b"\xe0\x7f", b"\x02\x00")]
    at, tag, value, length = element = one_of(rng, image if image and rng.random() < 0.6 else found)
    end = value + length
    how = rng.integers(9)
    if how == 0:
        return data[:at] + data[end:]
    if how == 1:
        other = one_of(rng, found)[0]
        return data[:other] + data[at:end] + data[other:]
    if how == 2:
        return data[: at + 4] + one_of(rng, _VRS) + data[at + 6 :]
    if how == 3:
        size = struct.pack("<I", int(one_of(rng, (*INTEGERS, _ALL, length + 1, max(length - 1, 0), length + 2))))
        short = value == at + 8 and tag[:2] != b"\xfe\xff"
        return data[: value - 2] + size[:2] + data[value:] if short else data[: value - 4] + size + data[value:]
    if how == 4 and length in (2, 4):
        piece = int(one_of(rng, INTEGERS)) % (1 << 8 * length)
        return data[:value] + piece.to_bytes(length, "little") + data[end:]
    if how <= 5:
        return _with_value(data, element, one_of(rng, TEXTS))
    if how == 6:
        depth = int(one_of(rng, (1, 10, 100, 3000)))
        nested = (b"\x08\x00\x40\x11SQ\0\0" + b"\xff" * 4 + b"\xfe\xff\x00\xe0" + b"\xff" * 4) * depth
        closed = (b"\xfe\xff\x0d\xe0" + bytes(4) + b"\xfe\xff\xdd\xe0" + bytes(4)) * (
            depth if rng.random() < 0.7 else 0
        )
        return data[:at] + nested + closed + data[at:]
    if how == 7:
        syntax = next((one for one in found if one[1] == b"\x02\x00\x10\x00"), element)
        return _with_value(data, syntax, str(one_of(rng, _SYNTAXES)).encode())
    return deflated(rng, data)


def deflated(rng: Rng, data: bytes) -> bytes:
    """The dataset deflated, as its transfer syntax says or not: whole, cut off, or one that inflates without end."""
    syntax = next((one for one in elements(data) if one[1] == b"\x02\x00\x10\x00"), None)
    if syntax is None:
        return data
    named = _with_value(data, syntax, b"1.2.840.10008.1.2.1.99\0") if rng.random() < 0.9 else data
    start = next((one[0] for one in elements(named) if one[1][:2] > b"\x02\x00"), len(named))
    press = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    packed = press.compress(named[start:]) + press.flush()
    return named[:start] + one_of(rng, (packed, cut(rng, packed), bomb() if rng.random() < 0.2 else packed))


def gzipped(inner: Mutate) -> Mutate:
    """Of what a gzip file holds; or one that inflates without end."""

    def mutate(rng: Rng, data: bytes) -> bytes:
        if rng.random() < 0.01:
            return bomb(zlib.MAX_WBITS | 16)
        try:
            plain = zlib.decompress(data, zlib.MAX_WBITS | 16)
        except zlib.error:  # not compressed, or damaged already
            return inner(rng, data)
        press = zlib.compressobj(1, zlib.DEFLATED, zlib.MAX_WBITS | 16)
        return press.compress(inner(rng, plain)) + press.flush()

    return mutate


def zipped(rng: Rng, data: bytes) -> bytes:
    """Names that point elsewhere, members twice, damaged or endless, archives in archives, other methods and sizes."""
    how = rng.integers(4) if zipfile.is_zipfile(io.BytesIO(data)) else 0
    if how == 0:
        places = [match.start() for match in re.finditer(rb"PK\x01\x02|PK\x03\x04|PK\x05\x06", data)] or [0]
        at = int(one_of(rng, places)) + int(rng.integers(4, 46))
        return data[:at] + struct.pack("<I", int(one_of(rng, INTEGERS))) + data[at + 4 :]
    made = io.BytesIO()
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
    except _UNREADABLE:  # damaged already
        members = {"inner.zip": data}
    with warnings.catch_warnings(), zipfile.ZipFile(made, "w", int(one_of(rng, (0, 8, 12, 14)))) as archive:
        warnings.simplefilter("ignore")  # of names that are there twice
        victim = one_of(rng, list(members) or ["a.dcm"])
        for name, content in members.items():
            archive.writestr(name or "x", dicom(rng, content) if name == victim else content)
        if how == 2:
            archive.writestr("inner.zip", data)
        for _ in range(int(one_of(rng, (1, 2, 300))) if how == 3 else 0):
            archive.writestr(zipfile.ZipInfo(one_of(rng, _NAMES)), one_of(rng, (b"", data[:300], bytes(200_000))))
        if rng.random() < 0.05:
            archive.writestr("zeros.dcm", bytes(100_000_000), zipfile.ZIP_DEFLATED)
    return made.getvalue()


def mutated(rng: Rng, data: bytes, own: Sequence[Mutate], other: bytes = b"") -> bytes:
    """One to four of the format's own mutations and of those of any bytes; now and then the end is another file's."""
    for _ in range(int(one_of(rng, (1, 1, 1, 2, 4)))):
        if data:
            data = one_of(rng, own if own and rng.random() < 0.6 else PLAIN)(rng, data)
    if other and rng.random() < 0.05:
        data = data[: rng.integers(len(data) + 1)] + other[rng.integers(len(other) + 1) :]
    return data
