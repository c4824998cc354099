"""The hazard table and the intended use: every control is there, every figure is one of the benchmarks."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HAZARDS = (ROOT / "docs" / "concepts" / "hazards.md").read_text(encoding="utf-8")
USE = (ROOT / "docs" / "concepts" / "intended-use.md").read_text(encoding="utf-8")
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in HAZARDS.splitlines()
    if re.match(r"\| \d+ \|", line)
]


def test_the_rows_are_numbered_and_complete() -> None:
    assert [int(row[0]) for row in ROWS] == list(range(1, len(ROWS) + 1))
    assert {len(row) for row in ROWS} == {7} and all(all(row) for row in ROWS)
    assert [row[0] for row in ROWS if not re.fullmatch(r"[1-5]", row[3])] == []


def test_a_control_never_makes_it_worse() -> None:
    changes = [tuple(map(int, re.fullmatch(r"([1-5]) → ([1-5])", row[4]).groups())) for row in ROWS]  # type: ignore[union-attr]
    assert [row[0] for row, (before, after) in zip(ROWS, changes, strict=True) if after > before] == []


def test_every_control_names_something_that_exists() -> None:
    empty, gone = [], []
    for row in ROWS:
        named = [name for name in re.findall(r"`([^`]+)`", row[5]) if "/" in name or "." in name]
        gone += [f"{row[0]}: {name}" for name in named if not (ROOT / name).is_file()]
        if not named:
            empty.append(row[0])
    assert (empty, gone) == ([], [])


def test_figures_of_the_intended_use_are_those_of_the_benchmark() -> None:
    benchmark = (ROOT / "docs" / "benchmarks" / "detection.md").read_text(encoding="utf-8")
    stated = re.findall(r"\d\.\d{3} \[[^\]]+\]|\b\d+ patients?\b|below [\d.]+ %", USE)
    assert len(stated) >= 2
    flat = " ".join(benchmark.split())
    assert [figure for figure in stated if figure not in flat] == []
