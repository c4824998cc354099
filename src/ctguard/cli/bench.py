"""The verbs of `ctguard bench`: tables of protocols.md, each a folder of CSV, JSON, Markdown and figures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from ctguard.cli.common import AsJson, Device, Jobs, Quiet, command_line, show, torch_device, verb

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

    from ctguard.bench.flips import forged_table, pristine_table, quality_table, write_tables
    from ctguard.bench.malignancy import measure_folder
    from ctguard.bench.table import markdown
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


@bench.command(no_args_is_help=True)
@verb
def detection(
    data: Annotated[Path, typer.Option(help="Forgeries (`ctguard synth --format plan`), or slices with labels.csv.")],
    out: Annotated[Path, typer.Option(help="Folder for tables and figures; finished scans in it are kept.")],
    detectors: Annotated[str, typer.Option(help="Names, with commas between them; all of `ctguard models`.")] = "",
    weights: Annotated[
        Path | None, typer.Option(help="Folder of DETECTOR.safetensors and cards, not the shipped ones.")
    ] = None,
    matrix: Annotated[
        Path | None, typer.Option(help="Folder of DETECTOR_on_GENERATOR.safetensors: the paper's 3 x 3 matrix.")
    ] = None,
    panels: Annotated[bool, typer.Option("--panels", help="False-alarm and robustness panels too.")] = False,
    panel_scans: Annotated[
        int | None, typer.Option(min=1, help="Scans of the panels.  [default: 30; volumetric: 100]")
    ] = None,
    split: Annotated[Literal["train", "valid", "test"], typer.Option(help="Which patients.")] = "test",
    patients: Annotated[int | None, typer.Option(min=1, help="Only the first so many of a split.")] = None,
    measure_threshold: Annotated[
        bool, typer.Option("--measure-threshold", help="From the valid split, whatever the cards say.")
    ] = False,
    device: Device = "auto",
    jobs: Jobs = 1,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """How well detectors find forgeries, and where, by the paper's protocol and by a calibrated one."""
    from ctguard.bench.ctgan_slices import is_slices
    from ctguard.report.detection_bench import Wanted, bench_detection, bench_slices

    names = tuple(name.strip() for name in detectors.split(",") if name.strip())
    wanted = Wanted(names, weights, matrix, panels, panel_scans, split, patients, measure_threshold)
    run = bench_slices if is_slices(data) else bench_detection
    record, text = run(data, out, wanted, command=command_line.get(), device=torch_device(device), jobs=jobs)
    show(record, text, as_json)
