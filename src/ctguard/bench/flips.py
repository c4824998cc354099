"""Tables of the malignancy check and of forgery quality (protocols.md "Malignancy check" and "Forgeries")."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from ctguard.bench.kept import NAN
from ctguard.bench.malignancy import PRISTINE, SIZE_BAND_MM, NoduleScores, Site
from ctguard.bench.metrics import Interval, bootstrap
from ctguard.bench.quality import Floats, histogram_distance_hu
from ctguard.core.records import Table
from ctguard.train.checkpoint import Card

INJECTED_MM = (10.0, 20.0)
REMOVED_MM = 8.0
NOISE_RATIO = (0.75, 1.25)
CSV_COLUMNS = (
    "scan_id",
    "patient",
    "kind",
    "task",
    "center_z",
    "center_y",
    "center_x",
    "diameter_mm",
    "malignant",
    "score",
    "score_before",
    "found",
    "found_before",
    "diameter_mm_before",
    "spectrum_db",
    "spectrum_db_before",
    "boundary_core",
    "boundary_cube",
    "noise_ratio",
    "noise_ratio_before",
)


def pristine_table(rows: Sequence[Site], run_id: str, card: Card) -> Table:
    """AUC of benign against malignant pristine nodules, beside that of diameter alone, and the share that is found."""
    nodules = [row for row in rows if row.kind == PRISTINE]
    threshold = card.threshold or 0.0
    out: list[dict[str, Any]] = []
    for name, (low, high) in {"all": (0.0, np.inf), "8-15 mm": SIZE_BAND_MM}.items():
        chosen = [row for row in nodules if low <= row.diameter_mm <= high]
        if not chosen:
            continue
        sick, well = [row for row in chosen if row.malignant], [row for row in chosen if not row.malignant]
        cells = {
            "auc": _interval(chosen, lambda some: nodule_scores(some).auc()),
            "auc of diameter": _interval(chosen, lambda some: nodule_scores(some).diameter_auc()),
            "sensitivity": _share(sick, [row.score >= threshold for row in sick]),
            "specificity": _share(well, [row.score < threshold for row in well]),
            "found": _share(chosen, [row.found for row in chosen]),
        }
        out.append({"nodules": name, "malignant": len(sick), "benign": len(well), **cells})
    columns = ("nodules", "malignant", "benign", "auc", "auc of diameter", "sensitivity", "specificity", "found")
    return Table("Pristine nodules", columns, tuple(out), _counts(nodules), run_id, {"scorer": card.sha256})


def forged_table(rows: Sequence[Site], run_id: str, card: Card) -> Table:
    """Flip rates of injections (scored malignant) and removals (scored benign), and what the proposals see of them.

    "before" is of the untouched places. detection: of injections, the share that the proposals find; of removals, the
    share that they find no longer, among those that they found ("n found before").
    """
    threshold = card.threshold or 0.0
    out: list[dict[str, Any]] = []
    forged = [row for row in rows if row.kind != PRISTINE]
    for task, kind in sorted({(row.task, row.kind) for row in forged}):
        chosen = [row for row in forged if (row.task, row.kind) == (task, kind)]
        seen = chosen if task == "inject" else [row for row in chosen if row.found_before]
        out.append(
            {
                "task": task,
                "generator": kind,
                "n": len(chosen),
                "flipped": _share(chosen, [is_flipped(row.score, task, threshold) for row in chosen]),
                "before": _share(chosen, [is_flipped(row.before, task, threshold) for row in chosen]),
                "mean score": _mean(chosen, [row.score for row in chosen]),
                "mean score before": _mean(chosen, [row.before for row in chosen]),
                "detection": _share(seen, [row.found == (task == "inject") for row in seen]),
                "n found before": sum(row.found_before for row in chosen),
            }
        )
    columns = tuple(out[0]) if out else ("task", "generator", "n")
    return Table("Injections and removals", columns, tuple(out), _counts(forged), run_id, {"scorer": card.sha256})


def quality_table(rows: Sequence[Site], run_id: str) -> Table:
    """Quality per generator and task, without any model.

    HU distance: first Wasserstein distance of the pooled HU of cores to those of pristine nodules of 10-20 mm, or for a
    removal to the lung around its cubes. Spectrum: RMS difference in decibels of the noise spectrum in the core to that
    around the cube; "before" is the same of the untouched places. Seams: steps across the faces of core and cube over
    those of the untouched place. Size: injections of 10-20 mm, removals below 8 mm. Noise: local SD of the core over
    that of the surrounding lung, parenchyma alone, and the share within 25 %.
    """
    forged = [row for row in rows if row.kind != PRISTINE and row.quality is not None]
    nodules = [row for row in rows if row.kind == PRISTINE and INJECTED_MM[0] <= row.diameter_mm <= INJECTED_MM[1]]
    reference = np.sum([row.nodule for row in nodules], axis=0) if nodules else np.zeros(0)
    out = []
    for task, kind in sorted({(row.task, row.kind) for row in forged}):
        chosen = [row for row in forged if (row.task, row.kind) == (task, kind)]
        sizes = [row.diameter_mm for row in chosen]
        right = [INJECTED_MM[0] <= d <= INJECTED_MM[1] if task == "inject" else d < REMOVED_MM for d in sizes]
        wanted = None if task == "remove" else np.asarray(reference, dtype=float)
        noise = _values(chosen, "noise_ratio")
        known = [row for row, value in zip(chosen, noise, strict=True) if np.isfinite(value)]
        out.append(
            {
                "task": task,
                "generator": kind,
                "n": len(chosen),
                "HU distance": _interval(chosen, partial(_hu_distance, to=wanted)),
                "spectrum, dB": _mean(chosen, _values(chosen, "spectrum_db")),
                "spectrum before, dB": _mean(chosen, _values(chosen, "spectrum_db_before")),
                "seam of core": _mean(chosen, _values(chosen, "boundary_core")),
                "seam of cube": _mean(chosen, _values(chosen, "boundary_cube")),
                "diameter, mm": _mean(chosen, sizes),
                "size as wanted": _share(chosen, right),
                "noise ratio": _mean(chosen, noise),
                "noise within 25 %": _share(
                    known, [NOISE_RATIO[0] <= value <= NOISE_RATIO[1] for value in noise if np.isfinite(value)]
                ),
            }
        )
    columns = tuple(out[0]) if out else ("task", "generator", "n")
    return Table("Forgery quality", columns, tuple(out), _counts(forged), run_id)


def is_flipped(score: float, task: str, threshold: float) -> bool:
    """An injection scored malignant, or a removal scored benign."""
    return score >= threshold if task == "inject" else score < threshold


def nodule_scores(rows: Sequence[Site]) -> NoduleScores:
    """Scores of these rows as arrays."""
    return NoduleScores(
        np.array([row.score for row in rows]),
        np.array([row.malignant for row in rows], dtype=bool),
        np.array([row.diameter_mm for row in rows]),
    )


def _hu_distance(rows: Sequence[Site], to: Floats | None) -> float:
    found = [row.quality for row in rows if row.quality is not None]
    core = np.sum([one.core for one in found], axis=0)
    wanted = np.sum([one.reference for one in found], axis=0) if to is None else to
    return histogram_distance_hu(core, wanted) if wanted.shape == core.shape else NAN


def _values(rows: Sequence[Site], name: str) -> list[float]:
    return [float(getattr(row.quality, name)) for row in rows]


def _interval(rows: Sequence[Site], statistic: Callable[[Sequence[Site]], float]) -> Interval | None:
    if not rows:
        return None
    return bootstrap([row.patient for row in rows], lambda i: statistic([rows[k] for k in i]))


def _mean(rows: Sequence[Site], values: Sequence[float]) -> Interval | None:
    """The mean of what is a number."""
    array = np.asarray(values, dtype=float)
    known = np.isfinite(array)
    if not known.any():
        return None
    patients = [row.patient for row, good in zip(rows, known, strict=True) if good]
    array = array[known]
    return bootstrap(patients, lambda i: float(array[i].mean()))


def _share(rows: Sequence[Site], holds: Sequence[bool]) -> Interval | None:
    return _mean(rows, [float(value) for value in holds])


def _counts(rows: Sequence[Site]) -> dict[str, int]:
    return {
        "patients": len({row.patient for row in rows}),
        "scans": len({row.scan_id for row in rows}),
        "sites": len({(row.scan_id, row.center_zyx) for row in rows}),
    }


def site_lines(rows: Sequence[Site]) -> list[dict[str, Any]]:
    """A line of CSV for each site, in CSV_COLUMNS."""
    return [{name: cells.get(name, "") for name in CSV_COLUMNS} for cells in map(_csv_row, rows)]


def _csv_row(row: Site) -> dict[str, Any]:
    cells = {
        "scan_id": row.scan_id,
        "patient": row.patient,
        "kind": row.kind,
        "task": row.task,
        **{f"center_{axis}": round(v, 2) for axis, v in zip("zyx", row.center_zyx, strict=True)},
        "diameter_mm": round(row.diameter_mm, 2),
        "malignant": int(row.malignant) if row.kind == PRISTINE else "",
        "score": f"{row.score:.6f}",
        "found": int(row.found),
    }
    if row.quality is None:
        return cells
    cells |= {"score_before": f"{row.before:.6f}", "found_before": int(row.found_before)}
    names = ("diameter_mm_before", "spectrum_db", "spectrum_db_before", "boundary_core", "boundary_cube")
    for name in (*names, "noise_ratio", "noise_ratio_before"):
        value = float(getattr(row.quality, name))
        cells[name] = f"{value:.4f}" if np.isfinite(value) else ""
    return cells
