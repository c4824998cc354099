"""read_dicom: order, intensities, compression, grouping and marks, against values computed from the made files."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)

from ctguard.core.errors import MissingExtraError, ReadError
from ctguard.core.geometry import index_to_lps_mm
from ctguard.io import dicom_pixels
from ctguard.io.dicom import holds_dicom, read_dicom
from tests.io.dicom_factory import AXIAL, CORONAL, SAGITTAL, make_enhanced, make_series, pixel_type, stored_values

OBLIQUE = (0.8660254038, 0.5, 0.0, -0.25, 0.4330127019, -0.8660254038)


@pytest.mark.parametrize("orientation", [AXIAL, SAGITTAL, CORONAL, OBLIQUE])
def test_slices_are_ordered_along_the_normal_whatever_their_names(tmp_path: Path, orientation: Any) -> None:
    stored = stored_values(6)
    names = [f"{n}.dcm" for n in (3, 0, 5, 1, 4, 2)]
    volume = read_dicom(make_series(tmp_path, stored, orientation=orientation, names=names))
    assert volume.hu.dtype == np.int16
    assert np.array_equal(volume.hu, stored - 1024)
    assert [Path(f).name for f in volume.provenance.source.files] == names
    for z, file in enumerate(volume.provenance.source.files):
        position = pydicom.dcmread(file).ImagePositionPatient
        assert np.allclose(index_to_lps_mm(volume.geometry, (z, 0, 0)), np.array(position, float), atol=1e-3)
    assert volume.geometry.spacing_zyx_mm == pytest.approx((2.5, 0.7, 0.8), abs=1e-3)


@pytest.mark.parametrize(
    ("slope", "intercept", "signed", "bits", "padding", "dtype"),
    [
        ("1", "-1024", False, 16, None, np.int16),
        ("1", "-1024", False, 12, 0, np.int16),
        ("1", "0", True, 16, -2000, np.int16),
        ("1", "-24", True, 12, -2000, np.int16),
        ("2", "-1024", False, 12, 63, np.int16),
        ("-1", "1024", True, 16, -2000, np.int16),
        ("0.5", "-1024", False, 16, 0, np.float32),
        ("1", "-1024.5", False, 16, None, np.float32),
        ("1", "30000", False, 16, None, np.float32),
    ],
)
def test_intensities(
    tmp_path: Path, slope: str, intercept: str, signed: bool, bits: int, padding: int | None, dtype: type
) -> None:
    stored = stored_values(3, low=-2000 if signed else 0, high=2000 if signed else 4000)
    volume = read_dicom(make_series(tmp_path, stored, pixel_type(slope, intercept, signed, bits, padding)))
    if padding is not None:
        stored[:, :4] = padding
    expected = stored * float(slope) + float(intercept)
    assert volume.hu.dtype == dtype
    assert np.array_equal(volume.hu, expected.astype(dtype))
    assert volume.provenance.source.padding_hu == (None if padding is None else expected[0, 0, 0])


def test_slope_per_slice(tmp_path: Path) -> None:
    def edit(ds: Dataset, z: int) -> None:
        ds.RescaleSlope, ds.RescaleIntercept = str(z + 1), str(-1000 - z)

    stored = stored_values(4, high=2000)
    scale = np.arange(4)[:, None, None]
    assert np.array_equal(read_dicom(make_series(tmp_path, stored, edit)).hu, stored * (scale + 1) - 1000 - scale)


def test_unused_high_bits_are_ignored(tmp_path: Path) -> None:
    def edit(ds: Dataset, z: int) -> None:
        ds.BitsStored, ds.HighBit = 12, 11
        ds["PixelData"].value = (np.frombuffer(ds.PixelData, "<u2") | 0xA000).astype("<u2").tobytes()

    stored = stored_values(3, high=4096)
    assert np.array_equal(read_dicom(make_series(tmp_path, stored, edit)).hu, stored - 1024)


@pytest.mark.parametrize(
    "syntax",
    [
        ImplicitVRLittleEndian,
        ExplicitVRBigEndian,
        DeflatedExplicitVRLittleEndian,
        RLELossless,
        JPEGLSLossless,
        JPEG2000Lossless,
    ],
)
def test_transfer_syntaxes(tmp_path: Path, syntax: Any) -> None:
    def big_endian(ds: Dataset, z: int) -> None:
        ds["PixelData"].value = np.frombuffer(ds.PixelData, "<u2").astype(">u2").tobytes()

    stored = stored_values(3)
    edit = big_endian if syntax == ExplicitVRBigEndian else None
    assert np.array_equal(read_dicom(make_series(tmp_path, stored, edit, syntax=syntax)).hu, stored - 1024)


def _to_legacy_jpeg(folder: Path) -> None:
    gdcm = pytest.importorskip("gdcm", reason="needs ctguard[gdcm]")
    for file in sorted(folder.iterdir()):
        reader = gdcm.ImageReader()
        reader.SetFileName(str(file))
        assert reader.Read()
        change = gdcm.ImageChangeTransferSyntax()
        change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGLosslessProcess14_1))
        change.SetInput(reader.GetImage())
        assert change.Change()
        writer = gdcm.ImageWriter()
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        writer.SetFileName(str(file))
        assert writer.Write()


def test_legacy_jpeg_with_and_without_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = stored_values(3)
    folder = make_series(tmp_path, stored)
    _to_legacy_jpeg(folder)
    assert pydicom.dcmread(folder / "IM-0000.dcm").file_meta.TransferSyntaxUID == JPEGLosslessSV1
    assert np.array_equal(read_dicom(folder).hu, stored - 1024)

    has_decoder = property(lambda decoder: JPEGLosslessSV1 != decoder.UID)
    monkeypatch.setattr(dicom_pixels.Decoder, "is_available", has_decoder)
    with pytest.raises(MissingExtraError, match=r"IM-0000\.dcm.*JPEG Lossless.*pip install ctguard\[gdcm\]"):
        read_dicom(folder)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, JPEG2000Lossless])
def test_enhanced_multiframe(tmp_path: Path, syntax: Any) -> None:
    stored = stored_values(4)
    file = make_enhanced(tmp_path / "enhanced.dcm", stored, [2, 0, 3, 1], syntax)
    volume = read_dicom(file)
    assert np.array_equal(volume.hu, stored - 1024 - np.arange(4)[:, None, None])
    assert volume.geometry.spacing_zyx_mm == pytest.approx((2.5, 0.7, 0.8))
    assert volume.provenance.source.kernel == "B30f"
    assert volume.provenance.source.files == (str(file),) * 4


def test_a_zip_reads_like_its_folder(tmp_path: Path) -> None:
    folder = make_series(tmp_path / "series", stored_values())
    (folder / "readme.txt").write_text("not DICOM")
    archive = Path(shutil.make_archive(str(tmp_path / "scan"), "zip", tmp_path, "series"))
    assert np.array_equal(read_dicom(archive).hu, read_dicom(folder).hu)
    assert read_dicom(archive).geometry == read_dicom(folder).geometry


def test_a_single_file_is_a_volume_of_one_slice(tmp_path: Path) -> None:
    folder = make_series(tmp_path, stored_values())
    volume = read_dicom(folder / "IM-0002.dcm")
    assert volume.hu.shape == (1, 32, 32)
    assert volume.geometry.spacing_zyx_mm == (2.5, 0.7, 0.8)


def test_source_is_filled(tmp_path: Path) -> None:
    def edit(ds: Dataset, z: int) -> None:
        ds.PatientIdentityRemoved = "YES" if z != half else "NO"

    half = -1
    source = read_dicom(make_series(tmp_path / "a", stored_values(), edit)).provenance.source
    assert (source.format, source.modality, source.kernel, source.patient_id) == ("dicom", "CT", "STANDARD", "MRN123")
    assert source.series_uid == generate_uid(entropy_srcs=["series"])
    assert source.deidentified
    half = 2
    assert not read_dicom(make_series(tmp_path / "b", stored_values(), edit)).provenance.source.deidentified


def test_scouts_and_reports_are_set_aside(tmp_path: Path) -> None:
    stored = stored_values()
    folder = make_series(tmp_path, stored)

    def localizer(ds: Dataset, z: int) -> None:
        ds.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]

    def report(ds: Dataset, z: int) -> None:
        ds.Modality = "SR"

    make_series(folder / "scout", stored_values(1, 48), localizer, orientation=CORONAL)
    make_series(folder / "scout without a type", stored_values(1, 48), orientation=SAGITTAL)
    make_series(folder / "report", stored_values(1), report)
    assert np.array_equal(read_dicom(folder).hu, stored - 1024)


def test_two_reconstructions_under_one_series_uid_are_told_apart(tmp_path: Path) -> None:
    soft, sharp = stored_values(seed=1), stored_values(seed=2)
    make_series(tmp_path, soft, names=[f"{2 * z}.dcm" for z in range(5)])
    make_series(tmp_path, sharp, lambda ds, z: setattr(ds, "ConvolutionKernel", "LUNG"), names=[
        f"{2 * z + 1}.dcm" for z in range(5)
    ])  # fmt: skip
    uid = generate_uid(entropy_srcs=["series"])
    with pytest.raises(ReadError, match=rf"2 series: {uid}#1 \(kernel LUNG, .*5 slices.*{uid}#2.*--series {uid}#1"):
        read_dicom(tmp_path)
    assert np.array_equal(read_dicom(tmp_path, series_uid=f"{uid}#1").hu, sharp - 1024)
    assert np.array_equal(read_dicom(tmp_path, series_uid=f"{uid}#2").hu, soft - 1024)


def test_two_acquisitions_at_the_same_places_are_told_apart(tmp_path: Path) -> None:
    make_series(tmp_path / "a", stored_values())
    make_series(tmp_path / "b", stored_values(), lambda ds, z: setattr(ds, "AcquisitionNumber", 2))
    with pytest.raises(ReadError, match=r"2 series.*acquisition 1.*acquisition 2"):
        read_dicom(tmp_path)


def test_acquisition_numbers_that_count_slices_do_not_split_a_series(tmp_path: Path) -> None:
    folder = make_series(tmp_path, stored_values(), lambda ds, z: setattr(ds, "AcquisitionNumber", z + 1))
    assert len(read_dicom(folder).hu) == 5


def test_allowed_gaps_are_interpolated_and_recorded(tmp_path: Path) -> None:
    stored = stored_values(7)
    folder = make_series(tmp_path, stored)
    for z in (2, 3):
        (folder / f"IM-{z:04d}.dcm").unlink()
    volume = read_dicom(folder, allow_gaps=True)
    below, above = stored[1] - 1024.0, stored[4] - 1024.0
    assert np.array_equal(volume.hu[2], np.rint(below * 2 / 3 + above / 3))
    assert np.array_equal(volume.hu[3], np.rint(below / 3 + above * 2 / 3))
    assert np.array_equal(volume.hu[4:], stored[4:] - 1024)
    assert volume.provenance.steps[-1].name == "interpolate_gaps"
    assert volume.provenance.steps[-1].params == {"slices": [2, 3]}
    assert [bool(f) for f in volume.provenance.source.files] == [True, True, False, False, True, True, True]


def test_synthetic_data_of_others_comes_back_as_forged(tmp_path: Path) -> None:
    def edit(ds: Dataset, z: int) -> None:
        if z == 3:
            ds.SyntheticData = "YES"

    assert read_dicom(make_series(tmp_path, stored_values(), edit)).provenance.has_mark("forged")


@settings(max_examples=15, deadline=None)
@given(
    order=st.permutations(range(6)),
    start=st.floats(-900, 900),
    spacing=st.sampled_from([0.5, 0.625, 1.25, 2.0, 3.3333, 5.0]),
    upwards=st.booleans(),
)
def test_any_order_of_files_and_positions(
    tmp_path_factory: pytest.TempPathFactory, order: list[int], start: float, spacing: float, upwards: bool
) -> None:
    stored = stored_values(6, 8)
    places = list(range(6)) if upwards else list(range(5, -1, -1))

    def edit(ds: Dataset, z: int) -> None:
        ds.ImagePositionPatient = ["-50", "-60", f"{start + places[z] * spacing:.2f}"]

    folder = make_series(tmp_path_factory.mktemp("order"), stored, edit, names=[f"{n}.dcm" for n in order])
    volume = read_dicom(folder)
    assert np.array_equal(volume.hu, (stored if upwards else stored[::-1]) - 1024)
    assert volume.geometry.spacing_zyx_mm[0] == pytest.approx(spacing, abs=0.005)


def test_holds_dicom(tmp_path: Path) -> None:
    (tmp_path / "note.dcm").write_text("no")
    assert not holds_dicom(tmp_path)
    make_series(tmp_path / "deep" / "er", stored_values(1), names=["no suffix"])
    assert holds_dicom(tmp_path)


@pytest.mark.real
def test_real_reconstructions_with_a_faked_common_uid_separate_by_kernel(tmp_path: Path, real_dir: Path) -> None:
    for kernel in "BL":
        for file in sorted((real_dir / f"Lung_Dx-A0001_{kernel}").glob("*.dcm"))[:12]:
            ds = pydicom.dcmread(file)
            ds.SeriesInstanceUID = "1.2.3"
            ds.save_as(tmp_path / f"{file.stem}{kernel}.dcm")
    with pytest.raises(ReadError, match=r"1\.2\.3#1 \(kernel B, 12 slices.*1\.2\.3#2 \(kernel L, 12 slices"):
        read_dicom(tmp_path)
    alone = read_dicom(real_dir / "Lung_Dx-A0001_L")
    assert np.array_equal(read_dicom(tmp_path, series_uid="1.2.3#2").hu, alone.hu[-12:]) or np.array_equal(
        read_dicom(tmp_path, series_uid="1.2.3#2").hu, alone.hu[:12]
    )


def test_zip_members_outside_the_archive_are_refused(tmp_path: Path) -> None:
    file = make_series(tmp_path / "series", stored_values(1)) / "IM-0000.dcm"
    for name in ("../escape.dcm", "/etc/escape.dcm", "a/../../escape.dcm", "C:\\escape.dcm"):
        with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
            archive.write(file, "fine.dcm")
            archive.writestr(zipfile.ZipInfo(name), file.read_bytes())
        with pytest.raises(ReadError, match="points outside the archive"):
            read_dicom(tmp_path / "evil.zip")
