"""What the objects say: score, model, regions, marks, dates; and what there is none of, and why."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

from ctguard import RESEARCH_USE_ONLY, io
from ctguard.core.errors import WriteError
from ctguard.core.marks import Mark
from ctguard.core.provenance import Step
from ctguard.core.volume import Volume
from ctguard.export.results import write_results
from tests.export.series import BRIGHT, MODEL, make_marked, verdict_of

FILES = ["key.dcm", "map.dcm", "seg.dcm", "sr.dcm"]


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Volume:
    return io.read(make_marked(tmp_path_factory.mktemp("scan") / "series", from_the_head=True))


@pytest.fixture(scope="module")
def found(scan: Volume, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Dataset]:
    return read(scan, tmp_path_factory.mktemp("found"))


def read(scan: Volume, out: Path, tampered: bool = True, localises: bool = True) -> dict[str, Dataset]:
    paths = write_results(scan, verdict_of(scan, tampered=tampered, localises=localises), out)
    return {path.name: pydicom.dcmread(path) for path in paths}


def spoken(ds: Dataset) -> str:
    """Every text of an object, codes by their meaning."""
    return " | ".join(str(element.value) for element in ds.iterall() if element.VR in ("LO", "UT", "ST", "LT", "SH"))


def report(ds: Dataset) -> hd.sr.MeasurementReport:
    content = hd.sr.Comprehensive3DSR.from_dataset(ds).content
    assert isinstance(content, hd.sr.MeasurementReport)
    return content


def test_there_are_four_objects_in_four_series_of_the_patients_study(scan: Volume, found: dict[str, Dataset]) -> None:
    source = pydicom.dcmread(scan.provenance.source.files[0])
    assert sorted(found) == FILES
    assert len({ds.SeriesInstanceUID for ds in found.values()} | {source.SeriesInstanceUID}) == 5
    assert len({ds.SOPInstanceUID for ds in found.values()}) == 4
    for ds in found.values():
        for keyword in ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyDate"):
            assert ds[keyword].value == source[keyword].value, keyword
        assert ds.AccessionNumber == "ACC77"
        assert "SyntheticData" not in ds
        assert RESEARCH_USE_ONLY in spoken(ds)
        assert ds.SeriesDescription.startswith("ctguard ")
        assert ds.SeriesDescription.endswith("research use only")


def test_the_report_holds_score_threshold_model_and_verdict(found: dict[str, Dataset]) -> None:
    ds = found["sr.dcm"]
    assert (ds.PreliminaryFlag, ds.VerificationFlag, ds.CompletionFlag) == ("PRELIMINARY", "UNVERIFIED", "COMPLETE")
    assert ds.ContentTemplateSequence[0].TemplateIdentifier == "1500"
    (scan,) = report(ds).get_image_measurement_groups()
    values = {m.name.value: m.value for m in scan.get_measurements()}
    assert values == {"SCORE": pytest.approx(0.9), "THRESHOLD": pytest.approx(0.6)}
    said = {item.name.value: item.value.meaning for item in scan.get_qualitative_evaluations()}
    assert said["VERDICT"] == "evidence of tampering"
    text = spoken(ds)
    assert f"model_sha256={MODEL}" in text
    assert "ctguard unet" in text
    assert "Evidence of tampering in 2 regions." in text


def test_each_region_is_a_segment_with_the_tracking_id_of_its_measurements(
    scan: Volume, found: dict[str, Dataset]
) -> None:
    seg = found["seg.dcm"]
    groups = report(found["sr.dcm"]).get_volumetric_roi_measurement_groups()
    segments = {one.SegmentNumber: one for one in seg.SegmentSequence}
    assert sorted(segments) == [1, 2]
    assert [group.referenced_segment.referenced_segment_numbers for group in groups] == [[1], [2]]
    bright = int((scan.hu == BRIGHT - 1024).sum())
    for group, peak in zip(groups, (0.9, 0.72), strict=True):
        segment = segments[group.referenced_segment.referenced_segment_numbers[0]]
        assert group.referenced_segment.referenced_sop_instance_uid == seg.SOPInstanceUID
        assert (group.tracking_identifier, group.tracking_uid) == (segment.TrackingID, segment.TrackingUID)
        values = {m.name.meaning: m.value for m in group.get_measurements()}
        assert values["Highest evidence of tampering in the region"] == pytest.approx(peak)
        if segment.SegmentNumber == 1:
            assert values["Volume"] == pytest.approx(bright * 0.7 * 0.8 * 2.5)
        algorithm = segment.SegmentationAlgorithmIdentificationSequence[0]
        assert MODEL in algorithm.AlgorithmParameters
    assert seg.SegmentationType == "BINARY"
    assert len({segment.TrackingUID for segment in segments.values()}) == 2


def test_the_comment_of_a_region_says_where_it_lies(scan: Volume, found: dict[str, Dataset]) -> None:
    x, y, z = verdict_of(scan).regions[0].center_lps_mm
    assert f"Centre at {x:.1f}, {y:.1f}, {z:.1f} mm" in spoken(found["sr.dcm"])


def test_the_map_says_what_it_measures_and_of_which_part(found: dict[str, Dataset]) -> None:
    (shared,) = found["map.dcm"].SharedFunctionalGroupsSequence
    (mapping,) = shared.RealWorldValueMappingSequence
    assert mapping.MeasurementUnitsCodeSequence[0].CodeMeaning == "no units"
    assert mapping.QuantityDefinitionSequence[0].ConceptCodeSequence[0].CodeValue == "TAMPERING_MAP"
    assert shared.FrameAnatomySequence[0].AnatomicRegionSequence[0].CodeMeaning == "Chest"
    assert (shared.FrameVOILUTSequence[0].WindowCenter, shared.FrameVOILUTSequence[0].WindowWidth) == (0.5, 1.0)


def test_the_key_object_is_a_slice_through_the_first_region(scan: Volume, found: dict[str, Dataset]) -> None:
    key = hd.ko.KeyObjectSelectionDocument.from_dataset(found["key.dcm"])
    (item,) = key.content.get_references()
    slices = [pydicom.dcmread(file).SOPInstanceUID for file in scan.provenance.source.files]
    assert (scan.hu[slices.index(item.referenced_sop_instance_uid)] == BRIGHT - 1024).any()
    assert found["key.dcm"].ConceptNameCodeSequence[0].CodeMeaning == "Of Interest"


def test_the_evidence_of_the_report_is_the_series_and_the_other_results(
    scan: Volume, found: dict[str, Dataset]
) -> None:
    (study,) = found["sr.dcm"].CurrentRequestedProcedureEvidenceSequence
    listed = {one.ReferencedSOPInstanceUID for s in study.ReferencedSeriesSequence for one in s.ReferencedSOPSequence}
    slices = {pydicom.dcmread(file).SOPInstanceUID for file in scan.provenance.source.files}
    assert listed == slices | {found[name].SOPInstanceUID for name in ("seg.dcm", "map.dcm", "key.dcm")}


def test_a_clean_verdict_has_a_report_and_a_map_but_no_segment(scan: Volume, tmp_path: Path) -> None:
    clean = read(scan, tmp_path, tampered=False)
    assert sorted(clean) == ["map.dcm", "sr.dcm"]
    text = spoken(clean["sr.dcm"])
    assert "no evidence of tampering found" in text
    assert "does not prove that a scan is genuine" in text
    assert "authentic" not in text and "Suspected" not in text
    assert not report(clean["sr.dcm"]).get_volumetric_roi_measurement_groups()


def test_a_detector_that_does_not_say_where_has_a_report_alone(scan: Volume, tmp_path: Path) -> None:
    nowhere = read(scan, tmp_path, localises=False)
    assert list(nowhere) == ["sr.dcm"]
    assert "this detector does not say where" in spoken(nowhere["sr.dcm"])


def test_the_same_series_and_verdict_give_the_same_bytes(scan: Volume, tmp_path: Path) -> None:
    verdict = verdict_of(scan)
    for name in ("a", "b"):
        write_results(scan, verdict, tmp_path / name)
    for name in FILES:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_another_verdict_of_the_same_series_has_other_uids(
    scan: Volume, found: dict[str, Dataset], tmp_path: Path
) -> None:
    for name, verdict in (
        ("score", replace(verdict_of(scan), score=0.91)),
        ("model", replace(verdict_of(scan), model_id="f" * 64)),
    ):
        write_results(scan, verdict, tmp_path / name)
        for file in FILES:
            assert pydicom.dcmread(tmp_path / name / file).SOPInstanceUID != found[file].SOPInstanceUID


def test_results_carry_the_date_of_the_study_unless_told(
    scan: Volume, found: dict[str, Dataset], tmp_path: Path
) -> None:
    assert {(ds.ContentDate, ds.ContentTime) for ds in found.values()} == {("20010203", "040506")}
    write_results(scan, verdict_of(scan), tmp_path, made=datetime(2026, 3, 4, 5, 6, 7))
    for name in FILES:
        ds = pydicom.dcmread(tmp_path / name)
        assert (ds.ContentDate, ds.ContentTime, ds.StudyDate) == ("20260304", "050607", "20010203")
        assert ds.SOPInstanceUID != found[name].SOPInstanceUID


def test_results_of_a_forgery_are_marked_as_one(scan: Volume, tmp_path: Path) -> None:
    forged = scan.changed(scan.hu, Step("forge"), Mark("forged", "nodule injected by a test"))
    io.write(forged, tmp_path / "forged")
    again = io.read(tmp_path / "forged")
    made = read(again, tmp_path / "out")
    assert sorted(made) == FILES
    for ds in made.values():
        assert ds.SyntheticData == "YES"
        assert ds.SeriesDescription.startswith("FORGED (research)")
        assert ds.PatientName == "CTGUARD^FORGED"
        assert ds.PatientIdentityRemoved == "YES"
        assert "nodule injected by a test" in spoken(ds)
        assert not any(word in spoken(ds) + str(ds.PatientName) for word in ("DOE", "MRN123", "General Hospital"))


def test_results_beside_their_series_do_not_hinder_reading_it(tmp_path: Path) -> None:
    series = make_marked(tmp_path / "series")
    volume = io.read(series)
    write_results(volume, verdict_of(volume), series)
    assert np.array_equal(io.read(series).hu, volume.hu)


def test_missing_or_odd_attributes_of_the_source_do_not_matter(tmp_path: Path) -> None:
    def worn(ds: Dataset, z: int) -> None:
        for keyword in ("PatientBirthDate", "AccessionNumber", "StudyID", "StudyTime", "BodyPartExamined"):
            delattr(ds, keyword)
        ds.ReferringPhysicianName = ""
        ds.SpecificCharacterSet = "ISO_IR 192"
        ds.PatientName, ds.PatientSex, ds.StudyDate = "Müller^Jürgen", "U", ""
        ds.SliceThickness = ""
        # rounding that differs from file to file
        ds.ImageOrientationPatient = [f"{1 - z * 1e-6:.7f}", "0", "0", "0", "1", "0"]

    made = read(io.read(make_marked(tmp_path / "series", edit=worn)), tmp_path / "out")
    assert sorted(made) == FILES
    for ds in made.values():
        assert (str(ds.PatientName), ds.PatientSex, ds.StudyID) == ("Müller^Jürgen", "U", "")
        assert (ds.ContentDate, ds.ContentTime) == ("19000101", "000000")


def _two_frames(ds: Dataset, z: int) -> None:
    ds.FrameOfReferenceUID = f"1.2.3.{z // 5}"


def _no_frame(ds: Dataset, z: int) -> None:
    del ds.FrameOfReferenceUID


@pytest.mark.parametrize("edit", [_two_frames, _no_frame])
def test_series_without_one_frame_of_reference_are_refused(edit: object, tmp_path: Path) -> None:
    volume = io.read(make_marked(tmp_path / "series", edit=edit))  # type: ignore[arg-type]
    with pytest.raises(WriteError, match="FrameOfReferenceUID"):
        write_results(volume, verdict_of(volume), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_source_that_is_not_dicom_is_refused_in_words(scan: Volume, tmp_path: Path) -> None:
    io.write(scan, tmp_path / "scan.mha")
    volume = io.read(tmp_path / "scan.mha")
    with pytest.raises(WriteError, match="need a DICOM series"):
        write_results(volume, verdict_of(volume), tmp_path / "out")
