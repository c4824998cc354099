"""`ctguard bench malignancy`: from a folder of forgeries to tables, the four histograms and one page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ctguard.bench.flips import forged_table, pristine_table, quality_table, site_lines
from ctguard.bench.malignancy import measure_folder
from ctguard.bench.table import write_csv
from ctguard.core.records import Split
from ctguard.io.forgeries import MANIFEST
from ctguard.io.manifest import RunManifest
from ctguard.report.bench_page import as_shown, write_bench
from ctguard.report.html import Picture
from ctguard.report.malignancy import histograms_figure

STEM = "malignancy"
TITLE = "Malignancy check"
_CAPTION = "Scores of pristine nodules and of forged sites, by generator; the threshold is the dashed line."


def bench_malignancy(
    data: Path, out: Path, *, split: Split = "test", weights: Path | None = None, command: Sequence[str], jobs: int = 1
) -> tuple[dict[str, Any], str]:
    """Measure, write OUT/malignancy.{csv,json,md,html,png}; the JSON and the Markdown.

    OUT/scans keeps the rows of finished scans. weights: the shipped scorer's where None. Raises as `measure_folder`.
    """
    rows, card = measure_folder(data, out / "scans", split=split, weights=weights, jobs=jobs)
    with RunManifest(out, command) as run:
        run.add_input(data / MANIFEST)
        tables = [
            pristine_table(rows, run.run_id, card),
            forged_table(rows, run.run_id, card),
            quality_table(rows, run.run_id),
        ]
        notes = [
            f"Threshold {card.threshold:.4f}: {card.threshold_note}. It was found before anything was forged.",
            card.notes,
            f"Split {split}. The scorer learned from: {card.data}.",
        ]
        figures = {STEM: Picture(histograms_figure(rows, card.threshold or 0.0), "Histograms of scores", _CAPTION)}
        csv = write_csv(site_lines(rows), out / f"{STEM}.csv")
        for path in (csv, *write_bench(out, STEM, TITLE, tables, notes, figures)):
            run.add_output(path)
    return as_shown(out, STEM, tables, notes)
