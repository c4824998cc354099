"""Published CSV tables: checked columns, typed cells, errors that name file and line."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from ctguard.core.errors import DataError

T = TypeVar("T")


@dataclass(frozen=True)
class Row:
    """One line of a table; `line` counts from 1 with the header, as an editor shows it."""

    path: Path
    line: int
    cells: dict[str, str]

    def text(self, column: str) -> str:
        """The cell, without surrounding blanks. Raises DataError where it is empty."""
        value = self.cells[column].strip()
        if not value:
            raise self.error(column, "is empty")
        return value

    def number(self, column: str) -> float:
        """The cell as a finite float."""
        value = self._parse(column, float)
        if value != value or value in (float("inf"), float("-inf")):
            raise self.error(column, f"holds {self.cells[column]!r}, not a finite number")
        return value

    def integer(self, column: str) -> int:
        """The cell as an int."""
        return self._parse(column, int)

    def error(self, column: str, what: str) -> DataError:
        """A DataError that names file, line and column."""
        return DataError(
            f"column {column} {what}", where=f"{self.path}, line {self.line}", remedy="take the table as published"
        )

    def _parse(self, column: str, kind: Callable[[str], T]) -> T:
        try:
            return kind(self.text(column))
        except ValueError as error:
            raise self.error(column, f"holds {self.cells[column]!r}, not a number") from error


def read_table(path: str | Path, columns: tuple[str, ...]) -> Iterator[Row]:
    """Rows of a CSV file that must have at least these columns.

    Raises DataError naming the file and the missing columns, or the line with too few or too many cells.
    """
    path = Path(path)
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream, strict=True)
            missing = [name for name in columns if name not in (reader.fieldnames or ())]
            if missing:
                raise DataError(
                    f"the table lacks the column{'s' if len(missing) > 1 else ''} {', '.join(missing)}",
                    where=path,
                    remedy=f"it must have {', '.join(columns)}",
                )
            for cells in reader:
                if None in cells or None in cells.values():
                    raise DataError("a line has too few or too many cells", where=f"{path}, line {reader.line_num}")
                yield Row(path, reader.line_num, cells)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"the table cannot be read ({error})", where=path, remedy="check the path and the file") from (
            error
        )
