"""Training slabs for 3-D detectors: forged, forged by a stand-in, and pristine, of varied depth and sharpness."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from ctguard.cohort.honest import benign_change, laid_over
from ctguard.cohort.slices import ForgedScan, Untouched
from ctguard.core.geometry import FloatTriple
from ctguard.io.forgeries import Forgery

Floats = NDArray[np.float32]
StandIn = Callable[[Floats, Floats, FloatTriple, np.random.Generator], tuple[Floats, NDArray[np.bool_]]]
"""(block HU, donor HU, spacing, generator) to the forged block and its changed voxels."""

SHAPES = ((1, 144), (2, 128), (4, 112), (6, 104), (12, 88))
"""Depth in slices and side in pixels of a batch's slabs: wide enough for lung beside a forged cube of 32 mm."""
_ZOOM = (0.75, 1.35)
_TRIES = 20


@dataclass(frozen=True)
class SlabBatches:
    """Batches of slabs as a function of the step; every forgery is equally likely.

    A scan of which more was forged is seen more often in all that follows, so that few real series with many forgeries
    are not lost among many phantoms.

    Of four slabs one shows a forgery of the data set, one a stand-in, one the same place as one of these in the
    pristine scan, and one any place of pristine lungs, or every second time an untouched nodule, where some are given.
    All slabs of a batch share depth and side.

    stand_in: forges a block of `reach_mm` to each side of a place in lung. None: a second forgery of the data set
        takes its place, so that a detector sees what detectors of slices see.
    benign: share of slabs, forged and pristine alike, that are resampled, smoothed or made noisier as a whole, so that
        none of these is a trace by itself; and of stand-ins whose scan is changed so before it is forged, as if by
        another kernel or dose. Flips and right-angle turns in the plane augment.
    """

    scans: Sequence[ForgedScan]
    batch: int
    seed: int
    stand_in: StandIn | None
    reach_mm: float
    shapes: Sequence[tuple[int, int]] = SHAPES
    benign: float = 0.4
    augment: bool = True
    untouched: Sequence[Untouched] = ()

    def __call__(self, step: int) -> dict[str, Tensor]:
        """x HU, mask, ignore: float32 (batch, 1, depth, side, side); label: float32 (batch)."""
        rng = np.random.default_rng([self.seed, step])
        depth, side = self.shapes[int(rng.integers(len(self.shapes)))]
        slabs = [self._slab(number % 4, depth, side, rng) for number in range(self.batch)]
        x, mask, ignore = (torch.stack(part)[:, None] for part in zip(*slabs, strict=True))
        label = (mask * (1 - ignore)).flatten(1).amax(dim=1)
        return {"x": x, "mask": mask, "ignore": ignore, "label": label}

    def _slab(self, kind: int, depth: int, side: int, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """HU, mask and ignore (depth, side, side). kind 0: forgery; 1: stand-in; 2: their place, pristine; 3: lung."""
        forgery: Forgery | None = None
        if kind == 1 and self.stand_in is None:
            kind = 0
        if kind in (0, 2) and (kind == 0 or self.stand_in is None or rng.random() < 0.5):
            scan, forgery = self._drawn(rng)
            start = forgery.edit.box_start_zyx
            place = np.add(start, np.asarray(forgery.edit.mask.shape) // 2)
        elif kind == 3 and self.untouched and rng.random() < 0.5:
            nodule = self.untouched[int(rng.integers(len(self.untouched)))]
            scan, place = nodule.scan, np.array(nodule.place(rng))
        else:
            scan, _ = self._drawn(rng)
            place = _lung_place(scan, rng)
        zoom = float(rng.uniform(*_ZOOM)) if self.augment and rng.random() < self.benign else 1.0
        crop = round(side * zoom)
        reach = np.array([depth // 3, crop // 4, crop // 4])
        corner = place - np.array([depth, crop, crop]) // 2 + rng.integers(-reach, reach + 1)
        hu = _cut(scan.hu, corner, (depth, crop, crop))
        mask, ignore = np.zeros_like(hu), _outside(scan.hu.shape, corner, hu.shape)
        if kind == 0 and forgery is not None:
            _put(hu, mask, corner, forgery.edit.box_start_zyx, forgery.block, forgery.edit.mask)
        if kind == 1 and self.stand_in is not None:
            self._forge(self.stand_in, scan, place, corner, hu, mask, rng)
        if self.augment and scan.seal is not None and rng.random() < 0.5:
            hu += laid_over(_cut(scan.seal, corner, hu.shape), mask, rng)
        tensors = [torch.from_numpy(part) for part in (hu, mask, ignore)]
        if crop != side:
            tensors = [_resized(part, side, binary=number > 0) for number, part in enumerate(tensors)]
        if self.augment and rng.random() < self.benign:
            tensors[0] = torch.from_numpy(benign_change(rng)(tensors[0].numpy()))
        return tuple(self._turned(tensors, rng))  # type: ignore[return-value]

    def _drawn(self, rng: np.random.Generator) -> tuple[ForgedScan, Forgery]:
        pairs = [(scan, forgery) for scan in self.scans for forgery in scan.forgeries]
        return pairs[int(rng.integers(len(pairs)))]

    def _forge(
        self,
        stand_in: StandIn,
        scan: ForgedScan,
        place: NDArray[Any],
        corner: NDArray[Any],
        hu: Floats,
        mask: Floats,
        rng: np.random.Generator,
    ) -> None:
        half = np.ceil(self.reach_mm / np.asarray(scan.spacing_zyx_mm)).astype(int)
        size = np.asarray(scan.hu.shape)
        shape = np.minimum(2 * half + 1, size)
        start, donor_start = (np.clip(center - half, 0, size - shape) for center in (place, _lung_place(scan, rng)))
        block, donor = (_part(scan.hu, first, shape).astype(np.float32) for first in (start, donor_start))
        if self.augment and rng.random() < self.benign:
            low = np.minimum(corner, start)
            around = _cut(scan.hu, low, np.maximum(corner + np.asarray(hu.shape), start + shape) - low)
            change = benign_change(rng)
            around, donor = change(around), change(donor)
            hu[:], block = (_part(around, first - low, n) for first, n in ((corner, hu.shape), (start, shape)))
        forged, changed = stand_in(block, donor, scan.spacing_zyx_mm, rng)
        _put(hu, mask, corner, start, forged, changed)

    def _turned(self, tensors: list[Tensor], rng: np.random.Generator) -> list[Tensor]:
        if not self.augment:
            return tensors
        turns, axes = int(rng.integers(4)), [axis for axis in range(3) if rng.random() < 0.5]
        return [torch.rot90(part, turns, (1, 2)).flip(axes).contiguous() for part in tensors]


def _lung_place(scan: ForgedScan, rng: np.random.Generator) -> NDArray[Any]:
    """A voxel of aerated lung, where a few draws in the lungs' box meet one."""
    place = np.zeros(3, int)
    for _ in range(_TRIES):
        place = np.array([int(rng.integers(side.start, side.stop)) for side in scan.lung_box])
        if -1000 < scan.hu[tuple(place)] < -600:
            break
    return place


def _part(hu: NDArray[Any], start: NDArray[Any], shape: Sequence[int] | NDArray[Any]) -> NDArray[Any]:
    return hu[tuple(slice(int(a), int(a + n)) for a, n in zip(start, shape, strict=True))]


def _cut(values: NDArray[Any], corner: NDArray[Any], shape: Sequence[int] | NDArray[Any]) -> Floats:
    """Values from a corner on; what lies outside of the scan is mirrored, for repeated borders have no noise."""
    index = (_mirrored(np.arange(c, c + n), size) for c, n, size in zip(corner, shape, values.shape, strict=True))
    cut: Floats = values[np.ix_(*index)].astype(np.float32)
    return cut


def _outside(size: Sequence[int], corner: NDArray[Any], shape: Sequence[int]) -> Floats:
    """1 where a voxel lies outside of a scan of that size."""
    index = [np.arange(c, c + n) for c, n in zip(corner, shape, strict=True)]
    z, y, x = ((i < 0) | (i >= n) for i, n in zip(index, size, strict=True))
    return (z[:, None, None] | y[None, :, None] | x[None, None, :]).astype(np.float32)


def _mirrored(index: NDArray[Any], count: int) -> NDArray[Any]:
    """Indices of any size folded into 0..count-1 at both borders."""
    period = max(2 * (count - 1), 1)
    folded = np.mod(index, period)
    return np.minimum(folded, period - folded) if count > 1 else np.zeros_like(index)


def _put(
    hu: Floats,
    mask: Floats,
    corner: NDArray[Any],
    start: Sequence[int] | NDArray[Any],
    block: NDArray[Any],
    changed: NDArray[np.bool_],
) -> None:
    """Lay a forged block over a slab, both given by their first voxel in the scan."""
    offset = np.subtract(start, corner)
    low = np.maximum(offset, 0)
    high = np.minimum(offset + np.asarray(block.shape), hu.shape)
    if np.any(high <= low):
        return
    into = tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    out = tuple(slice(int(a), int(b)) for a, b in zip(low - offset, high - offset, strict=True))
    hu[into] = block[out]
    mask[into] = changed[out]


def _resized(part: Tensor, side: int, binary: bool) -> Tensor:
    """Slices (z, y, x) brought to side x side; a mask stays one."""
    mode = "bilinear" if binary else "bicubic"
    sized = F.interpolate(part[:, None], size=(side, side), mode=mode, align_corners=False)[:, 0]
    return (sized >= 0.5).float() if binary else sized.round()
