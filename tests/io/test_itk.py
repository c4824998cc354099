"""MetaImage, NRRD and NIfTI: round trips, types, and refusals of what is damaged, incomplete or no volume."""

from __future__ import annotations

import gzip
from itertools import product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from numpy.typing import NDArray

from ctguard import io
from ctguard.core.errors import ReadError, WriteError
from ctguard.core.geometry import Geometry
from ctguard.core.marks import MARKS_KEY, Mark
from ctguard.core.provenance import Provenance, Source, Step
from ctguard.core.volume import Volume

ENDINGS = [".mha", ".mhd", ".nrrd", ".nii", ".nii.gz"]
GRID = Geometry((6, 20, 24), (2.5, 0.703125, 0.703125), (-170.3, -160.1, -1200.7))


def _volume(dtype: type = np.int16, seed: int = 0) -> Volume:
    hu = np.random.default_rng(seed).normal(-400, 400, GRID.shape_zyx).astype(dtype)
    source = Source("dicom", ("a",), "CT", "1.2.840.1.2.3.4", "PATIENT-NAME", "B70f", -2000.0, True)
    return Volume(hu, GRID, Provenance(source))


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_round_trip_keeps_voxels_type_grid_and_source_fields(ending: str, dtype: type, tmp_path: Path) -> None:
    volume = _volume(dtype)
    out = io.write(volume, tmp_path / f"scan{ending}")
    back = io.read(out)
    assert back.hu.dtype == dtype
    np.testing.assert_array_equal(back.hu, volume.hu)
    assert back.geometry.agrees(GRID, tolerance_mm=1e-3)
    source = back.provenance.source
    assert (source.kernel, source.padding_hu, source.deidentified) == ("B70f", -2000.0, True)
    assert source.files == (str(out),)


@pytest.mark.parametrize("ending", ENDINGS)
def test_no_uid_and_no_patient_travels(ending: str, tmp_path: Path) -> None:
    io.write(_volume(), tmp_path / f"scan{ending}")
    for file in tmp_path.iterdir():
        content = file.read_bytes()
        content = gzip.decompress(content) if ending == ".nii.gz" else content
        assert b"PATIENT-NAME" not in content
        assert b"1.2.840" not in content


