"""Segments and map lie on the very voxels that were marked, whatever the order and the orientation of the slices."""

from __future__ import annotations

from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import EnhancedCTImageStorage

from ctguard import io
from ctguard.core.errors import GeometryError, WriteError
from ctguard.core.provenance import Step
from ctguard.export.results import write_results
from tests.export.series import (
    BRIGHT,
    LESS_BRIGHT,
    ORIENTATIONS,
    Points,
    affine_points,
    bright_points,
    frame_points,
    make_marked,
    marked_values,
    verdict_of,
)
from tests.io.dicom_factory import AXIAL, make_enhanced


def written(source: Path, out: Path, *, allow_gaps: bool = False) -> Path:
    volume = io.read(source, allow_gaps=allow_gaps)
    write_results(volume, verdict_of(volume), out)
    return out


def segment_points(ds: Dataset, number: int) -> Points:
    frames = ds.pixel_array.reshape(-1, ds.Rows, ds.Columns)
    found: Points = set()
    for frame, group in enumerate(ds.PerFrameFunctionalGroupsSequence):
        if group.SegmentIdentificationSequence[0].ReferencedSegmentNumber == number:
            found |= frame_points(ds, frame, frames[frame] == 1)
    return found


def map_points(ds: Dataset, low: float, high: float) -> Points:
    frames = np.frombuffer(ds.FloatPixelData, "<f4").reshape(ds.NumberOfFrames, ds.Rows, ds.Columns)
    inside = (frames > low) & (frames < high)
    return set().union(*(frame_points(ds, frame, inside[frame]) for frame in range(len(frames))))


@pytest.mark.parametrize("name", ["axial, from the feet", *ORIENTATIONS])
def test_segments_and_map_lie_on_the_marked_voxels(name: str, tmp_path: Path) -> None:
    """Told by pydicom with the functional groups alone, and by highdicom's reader with its affine."""
    orientation, from_the_head = (ORIENTATIONS[name], True) if name in ORIENTATIONS else (AXIAL, False)
    series = make_marked(tmp_path / "series", orientation, from_the_head=from_the_head)
    out = written(series, tmp_path / "out")
    files = sorted(series.iterdir())
    first, second = bright_points(files, BRIGHT), bright_points(files, LESS_BRIGHT)
    assert (len(first), len(second)) == (78, 108)
    seg, heat = pydicom.dcmread(out / "seg.dcm"), pydicom.dcmread(out / "map.dcm")
    assert segment_points(seg, 1) == first
    assert segment_points(seg, 2) == second
    assert map_points(heat, 0.85, 0.95) == first
    assert map_points(heat, 0.7, 0.75) == second
    block = hd.seg.segread(out / "seg.dcm").get_volume(combine_segments=True)
    assert affine_points(np.argwhere(block.array == 1), block.affine) == first
    assert affine_points(np.argwhere(block.array == 2), block.affine) == second
    hot = hd.imread(out / "map.dcm").get_volume()
    assert affine_points(np.argwhere(hot.array > 0.85), hot.affine) == first


def test_each_frame_names_the_image_below_it(tmp_path: Path) -> None:
    series = make_marked(tmp_path / "series", ORIENTATIONS["oblique"], from_the_head=True)
    out = written(series, tmp_path / "out")
    positions = {}
    for file in series.iterdir():
        header = pydicom.dcmread(file)
        positions[header.SOPInstanceUID] = header.ImagePositionPatient
    for name in ("seg.dcm", "map.dcm"):
        ds = pydicom.dcmread(out / name)
        for group in ds.PerFrameFunctionalGroupsSequence:
            (item,) = group.DerivationImageSequence[0].SourceImageSequence
            assert group.PlanePositionSequence[0].ImagePositionPatient == positions[item.ReferencedSOPInstanceUID]
            assert "ReferencedFrameNumber" not in item
        (listed,) = ds.ReferencedSeriesSequence
        assert listed.SeriesInstanceUID == header.SeriesInstanceUID
        assert {item.ReferencedSOPInstanceUID for item in listed.ReferencedInstanceSequence} == set(positions)
        assert ds.FrameOfReferenceUID == header.FrameOfReferenceUID
        assert ds.StudyInstanceUID == header.StudyInstanceUID


def test_the_map_is_the_verdicts_bit_for_bit(tmp_path: Path) -> None:
    volume = io.read(make_marked(tmp_path / "series"))
    verdict = verdict_of(volume)
    write_results(volume, verdict, tmp_path / "out")
    ds = pydicom.dcmread(tmp_path / "out" / "map.dcm")
    by_height = sorted(
        (float(group.PlanePositionSequence[0].ImagePositionPatient[2]), frame)
        for frame, group in enumerate(ds.PerFrameFunctionalGroupsSequence)
    )
    frames = np.frombuffer(ds.FloatPixelData, "<f4").reshape(verdict.map.shape)
    assert np.array_equal(frames[[frame for _, frame in by_height]], verdict.map)


