"""What `runs/fuzz.py` found, one small input for each: refused in one clear line, with little memory."""

from __future__ import annotations

import gzip
import shutil
import struct
import subprocess
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import tifffile
from pydicom import dcmread
from pydicom.uid import DeflatedExplicitVRLittleEndian

from ctguard import io
from ctguard.core.errors import ReadError
from ctguard.core.geometry import Geometry
from ctguard.core.provenance import Provenance, Source
from ctguard.core.volume import Volume
from ctguard.io.dicom_rules import patient_of
from tests.io.dicom_factory import make_enhanced, make_series, stored_values

STORED = stored_values(3)
needs_dcmcjpeg = pytest.mark.skipif(shutil.which("dcmcjpeg") is None, reason="needs dcmcjpeg (Debian: dcmtk)")


def volume(spacing_y_mm: float = 0.7) -> Volume:
    geometry = Geometry((3, 32, 32), (2.5, spacing_y_mm, 0.7))
    return Volume((STORED - 1024).astype(np.int16), geometry, Provenance(Source("phantom")))


def refusal(path: Path, most_mb: float = 60) -> str:
    """The text of the refusal: one line, not long, with a remedy, and made without taking much memory."""
    tracemalloc.start()
    try:
        with pytest.raises(ReadError) as error:
            io.read(path)
        taken = tracemalloc.get_traced_memory()[1] / 1e6
    finally:
        tracemalloc.stop()
    text = str(error.value)
    assert text.isprintable() and len(text) < 600 and error.value.remedy
    assert taken < most_mb
    return text


def edited(path: Path, edit: Callable[[bytes], bytes]) -> Path:
    path.write_bytes(edit(path.read_bytes()))
    return path


def zeros(mebibytes: int, wbits: int) -> bytes:
    press = zlib.compressobj(9, zlib.DEFLATED, wbits)
    return b"".join(press.compress(bytes(1 << 20)) for _ in range(mebibytes)) + press.flush()


def test_an_element_that_says_it_is_4_gb_long(tmp_path: Path) -> None:
    file = make_series(tmp_path, STORED[:1]) / "IM-0000.dcm"
    start = 132 + 12 + struct.unpack_from("<I", file.read_bytes(), 140)[0]
    huge = struct.pack("<HH2sHI", 0x0007, 0x1010, b"OB", 0, 0xFFFFFFF0)
    edited(file, lambda data: data[:start] + huge + data[start:])
    assert "IM-0000.dcm: ends before its image begins" in refusal(file)


def test_a_deflated_dataset_that_inflates_without_end(tmp_path: Path) -> None:
    file = make_series(tmp_path, STORED[:1], syntax=DeflatedExplicitVRLittleEndian) / "IM-0000.dcm"
    assert len(io.read(file).hu) == 1
    start = 132 + 12 + struct.unpack_from("<I", file.read_bytes(), 140)[0]
    edited(file, lambda data: data[:start] + zeros(100, -zlib.MAX_WBITS))
    assert "as only a bomb does" in refusal(file)


