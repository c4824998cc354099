"""Slices -> one series on one regular grid: grouping, choice, order and checks. No file is touched here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ctguard.core.console import log
from ctguard.core.errors import ReadError
from ctguard.core.geometry import Geometry, as_float_triple
from ctguard.io.dicom_slices import Aside, Slice
from ctguard.io.dicom_values import one_line

GRID_TOLERANCE_MM = 0.1
"""How far a slice may lie from the regular grid: scanners round positions to 0.01..0.1 mm."""
GRID_TOLERANCE = 0.05
"""The same as a share of the slice spacing; the larger of the two holds."""
_LISTED = 8
_STRAY_SLICES = 2
"""A group of at most so many slices across a volume's planes is its scout, even where ImageType does not say so."""


@dataclass(frozen=True)
class Stack:
    """Slices in order along the normal, one per grid plane; None where a slice is missing."""

    planes: list[Slice | None]
    geometry: Geometry


def choose(slices: list[Slice], asides: Sequence[Aside], series_uid: str | None, path: Path) -> list[Slice]:
    """The slices of the one series asked for, or of the only one there is.

    A series is: equal SeriesInstanceUID, modality, orientation, matrix, pixel spacing and kernel; and equal
    AcquisitionNumber where two acquisitions lie at the same positions. series_uid: a SeriesInstanceUID, with
    "#n" behind it for the n-th of several series that share it, as the error message lists them.

    Raises ReadError where there is none, or more than one, or another modality.
    """
    if not slices:
        found = ", ".join(f"{n} x {what}" for what, n in sorted(Counter(a.what for a in asides).items()))
        raise ReadError(
            f"holds no CT slices, only {found}" if found else "holds no DICOM files",
            where=path,
            remedy="give a folder, a zip or a file with a CT series",
        )
    if asides:
        kinds = Counter(aside.what for aside in asides)
        log.info("%s: set aside %s", path, ", ".join(f"{n} x {what}" for what, n in sorted(kinds.items())))
    groups = _numbered(_without_scouts(_split_acquisitions(_grouped(slices))))
    chosen = groups
    if series_uid is not None:
        chosen = [(name, group) for name, group in groups if series_uid in (name, group[0].series_uid)]
        if not chosen:
            raise ReadError(f"holds no series {series_uid}, but {_listing(groups)}", where=path, remedy=_remedy(groups))
    if len(chosen) > 1:
        raise ReadError(f"holds {len(chosen)} series: {_listing(chosen)}", where=path, remedy=_remedy(chosen))
    group = chosen[0][1]
    if group[0].modality != "CT":
        raise ReadError(
            f"modality is {one_line(group[0].modality)}, not CT (Modality (0008,0060))",
            where=group[0].file,
            remedy="give a CT series",
        )
    return group


def _grouped(slices: Sequence[Slice]) -> list[list[Slice]]:
    groups: list[list[Slice]] = []
    for item in slices:
        for group in groups:
            if _alike(group[0], item):
                group.append(item)
                break
        else:
            groups.append([item])
    return groups


def _alike(a: Slice, b: Slice) -> bool:
    return (
        (a.series_uid, a.modality, a.shape_yx, a.kernel) == (b.series_uid, b.modality, b.shape_yx, b.kernel)
        and np.abs(np.subtract(a.axes_lps, b.axes_lps)).max() < 1e-3
        and np.abs(np.subtract(a.spacing_yx_mm, b.spacing_yx_mm)).max() < 1e-4
    )


def _split_acquisitions(groups: list[list[Slice]]) -> list[list[Slice]]:
    """Split a group by AcquisitionNumber where that, and only that, separates slices at equal positions."""
    split: list[list[Slice]] = []
    for group in groups:
        by_number: dict[int | None, list[Slice]] = {}
        for item in group:
            by_number.setdefault(item.acquisition, []).append(item)
        parts = list(by_number.values())
        separates = len(parts) > 1 and _overlapping(group) and not any(_overlapping(part) for part in parts)
        split.extend(parts if separates else [group])
    return split


def _overlapping(group: Sequence[Slice]) -> bool:
    return len({tuple(round(v, 3) for v in item.position_mm) for item in group}) < len(group)


def _without_scouts(groups: list[list[Slice]]) -> list[list[Slice]]:
    main = max(groups, key=len)
    if len(main) <= _STRAY_SLICES:
        return groups
    kept = []
    for group in groups:
        # Other modalities state no planes here; `choose` refuses them.
        across = group[0].modality == "CT" and abs(float(group[0].normal @ main[0].normal)) <= 0.5
        if across and len(group) <= _STRAY_SLICES:
            log.info("%s: set aside as a scout across the planes of the series", group[0].file)
        else:
            kept.append(group)
    return kept


def _numbered(groups: list[list[Slice]]) -> list[tuple[str, list[Slice]]]:
    """Groups with the name that --series takes, in an order that does not depend on file names."""
    groups = sorted(groups, key=lambda g: (g[0].series_uid, g[0].kernel or "", g[0].shape_yx, g[0].acquisition or 0))
    count = Counter(group[0].series_uid for group in groups)
    seen: Counter[str] = Counter()
    named = []
    for group in groups:
        uid = group[0].series_uid
        seen[uid] += 1
        named.append((f"{uid}#{seen[uid]}" if count[uid] > 1 else uid, group))
    return named


