"""`ctguard bench detection`: from weights and a data set to tables, figures and one page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctguard.bench.calibrated import difference_table, forged_table, headline_table, pristine_table
from ctguard.bench.ctgan_slices import LABELS, score_slices, slices_table
from ctguard.bench.detection import CONTROLS, Measuring, Protocol, Scored, calibrate, forged_cases, measure_models
from ctguard.bench.judging import Judge, Scan
from ctguard.bench.models import Model, find_matrix, find_models, load_detector
from ctguard.bench.notes import PANEL_NOTE, SLICES_NOTE, notes_of
from ctguard.bench.panels import measure_panels, panel_tables
from ctguard.bench.paper_protocol import matrix_rows, matrix_tables, paper_table
from ctguard.bench.paper_tables import GENERATORS
from ctguard.bench.table import write_csv
from ctguard.bench.unseen import gain_table, has_threshold, whole_scan_table
from ctguard.core.errors import DataError, RecipeError
from ctguard.core.geometry import FloatTriple
from ctguard.core.records import Case, Split, Table
from ctguard.core.volume import Volume
from ctguard.io.cases import read_case
from ctguard.io.forgeries import MANIFEST, Forgery
from ctguard.io.manifest import RunManifest
from ctguard.report.bench_page import as_shown, write_bench
from ctguard.report.detection import calibration_figure, maps_figure, roc_figure
from ctguard.report.html import Picture

STEM = "detection"
TITLE = "Detection and localisation of forged CT"
EXAMPLES = 6
"""Rows of the figure of maps, at most."""

Items = Sequence[tuple[Case, list[Forgery]]]


@dataclass(frozen=True)
class Wanted:
    """What to measure: `ctguard bench detection`.

    detectors: names; empty for all of the zoo. weights: a folder instead of the shipped ones. matrix: a folder of
    DETECTOR_on_GENERATOR.safetensors. patients: only the first so many of a split. measure_threshold: from the data
    set's valid split, whatever the cards say. panel_scans: None: 30, and 100 for `volumetric`.
    """

    detectors: tuple[str, ...] = ()
    weights: Path | None = None
    matrix: Path | None = None
    panels: bool = False
    panel_scans: int | None = None
    split: Split = "test"
    patients: int | None = None
    measure_threshold: bool = False


def bench_detection(
    data: Path, out: Path, wanted: Wanted, *, command: Sequence[str], device: str = "cpu", jobs: int = 1
) -> tuple[dict[str, Any], str]:
    """Measure, write OUT/detection.{csv,json,md,html}, matrix.csv, panels.csv and figures; the JSON and the Markdown.

    OUT/scans and OUT/panels keep the rows of finished scans. Raises DataError where the split is empty, ReadError and
    ModelError.
    """
    how = Measuring(out / "scans", device, jobs)
    with RunManifest(out, command) as run:
        run.add_input(data / MANIFEST)
        found = find_models(wanted.detectors, wanted.weights)
        cells = find_matrix(wanted.matrix)
        for model in (*found, *cells):
            if model.weights is not None:
                run.add_input(model.weights)
        models = calibrate(found, data, how, wanted.patients, wanted.measure_threshold)
        index, items = forged_cases(data, wanted.split, wanted.patients)
        if not any(forgeries for _, forgeries in items):
            raise DataError(f"no {wanted.split} scan has a forgery", where=data, remedy="give --split, or more data")
        rows, cell_rows = _measured(models, cells, index, items, how)
        tables, notes = tables_of(models, rows, run.run_id), notes_of(models, cells, wanted.split, len(items))
        more = (of(cells, cell_rows, run.run_id) for of in (whole_scan_table, gain_table))
        tables += [*matrix_tables(cells, cell_rows, run.run_id), *(table for table in more if table)]
        made = [write_csv([*_lines(models, rows), *_lines(cells, cell_rows)], out / f"{STEM}.csv")]
        made += [write_csv(matrix_rows(cells, cell_rows), out / "matrix.csv")] if cells else []
        if wanted.panels:
            probes = measure_panels(models, index, items, replace(how, work=out / "panels"), wanted.panel_scans)
            tables += panel_tables(models, probes, run.run_id)
            notes.append(PANEL_NOTE)
            lines = [{"model": name, **vars(probe)} for name, some in probes.items() for probe in some]
            made.append(write_csv(lines, out / "panels.csv"))
        figures = _figures(models, rows, index, items, how)
        made += write_bench(out, STEM, TITLE, tables, notes, figures)
        for path in made:
            run.add_output(path)
    return as_shown(out, STEM, tables, notes)


def bench_slices(
    data: Path, out: Path, wanted: Wanted, *, command: Sequence[str], device: str = "cpu", jobs: int = 1
) -> tuple[dict[str, Any], str]:
    """Labelled slices that somebody else forged: OUT/slices.{csv,json,md,html}; the JSON and the Markdown.

    A checkpoint is scored on them once; run.json holds the hashes. Raises DataError, ReadError, ModelError, and
    RecipeError where more is asked for than single slices can give.
    """
    if wanted.matrix is not None or wanted.panels or wanted.patients is not None or wanted.measure_threshold:
        what = "labelled slices have no matrix, no panels, no threshold and no patients to choose from"
        raise RecipeError(what, where=data, remedy="leave these options out")
    with RunManifest(out, command) as run:
        run.add_input(data / LABELS)
        models = find_models(wanted.detectors, wanted.weights)
        for model in models:
            if model.weights is not None:
                run.add_input(model.weights)
        rows = score_slices(data, models, Measuring(out / "slices", device, jobs))
        tables = [slices_table(models, rows, run.run_id)]
        notes = [SLICES_NOTE, *(f"{model.label} learned from: {model.card.data}." for model in models if model.card)]
        made = [write_csv([row.to_json() for row in rows], out / "slices.csv")]
        made += write_bench(out, "slices", TITLE, tables, notes, {})
        for path in made:
            run.add_output(path)
    return as_shown(out, "slices", tables, notes)


Rows = dict[str, list[Scored]]


def _measured(
    models: Sequence[Model], cells: Sequence[Model], index: Path, items: Items, how: Measuring
) -> tuple[Rows, Rows]:
    """Rows of the detectors by both protocols; of the matrix by the paper's, where cells have a threshold by both."""
    plans = [(model, Protocol()) for model in models]
    plans += [(cell, Protocol(whole=has_threshold(cell), generators=GENERATORS)) for cell in cells]
    rows = measure_models(plans, index, items, how)
    return {model.name: rows[model.name] for model in models}, {cell.name: rows[cell.name] for cell in cells}


