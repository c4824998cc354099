"""Judging a scan and its forgeries: what was judged before is not judged again."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
from ctguard.core.threshold import Threshold
from ctguard.core.volume import Volume
from ctguard.detect.detector import Batch, Detector
from ctguard.detect.infer import Area, Looking, judge_box, own_map, search_area, verdict_regions
from ctguard.io.forgeries import Forgery

SLAB_SLICES = 32
"""Of the paper protocol."""
NO_THRESHOLD = Threshold(2.0)
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
    """What a detector says of a volume, or of some of its slices.

    threshold: for so much lung (or body). map: 0 outside of what was looked at. regions: called forged, NaN for a
    detector that does not say where.
    """

    score: float
    threshold: float
    searched_ml: float
    map: NDArray[np.float32]
    regions: float


class Judge:
    """A detector and its threshold, for one scan and all that is made of it."""

    def __init__(self, detector: Detector, threshold: Threshold = NO_THRESHOLD, device: str = "cpu") -> None:
        self.detector = Remembering(detector)
        self.threshold = threshold
        self.device = device

    def look(self, volume: Volume, area: Area | None = None) -> Look:
        """As `ctguard detect` judges it, without its progress. area: where to look; by default the detector's own."""
        with _quiet():
            area = area or search_area(volume, self.detector)
            judged = judge_box(volume, self.detector, area.box, Looking(device=self.device))
        level = self.threshold.at(area.ml)
        regions = verdict_regions(judged, volume.geometry, level)
        count = float(len(regions)) if self.detector.localises else float("nan")
        return Look(judged.score, level, area.ml, judged.map, count)

    def slab(self, volume: Volume, z: slice, area: Area | None = None) -> tuple[float, NDArray[np.float32]]:
        """The detector's own score and map of some slices, as the paper protocol takes them."""
        with _quiet():
            area = area or search_area(volume, self.detector)
            return own_map(volume, self.detector, area.slab(z).box, Looking(device=self.device))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the progress of every single scan."""
    loud = log.level
    log.setLevel(max(logging.WARNING, log.getEffectiveLevel()))
    try:
        yield
    finally:
        log.setLevel(loud)


class Scan:
    """A pristine scan and its forgeries. Where detectors look is found once for all of them."""

    def __init__(self, case: Case, volume: Volume, forgeries: Sequence[Forgery] = ()) -> None:
        self.case, self.volume, self.forgeries = case, volume, tuple(forgeries)
        self._areas: dict[tuple[str, str], Area] = {}

    def forged(self, forgery: Forgery) -> Volume:
        """The scan with one of its forgeries, marked."""
        edit = forgery.edit
        mark = Mark("forged", f"{edit.task} by {edit.generator} ({edit.mode} mode)")
        return self.volume.changed(forgery.paste(self.volume.hu), Step("forgery", {"name": forgery.name}), mark)

    def area(self, volume: Volume, name: str, detector: Detector) -> Area:
        """Where a detector looks in a version of the scan; `name` tells versions apart."""
        key = (name, detector.area)
        if key not in self._areas:
            self._areas[key] = search_area(volume, detector)
        return self._areas[key]


def device_of(detector: Any) -> str:
    """Where a detector's parameters lie; the CPU for one without any."""
    parameter = next(detector.parameters(), None)
    return "cpu" if parameter is None else str(parameter.device)


def slab_slices(count: int, center_z: float) -> slice:
    """The 32 slices around a place, moved inwards at the ends of the scan; all of a shorter one."""
    first = min(max(round(center_z) - SLAB_SLICES // 2, 0), max(count - SLAB_SLICES, 0))
    return slice(first, min(first + SLAB_SLICES, count))
