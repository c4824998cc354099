"""Rows that a killed run left: what was measured of a scan is kept with the hash of all that it depends on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ctguard.io.atomic import atomic_files

NAN = float("nan")
"""Not measured."""


def without_nan(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row as JSON can hold it: None for NaN."""
    return {key: None if isinstance(value, float) and np.isnan(value) else value for key, value in row.items()}


def with_nan(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row that `without_nan` was given."""
    return {key: NAN if value is None else value for key, value in row.items()}


def read_kept(path: Path, key: str) -> list[dict[str, Any]] | None:
    """Rows that a run left, None where there are none or they are of something else."""
    if not path.is_file():
        return None
    stored = json.loads(path.read_text(encoding="utf-8"))
    rows: list[dict[str, Any]] | None = stored["rows"] if stored["key"] == key else None
    return rows


def write_kept(path: Path, key: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Keep the rows of a finished scan."""
    with atomic_files(path) as stage:
        (stage / path.name).write_text(json.dumps({"key": key, "rows": list(rows)}), encoding="utf-8")
