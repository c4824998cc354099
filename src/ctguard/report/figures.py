"""Pictures of scans, forgeries and verdicts, as PNG bytes. The same input gives the same bytes.

Every picture is oriented by the volume's axes in patient space, not by its array: axial with the patient's left on
the right side, coronal and sagittal with the head up. A picture that shows forged voxels carries the word SYNTHETIC
in every panel, one of a phantom the word PHANTOM; there is no switch for it.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from ctguard import RESEARCH_USE_ONLY
from ctguard.core.errors import GeometryError
from ctguard.core.geometry import FloatTriple
from ctguard.core.records import Region, Verdict
from ctguard.core.volume import Volume
from ctguard.report.planes import PLANES, Field, Plane, View, cut

LUNG_WINDOW_HU = (-1350.0, 150.0)
FIELD_MM = 80.0
MAP_THRESHOLD = 0.5

_DPI = 110
_INCH = 2.35
_AIR_HU = -1024.0
_RANGES_HU = (5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
_INK, _MUTED, _ACCENT = "#1b2733", "#5c6b7a", "#ffd23f"
_HEAT = ListedColormap([(1.0, 0.85 * (1 - t), 0.0, 0.75 * t) for t in np.linspace(0, 1, 256)])


@dataclass(frozen=True)
class _Panel:
    """One column of a figure: values (z, y, x), or their difference to `minus`, and a map laid over them."""

    title: str
    values: NDArray[Any]
    limits_hu: tuple[float, float]
    stamp: str
    minus: NDArray[Any] | None = None
    heat: NDArray[np.float32] | None = None


def site_figure(
    original: Volume,
    changed: Volume | None = None,
    map_: NDArray[np.float32] | None = None,
    *,
    center_zyx: FloatTriple,
    field_mm: float = FIELD_MM,
    window_hu: tuple[float, float] = LUNG_WINDOW_HU,
) -> bytes:
    """Three planes through a place: original, changed, their difference in HU, and a detector's map over the scan.

    center_zyx: index on the volume's grid. map_: (z, y, x), 0..1, on the same grid.
    Raises GeometryError where grids differ or the centre lies outside.
    """
    _check_grids(original, changed, map_)
    if not original.geometry.contains(center_zyx):
        raise GeometryError(f"the site {center_zyx} lies outside the grid {original.geometry.shape_zyx}")
    field = Field(View.of(original.geometry), center_zyx, field_mm)
    shown = original if changed is None else changed
    panels = [_Panel("scan" if changed is None else "original", original.hu, window_hu, _stamp(original))]
    if changed is not None:
        panels.append(_Panel(_changed_title(changed), changed.hu, window_hu, _stamp(changed)))
        panels.append(_difference("difference", changed, original, field))
    if map_ is not None:
        panels.append(_Panel("detector map", shown.hu, window_hu, _stamp(original, shown), heat=map_))
    figure = _figure(len(PLANES), len(panels))
    for row, plane in enumerate(PLANES):
        for column, panel in enumerate(panels):
            axes = figure.add_subplot(len(PLANES), len(panels), row * len(panels) + column + 1)
            _draw(axes, panel, field, plane)
            if row == 0:
                axes.set_title(panel.title, fontsize=10, color=_INK, pad=5)
            if column == 0:
                axes.set_ylabel(plane.name, fontsize=10, color=_INK)
            _scale_bar(axes, 20 if field_mm <= 120 else 50, dark=panel.minus is None)
    return _png(figure)


def overview_figure(volume: Volume, verdict: Verdict, count: int = 4) -> bytes:
    """The axial slices that carry the verdict (its regions first, then the hottest), with the map and region boxes.

    Raises GeometryError where the verdict is of another grid.
    """
    if not verdict.geometry.agrees(volume.geometry):
        raise GeometryError("the verdict is of another grid than the scan", remedy="judge this scan itself")
    view = View.of(volume.geometry)
    slices = _worst_slices(view, verdict, count)
    figure = _figure(2, len(slices), _INCH * 1.15)
    heat = view.array(verdict.map)
    for column, k in enumerate(slices):
        for row in range(2):
            axes = figure.add_subplot(2, len(slices), row * len(slices) + column + 1)
            _frame(axes)
            image = view.array(volume.hu)[k]
            tall, wide = np.asarray(image.shape) * view.spacing_mm[1:]
            extent = (0.0, wide, tall, 0.0)
            low, high = LUNG_WINDOW_HU
            axes.imshow(image, cmap="gray", vmin=low, vmax=high, extent=extent, interpolation="bilinear")
            _letters(axes, PLANES[0].edges)
            _burn(axes, _stamp(volume))
            _scale_bar(axes, 50)
            if row == 0:
                axes.set_title(
                    f"slice {_slice_number(view, k)} · map max {heat[k].max():.2f}", fontsize=9, color=_INK, pad=5
                )
            else:
                axes.imshow(heat[k], cmap=_HEAT, vmin=0, vmax=1, extent=extent, interpolation="nearest")
                _boxes(axes, verdict.regions, view, k)
            if column == 0:
                axes.set_ylabel(("scan", "detector map")[row], fontsize=10, color=_INK)
    return _png(figure)


def protection_figure(
    original: Volume,
    protected: Volume,
    forged: Volume,
    forged_on_protected: Volume,
    center_zyx: FloatTriple,
    removal: tuple[str, Volume] | None = None,
    field_mm: float = FIELD_MM,
) -> bytes:
    """Axial: x, p, t(x), t(p) and, where given, p after a removal operation; below each, a difference in HU.

    x real, p protected, t(x) forged, t(p) forged after protection (protocols: Protection). The difference under t(p)
    is t(p) - t(x), the damage that the protection does. removal: (name, volume).
    Raises GeometryError where grids differ.
    """
    for other in (protected, forged, forged_on_protected, *(() if removal is None else (removal[1],))):
        _check_grids(original, other, None)
    field = Field(View.of(original.geometry), center_zyx, field_mm)
    columns = [
        ("real, x", original, None, ""),
        ("protected, p", protected, original, "p − x"),
        ("forged, t(x)", forged, original, "t(x) − x"),
        ("forged after protection, t(p)", forged_on_protected, forged, "t(p) − t(x)"),
    ]
    if removal is not None:
        columns.append((f"protected, then {removal[0]}, p′", removal[1], original, "p′ − x"))
    figure = _figure(2, len(columns))
    for column, (title, volume, reference, label) in enumerate(columns):
        axes = figure.add_subplot(2, len(columns), column + 1)
        _draw(axes, _Panel(title, volume.hu, LUNG_WINDOW_HU, _stamp(volume)), field, PLANES[0])
        axes.set_title(title, fontsize=9, color=_INK, pad=5)
        _scale_bar(axes, 20)
        if reference is None:
            continue
        axes = figure.add_subplot(2, len(columns), len(columns) + column + 1)
        panel = _difference(label, volume, reference, field)
        _draw(axes, panel, field, PLANES[0])
        sd = float(np.std(_image(panel, field, PLANES[0])[0]))
        _text(axes, 0.03, 0.03, f"{label}, SD {sd:.1f} HU", ha="left", va="bottom", size=8, dark=False)
    return _png(figure)


def _stamp(*volumes: Volume) -> str:
    """What is burnt into a picture of these volumes; empty for patients' voxels alone."""
    forged = any(v.provenance.has_mark("forged") for v in volumes)
    phantom = any(v.provenance.has_mark("phantom") or v.provenance.source.format == "phantom" for v in volumes)
    return " · ".join(word for word, told in (("SYNTHETIC", forged), ("PHANTOM", phantom)) if told)


