"""Case tables: one CSV row per scan, with its patient, split and findings."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import cast, get_args

from ctguard.core.errors import DataError
from ctguard.core.geometry import as_float_triple
from ctguard.core.records import Case, Finding, Split
from ctguard.core.volume import Volume
from ctguard.io import read
from ctguard.io.atomic import atomic_files

COLUMNS = ("scan_id", "patient", "path", "collection", "series_uid", "split", "findings")
_NEEDED = ("scan_id", "patient", "path")
_FIELD_LIMIT = 1 << 24


def twin_path(path: Path) -> Path:
    """Where the twin of a scan lies: the same scan without its nodule."""
    return path.with_name(f"{path.stem}.without{path.suffix}")


def read_cases(path: str | Path) -> list[Case]:
    """The cases of an index CSV, in row order. Columns beyond COLUMNS are ignored; the last four may be absent.

    Raises DataError naming the row for a missing column or value, a second row with the same scan_id, a patient in
    two splits and findings that are no JSON list; and where the file is missing or no CSV.
    """
    path = Path(path)
    csv.field_size_limit(_FIELD_LIMIT)
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            missing = [name for name in _NEEDED if name not in (reader.fieldnames or ())]
            if missing:
                raise DataError(f"column {', '.join(missing)} is missing", where=path, remedy=_COLUMNS_REMEDY)
            cases = [_case(row, f"{path}, row {number}") for number, row in enumerate(reader, start=1)]
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror or error})", where=path, remedy="check the path") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"it is no CSV table ({error})", where=path, remedy=_COLUMNS_REMEDY) from error
    check_cases(cases, str(path))
    return cases


def write_cases(cases: Iterable[Case], path: str | Path) -> None:
    """Write an index CSV, in the order given. Raises DataError as `check_cases` does, WriteError on a full disk."""
    path = Path(path)
    cases = list(cases)
    check_cases(cases, str(path))
    with atomic_files(path) as stage, (stage / path.name).open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(COLUMNS)
        for case in cases:
            findings = json.dumps([_finding_row(finding) for finding in case.findings]) if case.findings else ""
            table.writerow(
                (case.scan_id, case.patient, case.path, case.collection, case.series_uid, case.split or "", findings)
            )


def case_path(index_path: str | Path, case: Case) -> Path:
    """Where a case's scan lies: its path taken from the folder of the index file."""
    return Path(index_path).parent / case.path


def read_case(index_path: str | Path, case: Case, *, allow_gaps: bool = True) -> Volume:
    """A case's scan: of a folder with several DICOM series, the one that the index names.

    allow_gaps: fill missing slices by interpolation instead of refusing. Raises ReadError as `io.read` does.
    """
    return read(case_path(index_path, case), allow_gaps=allow_gaps, series_uid=case.series_uid or None)


def check_cases(cases: Iterable[Case], where: str) -> None:
    """Raise DataError for a scan_id that comes twice and for a patient in two splits, naming both rows."""
    rows: dict[str, int] = {}
    splits: dict[str, tuple[Split | None, int]] = {}
    for number, case in enumerate(cases, start=1):
        if case.scan_id in rows:
            what = f"row {number} has the scan_id {case.scan_id!r} of row {rows[case.scan_id]}"
            raise DataError(what, where=where, remedy="give each scan its own id")
        rows[case.scan_id] = number
        split, first = splits.setdefault(case.patient, (case.split, number))
        if split != case.split:
            here, there = case.split or "no split", split or "no split"
            what = f"row {number} puts patient {case.patient!r} into {here}, row {first} into {there}"
            raise DataError(what, where=where, remedy="keep all scans of a patient in one split")


_COLUMNS_REMEDY = f"give a CSV with the columns {','.join(COLUMNS)}"


def _case(row: Mapping[str | None, str | None], where: str) -> Case:
    values = {name: (row.get(name) or "").strip() for name in COLUMNS}
    if None in row:
        raise DataError("it has more values than there are columns", where=where, remedy="quote values with commas")
    for name in _NEEDED:
        if not values[name]:
            raise DataError(f"its {name} is empty", where=where, remedy="fill it in")
    if values["split"] not in ("", *get_args(Split)):
        raise DataError(f"split {values['split']!r} is unknown", where=where, remedy="give train, valid, test or none")
    split = cast(Split, values["split"]) if values["split"] else None
    scan, patient, path, collection, series_uid = (values[name] for name in COLUMNS[:5])
    return Case(scan, patient, path, collection, series_uid, split, _findings(values["findings"], where))


def _findings(text: str, where: str) -> tuple[Finding, ...]:
    if not text:
        return ()
    try:
        return tuple(
            Finding(
                center_lps_mm=as_float_triple(row["center_lps_mm"]),
                diameter_mm=float(row["diameter_mm"]),
                malignancy=None if row.get("malignancy") is None else float(row["malignancy"]),
                source=str(row.get("source", "")),
            )
            for row in json.loads(text)
        )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(
            f"its findings are damaged ({type(error).__name__}: {error})",
            where=where,
            remedy='give a JSON list of {"center_lps_mm":[x,y,z],"diameter_mm":d,"malignancy":m or null}',
        ) from error


def _finding_row(finding: Finding) -> dict[str, object]:
    return {
        "center_lps_mm": list(as_float_triple(finding.center_lps_mm)),
        "diameter_mm": float(finding.diameter_mm),
        "malignancy": None if finding.malignancy is None else float(finding.malignancy),
        "source": finding.source,
    }
