"""Damaged DICOM: one clear ReadError, or a volume that is whole; never another exception and never a part."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from ctguard.core.errors import ReadError
from ctguard.core.marks import Mark
from ctguard.core.provenance import Step
from ctguard.io.derived import write_dicom
from ctguard.io.dicom import read_dicom
from tests.io.dicom_factory import make_enhanced, make_series, stored_values

STORED = stored_values(3)
ROWS = b"\x28\x00\x10\x00US\x02\x00"


def _forged(folder: Path) -> Path:
    volume = read_dicom(make_series(folder.with_name("source"), STORED))
    hu = volume.hu.copy()
    hu[1, 3:5, 3:5] += 9
    write_dicom(volume.changed(hu, Step("tamper", {"plan": list(range(400))}), Mark("forged", "a test")), folder)
    return folder


def _as(syntax: Any) -> Callable[[Path], Path]:
    return lambda folder: make_series(folder, STORED, syntax=syntax)


KINDS: dict[str, Callable[[Path], Path]] = {
    "explicit": _as(ExplicitVRLittleEndian),
    "deflated": _as(DeflatedExplicitVRLittleEndian),
    "rle": _as(RLELossless),
    "jpeg-ls": _as(JPEGLSLossless),
    "jpeg-2000": _as(JPEG2000Lossless),
    "enhanced": lambda folder: make_enhanced(folder / "enhanced.dcm", STORED, [2, 0, 1]).parent,
    "forged": _forged,
}


def _damaged(content: bytes, rng: np.random.Generator) -> bytes:
    """Cut off, or with a bit flipped anywhere, or with bytes of the header or of the image attributes replaced."""
    how, changed = rng.integers(4), bytearray(content)
    if how == 0:
        return content[: rng.integers(len(content))]
    if how == 1:
        changed[rng.integers(len(content))] ^= 1 << rng.integers(8)
        return bytes(changed)
    start = 128 if how == 2 else max(128, content.find(ROWS))
    for place in rng.integers(start, min(start + (2000 if how == 2 else 120), len(content)), 3 if how == 2 else 1):
        changed[place] = rng.integers(256)
    return bytes(changed)


@pytest.mark.filterwarnings("ignore")  # pydicom's, of values that damage made odd
@pytest.mark.parametrize("kind", KINDS)
def test_one_damaged_file_is_refused_in_one_line_or_hurts_no_other_slice(kind: str, tmp_path: Path) -> None:
    folder = KINDS[kind](tmp_path / "scan")
    right: NDArray[Any] = read_dicom(folder).hu
    files = sorted(folder.iterdir())
    rng = np.random.default_rng(3)
    refused = 0
    for _ in range(40):
        victim = files[rng.integers(len(files))]
        content = victim.read_bytes()
        victim.write_bytes(_damaged(content, rng))
        try:
            hu = read_dicom(folder).hu
        except ReadError as error:
            refused += 1
            assert str(error).isprintable()
        else:
            assert hu.shape == right.shape
            assert np.isfinite(hu).all()
            assert sum(not np.array_equal(a, b) for a, b in zip(hu, right, strict=True)) <= 1
        victim.write_bytes(content)
    assert refused >= 10


@pytest.mark.parametrize("kind", ["explicit", "rle", "jpeg-ls", "jpeg-2000", "enhanced"])
def test_a_header_that_asks_for_gigabytes_is_refused(kind: str, tmp_path: Path) -> None:
    victim = sorted(KINDS[kind](tmp_path / "scan").iterdir())[0]
    content = victim.read_bytes()
    at = content.index(ROWS) + len(ROWS)
    victim.write_bytes(content[:at] + b"\xff\xff" + content[at + 2 : at + 10] + b"\xff\xff" + content[at + 12 :])
    with pytest.raises(ReadError, match=r"voxels, which CT never has|bytes of PixelData"):
        read_dicom(victim)


@pytest.mark.parametrize("kind", ["explicit", "jpeg-ls", "jpeg-2000", "enhanced"])
@pytest.mark.parametrize("rows", [16, 31])
def test_a_header_that_asks_for_a_part_is_refused(kind: str, rows: int, tmp_path: Path) -> None:
    victim = sorted(KINDS[kind](tmp_path / "scan").iterdir())[0]
    content = victim.read_bytes()
    at = content.index(ROWS) + len(ROWS)
    victim.write_bytes(content[:at] + bytes([rows, 0]) + content[at + 2 :])
    with pytest.raises(ReadError, match=victim.name):
        read_dicom(victim)


def test_trailing_bytes_after_the_voxels_are_no_damage(tmp_path: Path) -> None:
    folder = make_series(
        tmp_path / "scan", STORED, lambda ds, z: setattr(ds["PixelData"], "value", ds.PixelData + bytes(16))
    )
    assert np.array_equal(read_dicom(folder).hu, STORED - 1024)
