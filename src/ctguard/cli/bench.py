"""The verbs of `ctguard bench`: tables of protocols.md, each a folder of CSV, JSON, Markdown and figures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from ctguard.cli.common import AsJson, Jobs, Quiet, command_line, show, verb

bench = typer.Typer(
    name="bench", help="Tables: what forgeries do, and what finds them.", no_args_is_help=True, rich_markup_mode=None
)


@bench.command(no_args_is_help=True)
@verb
def malignancy(
    data: Annotated[Path, typer.Option(help="A folder of forgeries: `ctguard synth --format plan`.")],
    out: Annotated[Path, typer.Option(help="Folder for the tables and the figure; finished scans in it are kept.")],
    split: Annotated[Literal["train", "valid", "test"], typer.Option(help="Which patients.")] = "test",
    weights: Annotated[
        Path | None, typer.Option(help="Your own scorer, a .safetensors with its card beside it.")
    ] = None,
    jobs: Jobs = 1,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """What a malignancy scorer says of forged nodules, and how good forged tissue looks."""
    import json

    from ctguard.bench.detection import markdown
    from ctguard.bench.flips import forged_table, pristine_table, quality_table, write_tables
    from ctguard.bench.malignancy import measure_folder
    from ctguard.io.forgeries import MANIFEST
    from ctguard.io.manifest import RunManifest
    from ctguard.report.malignancy import histograms_figure

    rows, card = measure_folder(data, out / "scans", split=split, weights=weights, jobs=jobs)
    with RunManifest(out, command_line.get()) as run:
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
        made = write_tables(tables, rows, notes, out)
        figure = out / "malignancy.png"
        figure.write_bytes(histograms_figure(rows, card.threshold or 0.0))
        for path in (*made, figure):
            run.add_output(path)
    show(json.loads(made[1].read_text(encoding="utf-8")), "\n\n".join(map(markdown, tables)), as_json)
