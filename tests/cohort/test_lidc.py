"""LIDC: readers' XML to lesions in patient space."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ctguard.cohort import lidc
from ctguard.cohort.headers import Series, find
from ctguard.core.errors import DataError, MissingExtraError, ReadError
from tests.cohort import make


@pytest.fixture
def one_series(tmp_path: Path) -> Series:
    return find(make.series(tmp_path / "dicom")).series[0]


def lesions(path: Path, series: Series) -> list[lidc.Lesion]:
    reading = lidc.parse_xml(path)
    assert reading is not None
    return lidc.lesions(reading, series)


def test_readers_marks_become_one_lesion_at_its_place(tmp_path: Path, one_series: Series) -> None:
    readers = [make.nodule(f"n{r}", 20, 15, half=4, slices=range(3, 8), malignancy=r + 2) for r in range(3)]
    (lesion,) = lesions(make.xml(tmp_path / "a.xml", *readers, ""), one_series)
    assert lesion.center_lps_mm == pytest.approx((-100 + 20 * 0.5, -50 + 15 * 0.5, 30 + 2 * 5))
    volume = 9 * 9 * 0.25 * 5 * 2.0  # the outline's own pixels are outside
    assert lesion.diameter_mm == pytest.approx((6 * volume / np.pi) ** (1 / 3))
    assert lesion.finding().malignancy == 3 and lesion.finding().source == "LIDC 3/4 readers"


def test_a_hole_is_taken_out(tmp_path: Path, one_series: Series) -> None:
    path = make.xml(tmp_path / "a.xml", make.nodule("n", 20, 15, 6, range(2, 6), 3, hole=2))
    (lesion,) = lesions(path, one_series)
    volume = (13 * 13 - 5 * 5) * 0.25 * 4 * 2.0
    assert lesion.diameter_mm == pytest.approx((6 * volume / np.pi) ** (1 / 3))


def test_two_marks_of_one_reader_never_share_a_lesion(tmp_path: Path, one_series: Series) -> None:
    left, right = (make.nodule(name, x, 15, 3, range(2, 5), 3) for name, x in (("l", 12), ("r", 20)))
    wide = make.nodule("wide", 17, 15, 8, range(2, 5), 5)
    found = lesions(make.xml(tmp_path / "a.xml", left + right, wide), one_series)
    assert sorted(sorted(mark.mark.name for mark in lesion.marks) for lesion in found) == [["l"], ["r", "wide"]]


def test_far_marks_stay_apart_and_points_are_no_findings(tmp_path: Path, one_series: Series) -> None:
    one = make.nodule("a", 10, 10, 2, range(1, 4), 1) + make.small("tiny", 30, 30, 6) + make.non_nodule("x", 5, 5, 2)
    path = make.xml(tmp_path / "a.xml", one, make.nodule("b", 38, 30, 2, range(7, 10), 5))
    reading = lidc.parse_xml(path)
    assert reading is not None and [m.name for m in reading.of("small")] == ["tiny"]
    assert [m.name for m in reading.of("non-nodule")] == ["x"]
    assert [lesion.malignancy for lesion in lidc.lesions(reading, one_series)] == [1, 5]


def test_a_mark_on_a_slice_that_is_not_there_is_named(tmp_path: Path, one_series: Series) -> None:
    path = make.xml(tmp_path / "a.xml", make.nodule("n", 20, 15, 4, range(10, 14), 3))
    with pytest.raises(DataError, match=r"no slice 1\.2\.3\.13"):
        lesions(path, one_series)


def test_a_document_type_is_refused_before_it_expands(tmp_path: Path) -> None:
    bomb = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10 if n else "a" * 10}">' for n in range(12))
    path = make.xml(tmp_path / "bomb.xml", "&e11;", doctype=f"<!DOCTYPE LidcReadMessage [{bomb}]>")
    with pytest.raises(ReadError, match="document type"):
        lidc.parse_xml(path)


@pytest.mark.parametrize("text", ["", "<a>", "plain text", '<?xml version="1.0" encoding="no-such"?><a/>'])
def test_what_is_no_xml_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.xml").write_text(text)
    with pytest.raises(ReadError, match=r"a\.xml"):
        lidc.parse_xml(tmp_path / "a.xml")


def test_broken_marks_and_other_xml(tmp_path: Path) -> None:
    path = make.xml(tmp_path / "a.xml", "<unblindedReadNodule><noduleID>n</noduleID></unblindedReadNodule>")
    with pytest.raises(ReadError, match="nodule n of reader 1 has no roi"):
        lidc.parse_xml(path)
    (tmp_path / "b.xml").write_text("<IdriReadMessage/>")
    assert lidc.parse_xml(tmp_path / "b.xml") is None


def test_without_pylidc_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install ctguard\[lidc\]"):
        lidc.find_database()