def _changed_title(changed: Volume) -> str:
    if changed.provenance.has_mark("forged"):
        return "forged"
    return "protected" if changed.provenance.has_mark("protected") else "changed"


def _check_grids(original: Volume, changed: Volume | None, map_: NDArray[Any] | None) -> None:
    if changed is not None and not changed.geometry.agrees(original.geometry):
        raise GeometryError(
            f"the two scans lie on different grids, {original.geometry.shape_zyx} and {changed.geometry.shape_zyx}",
            remedy="compare scans of one grid",
        )
    if map_ is not None and map_.shape != original.hu.shape:
        raise GeometryError(f"a map of shape {map_.shape} on a scan of shape {original.hu.shape}")


def _difference(title: str, changed: Volume, original: Volume, field: Field) -> _Panel:
    """changed - original, in a round symmetric range that holds what the planes show of it."""
    panel = _Panel(title, changed.hu, (0.0, 0.0), _stamp(original, changed), minus=original.hu)
    largest = max(float(np.abs(_image(panel, field, plane)[0]).max()) for plane in PLANES)
    limit = float(next((r for r in _RANGES_HU if r >= largest), _RANGES_HU[-1]))
    return replace(panel, limits_hu=(-limit, limit))


def _image(panel: _Panel, field: Field, plane: Plane) -> tuple[NDArray[Any], tuple[float, float, float, float]]:
    image, extent = cut(panel.values, field, plane, _AIR_HU)
    if panel.minus is None:
        return image, extent
    return image.astype(np.float32) - cut(panel.minus, field, plane, _AIR_HU)[0], extent


