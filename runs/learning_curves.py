"""Learning curves of detectors, from the loss.csv of each training: a picture, and its figures.

    python runs/learning_curves.py OUT TRAINING ...

OUT gets learning_curves.csv and, drawn from it, learning_curves.png; trainings that the CSV knows already stay there
until they are given again. TRAINING: folders that `ctguard train` left, NAME or NAME_on_GENERATOR. A column for each
NAME; above, the loss, mean of fifty steps; below, what decides on held-out patches: their F1, or of a detector that
does not localise the accuracy of its scores.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ctguard.bench.table import write_csv
from ctguard.report.style import BENIGN, INK, MALIGNANT, MUTED, as_png, new_figure

MEAN_OF = 50
COLOURS = (MALIGNANT, BENIGN, INK)
STEM = "learning_curves"
LOSS, F1, ACCURACY = "loss", "f1", "patch_accuracy"
Rows = list[dict[str, Any]]
"""detector, generator, step, figure (LOSS, F1 or ACCURACY), value."""


def main() -> None:
    """Read, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of the picture and the CSV")
    parser.add_argument("training", type=Path, nargs="*")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    known = given.out / f"{STEM}.csv"
    new = [row for folder in given.training for row in curves_of(folder)]
    told = {(row["detector"], row["generator"]) for row in new}
    old = [row for row in _read(known) if (row["detector"], row["generator"]) not in told] if known.exists() else []
    rows = [*old, *new]
    write_csv(rows, known)
    (given.out / f"{STEM}.png").write_bytes(draw(rows))


def curves_of(folder: Path) -> Rows:
    """The curves of one training; raises OSError where it left no loss.csv."""
    name, _, generator = folder.name.partition("_on_")
    logged = _read(folder / "loss.csv")
    judged = F1 if f"valid_{F1}" in logged[0] else ACCURACY
    first = next(name for name in logged[0] if name.endswith("_loss"))  # of several turns, the map's
    losses = np.array([float(row[first]) for row in logged])
    steps = [int(row["step"]) + 1 for row in logged]
    points = [(steps[k - 1], LOSS, losses[k - MEAN_OF : k].mean()) for k in range(MEAN_OF, len(steps) + 1, MEAN_OF)]
    points += [
        (step, judged, float(row[f"valid_{judged}"]))
        for step, row in zip(steps, logged, strict=True)
        if row[f"valid_{judged}"]
    ]
    return [
        {"detector": name, "generator": generator, "step": step, "figure": figure, "value": f"{value:.4f}"}
        for step, figure, value in points
    ]


def draw(rows: Rows) -> bytes:
    """Loss above, the held-out figure below, a column for each detector, a colour for each generator."""
    detectors = list(dict.fromkeys(row["detector"] for row in rows))
    generators = list(dict.fromkeys(row["generator"] for row in rows))
    figure = new_figure(2, len(detectors), 1.9)
    figure.subplots_adjust(left=0.05, right=0.99, bottom=0.14, top=0.85, wspace=0.3, hspace=0.28)
    lines: dict[str, Any] = {}
    for column, detector in enumerate(detectors):
        own = [row for row in rows if row["detector"] == detector]
        judged = next(row["figure"] for row in own if row["figure"] != LOSS)
        for row, name in enumerate((LOSS, judged)):
            axes = figure.add_subplot(2, len(detectors), row * len(detectors) + column + 1)
            for colour, generator in zip(COLOURS, generators, strict=False):
                curve = [one for one in own if (one["generator"], one["figure"]) == (generator, name)]
                x, y = [int(one["step"]) for one in curve], [float(one["value"]) for one in curve]
                (lines[generator],) = axes.plot(x, y, color=colour, linewidth=1.2)
            axes.tick_params(labelsize=6, colors=MUTED, length=2)
            axes.spines[["top", "right"]].set_visible(False)
            if column == row == 0:
                axes.set_ylabel("training loss", fontsize=7, color=MUTED)
            if row == 0:
                axes.set_title(detector, fontsize=9, color=INK, pad=3)
                continue
            axes.set_title(f"held-out {judged.replace('_', ' ')}", fontsize=7, color=MUTED, pad=3)
            axes.set_ylim(0, 1)
            axes.set_xlabel("step", fontsize=7, color=MUTED)
    words = [f"learns from {generator}" if generator else "" for generator in lines]
    figure.legend(lines.values(), words, fontsize=8, frameon=False, loc="upper center", ncol=3)
    return as_png(figure)


def _read(path: Path) -> Sequence[dict[str, Any]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


if __name__ == "__main__":
    main()
