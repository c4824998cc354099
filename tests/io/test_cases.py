"""Case tables: round trip, and errors that name the row."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset

from ctguard.core.errors import DataError, ReadError
from ctguard.core.records import Case, Finding
from ctguard.io.cases import COLUMNS, case_path, read_case, read_cases, write_cases
from tests.io.dicom_factory import make_series, stored_values

CASES = [
    Case("a", "p1", "scans/a", "phantom", "1.2.3", "train", (Finding((1.5, -2.25, 1 / 3), 8.5, 4.5, "reader"),)),
    Case("b", "p1", 'odd, "name"\nof scan', "", "", "train"),
    Case("c", "p2", "ü.nii.gz", split="test", findings=(Finding((0, 0, 0), 3.0), Finding((1, 2, 3), 30.0, 1.0))),
    Case("d", "p3", "d"),
]


def _table(tmp_path: Path, *rows: str) -> Path:
    path = tmp_path / "index.csv"
    path.write_text("\n".join(rows) + "\n")
    return path


def test_round_trip_and_the_same_bytes(tmp_path: Path) -> None:
    write_cases(CASES, tmp_path / "a.csv")
    assert read_cases(tmp_path / "a.csv") == CASES
    write_cases(read_cases(tmp_path / "a.csv"), tmp_path / "b.csv")
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    assert (tmp_path / "a.csv").read_text().splitlines()[0] == ",".join(COLUMNS)


def test_path_is_taken_from_the_index(tmp_path: Path) -> None:
    assert case_path(tmp_path / "index.csv", CASES[0]) == tmp_path / "scans" / "a"


def test_the_series_that_the_index_names_is_read_of_a_folder_with_two(tmp_path: Path) -> None:
    stored = {"1.2.3.1": stored_values(seed=1), "1.2.3.2": stored_values(seed=2)}
    for number, (uid, values) in enumerate(stored.items()):

        def of_series(ds: Dataset, z: int, uid: str = uid) -> None:
            ds.SeriesInstanceUID, ds.SOPInstanceUID = uid, f"{uid}.{z}"

        make_series(tmp_path / "scans", values, of_series, names=[f"{number}-{z}.dcm" for z in range(len(values))])
    for uid, values in stored.items():
        case = Case(uid, "p", "scans", series_uid=uid)
        assert np.array_equal(read_case(tmp_path / "index.csv", case).hu, values - 1024)
    with pytest.raises(ReadError, match="2 series"):
        read_case(tmp_path / "index.csv", Case("c", "p", "scans"))


def test_missing_slices_of_a_case_are_filled_unless_refused(tmp_path: Path) -> None:
    folder = make_series(tmp_path / "scan", stored_values(6))
    (folder / "IM-0003.dcm").unlink()
    case = Case("c", "p", "scan")
    assert read_case(tmp_path / "index.csv", case).hu.shape[0] == 6
    with pytest.raises(ReadError, match="gap"):
        read_case(tmp_path / "index.csv", case, allow_gaps=False)


def test_a_spreadsheet_with_more_columns_and_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "index.csv"
    path.write_bytes("\ufeffpatient,scan_id,notes,path\r\np,s,hello,x\r\n".encode())
    assert read_cases(path) == [Case("s", "p", "x")]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (("scan_id,path", "a,b"), "column patient is missing"),
        (("",), "column scan_id, patient, path is missing"),
        (("scan_id,patient,path", "a,p,x", "a,p,y"), "row 2 has the scan_id 'a' of row 1"),
        (("scan_id,patient,path,split", "a,p,x,train", "b,q,x,test", "c,p,x,test"), "row 3 puts patient 'p' into test"),
        (("scan_id,patient,path,split", "a,p,x,train", "b,p,x,"), "row 2 puts patient 'p' into no split"),
        (("scan_id,patient,path,split", "a,p,x,dev"), "row 1: split 'dev' is unknown"),
        (("scan_id,patient,path", "a,p,x", "b,,y"), "row 2: its patient is empty"),
        (("scan_id,patient,path", "a,p,x,extra"), "row 1: it has more values"),
        (("scan_id,patient,path,findings", "a,p,x,[{]"), "row 1: its findings are damaged"),
        (("scan_id,patient,path,findings", 'a,p,x,"[{""diameter_mm"":3}]"'), "row 1: its findings are damaged"),
        (("scan_id,patient,path,findings", "a,p,x,7"), "row 1: its findings are damaged"),
    ],
)
def test_errors_name_the_row(rows: tuple[str, ...], words: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=words) as caught:
        read_cases(_table(tmp_path, *rows))
    assert "index.csv" in str(caught.value)


def test_leaking_cases_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="patient 'p'"):
        write_cases([Case("a", "p", "x", split="train"), Case("b", "p", "x", split="test")], tmp_path / "i.csv")
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_table(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_cases(tmp_path / "none.csv")
    (tmp_path / "scan.csv").write_bytes(bytes(range(256)) * 4)
    with pytest.raises(DataError):
        read_cases(tmp_path / "scan.csv")
