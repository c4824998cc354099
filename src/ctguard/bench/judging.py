"""Judging a scan and its forgeries: what was judged before is not judged again."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ctguard.core.console import log
from ctguard.core.marks import Mark
from ctguard.core.provenance import Step
from ctguard.core.records import Case
from ctguard.core.volume import Volume
from ctguard.detect.detector import Batch, Detector
from ctguard.detect.infer import Box, judge_box, search_box
from ctguard.detect.regions import find_regions, region_level
from ctguard.io.forgeries import Forgery

SLAB_SLICES = 32
"""Of the paper protocol."""
NO_THRESHOLD = 2.0
"""Above every score: a verdict without regions."""


class Remembering(Detector):
    """A detector that knows again the slices (or blocks) that it has judged, by their voxels.

    A forgery changes few slices of its scan: the others need no second look. After `keep`, what was judged so far
    stays known; the rest goes with `forget`.
    """

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector
        self.window_hu, self.dims = detector.window_hu, detector.dims
        self.area, self.localises, self.turns = detector.area, detector.localises, detector.turns
        self._known: dict[bytes, tuple[Tensor, Tensor]] = {}
        self._kept: frozenset[bytes] = frozenset()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """As the detector's own; every slice stands alone."""
        arrays = np.ascontiguousarray(x.detach().cpu().numpy())
        names = [hashlib.sha256(repr(one.shape).encode() + one.tobytes()).digest() for one in arrays]
        new = {name: row for row, name in enumerate(names) if name not in self._known}
        if new:
            score, logit = self.detector(x[list(new.values())])
            for row, name in enumerate(new):
                self._known[name] = (score[row].cpu(), logit[row].cpu())
        scores, logits = zip(*(self._known[name] for name in names), strict=True)
        return torch.stack(scores), torch.stack(logits)

    def keep(self) -> None:
        """Know what was judged so far until the end: the pristine scan's slices."""
        self._kept = frozenset(self._known)

    def forget(self) -> None:
        """Forget what was judged since `keep`."""
        self._known = {name: value for name, value in self._known.items() if name in self._kept}

    def step(self, batch: Batch, turn: str) -> dict[str, Tensor]:
        """The detector's own."""
        return self.detector.step(batch, turn)


@dataclass(frozen=True, eq=False)
class Look:
    """What a detector says of a volume, or of some of its slices. map: 0 outside of what was looked at; regions: called
    forged at the threshold, NaN for a detector that does not say where."""

    score: float
    map: NDArray[np.float32]
    regions: float


class Judge:
    """A detector and its threshold, for one scan and all that is made of it."""

    def __init__(self, detector: Detector, threshold: float = NO_THRESHOLD, device: str = "cpu") -> None:
        self.detector = Remembering(detector)
        self.threshold = threshold
        self.device = device

    def look(self, volume: Volume, box: Box | None = None) -> Look:
        """As `ctguard detect` judges it, without its progress. box: where to look; by default the detector's area."""
        level = log.level
        log.setLevel(max(logging.WARNING, log.getEffectiveLevel()))
        try:
            found = search_box(volume, self.detector) if box is None else box
            score, map_ = judge_box(volume, self.detector, found, device=self.device)
        finally:
            log.setLevel(level)
        if not self.detector.localises:
            return Look(score, map_, float("nan"))
        if score < self.threshold:
            return Look(score, map_, 0.0)
        regions = find_regions(map_, volume.geometry, region_level(self.threshold), peak=self.threshold)
        return Look(score, map_, float(max(len(regions), 1)))


class Scan:
    """A pristine scan and its forgeries. Where detectors look is found once for all of them."""

    def __init__(self, case: Case, volume: Volume, forgeries: Sequence[Forgery] = ()) -> None:
        self.case, self.volume, self.forgeries = case, volume, tuple(forgeries)
        self._boxes: dict[tuple[str, str], Box] = {}

    def forged(self, forgery: Forgery) -> Volume:
        """The scan with one of its forgeries, marked."""
        edit = forgery.edit
        mark = Mark("forged", f"{edit.task} by {edit.generator} ({edit.mode} mode)")
        return self.volume.changed(forgery.paste(self.volume.hu), Step("forgery", {"name": forgery.name}), mark)

    def box(self, volume: Volume, name: str, detector: Detector) -> Box:
        """Where a detector looks in a version of the scan; `name` tells versions apart."""
        key = (name, detector.area)
        if key not in self._boxes:
            self._boxes[key] = search_box(volume, detector)
        return self._boxes[key]


def device_of(detector: Any) -> str:
    """Where a detector's parameters lie; the CPU for one without any."""
    parameter = next(detector.parameters(), None)
    return "cpu" if parameter is None else str(parameter.device)


def slab_slices(count: int, center_z: float) -> slice:
    """The 32 slices around a place, moved inwards at the ends of the scan; all of a shorter one."""
    first = min(max(round(center_z) - SLAB_SLICES // 2, 0), max(count - SLAB_SLICES, 0))
    return slice(first, min(first + SLAB_SLICES, count))


def box_of_slab(box: Box, z: slice) -> Box:
    """The part of a box that lies in some slices; all of these slices where they do not meet."""
    low, high = max(box[0].start, z.start), min(box[0].stop, z.stop)
    return (slice(low, high) if low < high else z, box[1], box[2])
