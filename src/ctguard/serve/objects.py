"""DICOM objects as bytes and files: what the node needs to know of one, and how it gets to disk for sure."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from pydicom.charset import convert_encodings, decode_bytes
from pydicom.filereader import data_element_generator
from pydicom.tag import BaseTag, Tag
from pydicom.uid import UID

from ctguard.io.dicom_values import PARSE_ERRORS

_MAGIC, _START = b"DICM", 132
_SYNTAX = Tag("TransferSyntaxUID")
_LAST = Tag("SeriesInstanceUID")
_UIDS = [Tag(keyword) for keyword in ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID")]
_CODES = [Tag(keyword) for keyword in ("Modality", "SyntheticData")]
_TEXTS = [Tag(keyword) for keyword in ("SeriesDescription", "PatientID")]
_CHARACTERS = Tag("SpecificCharacterSet")


@dataclass(frozen=True)
class Head:
    """What the node needs to know of an object."""

    sop_uid: str
    series_uid: str
    study_uid: str
    modality: str
    description: str
    patient_id: str
    synthetic: bool
    transfer_syntax: str


def read_head(encoded: bytes) -> Head | None:
    """What the node needs to know, of a file's bytes; None where it cannot be understood.

    Only elements up to the series' UID are read, and as bytes: a dataset of pydicom takes ten times as long.
    """
    stream = BytesIO(encoded)
    stream.seek(_START)
    try:
        meta = _values(stream, False, True, 0x0002FFFF)
        syntax = UID(_ascii(meta, _SYNTAX))
        if encoded[_START - 4 : _START] != _MAGIC or not syntax.is_transfer_syntax or syntax.is_deflated:
            return None
        found = _values(stream, syntax.is_implicit_VR, syntax.is_little_endian, _LAST)
        sop_uid, series_uid, study_uid = (_ascii(found, tag) for tag in _UIDS)
        modality, synthetic = (_ascii(found, tag)[:16] for tag in _CODES)
        encodings = convert_encodings(_ascii(found, _CHARACTERS).split("\\"))
        description, patient_id = (_text(found.get(tag, b""), encodings) for tag in _TEXTS)
    except PARSE_ERRORS:
        return None
    if not all(UID(uid).is_valid for uid in (sop_uid, series_uid, study_uid)):
        return None
    return Head(sop_uid, series_uid, study_uid, modality, description, patient_id, synthetic == "YES", syntax)


def _values(stream: BytesIO, implicit: bool, little_endian: bool, last: int) -> dict[int, bytes]:
    """Values of the elements up to a tag that are wanted."""
    wanted: list[BaseTag | int] = [_SYNTAX, _CHARACTERS, *_UIDS, *_CODES, *_TEXTS]
    elements = data_element_generator(
        stream, implicit, little_endian, stop_when=lambda tag, vr, length: tag > last, specific_tags=wanted
    )
    return {int(element.tag): element.value or b"" for element in elements}


def _ascii(values: Mapping[int, bytes], tag: int) -> str:
    return values.get(tag, b"").decode("ascii", "replace").strip(" \0")


def _text(value: bytes, encodings: Sequence[str]) -> str:
    return " ".join(decode_bytes(value, encodings, set()).replace("\0", " ").split())[:64]


def write_synced(path: Path, content: bytes) -> None:
    """Write a file so that, on return, it is on disk under its name, whole; before, it is the old one or none."""
    part = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.part")
    _write(part, content)
    part.replace(path)
    sync(path.parent)


def write_new(path: Path, content: bytes) -> None:
    """Write a file that nobody reads yet, so that it is on disk on return; a crash may leave a part of it."""
    _write(path, content)
    sync(path.parent)


def _write(path: Path, content: bytes) -> None:
    make_folder(path.parent)
    with path.open("wb", buffering=0) as stream:
        stream.write(content)
        os.fsync(stream.fileno())


def make_folder(folder: Path) -> None:
    """A folder that only its owner can read, on disk on return, with those above it."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)
        sync(folder.parent)


def sync(path: Path) -> None:
    """See to it that a file, or the names in a folder, are on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def hashed_name(*uids: str) -> str:
    """A file name that does not show the UIDs."""
    return hashlib.sha256("\0".join(uids).encode()).hexdigest()[:32]
