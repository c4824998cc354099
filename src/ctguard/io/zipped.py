"""Zip archives read member by member in memory: nothing is unpacked to disk, so no member can escape to it.

A member is named like a file inside a folder of the archive's name: /data/scan.zip/series/0001.dcm.
"""

from __future__ import annotations

import lzma
import struct
import zipfile
import zlib
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path, PurePosixPath

from ctguard.core.errors import ReadError
from ctguard.io.bounded import is_bomb
from ctguard.io.dicom_values import one_line

MAX_MEMBERS = 50_000
MAX_BYTES = 32 * 2**30

_ZIP_ERRORS = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, RuntimeError, ValueError),
    *(IndexError, struct.error),
)
"""What zipfile raises of damaged archives."""


def is_zip(path: Path) -> bool:
    """Whether a file is a zip archive. Raises ReadError for one of several disks."""
    try:
        return path.is_file() and zipfile.is_zipfile(path)
    except zipfile.BadZipFile as error:
        raise _damaged(path, error) from error


def members(path: Path) -> Iterator[tuple[str, BytesIO]]:
    """Name and bytes of each file in the archive, in the order of names; one at a time is held in memory.

    Raises ReadError, before anything is unpacked, for an archive with too many members or bytes, with a ratio
    that only a zip bomb has, or with a member that points outside the archive; later for a damaged member.
    """
    with _opened(path) as archive:
        for info in _checked(archive, path):
            yield f"{path}/{info.filename}", _unpacked(archive, info, path)


def open_member(name: str) -> BytesIO:
    """The bytes of one member by the name that `members` gave. Raises ReadError where it is gone."""
    for parent in Path(name).parents:
        if parent.is_file():
            with _opened(parent) as archive:
                by_name = {info.filename: info for info in _checked(archive, parent)}
                inner = str(Path(name).relative_to(parent).as_posix())
                if inner in by_name:
                    return _unpacked(archive, by_name[inner], parent)
            break
    raise ReadError("is not there any more", where=name, remedy="read the scan again")


def member_exists(name: str) -> bool:
    """Whether `open_member` would find it."""
    for parent in Path(name).parents:
        if parent.is_file():
            if not zipfile.is_zipfile(parent):
                return False
            with zipfile.ZipFile(parent) as archive:
                return Path(name).relative_to(parent).as_posix() in archive.namelist()
    return False


def _damaged(path: Path, error: Exception) -> ReadError:
    return ReadError(f"is a damaged zip archive ({one_line(error)})", where=path, remedy="pack it again")


def _opened(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except _ZIP_ERRORS as error:
        raise _damaged(path, error) from error


def _checked(archive: zipfile.ZipFile, path: Path) -> list[zipfile.ZipInfo]:
    infos = [info for info in archive.infolist() if not info.filename.endswith("/")]
    unpacked = sum(info.file_size for info in infos)
    packed = sum(info.compress_size for info in infos)
    if len(infos) > MAX_MEMBERS:
        raise ReadError(
            f"holds {len(infos)} files, more than {MAX_MEMBERS}", where=path, remedy="pack one series per archive"
        )
    if unpacked > MAX_BYTES or is_bomb(packed, unpacked):
        raise ReadError(
            f"looks like a zip bomb: {packed} bytes unpack to {unpacked}",
            where=path,
            remedy="unpack it yourself if you trust it, and give the folder",
        )
    for info in infos:
        inner = PurePosixPath(info.filename.replace("\\", "/"))
        if not inner.parts or not info.filename.isprintable():
            raise ReadError(
                f"{one_line(repr(info.filename))} is no name of a member", where=path, remedy="pack it again"
            )
        if inner.is_absolute() or ".." in inner.parts or ":" in inner.parts[0]:
            raise ReadError(
                f"member {one_line(repr(info.filename))} points outside the archive",
                where=path,
                remedy="do not trust this archive; ask for the folder",
            )
    return sorted(infos, key=lambda info: info.filename)


def _unpacked(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> BytesIO:
    try:
        # Never reads more than the declared file_size, which was checked.
        return BytesIO(archive.read(info))
    except _ZIP_ERRORS as error:
        what = f"member {one_line(repr(info.filename))} cannot be unpacked ({one_line(error)})"
        raise ReadError(what, where=path, remedy="pack it again") from error