def _listing(groups: Sequence[tuple[str, list[Slice]]]) -> str:
    rows = []
    for name, group in groups[:_LISTED]:
        first, count = group[0], len(group)
        what = [] if first.modality == "CT" else [first.modality]
        what += [f"kernel {first.kernel}"] if first.kernel else []
        what += [f"acquisition {first.acquisition}"] if first.acquisition is not None else []
        what += [f"{count} slice{'s' if count != 1 else ''} of {first.shape_yx[0]}x{first.shape_yx[1]}"]
        what += [f"normal {(np.round(first.normal, 2) + 0.0).tolist()}"] if first.modality == "CT" else []
        rows.append(one_line(f"{name or 'without a UID'} ({', '.join(what)})"))
    if len(groups) > _LISTED:
        return f"{'; '.join(rows)}; and {len(groups) - _LISTED} more"
    return "; ".join(rows)


def _remedy(groups: Sequence[tuple[str, list[Slice]]]) -> str:
    return f"choose one with --series {one_line(groups[0][0])}, or give a folder with one series"


def arrange(group: list[Slice], allow_gaps: bool) -> Stack:
    """The slices sorted along their normal (PS3.3 C.7.6.2.1.1), on a regular grid that every one of them fits.

    Raises ReadError for duplicates, gantry tilt, irregular spacing, and for gaps unless they are allowed.
    """
    first = group[0]
    if len(group) == 1:
        return Stack([first], _geometry(first, 1, _thickness(first)))
    normal = first.normal
    depths = np.array([float(np.dot(item.position_mm, normal)) for item in group])
    order = np.argsort(depths, kind="stable")
    ordered, depths = [group[i] for i in order], depths[order]
    steps = np.diff(depths)
    # The lower median is the true spacing even where half of the steps span a gap.
    spacing = float(np.quantile(steps, 0.5, method="lower"))
    name = _short(first.series_uid)
    _refuse_duplicates(ordered, steps, name)
    _refuse_shear(ordered, normal, name)
    counts = np.rint(steps / spacing).astype(int)
    planes_between = int(counts.sum())
    spacing = float((depths[-1] - depths[0]) / planes_between)
    index = np.concatenate([[0], np.cumsum(counts)])
    off_grid = np.abs(depths - depths[0] - index * spacing)
    worst = int(off_grid.argmax())
    if off_grid[worst] > max(GRID_TOLERANCE_MM, GRID_TOLERANCE * spacing) or counts.min() < 1:
        at = int(np.abs(steps - spacing).argmax())
        raise ReadError(
            f"series {name} has irregular slice spacing: {steps[at]:.3g} mm after slice {at} "
            f"({Path(ordered[at].file).name}), {np.median(steps):.3g} mm elsewhere",
            remedy="resample it to regular slices, or give the regular part in a folder of its own",
        )
    missing = counts - 1
    if missing.any() and not allow_gaps:
        at = int(missing.argmax())
        raise ReadError(
            f"series {name} has a {missing[at] * spacing:.3g} mm gap after slice {index[at]} "
            f"({Path(ordered[at].file).name}){_more(missing)}",
            remedy="pass --allow-gaps to interpolate",
        )
    planes: list[Slice | None] = [None] * (planes_between + 1)
    for place, item in zip(index, ordered, strict=True):
        planes[place] = item
    return Stack(planes, _geometry(ordered[0], len(planes), spacing))


def _more(missing: NDArray[np.int_]) -> str:
    gaps = int((missing > 0).sum())
    return f" and {gaps - 1} more" if gaps > 1 else ""


def _refuse_duplicates(ordered: Sequence[Slice], steps: NDArray[np.float64], name: str) -> None:
    at = int(steps.argmin())
    if steps[at] < 0.01:
        a, b = (Path(item.file).name for item in ordered[at : at + 2])
        raise ReadError(
            f"series {name} has two slices at one position: {a} and {b}",
            remedy="remove one of them; files of a template header are read one at a time",
        )


def _refuse_shear(ordered: Sequence[Slice], normal: NDArray[np.float64], name: str) -> None:
    """Slices must lie above each other: positions move along the normal alone."""
    positions = np.array([item.position_mm for item in ordered])
    offset = positions - positions[0]
    along = offset @ normal
    sideways = offset - along[:, None] * normal
    drift = np.linalg.norm(sideways, axis=1)
    if drift.max() <= max(2 * GRID_TOLERANCE_MM, 0.25 * min(ordered[0].spacing_yx_mm)):
        return
    slope = sideways[-1] / along[-1]
    if np.abs(sideways - along[:, None] * slope).max() < 0.5:
        tilt = float(np.degrees(np.arctan(np.linalg.norm(slope))))
        raise ReadError(
            f"series {name} was acquired with a gantry tilt of {tilt:.1f} degrees: slice {len(ordered) - 1} "
            f"({Path(ordered[-1].file).name}) lies {drift[-1]:.3g} mm beside slice 0",
            remedy="resample it to an upright grid first (dcm2niix does)",
        )
    at = int(drift.argmax())
    raise ReadError(
        f"series {name}: slice {at} ({Path(ordered[at].file).name}) lies {drift[at]:.3g} mm beside the others",
        remedy="give the slices of one table position in a folder of their own",
    )


def _thickness(item: Slice) -> float:
    if not item.thickness_mm:
        raise ReadError(
            "is one slice without SliceThickness (0018,0050) or SpacingBetweenSlices (0018,0088)",
            where=item.file,
            remedy="give the whole series",
        )
    return item.thickness_mm


def _geometry(first: Slice, count: int, spacing_mm: float) -> Geometry:
    x_axis, y_axis = first.axes_lps
    return Geometry(
        (count, *first.shape_yx),
        (spacing_mm, *first.spacing_yx_mm),
        first.position_mm,
        (as_float_triple(first.normal), y_axis, x_axis),
    )


def _short(uid: str) -> str:
    uid = one_line(uid)
    return uid if len(uid) <= 16 else f"{uid[:8]}…{uid[-6:]}"
