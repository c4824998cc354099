"""write_dicom: unedited voxels survive bit for bit, marks always travel, and nothing of the patient leaks."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.uid import JPEG2000, ExplicitVRLittleEndian, JPEG2000Lossless, JPEGLSLossless, RLELossless

from ctguard.core.errors import ReadError
from ctguard.core.geometry import AXIAL_AXES, Geometry
from ctguard.core.marks import SERIES_DESCRIPTION, Mark, MarkKind
from ctguard.core.provenance import Provenance, Source, Step
from ctguard.core.volume import Volume
from ctguard.io.derived import write_dicom
from ctguard.io.dicom import read_dicom
from tests.io.dicom_factory import (
    AXIAL,
    CORONAL,
    SAGITTAL,
    ct_slice,
    make_enhanced,
    make_series,
    pixel_type,
    save,
    stored_values,
)

STEP = Step("tamper", {"seed": 7, "note": 'quotes " \\ and spaces  ', "model_sha256": "ab" * 32})
SITE = (slice(1, 3), slice(8, 12), slice(8, 12))


def edited(volume: Volume, kind: MarkKind | None, change_hu: float = 40) -> Volume:
    """The volume with a small cube changed, and a mark."""
    hu = volume.hu.copy()
    hu[SITE] += np.array(change_hu, dtype=hu.dtype)
    return volume.changed(hu, STEP, *([Mark(kind, "a test of 40 HU")] if kind else []))


def datasets(files: list[Path]) -> list[Dataset]:
    return [pydicom.dcmread(file) for file in files]


TYPES = [
    ("1", "-1024", False, 16, None),
    ("1", "-1024", False, 12, 0),
    ("1", "0", True, 16, -2000),
    ("1", "-24", True, 12, -2000),
    ("2", "-1024", False, 12, 63),
    ("4", "-1024", True, 12, -2048),
    ("-1", "1024", True, 16, -2000),
    ("0.5", "-1024", False, 16, 0),
    ("0.3", "-1000.7", True, 16, None),
    ("1", "30000", False, 16, None),
]


@pytest.mark.parametrize(("slope", "intercept", "signed", "bits", "padding"), TYPES)
@pytest.mark.parametrize("kind", ["forged", "protected", None])
def test_unedited_voxels_keep_their_stored_values(
    tmp_path: Path, slope: str, intercept: str, signed: bool, bits: int, padding: int | None, kind: MarkKind | None
) -> None:
    stored = stored_values(4, low=-1900 if signed else 100, high=1900 if signed else 3900)
    source = read_dicom(make_series(tmp_path / "a", stored, pixel_type(slope, intercept, signed, bits, padding)))
    volume = edited(source, kind)
    untouched = np.ones(stored.shape, dtype=bool)
    untouched[SITE] = False
    for z, ds in enumerate(datasets(write_dicom(volume, tmp_path / "b"))):
        original = pydicom.dcmread(tmp_path / "a" / f"IM-{z:04d}.dcm")
        assert np.array_equal(ds.pixel_array[untouched[z]], original.pixel_array[untouched[z]])
        same = ("BitsStored", "HighBit", "PixelRepresentation", "RescaleSlope", "RescaleIntercept", "PixelSpacing",
                "ImagePositionPatient", "ImageOrientationPatient")  # fmt: skip
        for keyword in same:
            assert ds[keyword].value == original[keyword].value, keyword
        assert ds.get("PixelPaddingValue") == original.get("PixelPaddingValue")
    again = read_dicom(tmp_path / "b")
    assert np.array_equal(again.hu[untouched], source.hu[untouched])
    assert np.abs(again.hu.astype(float) - volume.hu)[SITE].max() <= abs(float(slope)) / 2 + 1e-3
    assert again.geometry == source.geometry


@settings(max_examples=20, deadline=None)
@given(
    slopes=st.lists(st.sampled_from(["1", "2", "0.5", "0.1", "-1"]), min_size=4, max_size=4),
    intercepts=st.lists(st.sampled_from(["-1024", "0", "-1000.5"]), min_size=4, max_size=4),
    orientation=st.sampled_from([AXIAL, SAGITTAL, CORONAL]),
    padded=st.booleans(),
    seed=st.integers(0, 99),
)
def test_round_trip_law(
    tmp_path_factory: pytest.TempPathFactory,
    slopes: list[str],
    intercepts: list[str],
    orientation: Any,
    padded: bool,
    seed: int,
) -> None:
    def edit(ds: Dataset, z: int) -> None:
        pixel_type(slopes[z], intercepts[z], padding=0 if padded else None)(ds, z)

    folder = tmp_path_factory.mktemp("law")
    stored = stored_values(4, 16, 100, 30000, seed)
    source = read_dicom(make_series(folder / "a", stored, edit, orientation=orientation))
    volume = edited(source, "forged")
    files = write_dicom(volume, folder / "b")
    untouched = np.ones(stored.shape, dtype=bool)
    untouched[SITE] = False
    if padded:
        stored[:, :4] = 0
    for z, ds in enumerate(datasets(files)):
        assert np.array_equal(ds.pixel_array[untouched[z]], stored[z][untouched[z]])
    again = read_dicom(folder / "b")
    assert again.geometry == source.geometry
    assert again.provenance.marks == volume.provenance.marks
    assert again.provenance.steps == volume.provenance.steps


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless])
def test_compressed_sources_are_decompressed(tmp_path: Path, syntax: Any) -> None:
    stored = stored_values(4)
    source = read_dicom(make_series(tmp_path / "a", stored, syntax=syntax))
    for z, ds in enumerate(datasets(write_dicom(edited(source, "protected"), tmp_path / "b"))):
        assert ds.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
        assert np.array_equal(ds.pixel_array[12:], stored[z, 12:])
        assert "LossyImageCompression" not in ds


def test_a_lossy_source_stays_known_as_lossy(tmp_path: Path) -> None:
    for z, plane in enumerate(stored_values(3)):
        ds = ct_slice(plane, z)
        save(ds, tmp_path / "a" / f"{z}.dcm")
        ds.compress(JPEG2000, j2k_cr=[4], generate_instance_uid=False)
        ds.save_as(tmp_path / "a" / f"{z}.dcm", enforce_file_format=True)
    source = read_dicom(tmp_path / "a")
    ds = datasets(write_dicom(edited(source, "forged"), tmp_path / "b"))[0]
    assert (ds.LossyImageCompression, ds.LossyImageCompressionMethod) == ("01", "ISO_15444_1")
    assert np.array_equal(read_dicom(tmp_path / "b").hu[0], source.hu[0])


@pytest.mark.parametrize("kind", ["forged", "protected", None])
def test_enhanced_sources_become_classic_slices(tmp_path: Path, kind: MarkKind | None) -> None:
    source = read_dicom(make_enhanced(tmp_path / "enhanced.dcm", stored_values(4), [2, 0, 3, 1]))
    volume = edited(source, kind)
    files = write_dicom(volume, tmp_path / "b")
    assert len(files) == 4
    again = read_dicom(tmp_path / "b")
    assert np.array_equal(again.hu, volume.hu)
    assert again.geometry == source.geometry
    assert str(pydicom.dcmread(files[0]).PatientName) == ("CTGUARD^FORGED" if kind == "forged" else "DOE^JANE")


def test_a_zip_as_source(tmp_path: Path) -> None:
    make_series(tmp_path / "series", stored_values())
    source = read_dicom(Path(shutil.make_archive(str(tmp_path / "scan"), "zip", tmp_path / "series")))
    volume = edited(source, None)
    write_dicom(volume, tmp_path / "b")
    assert np.array_equal(read_dicom(tmp_path / "b").hu, volume.hu)
    assert pydicom.dcmread(tmp_path / "b" / "0000.dcm").StudyDescription == "Chest of Jane"


def _identifying(ds: Dataset) -> None:
    """Everything that a forgery must not inherit, private tags, overlays and nested items included."""
    ds.OtherPatientIDs, ds.PatientAddress, ds.RequestedProcedureDescription = "OTHER9", "Jane Street 1", "Jane's scan"
    ds.DeviceSerialNumber, ds.ProtocolName, ds.ContrastBolusAgent = "SERIAL5", "Jane protocol", "Agent for Jane"
    ds.PerformedProcedureStepStartDate, ds.StudyInstanceUID = "20010203", "1.9.1"
    item = Dataset()
    item.ReferencedSOPInstanceUID, item.PatientName = "1.9.2", "DOE^JANE"
    ds.ReferencedImageSequence = [item]
    ds.private_block(0x0009, "MAKER", create=True).add_new(1, "LO", "Jane private")
    ds.add_new(0x60000010, "US", 32)
    ds.add_new(0x60000022, "LO", "Jane overlay")


def test_a_forgery_carries_nothing_of_the_patient(tmp_path: Path) -> None:
    folder = make_series(tmp_path / "a", stored_values(), lambda ds, z: _identifying(ds))
    originals = datasets(sorted(folder.iterdir()))
    source_uids = {str(e.value) for ds in originals for e in ds.iterall() if e.VR == "UI"}
    words = ("JANE", "DOE", "MRN123", "20010203", "040506", "ACC77", "HOSPITAL", "CT01", "WHO^", "OTHER9", "SERIAL5")
    files = write_dicom(edited(read_dicom(folder), "forged"), tmp_path / "b")
    for file, ds in zip(files, datasets(files), strict=True):
        text = file.read_bytes().upper()
        assert not [word for word in words if word.encode() in text]
        kept = {str(e.value) for e in ds.iterall() if e.VR == "UI"} & source_uids
        assert kept == {"1.2.840.10008.5.1.4.1.1.2"}
        assert not [e for e in ds.iterall() if e.tag.is_private]
        assert (ds.SyntheticData, ds.ContentQualification) == ("YES", "RESEARCH")
        assert (str(ds.PatientName), ds.AccessionNumber) == ("CTGUARD^FORGED", "")
        assert ds.PatientID.startswith("CTGUARD-")
        assert ds.SeriesDescription.startswith("FORGED (research)")
        assert ds.PatientIdentityRemoved == "YES"
        assert list(ds.ImageType) == ["DERIVED", "SECONDARY", "AXIAL"]
        assert "SourceImageSequence" not in ds
        equipment = ds.ContributingEquipmentSequence[0]
        assert equipment.PurposeOfReferenceCodeSequence[0].CodeValue == "109102"
        assert equipment.ManufacturerModelName == "ctguard"
        assert "ab" * 32 in equipment.ContributionDescription
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "PatientID"):
        assert len({ds[keyword].value for ds in datasets(files)}) == 1
    assert len({ds.SOPInstanceUID for ds in datasets(files)}) == 5


@pytest.mark.parametrize("kind", ["protected", "sealed", None])
def test_a_copy_stays_in_its_study_and_names_its_source(tmp_path: Path, kind: MarkKind | None) -> None:
    def edit(ds: Dataset, z: int) -> None:
        _identifying(ds)
        ds.DigitalSignaturesSequence = [Dataset()]
        ds.ReferencedImageSequence[0].DigitalSignaturesSequence = [Dataset()]
        ds.add_new("SmallestImagePixelValue", "US", 3)

    folder = make_series(tmp_path / "a", stored_values(), edit)
    files = write_dicom(edited(read_dicom(folder), kind), tmp_path / "b")
    for z, ds in enumerate(datasets(files)):
        original = pydicom.dcmread(folder / f"IM-{z:04d}.dcm")
        for keyword in ("StudyInstanceUID", "FrameOfReferenceUID", "PatientID", "PatientName", "StudyDate", "KVP"):
            assert ds[keyword].value == original[keyword].value
        assert ds.SeriesInstanceUID != original.SeriesInstanceUID
        assert ds.SOPInstanceUID != original.SOPInstanceUID
        assert ds.file_meta.MediaStorageSOPInstanceUID == ds.SOPInstanceUID
        assert list(ds.ImageType) == ["DERIVED", "SECONDARY", "AXIAL"]
        assert not [e for e in ds.iterall() if e.keyword == "DigitalSignaturesSequence"]
        assert "SmallestImagePixelValue" not in ds
        assert "SyntheticData" not in ds
        if kind:
            assert ds.SeriesDescription == SERIES_DESCRIPTION[kind]
            reference = ds.SourceImageSequence[0]
            assert reference.ReferencedSOPInstanceUID == original.SOPInstanceUID
            assert reference.PurposeOfReferenceCodeSequence[0].CodeValue == "121322"
            assert "40 HU" in ds.DerivationDescription


def phantom(dtype: Any = np.int16, scale: float = 1.0) -> Volume:
    axes = tuple(AXIAL_AXES)
    grid = Geometry((4, 24, 20), (1.25, 0.7, 0.71), (-20.5, 3.25, 100.123), axes)  # type: ignore[arg-type]
    hu = np.random.default_rng(0).normal(0, 400, grid.shape_zyx)
    hu = (np.rint(hu / scale) * scale if scale else hu).astype(dtype)
    source = Source("phantom", kernel="STANDARD", padding_hu=-1024, patient_id="phantom-3")
    return Volume(hu, grid, Provenance(source, (Step("render", {"seed": 3}),), (Mark("phantom", "seed 3"),)))


@pytest.mark.parametrize(
    ("dtype", "scale", "error_hu"),
    [(np.int16, 1.0, 0), (np.float32, 1.0, 0), (np.float32, 0.125, 0), (np.float32, 0.0, 0.04)],
)
def test_from_scratch(tmp_path: Path, dtype: Any, scale: float, error_hu: float) -> None:
    volume = phantom(dtype, scale)
    write_dicom(volume, tmp_path / "a")
    again = read_dicom(tmp_path / "a")
    assert np.abs(again.hu.astype(np.float64) - volume.hu).max() <= error_hu
    assert again.geometry.agrees(volume.geometry, 1e-5)
    assert again.provenance.marks == volume.provenance.marks
    assert again.provenance.steps == volume.provenance.steps
    assert (again.provenance.source.kernel, again.provenance.source.patient_id) == ("STANDARD", "phantom-3")
    ds = pydicom.dcmread(tmp_path / "a" / "0000.dcm")
    assert (ds.SyntheticData, ds.SeriesDescription) == ("YES", "PHANTOM (synthetic)")


def test_marks_pile_up_and_survive_an_archive_that_drops_the_record(tmp_path: Path) -> None:
    write_dicom(phantom(), tmp_path / "a")
    write_dicom(edited(read_dicom(tmp_path / "a"), "forged"), tmp_path / "b")
    assert [m.kind for m in read_dicom(tmp_path / "b").provenance.marks] == ["phantom", "forged"]
    for file in (tmp_path / "b").iterdir():
        ds = pydicom.dcmread(file)
        assert ds.SeriesDescription == "FORGED (research); PHANTOM (synthetic)"
        del ds.ContributingEquipmentSequence
        ds.save_as(file)
    assert read_dicom(tmp_path / "b").provenance.has_mark("forged")


def test_a_long_provenance_is_whole_and_a_damaged_one_is_refused(tmp_path: Path) -> None:
    step = Step("tamper", {"plan": [" x" * 50] * 60, "text": "ä\n\\"})
    volume = phantom().changed(phantom().hu, step, Mark("forged", "a test"))
    files = write_dicom(volume, tmp_path / "a")
    assert read_dicom(tmp_path / "a").provenance.steps == volume.provenance.steps
    ds = pydicom.dcmread(files[1])
    assert max(len(item.ContributionDescription) for item in ds.ContributingEquipmentSequence) <= 1024
    del ds.ContributingEquipmentSequence[3]
    ds.save_as(files[1])
    with pytest.raises(ReadError, match=r"0001\.dcm: its ctguard record is damaged"):
        read_dicom(tmp_path / "a")


def _bytes(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}


def test_same_volume_same_bytes(tmp_path: Path) -> None:
    source = read_dicom(make_series(tmp_path / "a", stored_values()))
    volume = edited(source, "forged")
    write_dicom(volume, tmp_path / "b")
    write_dicom(volume, tmp_path / "c")
    write_dicom(edited(source, "forged", 41), tmp_path / "d")
    assert _bytes(tmp_path / "b") == _bytes(tmp_path / "c")
    uids = [pydicom.dcmread(tmp_path / f / "0000.dcm").SeriesInstanceUID for f in "bd"]
    assert uids[0] != uids[1]
    assert all(uid.startswith("2.25.") and len(uid) <= 64 for uid in uids)


def test_an_output_folder_with_other_files_keeps_them(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "manifest.json").write_text("{}")
    write_dicom(phantom(), tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir())[-1] == "manifest.json"
    assert len(read_dicom(tmp_path / "out").hu) == 4
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_changed_grid_is_written_as_a_series_of_its_own(tmp_path: Path) -> None:
    source = read_dicom(make_series(tmp_path / "a", stored_values()))
    grid = source.geometry.crop((0, 4, 4), (5, 16, 16))
    cropped = Volume(source.hu[:, 4:20, 4:20].copy(), grid, source.provenance.then(Step("crop")))
    write_dicom(cropped, tmp_path / "b")
    again = read_dicom(tmp_path / "b")
    assert np.array_equal(again.hu, cropped.hu)
    assert again.geometry.agrees(grid)


def test_interpolated_slices_are_written_too(tmp_path: Path) -> None:
    folder = make_series(tmp_path / "a", stored_values(6))
    (folder / "IM-0002.dcm").unlink()
    source = read_dicom(folder, allow_gaps=True)
    write_dicom(source.changed(source.hu, Step("copy")), tmp_path / "b")
    assert np.array_equal(read_dicom(tmp_path / "b").hu, source.hu)


def findings(file: Path) -> set[str]:
    """Errors and warnings of dciodvfy."""
    done = subprocess.run(["dciodvfy", str(file)], capture_output=True, text=True, check=False)
    return {line for line in (done.stdout + done.stderr).splitlines() if "Error" in line or "Warning" in line}


ALLOWED = ("(0x0008,0x001c)", "this is a Standard Extended SOP Class")
"""SyntheticData is younger than the dictionary of dciodvfy, which then calls the object an extended class."""


def unexpected(files: list[Path], own: set[str]) -> set[str]:
    found = set().union(*(findings(file) for file in files)) - own
    return {line for line in found if not any(allowed in line for allowed in ALLOWED)}


needs_dciodvfy = pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="needs dciodvfy (Debian: dicom3tools)")


@needs_dciodvfy
@pytest.mark.parametrize("kind", ["forged", "protected", None])
def test_dciodvfy_finds_nothing_new_in_a_derived_series(tmp_path: Path, kind: MarkKind | None) -> None:
    folder = make_series(tmp_path / "a", stored_values())
    own = set().union(*(findings(file) for file in folder.iterdir()))
    assert not unexpected(write_dicom(edited(read_dicom(folder), kind), tmp_path / "b"), own)


@needs_dciodvfy
def test_dciodvfy_finds_nothing_in_a_series_from_scratch(tmp_path: Path) -> None:
    assert not unexpected(write_dicom(phantom(), tmp_path / "a"), set())
    assert not unexpected(write_dicom(phantom(np.float32, 0.0), tmp_path / "b"), set())
    enhanced = read_dicom(make_enhanced(tmp_path / "enhanced.dcm", stored_values(4), [2, 0, 3, 1]))
    assert not unexpected(write_dicom(edited(enhanced, "protected"), tmp_path / "c"), set())


@needs_dciodvfy
@pytest.mark.real
@pytest.mark.parametrize("name", ["LIDC-IDRI-0003", "R01-001", "Lung_Dx-A0001_B", "Lung_Dx-A0001_L"])
@pytest.mark.parametrize("kind", ["forged", "protected", None])
def test_dciodvfy_on_real_series(tmp_path: Path, real_dir: Path, name: str, kind: MarkKind | None) -> None:
    names = sorted((real_dir / name).glob("*.dcm"))[40:46]
    for file in names:
        shutil.copy(file, tmp_path / file.name)
    source = read_dicom(tmp_path)
    own = set().union(*(findings(Path(file)) for file in source.provenance.source.files))
    volume = edited(source, kind)
    files = write_dicom(volume, tmp_path / "out")
    assert np.array_equal(read_dicom(tmp_path / "out").hu, volume.hu)
    assert not unexpected(files, own)
