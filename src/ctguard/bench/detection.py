"""Whole scans, pristine and forged, through one detector (protocols.md "Calibrated protocol")."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ctguard import io
from ctguard.bench.metrics import Interval, auc, bootstrap, conformal_threshold, overlap
from ctguard.core.console import progress
from ctguard.core.geometry import Geometry
from ctguard.core.records import Case, Table, Verdict
from ctguard.core.volume import Volume
from ctguard.detect.infer import MAP_THRESHOLD, detect_volume
from ctguard.io.cases import case_path, read_cases
from ctguard.io.forgeries import Forgery, read_manifest

NAN = float("nan")


@dataclass(frozen=True)
class Scored:
    """One scan that was judged. generator "pristine": nothing forged. pointing: the map's maximum within 16 mm."""

    patient: str
    generator: str
    task: str
    score: float
    f1: float = NAN
    iou: float = NAN
    pointing: float = NAN


def score_pristine(detector: Any, index: Path, cases: Sequence[Case]) -> list[Scored]:
    """Scores of untouched scans."""
    rows = []
    for case in progress(cases, "pristine scans", len(cases)):
        volume = io.read(case_path(index, case), allow_gaps=True, series_uid=case.series_uid or None)
        rows.append(Scored(case.patient, "pristine", "", _judge(detector, volume).score))
    return rows


def score_folder(detector: Any, folder: Path, split: str) -> list[Scored]:
    """Scores of a split of a folder of forgeries: each pristine scan once, and every forgery of it."""
    index, forgeries = read_manifest(folder)
    cases = [case for case in read_cases(index) if case.split == split]
    by_scan: dict[str, list[Forgery]] = {}
    for forgery in forgeries:
        by_scan.setdefault(forgery.scan_id, []).append(forgery)
    rows: list[Scored] = []
    for case in progress(cases, f"{split} scans", len(cases)):
        volume = io.read(case_path(index, case), allow_gaps=True, series_uid=case.series_uid or None)
        rows.append(Scored(case.patient, "pristine", "", _judge(detector, volume).score))
        for forgery in by_scan.get(case.scan_id, []):
            forged = Volume(forgery.paste(volume.hu), volume.geometry, volume.provenance)
            rows.append(_scored(case, forgery, _judge(detector, forged), volume.geometry, detector.localises))
    return rows


def _judge(detector: Any, volume: Volume) -> Verdict:
    parameter = next(detector.parameters(), None)
    device = "cpu" if parameter is None else str(parameter.device)
    return detect_volume(volume, detector, name="", model_id="", threshold=2.0, device=device)


def _scored(case: Case, forgery: Forgery, verdict: Verdict, geometry: Geometry, localises: bool) -> Scored:
    if not localises:
        return Scored(case.patient, forgery.edit.generator, forgery.edit.task, verdict.score)
    f1, iou = overlap(verdict.map >= MAP_THRESHOLD, forgery.edit.full_mask(geometry.shape_zyx))
    peak = np.unravel_index(int(np.argmax(verdict.map)), verdict.map.shape)
    distance = np.linalg.norm(np.subtract(peak, forgery.edit.center_zyx) * geometry.spacing_zyx_mm)
    return Scored(
        case.patient, forgery.edit.generator, forgery.edit.task, verdict.score, f1, iou, float(distance <= 16.0)
    )


def find_threshold(rows: Sequence[Scored], false_alarms: float = 0.01) -> tuple[float, str]:
    """The conformal threshold of pristine scans, and the sentence for the card that says what n allows."""
    scores = [row.score for row in rows if row.generator == "pristine"]
    bound = max(false_alarms, 1 / (len(scores) + 1))
    note = f"split conformal at {false_alarms:.0%} on n = {len(scores)} pristine validation scans"
    return conformal_threshold(scores, false_alarms), f"{note}; false alarms on new scans <= {bound:.1%} on average"


def calibrated_table(rows: Sequence[Scored], threshold: float, title: str, run_id: str, sha256: str) -> Table:
    """One row per generator and task: AUC, sensitivity, F1, IoU, pointing game, with intervals by patient."""
    pristine = [row for row in rows if row.generator == "pristine"]
    specificity = bootstrap(
        [row.patient for row in pristine],
        lambda i: float(np.mean([pristine[k].score < threshold for k in i])),
    )
    out: list[dict[str, Any]] = []
    for generator, task in sorted({(row.generator, row.task) for row in rows if row.generator != "pristine"}):
        chosen = [row for row in rows if (row.generator, row.task) == (generator, task)]
        out.append({"forgery": f"{generator} {task}", "n": len(chosen), **_cells(chosen, pristine, threshold)})
    out.append({"forgery": "pristine", "n": len(pristine), "specificity": specificity})
    columns = ("forgery", "n", "auc", "sensitivity", "specificity", "f1", "iou", "pointing")
    n = {"patients": len({row.patient for row in rows}), "scans": len(rows), "pristine": len(pristine)}
    return Table(title, columns, tuple(out), n, run_id, {"detector": sha256})


def _cells(chosen: list[Scored], pristine: list[Scored], threshold: float) -> dict[str, Interval]:
    patients = [row.patient for row in chosen]
    negative = [row.score for row in pristine]

    def mean(values: list[float]) -> Interval:
        return bootstrap(patients, lambda i: float(np.mean([values[k] for k in i])))

    return {
        "auc": bootstrap(patients, lambda i: auc([chosen[k].score for k in i], negative), resamples=500),
        "sensitivity": mean([float(row.score >= threshold) for row in chosen]),
        "f1": mean([row.f1 for row in chosen]),
        "iou": mean([row.iou for row in chosen]),
        "pointing": mean([row.pointing for row in chosen]),
    }


def markdown(table: Table) -> str:
    """A table as Markdown, its n and hashes below it."""

    def cell(value: Any) -> str:
        if isinstance(value, Interval):
            return f"{value.value:.3f} [{value.low:.3f}, {value.high:.3f}]"
        return "" if value is None else str(value)

    lines = [f"**{table.title}**", "", "| " + " | ".join(table.columns) + " |", "|" + "---|" * len(table.columns)]
    lines += ["| " + " | ".join(cell(row.get(column)) for column in table.columns) + " |" for row in table.rows]
    counts = ", ".join(f"{count} {name}" for name, count in table.n.items())
    hashes = ", ".join(f"{name} {sha[:12]}" for name, sha in table.checkpoints.items())
    return "\n".join(
        [*lines, "", f"n: {counts}. 95 % intervals by patient. Checkpoints: {hashes}. Run {table.run_id}."]
    )
