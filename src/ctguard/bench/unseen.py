"""What the paper's 3 x 3 matrix leaves out: whole scans at a threshold of their own, and gains in pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ctguard.bench.calibrated import OURS, counts, forged_cells, pristine_cells
from ctguard.bench.detection import Scored
from ctguard.bench.models import Model, hashes_of
from ctguard.bench.paper_protocol import slab_draws
from ctguard.bench.paper_tables import GENERATORS, METHODS
from ctguard.bench.resampling import Patients, interval
from ctguard.core.records import Table

Named = Mapping[str, Sequence[Scored]]


def whole_scan_table(cells: Sequence[Model], rows: Named, run_id: str) -> Table | None:
    """A row per checkpoint that has a threshold and per test generator; None where none has one."""
    judged = [cell for cell in cells if has_threshold(cell)]
    if not judged:
        return None
    patients = Patients(row.patient for cell in judged for row in rows[cell.name])
    out: list[dict[str, Any]] = []
    for cell in judged:
        found = rows[cell.name]
        pristine = {"false alarms": pristine_cells(found, patients)["false alarms"]}
        for test in GENERATORS:
            forged = [row for row in found if row.generator == test]
            if forged:
                head = {"detector": cell.label, "trained": cell.trained_on, "test": test}
                out.append(head | forged_cells(forged, found, patients) | pristine)
    if not out:
        return None
    columns = ("detector", "trained", "test", "n", "auc", "sensitivity", "false alarms", "f1", "f1 pooled", "pointing")
    n = counts(max((rows[cell.name] for cell in judged), key=len))
    return Table("Calibrated protocol: one training generator", columns, tuple(out), n, run_id, hashes_of(judged))


def gain_table(cells: Sequence[Model], rows: Named, run_id: str, ours: str = OURS) -> Table | None:
    """`ours` less the best of the paper's detectors that learned from the same forgeries, in pairs; None without both.

    F1 and Pd@1% of the paper protocol. The best is the one with the highest figure on these very slabs, which favours
    the others.
    """
    here = [cell for cell in cells if cell.card is not None]
    if not any(cell.detector == ours for cell in here):
        return None
    patients = Patients(row.patient for cell in here for row in rows[cell.name])
    out: list[dict[str, Any]] = []
    for train in GENERATORS:
        same = {cell.detector: cell for cell in here if cell.trained_on == train}
        for test in GENERATORS:
            slabs = {name: slab_draws(rows[cell.name], test, patients) for name, cell in same.items()}
            for figure in ("f1", "pd@1%"):
                drawn = {
                    name: draws[figure] for name, draws in slabs.items() if draws and np.isfinite(draws[figure][0])
                }
                rivals = [name for name in drawn if name in METHODS]
                if ours not in drawn or not rivals:
                    continue
                best = max(rivals, key=lambda name: float(drawn[name][0]))
                out.append(
                    {
                        "trained": train,
                        "test": test,
                        "figure": figure,
                        "n": sum(row.generator == test for row in rows[same[ours].name]),
                        ours: interval(drawn[ours]),
                        "best of the six": same[best].label,
                        "its figure": interval(drawn[best]),
                        "difference": interval(drawn[ours] - drawn[best]),
                    }
                )
    if not out:
        return None
    columns = ("trained", "test", "figure", "n", ours, "best of the six", "its figure", "difference")
    n = counts(max((rows[cell.name] for cell in here), key=len))
    return Table(f"Paper protocol: {ours} less the best of the six", columns, tuple(out), n, run_id, hashes_of(here))


def has_threshold(cell: Model) -> bool:
    """Whether a checkpoint can judge whole scans: its card has a threshold."""
    return cell.card is not None and cell.card.threshold is not None
