"""What every `ctguard bench` writes: its tables as JSON and Markdown, its figures, and all of it as one page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ctguard.bench.table import as_texts, markdown, write_tables
from ctguard.core.records import Table
from ctguard.report.html import Paragraph, Picture, Section, write_report


def write_bench(
    out: Path, stem: str, title: str, tables: Sequence[Table], notes: Sequence[str], figures: Mapping[str, Picture]
) -> list[Path]:
    """OUT/STEM.{json,md,html} and the figures as PNG; their paths. figures: file stem to picture, titled by its alt."""
    paths = write_tables(tables, notes, out, stem)
    sections = [Section(table.title, (as_texts(table),)) for table in tables]
    for name, picture in figures.items():
        paths.append(out / f"{name}.png")
        paths[-1].write_bytes(picture.png)
        sections.append(Section(picture.alt, (picture,)))
    sections.append(Section("Notes", [Paragraph(note, "note") for note in notes]))
    return [*paths, write_report(out, title, sections, f"{stem}.html")]


def as_shown(out: Path, stem: str, tables: Sequence[Table], notes: Sequence[str]) -> tuple[dict[str, Any], str]:
    """What the command line shows of it: the JSON that was written, and the Markdown."""
    record = json.loads((out / f"{stem}.json").read_text(encoding="utf-8"))
    return record, "\n\n".join([*map(markdown, tables), *notes])
