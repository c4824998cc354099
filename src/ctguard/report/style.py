"""What all pictures share: colours, the empty figure with its notice, words and marks on a panel, and PNG bytes."""

from __future__ import annotations

import io
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from ctguard import RESEARCH_USE_ONLY
from ctguard.core.volume import Volume

INK, MUTED, ACCENT = "#1b2733", "#5c6b7a", "#ffd23f"
BENIGN, MALIGNANT = "#2a7f9e", "#b3362b"
PANEL_INCH = 2.35

_DPI = 110


def new_figure(rows: int, columns: int, inch: float = PANEL_INCH) -> Figure:
    """An empty figure for rows x columns panels of `inch`, with the notice at its foot."""
    figure = Figure(figsize=(columns * inch + 0.3, rows * inch + 0.55), dpi=_DPI, facecolor="white")
    FigureCanvasAgg(figure)
    width, height = figure.get_size_inches()
    figure.subplots_adjust(
        left=0.3 / width, right=1 - 0.04 / width, top=1 - 0.28 / height, bottom=0.24 / height, wspace=0.03, hspace=0.03
    )
    size = 7 if columns > 1 else 5
    figure.text(0.5, 0.07 / height, RESEARCH_USE_ONLY, ha="center", va="bottom", fontsize=size, color=MUTED)
    return figure


def as_png(figure: Figure) -> bytes:
    """The figure as PNG: the same figure gives the same bytes."""
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=_DPI, metadata={"Software": None})
    return out.getvalue()


def stamp_of(*volumes: Volume) -> str:
    """What is burnt into a picture of these volumes; empty for patients' voxels alone."""
    forged = any(v.provenance.has_mark("forged") for v in volumes)
    phantom = any(v.provenance.has_mark("phantom") or v.provenance.source.format == "phantom" for v in volumes)
    return " · ".join(word for word, told in (("SYNTHETIC", forged), ("PHANTOM", phantom)) if told)


def clear_axes(axes: Any) -> None:
    """A black panel without ticks and frame."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_facecolor("black")
    for side in axes.spines.values():
        side.set_visible(False)


def add_text(axes: Any, x: float, y: float, text: str, *, ha: str, va: str, size: float, dark: bool = True) -> None:
    """Text at a place of the panel, 0..1: white on a dark picture, ink on a light one."""
    colour, back = ("white", "black") if dark else (INK, "white")
    drawn = axes.text(x, y, text, ha=ha, va=va, fontsize=size, color=colour, transform=axes.transAxes)
    if dark:
        drawn.set_path_effects([withStroke(linewidth=1.6, foreground=back)])
    else:
        drawn.set_bbox({"boxstyle": "square,pad=0.15", "facecolor": back, "edgecolor": "none", "alpha": 0.85})


def add_letters(axes: Any, edges: tuple[str, str, str, str], dark: bool = True) -> None:
    """What lies at the left, right, top and bottom of the panel (Plane.edges)."""
    left, right, top, bottom = edges
    add_text(axes, 0.025, 0.55, left, ha="left", va="center", size=7, dark=dark)
    add_text(axes, 0.975, 0.55, right, ha="right", va="center", size=7, dark=dark)
    add_text(axes, 0.55, 0.975, top, ha="center", va="top", size=7, dark=dark)
    add_text(axes, 0.55, 0.02, bottom, ha="center", va="bottom", size=7, dark=dark)


def add_stamp(axes: Any, stamp: str) -> None:
    """Burn `stamp_of` into the panel's corner; nothing where it is empty."""
    if stamp:
        box = {"boxstyle": "square,pad=0.25", "facecolor": ACCENT, "edgecolor": "none", "alpha": 0.92}
        axes.text(
            0.03,
            0.965,
            stamp.replace(" · ", "\n"),  # one under the other: beside each other they cover the letter in the middle
            ha="left",
            va="top",
            fontsize=6.5,
            color="black",
            weight="bold",
            bbox=box,
            transform=axes.transAxes,
        )


def add_scale_bar(axes: Any, length_mm: float, dark: bool = True) -> None:
    """A bar of this length at the lower left, with its millimetres; the axes' limits are set before."""
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    start, level = left + 0.04 * (right - left), low + 0.04 * (high - low)
    for colour, width in (("black", 3.2), ("white", 1.8)) if dark else ((INK, 1.8),):
        axes.plot([start, start + length_mm], [level, level], color=colour, linewidth=width, solid_capstyle="butt")
    add_text(axes, 0.04, 0.06, f"{length_mm:.0f} mm", ha="left", va="bottom", size=7, dark=dark)
