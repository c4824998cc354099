"""Bad input and bad outputs: each ends in one clear line that names the file and what to do, and writes nothing."""

from __future__ import annotations

import resource
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, RLELossless

from ctguard.core.errors import CtguardError, ReadError, WriteError
from ctguard.core.geometry import Geometry
from ctguard.core.marks import Mark
from ctguard.core.provenance import Provenance, Source, Step
from ctguard.core.volume import Volume
from ctguard.io.derived import write_dicom
from ctguard.io.dicom import read_dicom
from tests.io.dicom_factory import CORONAL, make_series, stored_values


def _line(error: pytest.ExceptionInfo[CtguardError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    assert error.value.remedy, f"no remedy in: {text}"
    return text


def _read_error(path: Path) -> str:
    with pytest.raises(ReadError) as error:
        read_dicom(path)
    return _line(error)


def test_missing_path(tmp_path: Path) -> None:
    assert f"{tmp_path}/none: does not exist" in _read_error(tmp_path / "none")


def test_empty_folder(tmp_path: Path) -> None:
    assert f"{tmp_path}: holds no DICOM files" in _read_error(tmp_path)


def test_text_file_alone_and_as_a_slice(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("hello")
    assert "note.txt: is not DICOM" in _read_error(tmp_path / "note.txt")
    assert "holds no DICOM files" in _read_error(tmp_path)
    folder = make_series(tmp_path / "series", stored_values())
    (folder / "note.txt").write_text("ignored beside DICOM")
    assert len(read_dicom(folder).hu) == 5
    (folder / "IM-0009.dcm").write_bytes(b"")
    assert "IM-0009.dcm: is not DICOM" in _read_error(folder)


@pytest.mark.parametrize("syntax", [None, RLELossless, JPEGLSLossless, JPEG2000Lossless])
@pytest.mark.parametrize("kept", [0.98, 0.7, 0.25, 200, 400])
def test_truncated_slice(tmp_path: Path, kept: float, syntax: object) -> None:
    options = {} if syntax is None else {"syntax": syntax}
    folder = make_series(tmp_path, stored_values(side=64), **options)  # type: ignore[arg-type]
    victim = folder / "IM-0003.dcm"
    data = victim.read_bytes()
    victim.write_bytes(data[: int(kept * len(data)) if kept < 1 else int(kept)])
    assert "IM-0003.dcm: " in _read_error(folder)


def test_missing_slice(tmp_path: Path) -> None:
    folder = make_series(tmp_path, stored_values(9))
    (folder / "IM-0005.dcm").unlink()
    line = _read_error(folder)
    assert "has a 2.5 mm gap after slice 4 (IM-0004.dcm); pass --allow-gaps to interpolate" in line
    assert len(read_dicom(folder, allow_gaps=True).hu) == 9


def test_two_series(tmp_path: Path) -> None:
    make_series(tmp_path / "a", stored_values())
    make_series(tmp_path / "b", stored_values(4), lambda ds, z: setattr(ds, "SeriesInstanceUID", "1.2.3"))
    line = _read_error(tmp_path)
    assert "holds 2 series: 1.2.3 (kernel STANDARD, acquisition 1, 4 slices" in line
    assert "choose one with --series" in line
    assert len(read_dicom(tmp_path, series_uid="1.2.3").hu) == 4
    with pytest.raises(ReadError, match=r"holds no series 9\.9, but 1\.2\.3 \("):
        read_dicom(tmp_path, series_uid="9.9")


def test_many_series_are_listed_in_part(tmp_path: Path) -> None:
    for n in range(11):
        make_series(
            tmp_path / str(n), stored_values(1, 8), lambda ds, z, n=n: setattr(ds, "SeriesInstanceUID", f"1.{n}")
        )
    line = _read_error(tmp_path)
    assert "holds 11 series: 1.0 (" in line
    assert line.count("slice of 8x8") == 8
    assert "; and 3 more; choose one" in line


def test_slices_of_another_modality_are_no_scout(tmp_path: Path) -> None:
    def edit(ds: Dataset, z: int) -> None:
        ds.Modality = "MR" if z == 5 else "CT"

    assert "holds 2 series" in _read_error(make_series(tmp_path, stored_values(6), edit, orientation=CORONAL))


@pytest.mark.filterwarnings("ignore:Invalid value for VR CS")
def test_control_characters_of_a_file_do_not_reach_the_message(tmp_path: Path) -> None:
    make_series(tmp_path, stored_values(1), lambda ds, z: setattr(ds, "Modality", "M\x1b[31m\nR"))
    assert _read_error(tmp_path).isprintable()


def test_mr_series(tmp_path: Path) -> None:
    make_series(tmp_path, stored_values(), lambda ds, z: setattr(ds, "Modality", "MR"))
    assert "modality is MR, not CT" in _read_error(tmp_path)


def test_only_a_scout(tmp_path: Path) -> None:
    make_series(
        tmp_path, stored_values(1), lambda ds, z: setattr(ds, "ImageType", ["ORIGINAL", "PRIMARY", "LOCALIZER"])
    )
    assert "holds no CT slices, only 1 x LOCALIZER" in _read_error(tmp_path)


def test_duplicate_slice(tmp_path: Path) -> None:
    folder = make_series(tmp_path, stored_values())
    (folder / "copy.dcm").write_bytes((folder / "IM-0002.dcm").read_bytes())
    line = _read_error(folder)
    assert "two slices at one position" in line
    assert "copy.dcm" in line
    assert "IM-0002.dcm" in line


def test_gantry_tilt(tmp_path: Path) -> None:
    def edit(ds: Dataset, z: int) -> None:
        ds.ImagePositionPatient = ["-50", f"{-60 + z * 2.5 * np.tan(np.radians(15)):.4f}", f"{-300 + z * 2.5}"]

    assert "gantry tilt of 15.0 degrees" in _read_error(make_series(tmp_path, stored_values(6), edit))


def test_a_slice_that_lies_beside_the_others(tmp_path: Path) -> None:
    def edit(ds: Dataset, z: int) -> None:
        if z == 3:
            ds.ImagePositionPatient = ["-40", "-60", f"{-300 + z * 2.5}"]

    line = _read_error(make_series(tmp_path, stored_values(6), edit))
    assert "slice 3 (IM-0003.dcm) lies 10 mm beside the others" in line


def test_irregular_spacing(tmp_path: Path) -> None:
    def edit(ds: Dataset, z: int) -> None:
        ds.ImagePositionPatient = ["-50", "-60", f"{-300 + z * 2.5 + (0.8 if z > 2 else 0)}"]

    line = _read_error(make_series(tmp_path, stored_values(6), edit))
    assert "irregular slice spacing: 3.3 mm after slice 2 (IM-0002.dcm), 2.5 mm elsewhere" in line


def test_mixed_orientation(tmp_path: Path) -> None:
    make_series(tmp_path / "a", stored_values())
    make_series(tmp_path / "b", stored_values(), orientation=CORONAL)
    line = _read_error(tmp_path)
    assert "holds 2 series" in line
    assert "normal [0.0, 0.0, 1.0]" in line
    assert "normal [0.0, 1.0, 0.0]" in line


@pytest.mark.parametrize(
    ("keyword", "tag"),
    [
        ("ImagePositionPatient", "(0020,0032)"),
        ("ImageOrientationPatient", "(0020,0037)"),
        ("PixelSpacing", "(0028,0030)"),
        ("RescaleSlope", "(0028,1053)"),
        ("SeriesInstanceUID", "(0020,000E)"),
        ("Rows", "(0028,0010)"),
        ("PixelData", "(7FE0,0010)"),
    ],
)
def test_missing_attribute(tmp_path: Path, keyword: str, tag: str) -> None:
    def edit(ds: Dataset, z: int) -> None:
        if z == 3:
            delattr(ds, keyword)

    line = _read_error(make_series(tmp_path, stored_values(), edit))
    assert "IM-0003.dcm: " in line
    assert f"{keyword} {tag}" in line


def test_zip_bomb(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive, archive.open(
        "IM.dcm", "w"
    ) as member:  # fmt: skip
        for _ in range(65):
            member.write(bytes(2**20))
    assert "bomb.zip: looks like a zip bomb" in _read_error(tmp_path / "bomb.zip")


def test_damaged_zip(tmp_path: Path) -> None:
    folder = make_series(tmp_path / "series", stored_values(side=64))
    with zipfile.ZipFile(tmp_path / "scan.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.iterdir()):
            archive.write(file, file.name)
    data = bytearray((tmp_path / "scan.zip").read_bytes())
    data[3000:3100] = bytes(100)
    (tmp_path / "scan.zip").write_bytes(data)
    assert "scan.zip: member 'IM-0000.dcm' cannot be unpacked" in _read_error(tmp_path / "scan.zip")


def _forged(tmp_path: Path) -> Volume:
    volume = read_dicom(make_series(tmp_path / "source", stored_values()))
    hu = volume.hu.copy()
    hu[2, 5:9, 5:9] += 50
    return volume.changed(hu, Step("tamper", {"seed": 1}), Mark("forged", "a test"))


def _write_error(volume: Volume, out: Path) -> str:
    with pytest.raises(WriteError) as error:
        write_dicom(volume, out)
    return _line(error)


def _tree(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*")}


def _limit_file_size() -> Callable[[], None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_no_room_for_the_output(tmp_path: Path) -> None:
    volume = _forged(tmp_path)
    before = _tree(tmp_path)
    restore = _limit_file_size()
    try:
        line = _write_error(volume, tmp_path / "new" / "out")
    finally:
        restore()
    assert "new/out: cannot be written (File too large)" in line
    assert _tree(tmp_path) == before


def test_output_below_a_file_or_where_nothing_can_be_written(tmp_path: Path) -> None:
    volume = _forged(tmp_path)
    (tmp_path / "file").write_text("in the way")
    before = _tree(tmp_path)
    assert "file/out: cannot be written" in _write_error(volume, tmp_path / "file" / "out")
    assert "file: is a file" in _write_error(volume, tmp_path / "file")
    assert "cannot be written" in _write_error(volume, Path("/proc/ctguard-out"))
    assert _tree(tmp_path) == before


def test_output_that_holds_other_dicom(tmp_path: Path) -> None:
    volume = _forged(tmp_path)
    make_series(tmp_path / "out" / "deep", stored_values(1))
    before = _tree(tmp_path)
    assert "out: holds DICOM files already" in _write_error(volume, tmp_path / "out")
    assert _tree(tmp_path) == before


def test_an_edit_that_does_not_fit_the_stored_bits(tmp_path: Path) -> None:
    volume = read_dicom(make_series(tmp_path / "source", stored_values(high=4096), lambda ds, z: _twelve_bits(ds)))
    hu = volume.hu.copy()
    hu[2, 0, :3] = 3072
    line = _write_error(volume.changed(hu, Step("tamper")), tmp_path / "out")
    assert "3 changed voxels of slice 2 do not fit -1024 to 3071 HU" in line
    assert not (tmp_path / "out").exists()


def _twelve_bits(ds: Dataset) -> None:
    ds.BitsStored, ds.HighBit = 12, 11


def test_source_files_that_changed_since(tmp_path: Path) -> None:
    volume = _forged(tmp_path)
    make_series(tmp_path / "source", stored_values(seed=9), lambda ds, z: setattr(ds, "SeriesInstanceUID", "1.2.3"))
    assert "has changed since the scan was read" in _write_error(volume, tmp_path / "out")


def test_voxels_that_are_no_numbers(tmp_path: Path) -> None:
    hu = np.full((2, 8, 8), np.nan, dtype=np.float32)
    volume = Volume(hu, Geometry((2, 8, 8), (1.0, 1.0, 1.0)), Provenance(Source("phantom")))
    assert "no numbers" in _write_error(volume, tmp_path / "out")
