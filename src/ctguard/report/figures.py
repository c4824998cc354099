"""Pictures of scans, forgeries and verdicts, as PNG bytes. The same input gives the same bytes.

Every picture is oriented by the volume's axes in patient space, not by its array: axial with the patient's left on
the right side, coronal and sagittal with the head up. A picture that shows forged voxels carries the word SYNTHETIC
in every panel, one of a phantom the word PHANTOM; there is no switch for it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from ctguard.core.errors import GeometryError
from ctguard.core.geometry import FloatTriple
from ctguard.core.records import Region, Verdict
from ctguard.core.volume import Volume
from ctguard.detect.regions import MAP_THRESHOLD
from ctguard.report.planes import PLANES, Field, Plane, View, cut
from ctguard.report.style import (
    ACCENT,
    INK,
    PANEL_INCH,
    add_letters,
    add_scale_bar,
    add_stamp,
    add_text,
    as_png,
    clear_axes,
    new_figure,
    stamp_of,
)

LUNG_WINDOW_HU = (-1350.0, 150.0)
FIELD_MM = 80.0

_AIR_HU = -1024.0
_RANGES_HU = (5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
_HEAT = ListedColormap([(1.0, 0.85 * (1 - t), 0.0, 0.75 * t) for t in np.linspace(0, 1, 256)])


@dataclass(frozen=True)
class Panel:
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
    panels = [Panel("scan" if changed is None else "original", original.hu, window_hu, stamp_of(original))]
    if changed is not None:
        panels.append(Panel(_changed_title(changed), changed.hu, window_hu, stamp_of(changed)))
        panels.append(_difference("difference", changed, original, field))
    if map_ is not None:
        panels.append(Panel("detector map", shown.hu, window_hu, stamp_of(original, shown), heat=map_))
    figure = new_figure(len(PLANES), len(panels))
    for row, plane in enumerate(PLANES):
        for column, panel in enumerate(panels):
            axes = figure.add_subplot(len(PLANES), len(panels), row * len(panels) + column + 1)
            draw_panel(axes, panel, field, plane)
            if row == 0:
                axes.set_title(panel.title, fontsize=10, color=INK, pad=5)
            if column == 0:
                axes.set_ylabel(plane.name, fontsize=10, color=INK)
            add_scale_bar(axes, 20 if field_mm <= 120 else 50, dark=panel.minus is None)
    return as_png(figure)


def overview_figure(volume: Volume, verdict: Verdict, count: int = 4) -> bytes:
    """The axial slices that carry the verdict (its regions first, then the hottest), with the map and region boxes.

    Raises GeometryError where the verdict is of another grid.
    """
    if not verdict.geometry.agrees(volume.geometry):
        raise GeometryError("the verdict is of another grid than the scan", remedy="judge this scan itself")
    view = View.of(volume.geometry)
    slices = _worst_slices(view, verdict, count)
    figure = new_figure(2, len(slices), PANEL_INCH * 1.15)
    heat = view.array(verdict.map)
    for column, k in enumerate(slices):
        for row in range(2):
            axes = figure.add_subplot(2, len(slices), row * len(slices) + column + 1)
            clear_axes(axes)
            image = view.array(volume.hu)[k]
            tall, wide = np.asarray(image.shape) * view.spacing_mm[1:]
            extent = (0.0, wide, tall, 0.0)
            low, high = LUNG_WINDOW_HU
            axes.imshow(image, cmap="gray", vmin=low, vmax=high, extent=extent, interpolation="bilinear")
            add_letters(axes, PLANES[0].edges)
            add_stamp(axes, stamp_of(volume))
            add_scale_bar(axes, 50)
            if row == 0:
                axes.set_title(
                    f"slice {view.slice_number(k)} · map max {heat[k].max():.2f}", fontsize=9, color=INK, pad=5
                )
            else:
                axes.imshow(heat[k], cmap=_HEAT, vmin=0, vmax=1, extent=extent, interpolation="nearest")
                _boxes(axes, verdict.regions, view, k)
            if column == 0:
                axes.set_ylabel(("scan", "detector map")[row], fontsize=10, color=INK)
    return as_png(figure)


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
    figure = new_figure(2, len(columns))
    for column, (title, volume, reference, label) in enumerate(columns):
        axes = figure.add_subplot(2, len(columns), column + 1)
        draw_panel(axes, Panel(title, volume.hu, LUNG_WINDOW_HU, stamp_of(volume)), field, PLANES[0])
        axes.set_title(title, fontsize=9, color=INK, pad=5)
        add_scale_bar(axes, 20)
        if reference is None:
            continue
        axes = figure.add_subplot(2, len(columns), len(columns) + column + 1)
        panel = _difference(label, volume, reference, field)
        draw_panel(axes, panel, field, PLANES[0])
        sd = float(np.std(_image(panel, field, PLANES[0])[0]))
        add_text(axes, 0.03, 0.03, f"{label}, SD {sd:.1f} HU", ha="left", va="bottom", size=8, dark=False)
    return as_png(figure)


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


def _difference(title: str, changed: Volume, original: Volume, field: Field) -> Panel:
    """changed - original, in a round symmetric range that holds what the planes show of it."""
    panel = Panel(title, changed.hu, (0.0, 0.0), stamp_of(original, changed), minus=original.hu)
    largest = max(float(np.abs(_image(panel, field, plane)[0]).max()) for plane in PLANES)
    limit = float(next((r for r in _RANGES_HU if r >= largest), _RANGES_HU[-1]))
    return replace(panel, limits_hu=(-limit, limit))


def _image(panel: Panel, field: Field, plane: Plane) -> tuple[NDArray[Any], tuple[float, float, float, float]]:
    image, extent = cut(panel.values, field, plane, _AIR_HU)
    if panel.minus is None:
        return image, extent
    return image.astype(np.float32) - cut(panel.minus, field, plane, _AIR_HU)[0], extent


def draw_panel(axes: Any, panel: Panel, field: Field, plane: Plane) -> None:
    """One plane of a panel with its map, letters and stamp, and ticks that point at the middle of the field."""
    clear_axes(axes)
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
    add_letters(axes, plane.edges, dark)
    if not dark:
        add_text(axes, 0.97, 0.97, f"±{high:.0f} HU", ha="right", va="top", size=7, dark=False)
    for end in (-half, half):
        axes.plot([end, 0.86 * end], [0, 0], color=ACCENT, linewidth=1.0)
        axes.plot([0, 0], [end, 0.86 * end], color=ACCENT, linewidth=1.0)
    add_stamp(axes, panel.stamp)


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


def _boxes(axes: Any, regions: tuple[Region, ...], view: View, k: int) -> None:
    for number, region in enumerate(regions, start=1):
        center = view.index(region.center_zyx)
        size = np.asarray(region.extent_mm)[list(view.order)]
        if abs(k - center[0]) * view.spacing_mm[0] > size[0] / 2:
            continue
        top, left = (center[1:] + 0.5) * view.spacing_mm[1:] - size[1:] / 2 - 3
        tall, wide = size[1:] + 6
        axes.add_patch(Rectangle((left, top), wide, tall, fill=False, edgecolor=ACCENT, linewidth=1.1))
        label = axes.text(left + wide + 3, top, str(number), color=ACCENT, fontsize=8, va="top", clip_on=True)
        label.set_path_effects([withStroke(linewidth=1.5, foreground="black")])
