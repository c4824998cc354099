"""Pictures of the protection benchmark: the MITS-GAN paper's figures 3, 6 and 7, and its curves that were missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.ticker import NullFormatter
from numpy.typing import NDArray

from ctguard.bench.metrics import Interval
from ctguard.bench.protection_scene import cube_box
from ctguard.core.geometry import FloatTriple
from ctguard.core.volume import Volume
from ctguard.report.figures import FIELD_MM, LUNG_WINDOW_HU, Panel, draw_panel
from ctguard.report.planes import PLANES, Field, View, cut
from ctguard.report.style import (
    BENIGN,
    INK,
    MALIGNANT,
    MUTED,
    add_scale_bar,
    add_stamp,
    add_text,
    as_png,
    clear_axes,
    new_figure,
    stamp_of,
)

_CEILING = "#c98a00"
MOST = 8
"""Protectors in a picture, at most."""
_HEAT_PERCENTILE = 99.5
_CHANGED_PERCENTILE = 99.0
_ROUND_HU = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000)


@dataclass(frozen=True, eq=False)
class Example:
    """One axial slice of one protector, each a volume of one slice: p, and t(p) by task. Of the control, p is x."""

    label: str
    p: Volume
    forged: Mapping[str, Volume]


def _round_limit(value: float) -> float:
    return float(next((r for r in _ROUND_HU if r >= value), _ROUND_HU[-1]))


def _draw(figure: Any, place: tuple[int, int, int], panel: Panel, field: Field) -> Any:
    rows, columns, number = place
    axes = figure.add_subplot(rows, columns, number)
    draw_panel(axes, panel, field, PLANES[0])
    add_scale_bar(axes, 20 if field.mm <= 120 else 50, dark=panel.minus is None)
    return axes


def _whole(volume: Volume) -> Field:
    """The whole slice."""
    z, y, x = volume.hu.shape
    side = max(n * mm for n, mm in zip((y, x), volume.geometry.spacing_zyx_mm[1:], strict=True))
    return Field(View.of(volume.geometry), ((z - 1) / 2, (y - 1) / 2, (x - 1) / 2), side)


def protected_figure(control: Example, examples: Sequence[Example]) -> bytes:
    """The paper's figure 3: whole slices, real on top; then a row per protector with p and p - x."""
    shown = examples[:MOST]
    field = _whole(control.p)
    figure = new_figure(len(shown), 3)
    limit = _round_limit(max((float(np.abs(_difference(one.p, control.p)).max()) for one in shown), default=1.0))
    for line, one in enumerate(shown):
        panels = (
            Panel("real, x", control.p.hu, LUNG_WINDOW_HU, stamp_of(control.p)),
            Panel("protected, p", one.p.hu, LUNG_WINDOW_HU, stamp_of(one.p)),
            Panel("p − x", one.p.hu, (-limit, limit), stamp_of(one.p), minus=control.p.hu),
        )
        for column, panel in enumerate(panels):
            axes = _draw(figure, (len(shown), 3, 3 * line + column + 1), panel, field)
            if line == 0:
                axes.set_title(panel.title, fontsize=9, color=INK, pad=5)
            if column == 0:
                axes.set_ylabel(one.label, fontsize=8, color=INK)
    return as_png(figure)


def forged_figure(control: Example, examples: Sequence[Example], task: str, center_zyx: FloatTriple) -> bytes:
    """The paper's figure 6: 80 mm around a site; the control on top (x, t(x)), then p, t(p) and what differs.

    center_zyx: of the site, in voxels; z counts for nothing in volumes of one slice. Below a difference: its SD in the
    32 mm square of the site.
    """
    shown = [control, *examples[:MOST]]
    field = Field(View.of(control.p.geometry), (0.0, *center_zyx[1:]), FIELD_MM)
    real = control.forged[task]
    square = (0, *cube_box(control.p, center_zyx).slices()[1:])
    limit = max(_most_of(one.forged[task], real, square) for one in shown[1:])
    changed = _most_of(real, control.p, square)
    figure = new_figure(len(shown), 3)
    for line, one in enumerate(shown):
        forged = one.forged[task]
        if one is control:
            panels = (
                Panel("real, x", one.p.hu, LUNG_WINDOW_HU, stamp_of(one.p)),
                Panel("forged, t(x)", forged.hu, LUNG_WINDOW_HU, stamp_of(forged)),
                Panel("t(x) − x", forged.hu, (-changed, changed), stamp_of(forged), minus=one.p.hu),
            )
        else:
            panels = (
                Panel("protected, p", one.p.hu, LUNG_WINDOW_HU, stamp_of(one.p)),
                Panel("forged, t(p)", forged.hu, LUNG_WINDOW_HU, stamp_of(forged)),
                Panel("t(p) − t(x)", forged.hu, (-limit, limit), stamp_of(forged), minus=real.hu),
            )
        for column, panel in enumerate(panels):
            axes = _draw(figure, (len(shown), 3, 3 * line + column + 1), panel, field)
            if column == 0:
                axes.set_ylabel(one.label, fontsize=8, color=INK)
            words = panel.title
            if panel.minus is not None:
                words += f", SD {np.std(panel.values[square].astype(float) - panel.minus[square]):.0f} HU"
            add_text(axes, 0.97, 0.03, words, ha="right", va="bottom", size=7, dark=panel.minus is None)
    return as_png(figure)


