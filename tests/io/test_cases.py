"""Case tables: round trip, and errors that name the row."""

from __future__ import annotations

from pathlib import Path

import pytest

from ctguard.core.errors import DataError
from ctguard.core.records import Case, Finding
from ctguard.io.cases import COLUMNS, case_path, read_cases, write_cases

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
