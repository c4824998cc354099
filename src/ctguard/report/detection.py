"""Figures of the detection benchmark: ROC curves, calibration curves, and maps of every detector on the same scans."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctguard.bench.calibrated import EVERY, groups
from ctguard.bench.detection import PRISTINE, Scored
from ctguard.bench.metrics import auc
from ctguard.core.geometry import FloatTriple
from ctguard.core.volume import Volume
from ctguard.report.figures import FIELD_MM, LUNG_WINDOW_HU, Panel, draw_panel
from ctguard.report.planes import PLANES, Field, View
from ctguard.report.style import INK, MUTED, add_scale_bar, add_text, as_png, clear_axes, new_figure, stamp_of

COLOURS = ("#2a7f9e", "#b3362b", "#6a8f2f", "#8a5fb0", "#c77d1e", "#4a4a4a", "#0b5cab", "#a0527f")
BINS = 10
LEAST = 5
"""Scans in a bin of the calibration curve."""

Floats = NDArray[np.float64]


def forged_and_pristine(rows: Sequence[Scored]) -> tuple[list[float], list[float]]:
    """Scores of whole scans: forged by the generators (by copy-move where there is nothing else), and pristine."""
    named = dict(groups(rows))
    chosen = named.get(EVERY) or [row for found in named.values() for row in found]
    return [row.score for row in chosen], [row.score for row in rows if row.generator == PRISTINE]


def roc_points(positive: Sequence[float], negative: Sequence[float]) -> tuple[Floats, Floats]:
    """False alarm and detection rates of all thresholds, from (0, 0) to (1, 1)."""
    levels = np.unique(np.concatenate([positive, negative]))[::-1]
    above = [
        [np.count_nonzero(np.asarray(side) >= level) / len(side) for level in levels] for side in (negative, positive)
    ]
    alarms, found = (np.concatenate([[0.0], side]) for side in above)
    return alarms, found


def roc_figure(rows: Mapping[str, Sequence[Scored]]) -> bytes:
    """ROC curves of all detectors over all generators, and their part below 10 % false alarms."""
    figure = new_figure(1, 2, 3.6)
    figure.subplots_adjust(left=0.09, right=0.98, bottom=0.2, top=0.92, wspace=0.2)
    for column, (right, title) in enumerate(((1.0, "all false alarm rates"), (0.1, "below 10 %"))):
        axes = figure.add_subplot(1, 2, column + 1)
        for (name, found), colour in zip(rows.items(), _colours(len(rows)), strict=True):
            positive, negative = forged_and_pristine(found)
            if not positive or not negative:
                continue
            words = f"{name}, AUC {auc(positive, negative):.3f}" if column == 0 else None
            axes.plot(*roc_points(positive, negative), color=colour, linewidth=1.4, label=words)
        if right == 1:
            axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.7, linestyle=":")
            axes.legend(loc="lower right", fontsize=7, frameon=False)
        else:
            axes.axvline(0.01, color=MUTED, linewidth=0.7, linestyle="--")
        axes.set_xlim(-0.01 * right, right)
        axes.set_ylim(0, 1.01)
        axes.set_title(title, fontsize=9, color=INK)
        _plain(axes, "false alarms on pristine scans", "forged scans found" if column == 0 else "")
    return as_png(figure)


def calibration_points(positive: Sequence[float], negative: Sequence[float]) -> tuple[Floats, Floats, Floats]:
    """Mean score, share forged and number of scans in bins of the score; forged and pristine weigh the same."""
    scores = np.concatenate([positive, negative])
    forged = np.arange(len(scores)) < len(positive)
    weight = np.where(forged, 1 / max(len(positive), 1), 1 / max(len(negative), 1))
    place = np.minimum((scores * BINS).astype(int), BINS - 1)
    size, total = (np.bincount(place, w, minlength=BINS) for w in (None, weight))
    kept = size >= LEAST
    mean, share = (np.bincount(place, weight * v, minlength=BINS)[kept] / total[kept] for v in (scores, forged))
    return mean, share, size[kept].astype(np.float64)


def calibration_figure(rows: Mapping[str, Sequence[Scored]]) -> bytes:
    """What share of the scans with a score are forged: on the diagonal, a score is a probability."""
    figure = new_figure(1, 1, 4.2)
    figure.subplots_adjust(left=0.13, right=0.97, bottom=0.17, top=0.95)
    axes = figure.add_subplot(1, 1, 1)
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.7, linestyle=":")
    for (name, found), colour in zip(rows.items(), _colours(len(rows)), strict=True):
        mean, share, _ = calibration_points(*forged_and_pristine(found))
        axes.plot(mean, share, color=colour, marker="o", markersize=3.5, linewidth=1.2, label=name)
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)
    axes.legend(loc="upper left", fontsize=7, frameon=False)
    _plain(axes, f"mean score of the scans in a bin ({LEAST} or more)", "share forged (as many forged as pristine)")
    return as_png(figure)


def maps_figure(
    examples: Sequence[tuple[str, Volume, Volume, FloatTriple]],
    maps: Mapping[str, Sequence[NDArray[np.float32] | None]],
) -> bytes:
    """A row per forgery, axial: the original, the forged scan, and the map of each detector over it.

    examples: (words, original, forged, site). maps: detector to one map per example on the scan's grid; None where the
    detector does not say where.
    """
    columns = 2 + len(maps)
    figure = new_figure(len(examples), columns)
    for line, (words, original, forged, site) in enumerate(examples):
        field = Field(View.of(original.geometry), site, FIELD_MM)
        panels = [
            Panel("original", original.hu, LUNG_WINDOW_HU, stamp_of(original)),
            Panel("forged", forged.hu, LUNG_WINDOW_HU, stamp_of(original, forged)),
        ]
        for name, found in maps.items():
            panels.append(Panel(name, forged.hu, LUNG_WINDOW_HU, stamp_of(original, forged), heat=found[line]))
        for column, panel in enumerate(panels):
            axes = figure.add_subplot(len(examples), columns, line * columns + column + 1)
            if column > 1 and panel.heat is None:
                clear_axes(axes)
                add_text(axes, 0.5, 0.5, "does not say where", ha="center", va="center", size=8)
            else:
                draw_panel(axes, panel, field, PLANES[0])
                add_scale_bar(axes, 20)
            if line == 0:
                axes.set_title(panel.title, fontsize=9, color=INK, pad=5)
            if column == 0:
                axes.set_ylabel(words, fontsize=8, color=INK)
    return as_png(figure)


def _colours(count: int) -> list[str]:
    return [COLOURS[k % len(COLOURS)] for k in range(count)]


def _plain(axes: Any, below: str, beside: str) -> None:
    axes.set_xlabel(below, fontsize=8, color=INK)
    axes.set_ylabel(beside, fontsize=8, color=INK)
    axes.tick_params(labelsize=7, colors=MUTED, length=2)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