def test_frames_of_an_enhanced_source_are_referred_to_by_number(tmp_path: Path) -> None:
    order = [2, 0, 3, 1, 8, 4, 7, 5, 6]
    stored = marked_values()
    source = make_enhanced(tmp_path / "enhanced.dcm", stored, order)
    original = pydicom.dcmread(source)
    # each frame has an intercept of its own there, which the phantom's threshold must not see
    for group in original.PerFrameFunctionalGroupsSequence:
        group.PixelValueTransformationSequence[0].RescaleIntercept = "-1024"
    original.save_as(source)
    out = written(source, tmp_path / "out")
    truth = {
        value: set().union(*(frame_points(original, frame, stored[z] == value) for frame, z in enumerate(order)))
        for value in (BRIGHT, LESS_BRIGHT)
    }
    seg = pydicom.dcmread(out / "seg.dcm")
    assert segment_points(seg, 1) == truth[BRIGHT]
    assert segment_points(seg, 2) == truth[LESS_BRIGHT]
    assert map_points(pydicom.dcmread(out / "map.dcm"), 0.85, 0.95) == truth[BRIGHT]
    for name in ("seg.dcm", "map.dcm"):
        ds = pydicom.dcmread(out / name)
        for group in ds.PerFrameFunctionalGroupsSequence:
            (item,) = group.DerivationImageSequence[0].SourceImageSequence
            assert item.ReferencedSOPInstanceUID == original.SOPInstanceUID
            assert item.ReferencedSOPClassUID == EnhancedCTImageStorage
            below = original.PerFrameFunctionalGroupsSequence[item.ReferencedFrameNumber - 1]
            position = below.PlanePositionSequence[0].ImagePositionPatient
            assert group.PlanePositionSequence[0].ImagePositionPatient == position
        (listed,) = ds.ReferencedSeriesSequence
        assert [i.ReferencedSOPInstanceUID for i in listed.ReferencedInstanceSequence] == [original.SOPInstanceUID]
    key = pydicom.dcmread(out / "key.dcm").ContentSequence[-1].ReferencedSOPSequence[0]
    assert key.ReferencedSOPInstanceUID == original.SOPInstanceUID
    assert order[key.ReferencedFrameNumber - 1] in (1, 2, 3)


def test_a_series_of_several_multi_frame_objects_is_referred_to_object_by_object(tmp_path: Path) -> None:
    stored = marked_values()
    for name, order in (("a", [2, 0, 1, 3]), ("b", [8, 4, 7, 5, 6])):
        file = make_enhanced(tmp_path / "series" / f"{name}.dcm", stored, order)
        part = pydicom.dcmread(file)
        part.SOPInstanceUID = part.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{len(order)}"
        for group in part.PerFrameFunctionalGroupsSequence:
            group.PixelValueTransformationSequence[0].RescaleIntercept = "-1024"
            # as several makers have it: orientation in each frame
            group.PlaneOrientationSequence = part.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence
        del part.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence
        part.save_as(file)
    out = written(tmp_path / "series", tmp_path / "out")
    ds = pydicom.dcmread(out / "map.dcm")
    named = set()
    for group in ds.PerFrameFunctionalGroupsSequence:
        (item,) = group.DerivationImageSequence[0].SourceImageSequence
        order = {"1.2.3.4": [2, 0, 1, 3], "1.2.3.5": [8, 4, 7, 5, 6]}[item.ReferencedSOPInstanceUID]
        z = order[item.ReferencedFrameNumber - 1]
        assert float(group.PlanePositionSequence[0].ImagePositionPatient[2]) == -300 + 2.5 * z
        named.add(z)
    assert named == set(range(9))
    (listed,) = ds.ReferencedSeriesSequence
    assert sorted(i.ReferencedSOPInstanceUID for i in listed.ReferencedInstanceSequence) == ["1.2.3.4", "1.2.3.5"]


def test_nothing_lies_on_a_slice_that_was_interpolated(tmp_path: Path) -> None:
    series = make_marked(tmp_path / "series")
    (series / "IM-0002.dcm").unlink()
    out = written(series, tmp_path / "out", allow_gaps=True)
    files = sorted(series.iterdir())
    seg = pydicom.dcmread(out / "seg.dcm")
    assert segment_points(seg, 1) == bright_points(files, BRIGHT)
    assert pydicom.dcmread(out / "map.dcm").NumberOfFrames == len(files)


def test_a_scan_on_another_grid_than_its_files_has_no_results(tmp_path: Path) -> None:
    volume = io.read(make_marked(tmp_path / "series"))
    cropped = type(volume)(
        volume.hu[:, 2:], volume.geometry.crop((0, 2, 0), (9, 22, 36)), volume.provenance.then(Step("crop"))
    )
    with pytest.raises(WriteError, match="another grid"):
        write_results(cropped, verdict_of(cropped), tmp_path / "out")
    with pytest.raises(GeometryError, match="another grid"):
        write_results(volume, verdict_of(cropped), tmp_path / "out")
    assert not (tmp_path / "out").exists()
