"""Tables of the protection benchmark: damage and gain, transfer, attack success, price, judges, removal, partial."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ctguard.bench.calibrated import alarms_of
from ctguard.bench.flips import is_flipped
from ctguard.bench.metrics import Interval
from ctguard.bench.protection import ATTEMPT, NODULE, SCAN, SITE, Experiment, Row
from ctguard.bench.protection_damage import SHARES
from ctguard.bench.protection_removal import DENOISER, RETRAINED, WORDS, removals
from ctguard.bench.protection_scene import TASKS, Forger
from ctguard.bench.protection_setups import CONTROL, NONE, Setup
from ctguard.bench.resampling import Draws, Patients, interval
from ctguard.core.records import Table

NO_WEIGHTS = "no weights"
NOT_MEASURED = "not measured"
MOST_IN_RATIOS = 10
Cells = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Results:
    """All rows of a run, and means of their values with intervals by patient."""

    experiment: Experiment
    rows: Sequence[Row]
    patients: Patients
    run_id: str

    @classmethod
    def of(cls, experiment: Experiment, rows: Sequence[Row], run_id: str) -> Results:
        """Of all rows of a run."""
        return cls(experiment, rows, Patients(row.patient for row in rows), run_id)

    def pick(self, setup: str, of: str, *, task: str = "", forger: str = "") -> list[Row]:
        """Rows of one kind; of all tasks and forgers where none is named."""
        return [
            row
            for row in self.rows
            if (row.setup, row.of) == (setup, of) and task in ("", row.task) and forger in ("", row.forger)
        ]

    def draws(self, rows: Sequence[Row], name: str) -> Draws:
        """The mean of a value over rows and its resamples; NaN where no row has it."""
        return self.patients.mean([row.patient for row in rows], [_value(row, name) for row in rows])

    def mean(self, rows: Sequence[Row], name: str) -> Interval | None:
        """The mean of a value with its interval; None where no row has it."""
        return interval(self.draws(rows, name))

    def over(self, rows: Sequence[Row], top: str, bottom: str) -> Interval | None:
        """The mean of one value over the mean of another, in pairs of the same rows."""
        both = [row for row in rows if np.isfinite(_value(row, top)) and np.isfinite(_value(row, bottom))]
        return interval(_over(self.draws(both, top), self.draws(both, bottom)))

    def counted(self, rows: Sequence[Row], name: str) -> int:
        """How many rows have a value."""
        return sum(bool(np.isfinite(_value(row, name))) for row in rows)

    @property
    def setups(self) -> tuple[Setup, ...]:
        """The control first, then all that were asked for."""
        return (CONTROL, *self.experiment.setups)

    def table(self, title: str, rows: Iterable[Cells]) -> Table:
        """A table whose columns are those of its rows, with n and the hashes of all weights."""
        out = tuple(rows)
        columns = tuple(dict.fromkeys(name for row in out for name in row))
        return Table(title, columns, out, self._n(), self.run_id, self._hashes())

    def _n(self) -> dict[str, int]:
        scans = {row.scan_id for row in self.rows}
        sites = {(row.scan_id, row.number) for row in self.rows if row.of == SITE}
        return {"patients": len({row.patient for row in self.rows}), "scans": len(scans), "sites": len(sites)}

    def _hashes(self) -> dict[str, str]:
        hashes = {setup.label: setup.sha256 for setup in self.experiment.setups if setup.sha256}
        for forger in self.experiment.forgers:
            hashes |= {f"{forger.label} {task}": sha for task, sha in forger.sha256}
        return hashes | {model.name: model.sha256 for model in self.experiment.detectors if model.sha256}


def _value(row: Row, name: str) -> float:
    return row.values.get(name, float("nan"))


def _over(top: Draws, bottom: Draws) -> Draws:
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio: Draws = np.where(bottom > 0, top / bottom, np.nan)
    return ratio


def _missing(setup: Setup, column: str = "n") -> Cells:
    return {"protector": setup.label, column: setup.missing}


def damage_table(results: Results) -> Table:
    """Both tasks by the first forger, in HU. The floors and the ceiling stand below the protectors."""
    forger = results.experiment.panel_forger
    name = forger.label if forger else NO_WEIGHTS
    out: list[Cells] = []
    for setup in results.experiment.setups:
        rows = results.pick(setup.label, ATTEMPT, forger=name)
        out.append(_missing(setup) if setup.missing else {"protector": setup.label, **_damage_cells(results, rows)})
    control = results.pick(NONE, ATTEMPT, forger=name)
    for words, key, changed in (
        ("floor: x itself, another seed", "seed", ""),
        (f"ceiling: known site, {results.experiment.ceiling_steps} steps", "ceiling", "ceiling added cube"),
    ):
        cells = {
            "n": results.counted(control, f"{key} core"),
            "added": results.mean(control, changed),
            "damage core": results.mean(control, f"{key} core"),
            "damage cube": results.mean(control, f"{key} cube"),
        }
        if changed:
            cells["gain"] = results.over(control, f"{key} core", changed)
        out.append({"protector": words, **(cells if cells["n"] else {"n": NOT_MEASURED})})
    edit = {"damage core": results.mean(control, "edit core"), "damage cube": results.mean(control, "edit cube")}
    out.append({"protector": "the forgery itself: RMSE(t(x), x)", "n": len(control), **edit})
    return results.table(f"Damage and gain: {name}, both tasks, HU", out)


def _damage_cells(results: Results, rows: Sequence[Row]) -> Cells:
    return {
        "n": len(rows),
        "added": results.mean(rows, "added cube"),
        "damage core": results.mean(rows, "damage core"),
        "times noise": results.over(rows, "damage core", "noise core"),
        "gain": results.over(rows, "damage core", "added cube"),
        "damage cube": results.mean(rows, "damage cube"),
        "noise core": results.mean(rows, "noise core"),
        "noise gain": results.over(rows, "noise core", "noise added cube"),
    }


def ratio_table(results: Results) -> Table | None:
    """Damage of the row over damage of the column, core, the same sites and the first forger; None for one protector.

    Compare only rows of the same SD: "added" stands in the first column.
    """
    forger = results.experiment.panel_forger
    known = [setup for setup in results.experiment.setups if not setup.missing][:MOST_IN_RATIOS]
    if forger is None or len(known) < 2:
        return None
    picked = {setup.label: results.pick(setup.label, ATTEMPT, forger=forger.label) for setup in known}
    out = []
    for label, rows in picked.items():
        cells: Cells = {"protector": label, "added": results.mean(rows, "added cube")}
        for other, others in picked.items():
            draws = _over(results.draws(rows, "damage core"), results.draws(others, "damage core"))
            cells[f"over {other}"] = None if other == label else interval(draws)
        out.append(cells)
    return results.table("Ratios of damage, core", out)


def transfer_table(results: Results) -> Table:
    """Every protector against every forger, by task. seen: whether it worked against these very weights."""
    out: list[Cells] = []
    for setup in results.experiment.setups:
        if setup.missing:
            out.append(_missing(setup, "forger"))
            continue
        for forger in results.experiment.forgers:
            for task in TASKS if forger.known else ("",):
                cells: Cells = {"protector": setup.label, "forger": forger.label, "task": task}
                if forger.known:
                    rows = results.pick(setup.label, ATTEMPT, task=task, forger=forger.label)
                    cells |= {"seen": setup.knows(forger), **_damage_cells(results, rows)}
                out.append(cells if forger.known else cells | {"task": NO_WEIGHTS})
    return results.table("Transfer: every forger, by task, HU", out)


def success_table(results: Results) -> Table:
    """The share of forgeries whose malignancy score flips, among places whose own score leaves something to flip."""
    scorer = results.experiment.scorer
    out: list[Cells] = []
    if scorer is None:
        out.append({"protector": "all", "n": f"malignancy scorer: {NO_WEIGHTS}"})
    for setup in results.setups if scorer is not None else ():
        if setup.missing:
            out.append(_missing(setup))
            continue
        for forger in _known(results):
            for task in TASKS:
                rows = results.pick(setup.label, ATTEMPT, task=task, forger=forger.label)
                out.append(
                    {"protector": setup.label, "forger": forger.label, "task": task, **_flips(results, rows, task)}
                )
    return results.table("Attack success: malignancy score flipped", out)


def _flips(results: Results, rows: Sequence[Row], task: str) -> Cells:
    threshold = results.experiment.scorer_threshold
    open_rows = [row for row in rows if not is_flipped(_value(row, "malignancy x"), task, threshold)]

    def share(name: str) -> Interval | None:
        flips = [float(is_flipped(_value(row, name), task, threshold)) for row in open_rows]
        return interval(results.patients.mean([row.patient for row in open_rows], flips))

    return {
        "n": len(open_rows),
        "before": share("malignancy t(x)"),
        "after": share("malignancy t(p)"),
        "score x": results.mean(rows, "malignancy x"),
        "score t(x)": results.mean(rows, "malignancy t(x)"),
        "score t(p)": results.mean(rows, "malignancy t(p)"),
    }


def price_table(results: Results) -> Table:
    """What protection adds, HU; noise share: 95th percentile of SD of d over local noise; VIF of whole slices; nodules
    of the block, mean change of the diameter and of the malignancy score."""
    out: list[Cells] = []
    for setup in results.experiment.setups:
        if setup.missing:
            out.append(_missing(setup, "scans"))
            continue
        rows, sites = results.pick(setup.label, SCAN), results.pick(setup.label, SITE)
        nodules = results.pick(setup.label, NODULE)
        cells: Cells = {
            "protector": setup.label,
            "scans": len(rows),
            "max d": max((_value(row, "max") for row in rows), default=None),
            "SD in body": results.mean(rows, "sd"),
            "SD in cubes": results.mean(rows, "sd in cubes"),
        }
        for tissue in ("lung", "soft tissue", "other"):
            cells[f"noise share {tissue}"] = results.mean(rows, f"noise share {tissue}")
        for tissue in ("lung", "soft tissue"):
            cells[f"spectrum {tissue}, dB"] = results.mean(rows, f"nps {tissue} db")
        scored = results.experiment.scorer is not None
        cells |= {
            "VIF": results.mean(sites, "VIF"),
            "nodules": len(nodules),
            "diameter change": results.mean(nodules, "diameter change"),
            "malignancy change": results.mean(nodules, "malignancy change") if scored else NO_WEIGHTS,
        }
        if setup.card is not None:
            hours = setup.training_hours
            cells["training hours"] = "not stated" if hours is None else f"{hours:.2f}"
        out.append(cells)
    return results.table("Price of protection", out)


def judges_table(results: Results) -> Table:
    """Detectors on whole scans: false alarms without and with protection, and forgeries that they find."""
    control = results.pick(NONE, SCAN)
    out: list[Cells] = []
    models = results.experiment.detectors
    if not models:
        out.append({"detector": NOT_MEASURED})
    for model in models:
        if model.card is None:
            out.append({"detector": model.label, "protector": NO_WEIGHTS})
            continue
        for setup in results.setups:
            if setup.missing:
                out.append({"detector": model.label, **_missing(setup, "false alarms")})
                continue
            rows, forged = results.pick(setup.label, SCAN), results.pick(setup.label, ATTEMPT)
            alarms = [_value(row, f"{model.name} alarm") for row in rows]
            change = results.draws(rows, f"{model.name} score") - results.draws(control, f"{model.name} score")
            out.append(
                {
                    "detector": model.label,
                    "protector": setup.label,
                    "false alarms": alarms_of(int(sum(alarms)), len(alarms)),
                    "score": results.mean(rows, f"{model.name} score"),
                    "change of score": None if setup == CONTROL else interval(change),
                    "forgeries": len(forged),
                    "found": results.mean(forged, f"{model.name} found"),
                    "score of forgeries": results.mean(forged, f"{model.name} score"),
                }
            )
    return results.table("Detectors on protected scans and on their forgeries", out)


def removal_table(results: Results) -> Table:
    """Damage after each operation, in HU over the core; kept: as a share of the damage of the written file."""
    experiment = results.experiment
    given = {one.name for one in removals(experiment.denoiser, experiment.retrained)}
    panel = [(one.name, one.words) for one in removals(experiment.denoiser, experiment.retrained)]
    panel += [(name, WORDS[name]) for name in (DENOISER, RETRAINED) if name not in given]
    out: list[Cells] = []
    for setup in experiment.setups:
        if setup.protector not in experiment.removal:
            continue
        if setup.missing:
            out.append(_missing(setup, "operation"))
            continue
        rows = results.pick(setup.label, ATTEMPT)
        for name, words in panel:
            key = f"removal {name}"
            count = results.counted(rows, f"{key} core")
            cells: Cells = {"protector": setup.label, "operation": words, "n": count or NOT_MEASURED}
            if count:
                cells |= {
                    "damage core": results.mean(rows, f"{key} core"),
                    "kept": results.over(rows, f"{key} core", "removal int16 core"),
                    "noise core": results.mean(rows, f"{key} noise core"),
                    "times noise": results.over(rows, f"{key} core", f"{key} noise core"),
                    "operation alone": results.mean(rows, f"{key} alone core"),
                }
            out.append(cells)
    if not out:
        out.append({"protector": "all", "operation": NOT_MEASURED})
    return results.table("Removal panel: damage after an operation, HU", out)


def partial_table(results: Results) -> Table:
    """Damage where a share of the cube's slices is protected, or edited: core and cube, HU."""
    out: list[Cells] = []
    for setup in results.experiment.setups:
        if setup.missing:
            out.append(_missing(setup, "what"))
            continue
        rows = results.pick(setup.label, ATTEMPT)
        for what in ("protected", "edited"):
            cells: Cells = {"protector": setup.label, "what": what}
            cells["n"] = results.counted(rows, f"{SHARES[0]} % {what} cube")
            for share in SHARES:
                cells |= {
                    f"{share} % {part}": results.mean(rows, f"{share} % {what} {part}") for part in ("core", "cube")
                }
            out.append(cells)
    return results.table("Partial: share of the cube's slices that is protected, or edited, HU", out)


def _known(results: Results) -> list[Forger]:
    return [forger for forger in results.experiment.forgers if forger.known]


MAKERS: tuple[Callable[[Results], Table | None], ...] = (
    damage_table,
    ratio_table,
    transfer_table,
    success_table,
    price_table,
    judges_table,
    removal_table,
    partial_table,
)
"""In the order of the page; the paper's tables stand after them."""
