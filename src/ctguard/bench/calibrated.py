"""Tables of the calibrated protocol: whole scans, thresholds from pristine validation scans, intervals by patient."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from ctguard.bench.detection import CONTROLS, PRISTINE, Scored
from ctguard.bench.metrics import Interval
from ctguard.bench.models import Model, hashes_of
from ctguard.bench.resampling import Draws, Patients, interval
from ctguard.core.records import Table

NOT_TRAINED = "not trained"
OURS = "volumetric"
EVERY = "all generators"
COLUMNS = ("detector", "forgery", "n", "auc", "sensitivity", "f1", "f1 pooled", "f1 of cube", "iou", "precision")
Rows = Sequence[Scored]
Named = Mapping[str, Rows]


def calibrated_table(rows: Rows, title: str, run_id: str, sha256: str) -> Table:
    """One detector: a row per generator and task, and one of the pristine scans."""
    patients = Patients(row.patient for row in rows)
    columns = (*COLUMNS[1:], "pointing", "false alarms", "specificity")
    out = [{"forgery": name, **forged_cells(chosen, rows, patients)} for name, chosen in groups(rows)]
    out.append({"forgery": PRISTINE, **pristine_cells(rows, patients)})
    return Table(title, columns, tuple(out), counts(rows), run_id, {"detector": sha256})


def groups(rows: Rows) -> list[tuple[str, list[Scored]]]:
    """Forgeries by generator and task, by generator, and by all generators (copy-move has none, so stands apart)."""
    forged = [row for row in rows if row.generator not in (PRISTINE, *CONTROLS)]
    generators = sorted({row.generator for row in forged}, key=lambda name: (name == "copy-move", name))
    out = []
    for generator in generators:
        tasks = sorted({row.task for row in forged if row.generator == generator})
        for task in tasks:
            name = f"{generator} {task}"
            out.append((name, [row for row in forged if (row.generator, row.task) == (generator, task)]))
        if len(tasks) > 1:
            out.append((generator, [row for row in forged if row.generator == generator]))
    networks = [row for row in forged if row.generator != "copy-move"]
    return [*out, (EVERY, networks)] if networks else out


def forged_cells(chosen: Rows, rows: Rows, patients: Patients) -> dict[str, Any]:
    """Figures of some forgeries against all pristine scans."""
    names = [row.patient for row in chosen]
    pristine = [row for row in rows if row.generator == PRISTINE]
    others, negative = [row.patient for row in pristine], [row.score for row in pristine]
    return {
        "n": len(chosen),
        "auc": interval(patients.auc(names, [row.score for row in chosen], others, negative)),
        "sensitivity": interval(patients.mean(names, [float(row.called) for row in chosen])),
        "f1": _mean(chosen, "f1", patients),
        "f1 pooled": interval(pooled_f1(chosen, patients)),
        "f1 of cube": _mean(chosen, "f1_cube", patients),
        "iou": _mean(chosen, "iou", patients),
        "precision": _mean(chosen, "precision", patients),
        "pointing": _mean(chosen, "pointing", patients),
    }


def pooled_f1(chosen: Rows, patients: Patients) -> Draws:
    """F1 of all voxels of all scans together."""
    known = [row for row in chosen if np.isfinite(row.found)]
    tops = [2 * row.both for row in known]
    return patients.ratio([row.patient for row in known], tops, [row.found + row.truth for row in known])


def alarms_of(alarms: int, scans: int) -> str:
    """False alarms and the rate that so many scans can exclude: the one-sided 95 % bound of Clopper and Pearson."""
    if scans == 0:
        return ""
    bound = 1.0 if alarms == scans else float(stats.beta.ppf(0.95, alarms + 1, scans - alarms))
    return f"{alarms} of {scans} (<= {bound:.1%})"


def headline_table(models: Sequence[Model], rows: Named, run_id: str) -> Table:
    """A row per detector: all generators together against the pristine scans."""
    out: list[dict[str, Any]] = []
    for model, found, patients in _trained(models, rows):
        cells: dict[str, Any] = {"detector": model.label}
        for name, chosen in groups(found):
            if name == EVERY:
                cells |= forged_cells(chosen, found, patients)
        pristine = pristine_cells(found, patients)
        out.append(cells | {"false alarms": pristine["false alarms"]})
    out += _not_trained(models, "n")
    columns = ("detector", "n", "auc", "sensitivity", "false alarms", "f1", "f1 pooled", "precision", "pointing")
    return Table(f"Calibrated protocol: {EVERY}", columns, tuple(out), _n(rows), run_id, hashes_of(models))


def pristine_cells(rows: Rows, patients: Patients) -> dict[str, Any]:
    """Specificity, and regions that are called forged, of the pristine scans."""
    pristine = [row for row in rows if row.generator == PRISTINE]
    names = [row.patient for row in pristine]
    alarms = [row.called for row in pristine]
    return {
        "n": len(pristine),
        "false alarms": alarms_of(sum(alarms), len(alarms)),
        "specificity": interval(patients.mean(names, [float(not alarm) for alarm in alarms])),
        "false regions per scan": _mean(pristine, "regions", patients),
    }


def _mean(rows: Rows, name: str, patients: Patients) -> Interval | None:
    return interval(patients.mean([row.patient for row in rows], [getattr(row, name) for row in rows]))


def forged_table(models: Sequence[Model], rows: Named, run_id: str) -> Table:
    """A row per detector, generator and task."""
    out: list[dict[str, Any]] = []
    for model, found, patients in _trained(models, rows):
        for name, chosen in groups(found):
            cells = forged_cells(chosen, found, patients)
            out.append({"detector": model.label, "forgery": name, **cells})
    out += _not_trained(models, "forgery")
    return Table(
        "Calibrated protocol: forgeries", (*COLUMNS, "pointing"), tuple(out), _n(rows), run_id, hashes_of(models)
    )


def pristine_table(models: Sequence[Model], rows: Named, run_id: str) -> Table:
    """A row per detector: its threshold, and what it says of pristine scans, of identity and of twins.

    identity: the share of forgeries without a generator that reach the threshold; "auc NAME : identity": generator
    against identity at the same sites, that is the generator's trace alone.
    """
    out: list[dict[str, Any]] = []
    names: dict[str, None] = {}
    for model, found, patients in _trained(models, rows):
        cells = {"detector": model.label, "threshold": str(model.threshold)}
        cells |= pristine_cells(found, patients) | _control_cells(found, patients)
        names |= dict.fromkeys(cells)
        out.append(cells)
    out += _not_trained(models, "threshold")
    columns = tuple(names) or ("detector", "threshold")
    return Table("Calibrated protocol: pristine scans", columns, tuple(out), _n(rows), run_id, hashes_of(models))


def _control_cells(rows: Rows, patients: Patients) -> dict[str, Any]:
    cells: dict[str, Any] = {}
    for control in CONTROLS:
        chosen = [row for row in rows if row.generator == control]
        if chosen:
            alarms = [float(row.called) for row in chosen]
            cells[f"{control} called forged"] = interval(patients.mean([row.patient for row in chosen], alarms))
    identity = {_site(row): row for row in rows if row.generator == "identity"}
    for generator in sorted({row.generator for row in rows} - {PRISTINE, *CONTROLS}):
        forged = [row for row in rows if row.generator == generator and _site(row) in identity]
        same = [identity[_site(row)] for row in forged]
        if forged:
            pairs = [([row.patient for row in side], [row.score for row in side]) for side in (forged, same)]
            cells[f"auc {generator} : identity"] = interval(patients.auc(*pairs[0], *pairs[1]))
    return cells


def _site(row: Scored) -> tuple[object, ...]:
    return row.scan_id, row.task, row.center_zyx


Figure = Callable[[Rows, Rows, Patients], Draws]


def _auc(chosen: Rows, rows: Rows, patients: Patients) -> Draws:
    pristine = [row for row in rows if row.generator == PRISTINE]
    sides = [([row.patient for row in side], [row.score for row in side]) for side in (chosen, pristine)]
    return patients.auc(*sides[0], *sides[1])


def _sensitivity(chosen: Rows, rows: Rows, patients: Patients) -> Draws:
    return patients.mean([row.patient for row in chosen], [float(row.called) for row in chosen])


def _f1(chosen: Rows, rows: Rows, patients: Patients) -> Draws:
    return patients.mean([row.patient for row in chosen], [row.f1 for row in chosen])


FIGURES: dict[str, Figure] = {"auc": _auc, "sensitivity": _sensitivity, "f1": _f1}


def difference_table(models: Sequence[Model], rows: Named, run_id: str, ours: str = OURS) -> Table | None:
    """`ours` less the best of the others, per group of forgeries, in pairs of the same patients; None without both.

    The best is the one with the highest figure on these very scans, which favours the others.
    """
    here = {model.detector: (model, rows[model.name]) for model in models if model.card is not None}
    if ours not in here or len(here) < 2:
        return None
    patients = Patients(row.patient for row in here[ours][1])
    out = []
    for name, chosen in groups(here[ours][1]):
        for figure, of in FIGURES.items():
            drawn = {key: of(dict(groups(found))[name], found, patients)
                     for key, (model, found) in here.items()}  # fmt: skip
            rivals = {key: value for key, value in drawn.items() if key != ours and np.isfinite(value[0])}
            if not rivals:
                continue
            best = max(rivals, key=lambda key: float(rivals[key][0]))
            out.append(
                {
                    "forgery": name,
                    "figure": figure,
                    "n": len(chosen),
                    ours: interval(drawn[ours]),
                    "best of the others": here[best][0].label,
                    "its figure": interval(rivals[best]),
                    "difference": interval(drawn[ours] - rivals[best]),
                }
            )
    columns = ("forgery", "figure", "n", ours, "best of the others", "its figure", "difference")
    return Table(f"{ours} less the best of the others", columns, tuple(out), _n(rows), run_id, hashes_of(models))


def _trained(models: Sequence[Model], rows: Named) -> list[tuple[Model, Rows, Patients]]:
    names = sorted({row.patient for found in rows.values() for row in found})
    patients = Patients(names)
    return [(model, rows[model.name], patients) for model in models if model.card is not None]


def _not_trained(models: Sequence[Model], column: str) -> list[dict[str, Any]]:
    return [{"detector": model.label, column: NOT_TRAINED} for model in models if model.card is None]


def counts(rows: Rows) -> dict[str, int]:
    """What a table counts."""
    sites = {_site(row) for row in rows if row.generator != PRISTINE}
    return {
        "patients": len({row.patient for row in rows}),
        "pristine scans": sum(row.generator == PRISTINE for row in rows),
        "forged scans": sum(row.generator != PRISTINE for row in rows),
        "sites": len(sites),
    }


def _n(rows: Named) -> dict[str, int]:
    """Of the detector with the most rows; all are measured on the same scans."""
    return counts(max(rows.values(), key=len, default=[]))
