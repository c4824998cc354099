"""Tables of the paper protocol: slabs of 32 slices, score the maximum over slices, thresholds 0.5 and Pd@1%.

Source: M3Dsynth (Zingarini et al., ICASSP 2024), section 3 and its main table. Column group: test generator; inner
column: training generator.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ctguard.bench.calibrated import NOT_TRAINED
from ctguard.bench.detection import CONTROLS, PRISTINE, Scored
from ctguard.bench.metrics import Interval
from ctguard.bench.models import Model, hashes_of
from ctguard.bench.paper_tables import CELLS, DETECTION, GENERATORS, LOCALISATION, METHODS, SHORT
from ctguard.bench.resampling import Draws, Patients, interval
from ctguard.core.records import Table

HALF = 0.5
FIGURES = ("f1", "iou", "acc", "pd@1%")
PAIRS = {"localisation": ("f1", "iou"), "detection": ("acc", "pd@1%")}
_PRINTED = {"localisation": LOCALISATION, "detection": DETECTION}
_TITLES = {
    "localisation": "Paper protocol: localisation, F1 / IoU of the 3-D map at 0.5, %",
    "detection": "Paper protocol: detection, Acc (balanced accuracy at 0.5) / Pd@1%, %",
}


@dataclass(frozen=True)
class Cell:
    """Figures of one detector on the slabs of one generator. Localisation is None where the detector has none."""

    n: int
    f1: Interval | None
    iou: Interval | None
    acc: Interval | None
    pd: Interval | None

    def figure(self, name: str) -> Interval | None:
        """By the name of FIGURES."""
        return {"f1": self.f1, "iou": self.iou, "acc": self.acc, "pd@1%": self.pd}[name]


def slab_draws(rows: Sequence[Scored], generator: str, patients: Patients) -> dict[str, Draws]:
    """F1, IoU, Acc and Pd@1% of one generator's slabs, with all their resamples; empty where it forged none.

    Acc: balanced accuracy at 0.5. Pd@1%: the share of forged slabs above the threshold that 1 % of the pristine slabs
    exceed; with fewer than 100 of them, above the highest. F1 and IoU: averaged over forged slabs.
    """
    forged = [row for row in rows if row.generator == generator]
    pristine = [row for row in rows if row.generator == PRISTINE]
    if not forged or not pristine:
        return {}
    names, scores = [row.patient for row in forged], [row.slab_score for row in forged]
    others, negative = [row.patient for row in pristine], [row.slab_score for row in pristine]
    found = patients.mean(names, [float(score >= HALF) for score in scores])
    clean = patients.mean(others, [float(score < HALF) for score in negative])
    return {
        "f1": patients.mean(names, [row.slab_f1 for row in forged]),
        "iou": patients.mean(names, [row.slab_iou for row in forged]),
        "acc": (found + clean) / 2,
        "pd@1%": patients.detected_at(names, scores, others, negative),
    }


def paper_cell(rows: Sequence[Scored], generator: str, patients: Patients) -> Cell | None:
    """Slabs forged by one generator against one slab of each pristine scan; None where it forged none."""
    draws = slab_draws(rows, generator, patients)
    if not draws:
        return None
    count = sum(row.generator == generator for row in rows)
    return Cell(count, *(interval(draws[name]) for name in FIGURES))


def paper_table(models: Sequence[Model], rows: Mapping[str, Sequence[Scored]], run_id: str) -> Table:
    """Detectors that learned from all generators together: a row per detector and test generator."""
    patients = Patients(row.patient for found in rows.values() for row in found)
    out: list[dict[str, Any]] = []
    for model in models:
        if model.card is None:
            out.append({"detector": model.label, "test": NOT_TRAINED})
            continue
        found = rows[model.name]
        for generator in sorted({row.generator for row in found} - {PRISTINE, *CONTROLS}):
            cell = paper_cell(found, generator, patients)
            if cell is not None:
                figures = {name: cell.figure(name) for name in FIGURES}
                out.append({"detector": model.label, "test": generator, "n": cell.n, **figures})
    hashes = hashes_of(models)
    title = "Paper protocol: detectors as shipped"
    return Table(title, ("detector", "test", "n", *FIGURES), tuple(out), _counts(rows), run_id, hashes)


Matrix = dict[tuple[str, str, str], Cell | None]
"""(detector, test generator, training generator) to its figures; None where the checkpoint or the test is missing."""


def matrix_cells(models: Sequence[Model], rows: Mapping[str, Sequence[Scored]]) -> Matrix:
    """The cells of all matrix checkpoints."""
    patients = Patients(row.patient for found in rows.values() for row in found)
    cells: Matrix = {}
    for model in models:
        for test in GENERATORS:
            known = model.card is not None
            cells[model.detector, test, model.trained_on] = (
                paper_cell(rows[model.name], test, patients) if known else None
            )
    return cells


def matrix_tables(models: Sequence[Model], rows: Mapping[str, Sequence[Scored]], run_id: str) -> list[Table]:
    """Localisation and detection in the paper's layout: ours, its 95 % intervals, and the paper's own figures.

    A cell that was not trained says so; one whose test generator forged nothing here says "no test".
    """
    if not models:
        return []
    cells = matrix_cells(models, rows)
    hashes = hashes_of(models)
    known = {(model.detector, model.trained_on) for model in models if model.card is not None}
    sizes = {model.detector: model.label for model in reversed(models) if model.card is not None}
    detectors = [*METHODS, *dict.fromkeys(model.detector for model in models if model.detector not in METHODS)]
    columns = tuple(f"test {SHORT[test]}, trained {SHORT[train]}" for test, train in CELLS)
    tables = []
    for kind, pair in PAIRS.items():
        out: list[dict[str, Any]] = []
        for detector in detectors:
            if kind == "localisation" and detector not in LOCALISATION and detector in METHODS:
                continue  # Xception says nothing of where, in the paper and here
            name = METHODS.get(detector, detector)
            ours = {
                column: _words(cells.get((detector, test, train)), pair, (detector, train) in known)
                for column, (test, train) in zip(columns, CELLS, strict=True)
            }
            bounds = {
                column: _bounds(cells.get((detector, test, train)), pair)
                for column, (test, train) in zip(columns, CELLS, strict=True)
            }
            out.append({"method": name, "by": f"ours: {sizes.get(detector, detector)}", **ours})
            if any(bounds.values()):
                out.append({"method": "", "by": "95 %", **bounds})
            printed = _PRINTED[kind].get(detector)
            if printed is not None:
                figures = (f"{a:.1f}/{b:.1f}" for a, b in printed)
                out.append({"method": "", "by": "paper", **dict(zip(columns, figures, strict=True))})
        tables.append(Table(_TITLES[kind], ("method", "by", *columns), tuple(out), _counts(rows), run_id, hashes))
    return tables


def matrix_rows(models: Sequence[Model], rows: Mapping[str, Sequence[Scored]]) -> list[dict[str, Any]]:
    """One line per cell, for CSV: figures, their bounds and the paper's."""
    out = []
    for (detector, test, train), cell in matrix_cells(models, rows).items():
        line: dict[str, Any] = {"detector": detector, "test": test, "trained": train, "n": cell.n if cell else ""}
        for kind, pair in PAIRS.items():
            printed = dict(zip(CELLS, _PRINTED[kind].get(detector, ()), strict=False)).get((test, train))
            for k, figure in enumerate(pair):
                found = cell.figure(figure) if cell else None
                line[figure] = found.value if found else ""
                line[f"{figure} low"] = found.low if found else ""
                line[f"{figure} high"] = found.high if found else ""
                line[f"{figure} paper"] = printed[k] / 100 if printed else ""
        out.append(line)
    return out


def _words(cell: Cell | None, pair: tuple[str, str], trained: bool) -> str:
    if cell is None:
        return "no test" if trained else NOT_TRAINED
    figures = [cell.figure(name) for name in pair]
    return "/".join("–" if one is None else f"{100 * one.value:.1f}" for one in figures)


def _bounds(cell: Cell | None, pair: tuple[str, str]) -> str:
    if cell is None:
        return ""
    figures = [cell.figure(name) for name in pair]
    return "/".join("–" if one is None else f"{100 * one.low:.0f}–{100 * one.high:.0f}" for one in figures)


def _counts(rows: Mapping[str, Sequence[Scored]]) -> dict[str, int]:
    found = max(rows.values(), key=len, default=())
    return {
        "patients": len({row.patient for row in found}),
        "pristine slabs": sum(row.generator == PRISTINE for row in found),
        "forged slabs": sum(row.generator != PRISTINE for row in found),
    }