@pytest.mark.parametrize("ending", ENDINGS)
def test_same_volume_same_bytes_and_nothing_beside(ending: str, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        io.write(_volume(), tmp_path / name / f"scan{ending}")
    first, second = (sorted((tmp_path / name).iterdir()) for name in ("a", "b"))
    assert [file.name for file in first] == (["scan.mhd", "scan.zraw"] if ending == ".mhd" else [f"scan{ending}"])
    assert [file.read_bytes() for file in first] == [file.read_bytes() for file in second]


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_long_and_odd_record_survives(ending: str, tmp_path: Path) -> None:
    step = Step("odd", {"text": 'a  b = : \\ "#"\n é {}' + " " * 9000, "many": list(range(12000))})
    mark = Mark("protected", "détail; with := and [brackets] ")
    volume = _volume().changed(_volume(seed=1).hu, step, mark)
    back = io.read(io.write(volume, tmp_path / f"scan{ending}"))
    assert back.provenance.steps == volume.provenance.steps
    assert back.provenance.marks == volume.provenance.marks


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("lost", [1, 300, 2000])
def test_a_cut_off_file_is_refused(ending: str, lost: int, tmp_path: Path) -> None:
    out = io.write(_volume(), tmp_path / f"scan{ending}")
    data = tmp_path / "scan.zraw" if ending == ".mhd" else out
    data.write_bytes(data.read_bytes()[:-lost])
    with pytest.raises(ReadError) as caught:
        io.read(out)
    assert "\n" not in str(caught.value)
    assert str(data) in str(caught.value)


@pytest.mark.parametrize("ending", [".mha", ".mhd", ".nrrd", ".nii.gz"])
@pytest.mark.parametrize("place", [0.3, 0.6, 0.9, 1.0])
def test_a_flipped_bit_in_compressed_voxels_is_refused(ending: str, place: float, tmp_path: Path) -> None:
    out = io.write(_volume(), tmp_path / f"scan{ending}")
    data = tmp_path / "scan.zraw" if ending == ".mhd" else out
    content = bytearray(data.read_bytes())
    header = 0 if ending in (".mhd", ".nii.gz") else content.index(b"LOCAL\n" if ending == ".mha" else b"\n\n") + 6
    # In the voxels or in the checksum at the end (the last four bytes of gzip are a length).
    tail = 5 if ending in (".nrrd", ".nii.gz") else 1
    content[header + int((len(content) - header - tail) * place)] ^= 0x10
    data.write_bytes(bytes(content))
    with pytest.raises(ReadError):
        io.read(out)


@pytest.mark.parametrize("compressed", [True, False])
def test_a_plain_foreign_file_is_read_and_its_cut_off_copy_refused(compressed: bool, tmp_path: Path) -> None:
    for ending in (".mha", ".mhd", ".nrrd"):
        path = tmp_path / f"foreign{ending}"
        image = sitk.GetImageFromArray(_volume().hu)
        image.SetSpacing((0.7, 0.7, 2.5))
        sitk.WriteImage(image, str(path), useCompression=compressed)
        np.testing.assert_array_equal(io.read(path).hu, _volume().hu)
        assert io.read(path).provenance == Provenance(Source(path.suffix[1:].replace("mhd", "mha"), (str(path),)))
        data = next((p for p in tmp_path.glob("foreign.*raw")), path) if ending == ".mhd" else path
        data.write_bytes(data.read_bytes()[:-40])
        with pytest.raises(ReadError):
            io.read(path)


def test_missing_raw_file_is_named(tmp_path: Path) -> None:
    out = io.write(_volume(), tmp_path / "scan.mhd")
    (tmp_path / "scan.zraw").unlink()
    with pytest.raises(ReadError, match=r"scan\.mhd.*scan\.zraw is missing"):
        io.read(out)


@pytest.mark.parametrize(("ending", "line"), [(".mha", b"ElementSpacing"), (".nrrd", b"space directions")])
def test_a_header_without_spacing_is_refused(ending: str, line: bytes, tmp_path: Path) -> None:
    out = io.write(_volume(), tmp_path / f"scan{ending}")
    content = out.read_bytes()
    start = content.index(line)
    out.write_bytes(content[:start] + content[content.index(b"\n", start) + 1 :])
    with pytest.raises(ReadError, match=line.decode()):
        io.read(out)


def test_nifti_without_orientation_is_refused(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.zeros((4, 5, 6), np.int16), None)
    nib.save(image, tmp_path / "scan.nii")
    with pytest.raises(ReadError, match="orientation is unknown"):
        io.read(tmp_path / "scan.nii")


@pytest.mark.parametrize(("slope", "inter", "dtype"), [(1, -1024, np.int16), (2, 0, np.int16), (0.5, -10, np.float32)])
def test_nifti_scaling_is_applied(slope: float, inter: float, dtype: type, tmp_path: Path) -> None:
    stored = np.random.default_rng(3).integers(0, 3000, (5, 6, 7)).astype(np.int16)
    image = nib.Nifti1Image(stored.transpose(2, 1, 0), np.eye(4))
    image.header.set_slope_inter(slope, inter)
    (tmp_path / "scan.nii").write_bytes(_with_scaling(image, slope, inter))
    back = io.read(tmp_path / "scan.nii")
    assert back.hu.dtype == dtype
    np.testing.assert_array_equal(back.hu, (stored * slope + inter).astype(dtype))


def test_nifti_units_are_kept(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.zeros((4, 5, 6), np.int16), np.diag([0.001, 0.001, 0.002, 1]))
    image.header.set_xyzt_units("meter")
    nib.save(image, tmp_path / "scan.nii")
    np.testing.assert_allclose(io.read(tmp_path / "scan.nii").geometry.spacing_zyx_mm, (2.0, 1.0, 1.0), rtol=1e-5)


@pytest.mark.parametrize(
    ("voxels", "expected"),
    [
        (np.full((3, 4, 5), 40000, np.uint16), np.float32),
        (np.full((3, 4, 5), 3071, np.uint16), np.int16),
        (np.full((3, 4, 5), -5, np.int32), np.int16),
        (np.full((3, 4, 5), 7, np.uint8), np.int16),
        (np.full((3, 4, 5), 0.25, np.float64), np.float32),
        (np.full((1, 4, 5), 12, np.int16), np.int16),
    ],
)
def test_types_of_other_software(voxels: NDArray[np.generic], expected: type, tmp_path: Path) -> None:
    for ending in (".mha", ".nrrd", ".nii.gz"):
        path = tmp_path / f"scan{ending}"
        sitk.WriteImage(sitk.GetImageFromArray(voxels), str(path))
        back = io.read(path)
        assert back.hu.dtype == expected
        np.testing.assert_array_equal(back.hu, voxels)


@pytest.mark.parametrize(
    ("voxels", "vector", "words"),
    [
        (np.zeros((2, 3, 4, 5), np.int16), False, "dimensions"),
        (np.zeros((3, 4, 5, 3), np.uint8), True, "values per voxel"),
        (np.zeros((4, 5), np.int16), False, "dimensions"),
        (np.full((3, 4, 5), np.nan, np.float32), False, "NaN"),
        (np.full((3, 4, 5), np.inf, np.float32), False, "infinite"),
        (np.full((3, 4, 5), 1e300, np.float64), False, "infinite"),
        (np.full((3, 4, 5), 2**30, np.int32), False, "Hounsfield"),
    ],
)
def test_what_is_no_finite_volume_is_refused(
    voxels: NDArray[np.generic], vector: bool, words: str, tmp_path: Path
) -> None:
    path = tmp_path / "scan.mha"
    sitk.WriteImage(sitk.GetImageFromArray(voxels, isVector=vector), str(path))
    with pytest.raises(ReadError, match=words):
        io.read(path)


def test_nifti_time_series_and_colour_are_refused(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(np.zeros((4, 5, 6, 2), np.int16), np.eye(4)), tmp_path / "time.nii.gz")
    colour = np.zeros((4, 5, 6), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.save(nib.Nifti1Image(colour, np.eye(4)), tmp_path / "colour.nii.gz")
    for name in ("time", "colour"):
        with pytest.raises(ReadError, match="no volume"):
            io.read(tmp_path / f"{name}.nii.gz")


def test_a_forgery_saved_again_by_other_software_is_still_marked(tmp_path: Path) -> None:
    """ITK drops NIfTI extensions and keeps the description."""
    forged = _volume().changed(_volume(seed=1).hu, Step("tamper"), Mark("forged", "injected"))
    io.write(forged, tmp_path / "ours.nii.gz")
    sitk.WriteImage(sitk.ReadImage(str(tmp_path / "ours.nii.gz")), str(tmp_path / "theirs.nii.gz"))
    assert io.read(tmp_path / "theirs.nii.gz").provenance.has_mark("forged")
    assert not io.read(io.write(_volume(), tmp_path / "clean.nii.gz")).provenance.marks


@pytest.mark.parametrize(
    ("old", "new"), [(b"24 20 6", b"24 20 5"), (b"24 20 6", b"24 20 7"), (b"NDims = 3", b"NDims = 2")]
)
def test_a_header_that_does_not_fit_its_voxels_is_refused(old: bytes, new: bytes, tmp_path: Path) -> None:
    for ending, compressed in product((".mha", ".mhd", ".nrrd"), (True, False)):
        path = tmp_path / f"scan{ending}"
        image = sitk.GetImageFromArray(_volume().hu)
        sitk.WriteImage(image, str(path), useCompression=compressed)
        content = path.read_bytes()
        if old in content:
            path.write_bytes(content.replace(old, new))
            with pytest.raises(ReadError):
                io.read(path)
        else:
            assert ending == ".nrrd"
            assert b"NDims" in old


def test_damage_anywhere_is_a_read_error_of_one_line(tmp_path: Path) -> None:
    """Bytes of the header changed at random: a volume or a ReadError, never another exception."""
    rng = np.random.default_rng(11)
    for name in ("a.mha", "b.nrrd", "c.nii", "d.nii.gz"):
        out = io.write(_volume(), tmp_path / name)
        content = out.read_bytes()
        refused = 0
        for _ in range(60):
            changed = bytearray(content)
            for place in rng.integers(0, 700, 2):
                changed[place] = rng.integers(256)
            out.write_bytes(bytes(changed))
            try:
                io.read(out)
            except ReadError as error:
                refused += 1
                assert "\n" not in str(error)
        assert refused >= 20, name


def test_a_sheared_grid_is_refused(tmp_path: Path) -> None:
    affine = np.eye(4)
    affine[0, 2] = 0.3
    nib.save(nib.Nifti1Image(np.zeros((4, 5, 6), np.int16), affine), tmp_path / "tilted.nii")
    with pytest.raises(ReadError, match="orthogonal"):
        io.read(tmp_path / "tilted.nii")


@pytest.mark.parametrize("ending", [".mha", ".nrrd"])
def test_a_damaged_record_is_refused(ending: str, tmp_path: Path) -> None:
    out = io.write(_volume(), tmp_path / f"scan{ending}")
    content = out.read_bytes()
    assert MARKS_KEY.encode() in content
    out.write_bytes(content.replace(b'"marks":[]', b'"marks":[ '))
    with pytest.raises(ReadError, match="record is damaged"):
        io.read(out)


@pytest.mark.parametrize(
    "name", ["notes.txt", "empty.mha", "text.nii", "text.nii.gz", "text.nrrd", "text.mhd", "noend"]
)
def test_what_is_no_scan_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("" if "empty" in name else "dear reader,\nthis is no scan\n" * 40)
    with pytest.raises(ReadError) as caught:
        io.read(tmp_path / name)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_file_is_told_what_is_read(tmp_path: Path) -> None:
    (tmp_path / "scan.txt").write_text("text")
    with pytest.raises(ReadError, match=r"\.mha, \.mhd, \.nii"):
        io.read(tmp_path / "scan.txt")
    with pytest.raises(ReadError, match="no such file"):
        io.read(tmp_path / "nowhere.mha")


@pytest.mark.parametrize("name", ["scan.raw", "scan.png", "scan.npy", "scan.hdr", "scan.img", "scan.gipl", "scan.xyz"])
def test_a_format_that_carries_no_marks_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(WriteError, match=r"marks|no format"):
        io.write(_volume(), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("ending", [*ENDINGS, ".tiff"])
def test_a_failed_write_leaves_nothing(ending: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(WriteError) as caught:
        io.write(_volume(), tmp_path / "file" / f"scan{ending}")
    assert "\n" not in str(caught.value)
    bad = Volume(np.full(GRID.shape_zyx, np.nan, np.float32), GRID, Provenance(Source("phantom")))
    with pytest.raises(WriteError):
        io.write(bad, tmp_path / "new" / f"scan{ending}")
    named = _volume().changed(_volume().hu, Step("read", {"from": "/home/someone/scan"}))
    with pytest.raises(WriteError, match="path or a UID"):
        io.write(named, tmp_path / "new" / f"scan{ending}")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_an_existing_file_is_replaced_whole(tmp_path: Path) -> None:
    io.write(_volume(), tmp_path / "scan.mhd")
    io.write(_volume(seed=9), tmp_path / "scan.mhd")
    np.testing.assert_array_equal(io.read(tmp_path / "scan.mhd").hu, _volume(seed=9).hu)


def test_upper_case_endings(tmp_path: Path) -> None:
    for name in ("a.MHA", "b.MHD", "c.NRRD", "d.NII.GZ"):
        np.testing.assert_array_equal(io.read(io.write(_volume(), tmp_path / name)).hu, _volume().hu)


def _with_scaling(image: nib.Nifti1Image, slope: float, inter: float) -> bytes:
    """nibabel fits its own scaling when it writes; put ours into the header instead (bytes 112 to 120)."""
    content = bytearray(image.to_bytes())
    content[112:120] = np.array([slope, inter], "<f4").tobytes()
    return bytes(content)
