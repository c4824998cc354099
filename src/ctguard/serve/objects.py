"""DICOM objects as bytes and files: what the node needs to know of one, and how it gets to disk for sure."""

from __future__ import annotations

import hashlib
import os
import threading
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from pydicom import dcmread
from pydicom.uid import UID

from ctguard.io.dicom_values import PARSE_ERRORS

_TAGS = [
    *("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "Modality", "SeriesDescription", "PatientID"),
    "SyntheticData",
]


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
    """What the node needs to know, of a file's bytes; None where it cannot be understood."""
    try:
        ds = dcmread(BytesIO(encoded), stop_before_pixels=True, specific_tags=_TAGS)
        uids = [str(ds.get(keyword) or "") for keyword in _TAGS[:3]]
        texts = [" ".join(str(ds.get(keyword) or "").split())[:64] for keyword in _TAGS[3:]]
        syntax = str(ds.file_meta.TransferSyntaxUID)
    except PARSE_ERRORS:
        return None
    if not all(UID(uid).is_valid for uid in uids):
        return None
    sop_uid, series_uid, study_uid = uids
    modality, description, patient_id, synthetic = texts
    return Head(sop_uid, series_uid, study_uid, modality[:16], description, patient_id, synthetic == "YES", syntax)


def write_synced(path: Path, content: bytes) -> None:
    """Write a file so that, on return, it is on disk under its name, whole."""
    make_folder(path.parent)
    part = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.part")
    with part.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    part.replace(path)
    sync(path.parent)


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
