"""stored_range_hu: an edit clipped to it is always written, one beyond it never."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset

from ctguard.core.errors import WriteError
from ctguard.core.provenance import Step
from ctguard.core.volume import Volume
from ctguard.io.derived import stored_range_hu, write_dicom
from ctguard.io.dicom import read_dicom
from tests.io.dicom_factory import make_enhanced, make_series, pixel_type, stored_values


@pytest.mark.parametrize(
    ("slope", "intercept", "signed", "bits", "expected"),
    [
        ("1", "-1024", False, 12, (-1024, 3071)),
        ("1", "0", True, 16, (-32768, 32767)),
        ("1", "-1024", False, 16, (-1024, 64511)),
        ("2", "-1000", True, 12, (-5096, 3094)),
        ("-1", "1024", True, 12, (-1023, 3072)),
        ("0.5", "-1024", False, 12, (-1024, 1023.5)),
    ],
)
def test_ends_are_written_and_what_lies_beyond_is_not(
    tmp_path: Path, slope: str, intercept: str, signed: bool, bits: int, expected: tuple[float, float]
) -> None:
    source = read_dicom(make_series(tmp_path / "a", stored_values(3), pixel_type(slope, intercept, signed, bits)))
    assert stored_range_hu(source) == expected
    hu = source.hu.astype(np.float32)
    hu[1, 0, :2] = expected
    write_dicom(source.changed(hu, Step("edit")), tmp_path / "b")
    assert np.array_equal(read_dicom(tmp_path / "b").hu[1, 0, :2], expected)
    for place, beyond in enumerate((expected[0] - abs(float(slope)), expected[1] + abs(float(slope)))):
        hu[1, 0, place] = beyond
        with pytest.raises(WriteError, match="1 changed voxels of slice 1 do not fit"):
            write_dicom(source.changed(hu, Step("edit")), tmp_path / "c")
        hu[1, 0, place] = expected[place]


def test_every_slice_must_hold_it(tmp_path: Path) -> None:
    def edit(ds: Dataset, z: int) -> None:
        pixel_type("1", str(-1000 - 10 * z if z != 1 else -900), bits=12)(ds, z)

    source = read_dicom(make_series(tmp_path, stored_values(3), edit))
    assert stored_range_hu(source) == (-900, 4095 - 1020)


def test_frames_zips_and_gaps(tmp_path: Path) -> None:
    enhanced = read_dicom(make_enhanced(tmp_path / "enhanced.dcm", stored_values(4), [2, 0, 3, 1]))
    assert stored_range_hu(enhanced) == (-1024, 65535 - 1027)
    folder = make_series(tmp_path / "series", stored_values(6))
    (folder / "IM-0002.dcm").unlink()
    archive = shutil.make_archive(str(tmp_path / "scan"), "zip", folder)
    assert stored_range_hu(read_dicom(Path(archive), allow_gaps=True)) == (-1024, 64511)


def test_none_without_a_source_to_paste_into(tmp_path: Path) -> None:
    source = read_dicom(make_series(tmp_path / "a", stored_values()))
    assert stored_range_hu(source) is not None
    grid = source.geometry.crop((0, 4, 4), (5, 16, 16))
    assert stored_range_hu(Volume(source.hu[:, 4:20, 4:20], grid, source.provenance)) is None
    (tmp_path / "a" / "IM-0003.dcm").unlink()
    assert stored_range_hu(source) is None
