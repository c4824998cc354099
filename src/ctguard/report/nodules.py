"""What the malignancy scorer says of a scan: its figure (the scan, the nodule, its score) and its page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.patches import Rectangle

from ctguard.cad.score import Nodule, Reading
from ctguard.core.volume import Volume
from ctguard.report.figures import LUNG_WINDOW_HU, Panel, draw_panel
from ctguard.report.html import Grid, Paragraph, Picture, Section, scan_sections
from ctguard.report.planes import PLANES, Field, View
from ctguard.report.style import (
    ACCENT,
    BENIGN,
    INK,
    MALIGNANT,
    MUTED,
    add_letters,
    add_scale_bar,
    add_stamp,
    add_text,
    as_png,
    clear_axes,
    new_figure,
    stamp_of,
)

SHOWN = 5
NODULE_FIELD_MM = 50.0


def nodules_figure(volume: Volume, nodules: Sequence[Nodule], threshold: float) -> bytes:
    """A row for each of the first five nodules: its slice with a box around it, two planes through it, and its score.

    Raises GeometryError where a nodule lies outside the scan.
    """
    view, shown = View.of(volume.geometry), nodules[:SHOWN]
    figure = new_figure(len(shown), 4)
    for row, nodule in enumerate(shown):
        panels = [figure.add_subplot(len(shown), 4, 4 * row + column + 1) for column in range(4)]
        _slice(panels[0], volume, view, nodule)
        for axes, plane in zip(panels[1:3], PLANES, strict=False):
            field = Field(view, nodule.center_zyx, NODULE_FIELD_MM)
            draw_panel(axes, Panel("", volume.hu, LUNG_WINDOW_HU, stamp_of(volume)), field, plane)
            add_scale_bar(axes, 10)
            if row == 0:
                axes.set_title(plane.name, fontsize=10, color=INK, pad=5)
        _gauge(panels[3], nodule, threshold)
        panels[0].set_ylabel(f"nodule {row + 1}" if len(nodules) > 1 else "nodule", fontsize=10, color=INK)
        if row == 0:
            panels[0].set_title("scan", fontsize=10, color=INK, pad=5)
            panels[3].set_title("malignancy score", fontsize=10, color=INK, pad=5)
    return as_png(figure)


def _slice(axes: Any, volume: Volume, view: View, nodule: Nodule) -> None:
    clear_axes(axes)
    center = view.index(nodule.center_zyx)
    k = int(np.clip(round(float(center[0])), 0, view.shape[0] - 1))
    image = view.array(volume.hu)[k]
    tall, wide = np.asarray(image.shape) * view.spacing_mm[1:]
    low, high = LUNG_WINDOW_HU
    axes.imshow(image, cmap="gray", vmin=low, vmax=high, extent=(0.0, wide, tall, 0.0), interpolation="bilinear")
    top, left = (center[1:] + 0.5) * view.spacing_mm[1:] - NODULE_FIELD_MM / 2
    box = Rectangle((left, top), NODULE_FIELD_MM, NODULE_FIELD_MM, fill=False, edgecolor=ACCENT, linewidth=1.1)
    axes.add_patch(box)
    axes.set_xlim(0, wide)
    axes.set_ylim(tall, 0)
    add_letters(axes, PLANES[0].edges)
    add_stamp(axes, stamp_of(volume))
    add_scale_bar(axes, 50)
    add_text(axes, 0.97, 0.03, view.slice_number(k), ha="right", va="bottom", size=7)


def _gauge(axes: Any, nodule: Nodule, threshold: float) -> None:
    """The score as a bar from 0 to 1, with the threshold."""
    clear_axes(axes)
    axes.set_facecolor("white")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    above = nodule.malignancy >= threshold
    colour = MALIGNANT if above else BENIGN
    axes.text(0.5, 0.74, f"{nodule.malignancy:.2f}", ha="center", va="center", fontsize=22, color=colour)
    axes.add_patch(Rectangle((0.1, 0.46), 0.8, 0.07, facecolor="#e6eaee", edgecolor="none"))
    axes.add_patch(Rectangle((0.1, 0.46), 0.8 * nodule.malignancy, 0.07, facecolor=colour, edgecolor="none"))
    mark = 0.1 + 0.8 * threshold
    axes.plot([mark, mark], [0.43, 0.56], color=INK, linewidth=1.2)
    words = "at or above the threshold" if above else "below the threshold"
    axes.text(0.5, 0.33, f"{words} {threshold:.2f}", ha="center", va="center", fontsize=7.5, color=INK)
    size = f"{nodule.diameter_mm:.0f} mm, found with {nodule.confidence:.2f}" if nodule.diameter_mm > 0 else ""
    axes.text(0.5, 0.22, size, ha="center", va="center", fontsize=7.5, color=MUTED)


def reading_sections(volume: Volume, reading: Reading) -> list[Section]:
    """The page of a reading: case probability, the nodules with their scores, the figure, then the scan."""
    facts = Grid(
        (
            ("nodules proposed", len(reading.nodules)),
            ("case probability (leaky noisy-or, five most confident)", reading.case_probability),
            ("threshold of a nodule's score", reading.threshold),
            ("scorer", reading.scorer),
            ("model", reading.model_id),
        )
    )
    blocks: list[Paragraph | Grid | Picture | Any] = [facts, Paragraph(SURROGATE, "note")]
    if reading.nodules:
        rows = [
            (number, f"{one.malignancy:.3f}", f"{one.confidence:.3f}", f"{one.diameter_mm:.1f}", _place(one))
            for number, one in enumerate(reading.nodules, start=1)
        ]
        columns = ("nodule", "malignancy score", "confidence", "diameter, mm", "centre (z, y, x)")
        blocks += [Grid(rows, columns), _picture(volume, reading.nodules, reading.threshold)]
    else:
        blocks.append(Paragraph("The scorer proposes no nodule.", "note"))
    return [Section("Nodules", blocks), *scan_sections(volume)]


def site_sections(volume: Volume, site: Nodule, reading: Reading) -> list[Section]:
    """The page of one place that was scored."""
    facts = Grid(
        (
            ("place (z, y, x)", _place(site)),
            ("malignancy score", site.malignancy),
            ("threshold", reading.threshold),
            ("scorer", reading.scorer),
            ("model", reading.model_id),
        )
    )
    blocks = (facts, Paragraph(SURROGATE, "note"), _picture(volume, (site,), reading.threshold))
    return [Section("One place", blocks), *scan_sections(volume)]


SURROGATE = (
    "The scorer is a surrogate that measures what forgeries do to an automatic reader. It learned from phantoms' "
    "labels or radiologists' ratings, never from a diagnosis, and says nothing about a patient."
)


def _picture(volume: Volume, nodules: Sequence[Nodule], threshold: float) -> Picture:
    caption = "The slice of each nodule, the nodule in two planes (50 mm, lung window), and its score."
    if len(nodules) > SHOWN:
        caption += f" The {SHOWN} most confident of {len(nodules)}."
    return Picture(nodules_figure(volume, nodules, threshold), "Nodules in the scan with their scores", caption)


def _place(nodule: Nodule) -> str:
    return ", ".join(f"{v:.1f}" for v in nodule.center_zyx)
