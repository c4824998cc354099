"""The paper's four histograms: scores of pristine benign and malignant nodules, of injections and of removals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ctguard.bench.flips import is_flipped
from ctguard.bench.malignancy import PRISTINE, Site
from ctguard.report.style import BENIGN, INK, MALIGNANT, MUTED, as_png, new_figure

_BINS = np.linspace(0, 1, 21)


def histograms_figure(rows: Sequence[Site], threshold: float) -> bytes:
    """A row for each generator: pristine benign, pristine malignant, injected, removed; the threshold as a line."""
    kinds = sorted({row.kind for row in rows if row.kind != PRISTINE}) or [""]
    pristine = [row for row in rows if row.kind == PRISTINE]
    figure = new_figure(len(kinds), 4)
    figure.subplots_adjust(left=0.07, wspace=0.12, hspace=0.35, bottom=0.16 if len(kinds) == 1 else 0.1)
    for line, kind in enumerate(kinds):
        forged = {task: [row for row in rows if (row.kind, row.task) == (kind, task)] for task in ("inject", "remove")}
        groups = (
            ("pristine benign", [row.score for row in pristine if not row.malignant], BENIGN, ""),
            ("pristine malignant", [row.score for row in pristine if row.malignant], MALIGNANT, ""),
            ("injected", [row.score for row in forged["inject"]], MALIGNANT, _flips(forged["inject"], threshold)),
            ("removed", [row.score for row in forged["remove"]], BENIGN, _flips(forged["remove"], threshold)),
        )
        for column, (title, scores, colour, flipped) in enumerate(groups):
            axes = figure.add_subplot(len(kinds), 4, 4 * line + column + 1)
            _histogram(axes, scores, colour, threshold, first=column == 0)
            if line == 0:
                axes.set_title(title, fontsize=10, color=INK, pad=5)
            if column == 0:
                axes.set_ylabel(kind, fontsize=10, color=INK)
            words = f"n {len(scores)}" + (f"\n{flipped}" if flipped else "")
            axes.text(0.5, 0.94, words, ha="center", va="top", fontsize=7.5, color=INK, transform=axes.transAxes)
            if line == len(kinds) - 1:
                axes.set_xlabel("malignancy score", fontsize=8, color=MUTED)
    return as_png(figure)


def _flips(rows: Sequence[Site], threshold: float) -> str:
    if not rows:
        return ""
    share = float(np.mean([is_flipped(row.score, row.task, threshold) for row in rows]))
    return f"{share:.0%} scored {'malignant' if rows[0].task == 'inject' else 'benign'}"


def _histogram(axes: Any, scores: Sequence[float], colour: str, threshold: float, first: bool) -> None:
    """Shares of nodules by score."""
    share = np.full(len(scores), 1 / max(len(scores), 1))
    axes.hist(scores, _BINS, weights=share, color=colour, alpha=0.85)
    axes.axvline(threshold, color=INK, linewidth=1.0, linestyle="--")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    axes.set_yticks([0, 0.5, 1], ["0", "50 %", "100 %"] if first else [])
    axes.tick_params(labelsize=7, colors=MUTED, length=2)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
