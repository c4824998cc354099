"""Which scans are known to be de-identified without saying so: series of LIDC-IDRI, by the archive's own UID."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ctguard import io
from ctguard.cohort.public import as_public, is_public
from ctguard.core.errors import RefusedError
from ctguard.core.provenance import Provenance
from ctguard.core.records import Case
from ctguard.core.volume import Volume
from ctguard.synth.forge import check_source
from tests.synth.scans import scan

UID = "1.3.6.1.4.1.14519.5.2.1.6279.6001.100225287222365663678666836860"


def luna(folder: Path, uid: str = UID, name: str = "") -> tuple[Case, Volume]:
    """A MetaImage as LUNA16 has it: named by its series, without any mark or flag."""
    path = folder / f"{name or uid}.mhd"
    io.write(scan(marks=()), path)
    return Case(uid, uid, path.name, "LUNA16", uid), io.read(path)


def test_a_scan_of_luna16_counts_and_its_volume_says_why(tmp_path: Path) -> None:
    case, volume = luna(tmp_path)
    with pytest.raises(RefusedError):
        check_source(volume)
    public = as_public(case, volume)
    check_source(public)
    assert public.provenance.source.deidentified
    assert [(step.name, dict(step.params)) for step in public.provenance.steps] == [
        ("public_collection", {"name": "LUNA16"})
    ]


@pytest.mark.parametrize(
    "change",
    [
        {"collection": ""},
        {"collection": "our hospital"},
        {"series_uid": "1.2.840.113619.2.55.3.604688119.971.1234567890.123"},
        {"series_uid": UID[:-1]},
        {"series_uid": UID[:-1] + "1"},  # a UID of the archive, and not that of the file
        {"series_uid": ""},
    ],
)
def test_nothing_else_counts(tmp_path: Path, change: dict[str, str]) -> None:
    case, volume = luna(tmp_path)
    other = replace(case, **change)  # type: ignore[arg-type]
    assert not is_public(other, volume)
    with pytest.raises(RefusedError):
        check_source(as_public(other, volume))


def test_a_clinical_file_under_luna16s_root_stays_refused(tmp_path: Path) -> None:
    case, volume = luna(tmp_path, name="patient_smith")
    assert not is_public(case, volume)


def test_a_dicom_series_must_carry_the_uid_of_its_row(tmp_path: Path) -> None:
    case, volume = luna(tmp_path)
    for own, expected in ((UID, True), ("1.2.3", False)):
        source = replace(volume.provenance.source, series_uid=own)
        dicom = Volume(volume.hu, volume.geometry, Provenance(source))
        assert is_public(case, dicom) is expected
