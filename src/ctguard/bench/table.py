"""Tables as Markdown, plain JSON and CSV."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ctguard.bench.metrics import Interval
from ctguard.core.records import Table
from ctguard.io.atomic import atomic_files


def text_of(value: Any) -> str:
    """A cell for people: a figure with its interval, where it has one, a float with three digits, nothing for None."""
    if isinstance(value, Interval):
        if np.isnan(value.low):
            return f"{value.value:.3f}"
        return f"{value.value:.3f} [{value.low:.3f}, {value.high:.3f}]"
    if isinstance(value, float):
        return f"{value:.3f}"
    return "" if value is None else str(value)


def as_texts(table: Table) -> Table:
    """The same table with every cell a text, as reports show it."""
    rows = tuple({column: text_of(row.get(column)) for column in table.columns} for row in table.rows)
    return Table(table.title, table.columns, rows, table.n, table.run_id, table.checkpoints)


def markdown(table: Table) -> str:
    """A table as Markdown, its n and hashes below it."""
    lines = [f"**{table.title}**", "", "| " + " | ".join(table.columns) + " |", "|" + "---|" * len(table.columns)]
    lines += ["| " + " | ".join(text_of(row.get(column)) for column in table.columns) + " |" for row in table.rows]
    counts = ", ".join(f"{count} {name}" for name, count in table.n.items())
    hashes = ", ".join(f"{name} {sha[:12]}" for name, sha in table.checkpoints.items())
    return "\n".join([*lines, "", f"n: {counts}. 95 % intervals. Checkpoints: {hashes}. Run {table.run_id}."])


def plain(table: Table) -> dict[str, Any]:
    """A table as JSON values; what is no number becomes None."""
    return {**asdict(table), "rows": [{key: _plain(value) for key, value in row.items()} for row in table.rows]}


def _plain(value: Any) -> Any:
    if isinstance(value, Interval):
        return {key: _plain(part) for key, part in asdict(value).items()}
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value


def write_tables(tables: Sequence[Table], notes: Sequence[str], folder: Path, stem: str) -> list[Path]:
    """STEM.json and STEM.md: tables and notes; their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{stem}.{ending}" for ending in ("json", "md")]
    with atomic_files(paths[0]) as stage:
        record = {"tables": [plain(table) for table in tables], "notes": list(notes)}
        (stage / paths[0].name).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        blocks = [*(markdown(table) for table in tables), *notes]
        (stage / paths[1].name).write_text("\n\n".join(blocks) + "\n", encoding="utf-8")
    return paths


def write_csv(rows: Sequence[Mapping[str, Any]], path: Path) -> Path:
    """One line per row, the columns of all of them; `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_files(path) as stage, (stage / path.name).open("w", newline="", encoding="utf-8") as stream:
        columns = list(dict.fromkeys(key for row in rows for key in row))
        writer = csv.DictWriter(stream, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: _csv(value) for key, value in row.items()} for row in rows)
    return path


def _csv(value: Any) -> Any:
    if isinstance(value, float):
        return f"{value:.9g}" if np.isfinite(value) else ""
    return value
