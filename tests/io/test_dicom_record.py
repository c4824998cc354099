"""What a DICOM series says about itself beyond its attributes: one record, without identity, below the attributes."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

from ctguard.core.carried import to_text
from ctguard.core.errors import ReadError, WriteError
from ctguard.core.geometry import Geometry
from ctguard.core.marks import Mark, MarkKind
from ctguard.core.provenance import Provenance, Source, Step
from ctguard.core.volume import Volume
from ctguard.io.derived import write_dicom
from ctguard.io.dicom import read_dicom
from tests.io.dicom_factory import make_series, stored_values

GRID = Geometry((2, 8, 8), (2.0, 1.0, 1.0))
HU = np.zeros(GRID.shape_zyx, np.int16)
LONG_KERNEL = "a kernel of more than sixteen letters"


def _volume(kernel: str = "B30f", padding_hu: float | None = -2000.0, deidentified: bool = True) -> Volume:
    source = Source("mha", kernel=kernel, padding_hu=padding_hu, deidentified=deidentified)
    return Volume(HU, GRID, Provenance(source, (Step("crop", {"b": 1, "a": [2]}),), (Mark("protected", "a test"),)))


def _record(ds: Dataset) -> str:
    items = (str(item.ContributionDescription) for item in ds.ContributingEquipmentSequence)
    return "".join(m[1] for m in (re.fullmatch(r"ctguard-record \d+/\d+ \[(.*)\]", text) for text in items) if m)


def _each(folder: Path, edit: Callable[[Dataset], None]) -> None:
    for file in folder.iterdir():
        ds = pydicom.dcmread(file)
        edit(ds)
        ds.save_as(file)


def test_the_record_is_the_one_of_all_formats_and_in_standard_attributes(tmp_path: Path) -> None:
    for file in write_dicom(_volume(), tmp_path / "a"):
        ds = pydicom.dcmread(file)
        assert _record(ds) == to_text(_volume().provenance)
        assert not [element for element in ds.iterall() if element.tag.is_private]


@pytest.mark.parametrize("kind", ["forged", "protected", "sealed"])
def test_the_record_holds_nothing_of_the_source(tmp_path: Path, kind: MarkKind) -> None:
    source = read_dicom(make_series(tmp_path / "a", stored_values()))
    uids = {str(e.value) for e in pydicom.dcmread(tmp_path / "a" / "IM-0000.dcm").iterall() if e.VR == "UI"}
    files = write_dicom(source.changed(source.hu, Step("copy", {"seed": 1}), Mark(kind, "a test")), tmp_path / "b")
    record = _record(pydicom.dcmread(files[0])).upper()
    assert "A TEST" in record
    words = ("JANE", "DOE", "MRN123", "20010203", "19500101", "ACC77", "HOSPITAL", str(tmp_path).upper(), *uids)
    assert not [word for word in words if word in record]


@pytest.mark.parametrize("secret", ["/data/patients/doe", "1.2.840.113619.2.55.3.604688119"])
def test_a_step_with_a_path_or_a_uid_is_not_written(tmp_path: Path, secret: str) -> None:
    volume = _volume().changed(HU, Step("read", {"from": {"files": [secret]}}))
    with pytest.raises(WriteError, match="holds a path or a UID"):
        write_dicom(volume, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("deidentified", [True, False])
def test_source_fields_come_back(tmp_path: Path, deidentified: bool) -> None:
    volume = _volume(LONG_KERNEL, -50000.0, deidentified)  # neither fits its attribute
    write_dicom(volume, tmp_path / "a")
    again = read_dicom(tmp_path / "a").provenance
    assert (again.source.kernel, again.source.padding_hu) == (LONG_KERNEL, -50000.0)
    assert again.source.deidentified == deidentified
    assert (again.steps, again.marks) == (volume.provenance.steps, volume.provenance.marks)


def test_attributes_stand_above_the_record(tmp_path: Path) -> None:
    def edit(ds: Dataset) -> None:
        ds.ConvolutionKernel, ds.PixelPaddingValue, ds.PatientIdentityRemoved = "LUNG", -3000, "NO"

    write_dicom(_volume(), tmp_path / "a")
    _each(tmp_path / "a", edit)
    source = read_dicom(tmp_path / "a").provenance.source
    assert (source.kernel, source.padding_hu, source.deidentified) == ("LUNG", -3000.0, False)


def test_the_record_stands_in_for_attributes_that_an_archive_dropped(tmp_path: Path) -> None:
    def edit(ds: Dataset) -> None:
        del ds.ConvolutionKernel, ds.PixelPaddingValue, ds.PatientIdentityRemoved

    write_dicom(_volume(), tmp_path / "a")
    _each(tmp_path / "a", edit)
    source = read_dicom(tmp_path / "a").provenance.source
    assert (source.kernel, source.padding_hu, source.deidentified) == ("B30f", -2000.0, True)


@pytest.mark.parametrize(
    ("old", "new"), [("1/1", "1/2"), ("1/1", "2/1"), ("1/1", "1/999999"), ('"marks":', '"mark":'), ("[{", "[")]
)
def test_a_damaged_record_is_refused(tmp_path: Path, old: str, new: str) -> None:
    def edit(ds: Dataset) -> None:
        item = ds.ContributingEquipmentSequence[-1]
        assert old in item.ContributionDescription
        item.ContributionDescription = item.ContributionDescription.replace(old, new)

    write_dicom(_volume(), tmp_path / "a")
    _each(tmp_path / "a", edit)
    with pytest.raises(ReadError, match=r"0000\.dcm: its ctguard record is damaged"):
        read_dicom(tmp_path / "a")
