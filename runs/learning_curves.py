"""Learning curves of detectors, from the loss.csv of each training: a picture, and its figures.

    python runs/learning_curves.py OUT TRAINING ...

OUT gets learning_curves.png and learning_curves.csv. TRAINING: folders that `ctguard train` left, NAME or
NAME_on_GENERATOR. A panel for each NAME; above, the loss, mean of fifty steps; below, what decides on held-out patches:
their F1, or of a detector that does not localise the accuracy of its scores.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctguard.bench.table import write_csv
from ctguard.report.style import BENIGN, INK, MALIGNANT, MUTED, as_png, new_figure

MEAN_OF = 50
COLOURS = (MALIGNANT, BENIGN, INK)
STEM = "learning_curves"
Points = list[tuple[int, float]]


@dataclass(frozen=True, eq=False)
class Curve:
    """One training. judged: the name of what is held-out."""

    name: str
    generator: str
    loss: Points
    held_out: Points
    judged: str

    @classmethod
    def read(cls, folder: Path) -> Curve:
        """From its loss.csv; raises OSError where there is none."""
        name, _, generator = folder.name.partition("_on_")
        with (folder / "loss.csv").open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        judged = "f1" if "valid_f1" in rows[0] else "patch_accuracy"
        steps = np.array([int(row["step"]) for row in rows])
        losses = np.array([float(row["detector_loss"]) for row in rows])
        held_out = [(int(row["step"]), float(row[f"valid_{judged}"])) for row in rows if row[f"valid_{judged}"]]
        return cls(name, generator, _means(steps, losses), held_out, judged)

    def lines(self) -> list[dict[str, Any]]:
        """For CSV: one for each held-out figure, with the loss up to there."""
        loss = dict(self.loss)
        return [
            {
                "detector": self.name,
                "generator": self.generator,
                "step": step + 1,
                "loss": round(min(loss.items(), key=lambda point: abs(point[0] - step))[1], 4),
                "held-out": self.judged,
                "value": round(value, 4),
            }
            for step, value in self.held_out
        ]


def main() -> None:
    """Read, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of the picture and the CSV")
    parser.add_argument("training", type=Path, nargs="+")
    given = parser.parse_args()
    curves = [Curve.read(folder) for folder in given.training]
    named: dict[str, list[Curve]] = {}
    for curve in curves:
        named.setdefault(curve.name, []).append(curve)
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / f"{STEM}.png").write_bytes(draw(named))
    write_csv([line for curve in curves for line in curve.lines()], given.out / f"{STEM}.csv")


def draw(named: Mapping[str, Sequence[Curve]]) -> bytes:
    """Loss above, the held-out figure below, a column for each detector."""
    figure = new_figure(2, len(named), 1.9)
    figure.subplots_adjust(left=0.05, right=0.995, bottom=0.13, top=0.86, wspace=0.28, hspace=0.25)
    for column, (name, curves) in enumerate(named.items()):
        loss, held_out = (figure.add_subplot(2, len(named), row * len(named) + column + 1) for row in (0, 1))
        for colour, curve in zip(COLOURS, curves, strict=False):
            for axes, points in ((loss, curve.loss), (held_out, curve.held_out)):
                axes.plot(*zip(*points, strict=True), color=colour, linewidth=1.2, label=curve.generator)
        loss.set_title(name, fontsize=9, color=INK)
        held_out.set_ylim(0, 1)
        held_out.set_title(curves[0].judged.replace("_", " "), fontsize=7, color=MUTED, pad=3)
        for axes in (loss, held_out):
            axes.tick_params(labelsize=6, colors=MUTED, length=2)
            axes.spines[["top", "right"]].set_visible(False)
    loss.figure.legend(*loss.get_legend_handles_labels(), fontsize=8, frameon=False, loc="upper center", ncol=3)
    return as_png(figure)


def _means(steps: NDArray[np.int64], losses: NDArray[np.float64]) -> Points:
    """Means of so many steps, at their last."""
    ends = range(MEAN_OF, len(steps) + 1, MEAN_OF)
    return [(int(steps[end - 1]), float(losses[end - MEAN_OF : end].mean())) for end in ends]


if __name__ == "__main__":
    main()