def tables_of(models: Sequence[Model], rows: Rows, run_id: str) -> list[Table]:
    """Both protocols for the detectors as shipped."""
    gain = difference_table(models, rows, run_id)
    tables = [made(models, rows, run_id) for made in (headline_table, pristine_table, forged_table)]
    return [*tables, *([gain] if gain else []), paper_table(models, rows, run_id)]


def _lines(models: Sequence[Model], rows: Rows) -> list[dict[str, Any]]:
    """One line of CSV per scan and model."""
    out = []
    for model in models:
        for row in rows[model.name]:
            line = {"model": model.name, "trained_on": model.trained_on or "all", **vars(row)}
            site = line.pop("center_zyx") or ("", "", "")
            out.append({**line, **dict(zip(("center_z", "center_y", "center_x"), site, strict=True))})
    return out


def _figures(
    models: Sequence[Model], rows: Mapping[str, Sequence[Scored]], index: Path, items: Items, how: Measuring
) -> dict[str, Picture]:
    """By file stem."""
    trained = [model for model in models if model.card is not None]
    found = {model.label: rows[model.name] for model in trained}
    if not found:
        return {}
    examples = example_forgeries(items)
    shown = []
    for case, forgery in examples:
        scan, edit = Scan(case, read_case(index, case)), forgery.edit
        words = f"{edit.generator}\n{edit.task}"
        shown.append((words, scan.volume, scan.forged(forgery), edit.center_zyx))
    maps = {model.label: _maps(model, shown, how.device) for model in trained}
    return {
        "roc": Picture(
            roc_figure(found),
            "ROC curves",
            "Whole scans, forged by any generator against pristine. Dashed: 1 % false alarms.",
        ),
        "calibration": Picture(
            calibration_figure(found),
            "Calibration",
            "A score is a maximum over the scan, so it need not be a probability: on the dotted line it is one.",
        ),
        "maps": Picture(
            maps_figure(shown, maps),
            "Maps",
            "The first forgery of each generator and task in the split, 80 mm around the site, axial. Cyan: 0.5.",
        ),
    }


def example_forgeries(items: Items) -> list[tuple[Case, Forgery]]:
    """The first forgery of each generator and task, in the order of the data set: nobody chose them."""
    first: dict[tuple[str, str], tuple[Case, Forgery]] = {}
    for case, forgeries in items:
        for forgery in forgeries:
            if forgery.edit.generator not in CONTROLS:
                first.setdefault((forgery.edit.generator, forgery.edit.task), (case, forgery))
    kinds = sorted(first, key=lambda kind: (kind[0] == "copy-move", kind))
    return [first[kind] for kind in kinds[:EXAMPLES]]


def _maps(
    model: Model, examples: Sequence[tuple[str, Volume, Volume, FloatTriple]], device: str
) -> list[NDArray[np.float32] | None]:
    if model.weights is None:
        return [None] * len(examples)
    judge = Judge(load_detector(model.detector, model.weights), device=device)
    if not judge.detector.localises:
        return [None] * len(examples)
    return [judge.look(forged).map for _, _, forged, _ in examples]
