"""One private block of bytes in each file of a DICOM series (PS3.5 7.8): written after the series, read beside it.

The carried record stands in standard attributes (io/dicom_marks.py) because archives drop private ones. What stands
here is too long for that, and is kept outside the files as well; without it a series is still whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydicom import dcmread
from pydicom.dataset import Dataset

from ctguard.core.errors import ReadError, WriteError
from ctguard.core.volume import Volume
from ctguard.io.bounded import Bounded
from ctguard.io.dicom import opened
from ctguard.io.dicom_values import PARSE_ERRORS, REWRITE, one_line

_GROUP = 0x0099
_CREATOR = "CTGUARD SEAL 1"
_ELEMENT = 0x01
# another creator may hold the first blocks of the group
_PLACES = [(_GROUP, place) for i in range(4) for place in (0x10 + i, (0x10 + i) << 8 | _ELEMENT)]


def write_blocks(files: Sequence[Path], blocks: Sequence[bytes]) -> None:
    """Put a block into each file of a series that was just written, in slice order.

    Raises WriteError where the numbers differ or a file cannot be written.
    """
    if len(files) != len(blocks):
        raise WriteError(f"{len(blocks)} blocks for {len(files)} files", remedy="write the whole series")
    for file, block in zip(files, blocks, strict=True):
        ds = dcmread(file)
        private = ds.private_block(_GROUP, _CREATOR, create=True)
        private.add_new(_ELEMENT, "OB", block + b"\0" * (len(block) % 2))
        _save(ds, file)


def read_blocks(volume: Volume) -> list[bytes | None]:
    """The block of each slice of a volume that was read from DICOM, None where a file has none; [] for other formats.

    Raises ReadError where a file is gone or damaged.
    """
    if volume.provenance.source.format != "dicom":
        return []
    return [_block(file) if file else None for file in volume.provenance.source.files]


def remove_blocks(files: Sequence[Path], series_description: str | None) -> None:
    """Take the block out of each file of a series that was just written; None keeps its SeriesDescription.

    Raises WriteError where a file cannot be written.
    """
    for file in files:
        ds = dcmread(file)
        _drop(ds)
        if series_description is not None:
            ds.SeriesDescription = series_description
        _save(ds, file)


def _block(file: str) -> bytes | None:
    with opened(file) as stream:
        try:
            ds = dcmread(Bounded(stream), specific_tags=_PLACES, stop_before_pixels=True)
            private = ds.private_block(_GROUP, _CREATOR)
            return bytes(private[_ELEMENT].value) if _ELEMENT in private else None
        except KeyError:
            return None
        except PARSE_ERRORS as error:
            raise ReadError(f"cannot be parsed ({one_line(error)})", where=file, remedy=REWRITE) from error


def _drop(ds: Dataset) -> None:
    try:
        private = ds.private_block(_GROUP, _CREATOR)
    except KeyError:
        return
    if _ELEMENT in private:
        del private[_ELEMENT]


def _save(ds: Dataset, file: Path) -> None:
    try:
        ds.save_as(file, enforce_file_format=True)
    except PARSE_ERRORS as error:
        raise WriteError(f"cannot be written ({one_line(error)})", where=file, remedy="check the disk") from error
