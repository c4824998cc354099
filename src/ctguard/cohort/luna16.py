"""LUNA16's annotation tables: nodules of at least 3 mm that three or more of LIDC's readers marked.

Setio et al., Med Image Anal 42:1, 2017. Coordinates are LPS millimetres, whatever the direction matrix of the
volume; the series UID names the scan, never the patient.
"""

from __future__ import annotations

import json
from pathlib import Path

from ctguard.cohort.tables import Row, read_table
from ctguard.core.records import Finding

COLUMNS = ("seriesuid", "coordX", "coordY", "coordZ", "diameter_mm")
_RATINGS = "mal_details"


def read_annotations(path: str | Path) -> dict[str, list[Finding]]:
    """Findings by series UID, from annotations.csv or from the version with LIDC's malignancy ratings.

    malignancy is the mean of the column mal_details where the table has it, else None.
    Raises DataError naming the missing column, or the line and the cell that is no number.
    """
    findings: dict[str, list[Finding]] = {}
    for row in read_table(path, COLUMNS):
        center = (row.number("coordX"), row.number("coordY"), row.number("coordZ"))
        diameter = row.number("diameter_mm")
        if diameter <= 0:
            raise row.error("diameter_mm", "is not positive")
        readers, malignancy = _ratings(row)
        source = f"LUNA16 {readers} readers" if readers else "LUNA16"
        findings.setdefault(row.text("seriesuid"), []).append(Finding(center, diameter, malignancy, source))
    return findings


def _ratings(row: Row) -> tuple[int, float | None]:
    """Number and mean of the readers' ratings, which the table writes as a list in a cell."""
    if _RATINGS not in row.cells:
        return 0, None
    try:
        ratings = json.loads(row.text(_RATINGS))
        if not isinstance(ratings, list) or not all(isinstance(one, int) and 1 <= one <= 5 for one in ratings):
            raise ValueError(row.cells[_RATINGS])
    except ValueError as error:
        raise row.error(_RATINGS, f"holds {row.cells[_RATINGS]!r}, not a list of ratings 1..5") from error
    return len(ratings), sum(ratings) / len(ratings) if ratings else None
