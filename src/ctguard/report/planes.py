"""Planes of a volume as a reader expects them: left on the right, head up, whatever the order of the array."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ctguard.core.geometry import FloatTriple, Geometry


@dataclass(frozen=True)
class Plane:
    """axis: the one across the plane, in canonical order (feet-head, front-back, right-left).

    edges: what lies at the left, right, top and bottom of the picture.
    """

    name: str
    axis: int
    edges: tuple[str, str, str, str]


PLANES = (
    Plane("axial", 0, ("R", "L", "A", "P")),
    Plane("coronal", 1, ("R", "L", "H", "F")),
    Plane("sagittal", 2, ("A", "P", "H", "F")),
)


@dataclass(frozen=True)
class View:
    """How an array lies in the patient: axes in the order feet-head, front-back, right-left, each growing that way."""

    order: tuple[int, ...]
    flipped: tuple[bool, ...]
    shape: tuple[int, ...]
    spacing_mm: NDArray[np.float64]

    @classmethod
    def of(cls, geometry: Geometry) -> View:
        """The nearest such order; oblique grids are shown along their own axes."""
        axes = np.asarray(geometry.axes_lps)
        head_back_left = (2, 1, 0)
        order = max(
            permutations(range(3)),
            key=lambda p: sum(abs(axes[a, lps]) for a, lps in zip(p, head_back_left, strict=True)),
        )
        flipped = tuple(bool(axes[a, lps] < 0) for a, lps in zip(order, head_back_left, strict=True))
        shape = tuple(geometry.shape_zyx[a] for a in order)
        return cls(order, flipped, shape, np.asarray(geometry.spacing_zyx_mm)[list(order)])

    def array(self, values: NDArray[Any]) -> NDArray[Any]:
        """(z, y, x) seen in canonical order; a view, not a copy."""
        turned = values.transpose(self.order)
        return turned[tuple(slice(None, None, -1 if flip else 1) for flip in self.flipped)]

    def index(self, index_zyx: ArrayLike) -> NDArray[np.float64]:
        """An index (z, y, x) in canonical order."""
        index = np.asarray(index_zyx, dtype=float)[list(self.order)]
        return np.where(self.flipped, np.asarray(self.shape) - 1 - index, index)

    def slice_number(self, k: int) -> str:
        """Of the k-th plane from the feet: its index along z where slices are axial, else its place in mm."""
        if self.order[0] != 0:
            return f"{k * self.spacing_mm[0]:.0f} mm"
        return f"z {self.shape[0] - 1 - k if self.flipped[0] else k}"


@dataclass(frozen=True)
class Field:
    """The part of a volume that a figure shows: a cube of `mm` around an index (z, y, x)."""

    view: View
    center_zyx: FloatTriple
    mm: float


def cut(
    values: NDArray[Any], field: Field, plane: Plane, fill: float
) -> tuple[NDArray[Any], tuple[float, float, float, float]]:
    """The plane through the centre, cut to the field, and its extent (left, right, bottom, top) in mm from the centre.

    Rows run from the top of the picture; what lies beyond the grid holds `fill`.
    """
    view, center = field.view, field.view.index(field.center_zyx)
    rows, columns = (axis for axis in range(3) if axis != plane.axis)
    k = int(np.clip(round(center[plane.axis]), 0, view.shape[plane.axis] - 1))
    image = np.take(view.array(values), k, axis=plane.axis)
    spans, edges = [], []
    for axis, n in ((rows, view.shape[rows]), (columns, view.shape[columns])):
        mm, at = float(view.spacing_mm[axis]), float(center[axis])
        first, last = int(np.floor(at - field.mm / 2 / mm)), int(np.ceil(at + field.mm / 2 / mm))
        spans.append((first, last, n))
        edges.append(((first - 0.5 - at) * mm, (last + 0.5 - at) * mm))
    out = np.full([last - first + 1 for first, last, _ in spans], fill, dtype=image.dtype)
    target = tuple(slice(max(0, -first), min(last, n - 1) - first + 1) for first, last, n in spans)
    source = tuple(slice(max(0, first), min(last, n - 1) + 1) for first, last, n in spans)
    out[target] = image[source]
    (top, bottom), (left, right) = edges
    if rows == 0:  # feet-head: the head is up
        out, top, bottom = out[::-1], -bottom, -top
    return out, (left, right, bottom, top)