def _draw(axes: Any, panel: _Panel, field: Field, plane: Plane) -> None:
    _frame(axes)
    dark = panel.minus is None
    image, extent = _image(panel, field, plane)
    low, high = panel.limits_hu
    colours, how = ("gray", "bilinear") if dark else ("RdBu_r", "nearest")
    axes.imshow(image, cmap=colours, vmin=low, vmax=high, extent=extent, interpolation=how)
    if panel.heat is not None:
        heat, extent = cut(panel.heat, field, plane, 0.0)
        axes.imshow(heat, cmap=_HEAT, vmin=0, vmax=1, extent=extent, interpolation="nearest")
        if heat.min() < MAP_THRESHOLD <= heat.max() and min(heat.shape) > 1:
            axes.contour(heat, [MAP_THRESHOLD], colors=["#00e5ff"], linewidths=0.9, extent=extent, origin="upper")
    half = field.mm / 2
    axes.set_xlim(-half, half)
    axes.set_ylim(half, -half)
    _letters(axes, plane.edges, dark)
    if not dark:
        _text(axes, 0.97, 0.97, f"±{high:.0f} HU", ha="right", va="top", size=7, dark=False)
    for end in (-half, half):  # ticks that point at the site
        axes.plot([end, 0.86 * end], [0, 0], color=_ACCENT, linewidth=1.0)
        axes.plot([0, 0], [end, 0.86 * end], color=_ACCENT, linewidth=1.0)
    _burn(axes, panel.stamp)


def _worst_slices(view: View, verdict: Verdict, count: int) -> list[int]:
    """Canonical slices: those of the regions, strongest first, then the hottest ones at least 10 mm apart."""
    peaks = view.array(verdict.map).max(axis=(1, 2))
    wanted = [round(float(view.index(region.center_zyx)[0])) for region in verdict.regions]
    wanted += [int(k) for k in np.argsort(-peaks, kind="stable")]
    gap = max(1.0, 10.0 / view.spacing_mm[0])
    chosen: list[int] = []
    for k in wanted:
        if len(chosen) < count and all(abs(k - other) >= gap for other in chosen):
            chosen.append(k)
    return chosen


def _slice_number(view: View, k: int) -> str:
    """The index along z where slices are axial; the position from the feet otherwise."""
    if view.order[0] != 0:
        return f"{k * view.spacing_mm[0]:.0f} mm"
    return f"z {view.shape[0] - 1 - k if view.flipped[0] else k}"