def test_a_transfer_syntax_with_control_characters(tmp_path: Path) -> None:
    file = make_series(tmp_path, STORED[:1]) / "IM-0000.dcm"
    edited(file, lambda data: data.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.\x1b[2J\n08.1.9\0"))
    assert "its transfer syntax 1.2.840. [2J 08.1.9 cannot be read" in refusal(file)


@needs_dcmcjpeg
def test_a_jpeg_frame_at_which_gdcm_ends_its_process_and_none_after_it_is_lost(tmp_path: Path) -> None:
    pytest.importorskip("gdcm", reason="needs ctguard[gdcm]")
    file = make_series(tmp_path, STORED[:1]) / "IM-0000.dcm"
    subprocess.run(["dcmcjpeg", str(file), str(file)], check=True)
    good = file.read_bytes()
    np.testing.assert_array_equal(io.read(file).hu, STORED[:1] - 1024)
    scan = good.index(b"\xff\xda")
    file.write_bytes(good[:scan] + good[scan + 16 : scan + 600] + good[scan : scan + 16] + good[scan + 600 :])
    assert "IM-0000.dcm: is damaged" in refusal(file)
    several = make_enhanced(tmp_path / "several.dcm", STORED, [2, 0, 1])
    subprocess.run(["dcmcjpeg", str(several), str(several)], check=True)
    offsets = np.array([1024, 1025, 1026]).reshape(3, 1, 1)
    np.testing.assert_array_equal(io.read(several).hu, STORED - offsets)


@pytest.mark.parametrize("name", ["", "\u202e.dcm", "a\x1b[2J.dcm", "x" * 900 + "/../../a"])
def test_a_zip_member_with_a_name_that_is_none(tmp_path: Path, name: str) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(zipfile.ZipInfo(name), b"")
    assert "is no name of a member" in (text := refusal(tmp_path / "a.zip")) or "points outside" in text


def test_a_zip_member_with_damaged_lzma(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("a.dcm", STORED.tobytes())
    edited(tmp_path / "a.zip", lambda data: data[:48] + bytes(30) + data[78:])
    assert "member 'a.dcm' cannot be unpacked" in refusal(tmp_path / "a.zip")


def test_a_zip_of_several_disks(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.dcm", b"")
    locator = struct.pack("<4sLQL", b"PK\6\7", 3, 0, 4)
    edited(tmp_path / "a.zip", lambda data: data.replace(b"PK\5\6", locator + b"PK\5\6"))
    assert "is a damaged zip archive" in refusal(tmp_path / "a.zip")


def test_a_nifti_that_inflates_to_more_than_its_header_says(tmp_path: Path) -> None:
    out = io.write(volume(), tmp_path / "a.nii.gz")
    edited(out, lambda data: gzip.compress(gzip.decompress(data)) + zeros(100, zlib.MAX_WBITS | 16))
    assert "its header says" in refusal(out)
    out.write_bytes(zeros(100, zlib.MAX_WBITS | 16))
    assert "a.nii.gz: " in refusal(out)


def test_a_nifti_in_two_gzip_members_is_read_whole(tmp_path: Path) -> None:
    out = io.write(volume(), tmp_path / "a.nii.gz")
    plain = gzip.decompress(out.read_bytes())
    out.write_bytes(gzip.compress(plain[:700]) + gzip.compress(plain[700:]))
    np.testing.assert_array_equal(io.read(out).hu, STORED - 1024)


def test_a_grid_of_voxels_that_no_scanner_makes(tmp_path: Path) -> None:
    for spacing in (1e-30, 4000.0):
        image = nib.Nifti1Image(np.zeros((8, 8, 8), np.int16), np.diag([0.7, spacing, 2.5, 1.0]))
        nib.save(image, tmp_path / "a.nii")
        assert "mm, which CT never has" in refusal(tmp_path / "a.nii")


def test_an_nrrd_header_at_which_itk_ends_the_process(tmp_path: Path) -> None:
    out = io.write(volume(), tmp_path / "a.nrrd")
    edited(out, lambda data: data.replace(b"left-posterior-superior", b"1" * 5000))
    assert "a line of its header has 5008 bytes" in refusal(out)


@pytest.mark.parametrize("key", [b"ElementSpacing", b"DimSize", b"ElementType", b"ElementDataFile"])
def test_a_metaimage_header_with_endless_values(tmp_path: Path, key: bytes) -> None:
    out = io.write(volume(), tmp_path / "a.mha")
    edited(out, lambda data: data.replace(key + b" = ", key + b" = " + b"9" * 3000 + b"x "))
    assert "a.mha: " in refusal(out)


def test_a_tiff_slice_that_asks_for_gigabytes_or_has_pages(tmp_path: Path) -> None:
    out = io.write(volume(), tmp_path / "a.tiff")
    slice_ = sorted(out.glob("*.tiff"))[1]
    good = slice_.read_bytes()
    width = struct.pack("<HHII", 256, 4, 1, 32)
    assert width in good
    slice_.write_bytes(good.replace(width, struct.pack("<HHII", 256, 4, 1, 3_815_505_952)))
    assert f"{slice_.name}: the slice cannot be read" in refusal(out)
    slice_.write_bytes(good)
    with tifffile.TiffFile(slice_) as tiff:
        description = tiff.pages.first.description
    tifffile.imwrite(slice_, np.zeros((2, 32, 32), np.uint16), description=description, metadata=None)
    assert "2 pages" in refusal(out)


def test_a_copy_of_an_image_whose_attribute_has_no_type(tmp_path: Path) -> None:
    """It can be read; to copy its study's UID into a result ended the worker."""
    file = make_series(tmp_path, STORED[:1]) / "IM-0000.dcm"
    edited(file, lambda data: data.replace(b"\x20\0\x0d\0UI", b"\x20\0\x0d\0U\x09"))
    with pytest.raises(ReadError, match=r"StudyInstanceUID \(0020,000D\) is damaged"):
        patient_of(dcmread(file))
