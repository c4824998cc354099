"""Zip archives read member by member in memory: nothing is unpacked to disk, so no member can escape to it.

A member is named like a file inside a folder of the archive's name: /data/scan.zip/series/0001.dcm.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path, PurePosixPath

from ctguard.core.errors import ReadError

MAX_MEMBERS = 50_000
MAX_BYTES = 32 * 2**30
MAX_RATIO = 50
"""Of unpacked to packed bytes; CT packs 2 to 5 times."""
SMALL_BYTES = 64 * 2**20
"""An archive that unpacks to less than this is never a bomb, whatever its ratio."""

_ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, NotImplementedError, ValueError)


def is_zip(path: Path) -> bool:
    """Whether a file is a zip archive."""
    return path.is_file() and zipfile.is_zipfile(path)


def members(path: Path) -> Iterator[tuple[str, BytesIO]]:
    """Name and bytes of each file in the archive, in the order of names; one at a time is held in memory.

    Raises ReadError, before anything is unpacked, for an archive with too many members or bytes, with a ratio
    that only a zip bomb has, or with a member that points outside the archive; later for a damaged member.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            for info in _checked(archive, path):
                yield f"{path}/{info.filename}", _unpacked(archive, info, path)
    except (zipfile.BadZipFile, OSError) as error:
        raise ReadError(f"is a damaged zip archive ({error})", where=path, remedy="pack it again") from error


def open_member(name: str) -> BytesIO:
    """The bytes of one member by the name that `members` gave. Raises ReadError where it is gone."""
    for parent in Path(name).parents:
        if parent.is_file():
            try:
                with zipfile.ZipFile(parent) as archive:
                    by_name = {info.filename: info for info in _checked(archive, parent)}
                    inner = str(Path(name).relative_to(parent).as_posix())
                    if inner in by_name:
                        return _unpacked(archive, by_name[inner], parent)
            except (zipfile.BadZipFile, OSError) as error:
                raise ReadError(f"is a damaged zip archive ({error})", where=parent, remedy="pack it again") from error
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


def _checked(archive: zipfile.ZipFile, path: Path) -> list[zipfile.ZipInfo]:
    infos = [info for info in archive.infolist() if not info.is_dir()]
    unpacked = sum(info.file_size for info in infos)
    packed = max(sum(info.compress_size for info in infos), 1)
    if len(infos) > MAX_MEMBERS:
        raise ReadError(
            f"holds {len(infos)} files, more than {MAX_MEMBERS}", where=path, remedy="pack one series per archive"
        )
    if unpacked > MAX_BYTES or (unpacked > SMALL_BYTES and unpacked > MAX_RATIO * packed):
        raise ReadError(
            f"looks like a zip bomb: {packed} bytes unpack to {unpacked}",
            where=path,
            remedy="unpack it yourself if you trust it, and give the folder",
        )
    for info in infos:
        inner = PurePosixPath(info.filename.replace("\\", "/"))
        if inner.is_absolute() or ".." in inner.parts or ":" in inner.parts[0]:
            raise ReadError(
                f"member {info.filename!r} points outside the archive",
                where=path,
                remedy="do not trust this archive; ask for the folder",
            )
    return sorted(infos, key=lambda info: info.filename)


def _unpacked(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> BytesIO:
    try:
        # Never reads more than the declared file_size, which was checked.
        return BytesIO(archive.read(info))
    except _ZIP_ERRORS as error:
        raise ReadError(
            f"member {info.filename!r} cannot be unpacked ({error})", where=path, remedy="pack it again"
        ) from error