def _most_of(one: Volume, other: Volume, square: tuple[Any, ...]) -> float:
    """A round limit that holds nearly all of what differs in the square of the site; the rest is saturated."""
    return _round_limit(float(np.percentile(np.abs(_difference(one, other)[square]), _CHANGED_PERCENTILE)))


def heat_figure(control: Example, examples: Sequence[Example]) -> bytes:
    """The paper's figure 7: |p - x| of whole slices, one panel per protector, one scale for all."""
    shown = examples[:MOST]
    columns = min(len(shown), 4)
    rows = -(-len(shown) // columns)
    field = _whole(control.p)
    figure = new_figure(rows, columns)
    high = _round_limit(
        max(float(np.percentile(np.abs(_difference(one.p, control.p)), _HEAT_PERCENTILE)) for one in shown)
    )
    for number, one in enumerate(shown):
        axes = figure.add_subplot(rows, columns, number + 1)
        clear_axes(axes)
        image, extent = cut(np.abs(_difference(one.p, control.p)), field, PLANES[0], 0.0)
        axes.imshow(image, cmap="inferno", vmin=0, vmax=high, extent=extent, interpolation="nearest")
        half = field.mm / 2
        axes.set_xlim(-half, half)
        axes.set_ylim(half, -half)
        add_stamp(axes, stamp_of(one.p))
        add_scale_bar(axes, 50)
        add_text(axes, 0.97, 0.03, f"SD {_difference(one.p, control.p).std():.1f} HU", ha="right", va="bottom", size=8)
        axes.set_xlabel(one.label, fontsize=8, color=INK, labelpad=2)
    width, height = figure.get_size_inches()
    bottom = 0.62 / height
    figure.set_size_inches(width, height + 0.35)
    figure.subplots_adjust(bottom=(0.62 + 0.1) / (height + 0.35), top=1 - 0.1 / height, hspace=0.16)
    bar = figure.add_axes((0.3, bottom * 0.55, 0.4, 0.06 / height))
    figure.colorbar(ScalarMappable(Normalize(0, high), "inferno"), cax=bar, orientation="horizontal")
    bar.tick_params(labelsize=7, colors=MUTED, length=2)
    bar.set_title("|p − x|, HU", fontsize=7, color=MUTED, pad=2)
    return as_png(figure)


def _difference(one: Volume, other: Volume) -> NDArray[np.float32]:
    """One slice minus another, HU, at full precision."""
    difference: NDArray[np.float32] = one.hu.astype(np.float32) - other.hu
    return difference


@dataclass(frozen=True)
class Bar:
    """One protector in the figure of damage. floor: of noise of the same SD."""

    label: str
    damage: Interval
    floor: Interval | None


def damage_figure(bars: Sequence[Bar], lines: Mapping[str, float]) -> bytes:
    """Damage in the core with its interval and the noise of the same SD beside it; lines: floor, ceiling, the edit."""
    figure = new_figure(1, 3)
    figure.set_size_inches(7.2, 0.34 * len(bars) + 1.5)
    height = figure.get_size_inches()[1]
    axes = figure.add_axes((0.27, 0.75 / height, 0.7, 1 - 1.15 / height))
    for k, bar in enumerate(bars):
        _dot(axes, bar.damage, k - 0.12, MALIGNANT, "protected")
        if bar.floor is not None:
            _dot(axes, bar.floor, k + 0.18, MUTED, "noise of the same SD")
    for words, value in lines.items():
        colour = _CEILING if words == "ceiling" else BENIGN
        axes.axvline(value, color=colour, linewidth=1.4, linestyle="--", label=words)
    axes.set_xscale("log")
    axes.set_yticks(range(len(bars)), [bar.label for bar in bars], fontsize=8, color=INK)
    axes.set_ylim(len(bars) - 0.4, -0.6)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("damage: RMSE(t(p), t(x)) in the masked core, HU", fontsize=8, color=MUTED)
    _plain_axes(axes)
    handles, names = axes.get_legend_handles_labels()
    unique = dict(zip(names, handles, strict=True))
    axes.legend(
        unique.values(),
        unique.keys(),
        fontsize=7,
        frameon=False,
        loc="lower center",
        bbox_to_anchor=(0.5, 1.0),
        ncol=len(unique),
    )
    return as_png(figure)


Curves = Mapping[str, Mapping[str, Sequence[tuple[float, Interval]]]]
"""Unit of effort (steps, minutes) to protector to (effort, damage)."""


def effort_figure(curves: Curves, lines: Mapping[str, float]) -> bytes:
    """Damage in the core against the effort that a row's name states; a panel per unit, for they do not compare."""
    figure = new_figure(1, len(curves))
    figure.set_size_inches(3.6 * len(curves), 2.9)
    for number, (unit, protectors) in enumerate(curves.items()):
        axes = figure.add_axes(((number + 0.17) / len(curves), 0.25, 0.79 / len(curves), 0.62))
        for colour, (name, points) in zip((MALIGNANT, INK, MUTED), protectors.items(), strict=False):
            x, damage = zip(*sorted(points, key=lambda point: point[0]), strict=True)
            axes.plot(x, [one.value for one in damage], "o-", color=colour, markersize=4, linewidth=1.2, label=name)
            axes.fill_between(
                x, [d.low for d in damage], [d.high for d in damage], color=colour, alpha=0.15, linewidth=0
            )
        for words, value in lines.items():
            colour = _CEILING if words == "ceiling" else BENIGN
            axes.axhline(value, color=colour, linewidth=1.2, linestyle="--", label=words)
        axes.set_xscale("log")
        axes.set_yscale("log")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter("{x:g}")
            axis.set_minor_formatter(NullFormatter())
        axes.set_xticks(sorted({at for points in protectors.values() for at, _ in points}))
        axes.set_xlabel(unit, fontsize=8, color=MUTED)
        axes.set_ylabel("damage core, HU" if number == 0 else "", fontsize=8, color=MUTED)
        axes.legend(fontsize=7, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncol=3)
        _plain_axes(axes)
    return as_png(figure)


def _dot(axes: Any, value: Interval, at: float, colour: str, words: str) -> None:
    axes.plot([value.low, value.high], [at, at], color=colour, linewidth=1.6, solid_capstyle="butt")
    axes.plot([value.value], [at], "o", color=colour, markersize=4.5, label=words)


def _plain_axes(axes: Any) -> None:
    axes.tick_params(labelsize=8, colors=MUTED, length=2)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


Left = Mapping[str, Mapping[str, tuple[float, float]]]
"""Protector to operation to what is left of the damage, and damage over that of noise of the same SD."""


def removal_figure(left: Left) -> bytes:
    """What is left of the damage after each operation: a column per protector, a row per operation; 1 is all of it."""
    labels = list(left)
    words = list(dict.fromkeys(name for column in left.values() for name in column))
    figure = new_figure(1, 1)
    figure.set_size_inches(3.4 + 1.3 * len(labels), 0.27 * len(words) + 1.1)
    width, height = figure.get_size_inches()
    axes = figure.add_axes((2.9 / width, 0.3 / height, 1 - 3.1 / width, 1 - 0.75 / height))
    kept = np.array([[left[label].get(name, (np.nan, 0.0))[0] for label in labels] for name in words])
    axes.imshow(np.clip(kept, 0, 1), cmap="YlGn", vmin=0, vmax=1.6, aspect="auto", interpolation="nearest")
    for row, name in enumerate(words):
        for column, label in enumerate(labels):
            share, times = left[label].get(name, (np.nan, np.nan))
            text = "–" if np.isnan(share) else f"{share:.2f} ({times:.1f} × noise)"
            axes.text(column, row, text, ha="center", va="center", fontsize=7.5, color=INK)
    axes.set_yticks(range(len(words)), words, fontsize=8, color=INK)
    axes.set_xticks(range(len(labels)), labels, fontsize=8, color=INK)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    return as_png(figure)