def _boxes(axes: Any, regions: tuple[Region, ...], view: View, k: int) -> None:
    for number, region in enumerate(regions, start=1):
        center = view.index(region.center_zyx)
        size = np.asarray(region.extent_mm)[list(view.order)]
        if abs(k - center[0]) * view.spacing_mm[0] > size[0] / 2:
            continue
        top, left = (center[1:] + 0.5) * view.spacing_mm[1:] - size[1:] / 2 - 3
        tall, wide = size[1:] + 6
        axes.add_patch(Rectangle((left, top), wide, tall, fill=False, edgecolor=_ACCENT, linewidth=1.1))
        label = axes.text(left + wide + 3, top, str(number), color=_ACCENT, fontsize=8, va="top", clip_on=True)
        label.set_path_effects([withStroke(linewidth=1.5, foreground="black")])


def _figure(rows: int, columns: int, inch: float = _INCH) -> Figure:
    figure = Figure(figsize=(columns * inch + 0.3, rows * inch + 0.55), dpi=_DPI, facecolor="white")
    FigureCanvasAgg(figure)
    width, height = figure.get_size_inches()
    figure.subplots_adjust(
        left=0.3 / width, right=1 - 0.04 / width, top=1 - 0.28 / height, bottom=0.24 / height, wspace=0.03, hspace=0.03
    )
    size = 7 if columns > 1 else 5
    figure.text(0.5, 0.07 / height, RESEARCH_USE_ONLY, ha="center", va="bottom", fontsize=size, color=_MUTED)
    return figure


def _frame(axes: Any) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_facecolor("black")
    for side in axes.spines.values():
        side.set_visible(False)


def _text(axes: Any, x: float, y: float, text: str, *, ha: str, va: str, size: float, dark: bool = True) -> None:
    """Text at a place of the panel, 0..1: white on a dark picture, ink on a light one."""
    colour, back = ("white", "black") if dark else (_INK, "white")
    drawn = axes.text(x, y, text, ha=ha, va=va, fontsize=size, color=colour, transform=axes.transAxes)
    if dark:
        drawn.set_path_effects([withStroke(linewidth=1.6, foreground=back)])
    else:
        drawn.set_bbox({"boxstyle": "square,pad=0.15", "facecolor": back, "edgecolor": "none", "alpha": 0.85})


def _letters(axes: Any, edges: tuple[str, str, str, str], dark: bool = True) -> None:
    left, right, top, bottom = edges
    _text(axes, 0.025, 0.55, left, ha="left", va="center", size=7, dark=dark)
    _text(axes, 0.975, 0.55, right, ha="right", va="center", size=7, dark=dark)
    _text(axes, 0.55, 0.975, top, ha="center", va="top", size=7, dark=dark)
    _text(axes, 0.55, 0.02, bottom, ha="center", va="bottom", size=7, dark=dark)


def _burn(axes: Any, stamp: str) -> None:
    if stamp:
        box = {"boxstyle": "square,pad=0.25", "facecolor": _ACCENT, "edgecolor": "none", "alpha": 0.92}
        axes.text(
            0.03,
            0.965,
            stamp,
            ha="left",
            va="top",
            fontsize=6.5,
            color="black",
            weight="bold",
            bbox=box,
            transform=axes.transAxes,
        )


def _scale_bar(axes: Any, length_mm: float, dark: bool = True) -> None:
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    start, level = left + 0.04 * (right - left), low + 0.04 * (high - low)
    for colour, width in (("black", 3.2), ("white", 1.8)) if dark else ((_INK, 1.8),):
        axes.plot([start, start + length_mm], [level, level], color=colour, linewidth=width, solid_capstyle="butt")
    _text(axes, 0.04, 0.06, f"{length_mm:.0f} mm", ha="left", va="bottom", size=7, dark=dark)


def _png(figure: Figure) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=_DPI, metadata={"Software": None})
    return out.getvalue()
