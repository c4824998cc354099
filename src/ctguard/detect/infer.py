"""From a volume to a verdict. Reads voxels and geometry only: never marks, UIDs, names or steps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from ctguard.core.console import log, progress
from ctguard.core.errors import ModelError
from ctguard.core.geometry import Geometry, IntTriple
from ctguard.core.records import Region, Verdict
from ctguard.core.threshold import Threshold
from ctguard.core.volume import Volume
from ctguard.detect.detector import Detector, channels_last
from ctguard.detect.evidence import evidence, supported
from ctguard.detect.regions import find_regions, region_level
from ctguard.image.lung import body_mask, lung_mask

MARGIN = 16
"""Voxels in the plane that are looked at around the body or the lungs, so that their rim is not at a padded border."""
FAST_GAP_MM = 5.0
"""`fast` looks at slices at most this far apart: two or more of them meet the smallest forged nodule, 10 mm."""
FAST_STEP = 3
BLOCK, OVERLAP = 24, 4
"""Slices of the blocks that a 3-D detector takes, and how many on each side serve as context only."""

Box = tuple[slice, slice, slice]


@dataclass(frozen=True, eq=False)
class Area:
    """Where a detector looks. box: with its margin. slice_ml: how much lung (or body) each slice of the scan holds."""

    box: Box
    slice_ml: NDArray[np.float64]

    @property
    def ml(self) -> float:
        """How much of it lies in the box."""
        return float(self.slice_ml[self.box[0]].sum())

    def slab(self, z: slice) -> Area:
        """The part that lies in some slices; all of these slices where they do not meet."""
        low, high = max(self.box[0].start, z.start), min(self.box[0].stop, z.stop)
        return Area((slice(low, high) if low < high else z, *self.box[1:]), self.slice_ml)


@dataclass(frozen=True)
class Looking:
    """How a box is looked at.

    name: of the detector, for messages. step: only every so-maniest slice is looked at. batch: slices at a time, for a
    detector of slices.
    """

    name: str = ""
    step: int = 1
    device: str = "cpu"
    batch: int = 4


@dataclass(frozen=True, eq=False)
class Judged:
    """What a detector says of a box.

    score: the highest evidence; of a detector that does not say where, the highest score of a slice. map, evidence:
    0..1 on the volume's grid, 0 outside the box; of the detector's own map, what the evidence supports is left.
    """

    score: float
    map: NDArray[np.float32]
    evidence: NDArray[np.float32]


def detect_volume(
    volume: Volume,
    detector: Detector,
    *,
    name: str,
    model_id: str,
    threshold: Threshold,
    fast: bool = False,
    device: str = "cpu",
    batch: int = 4,
) -> Verdict:
    """Judge the detector's area, lungs or body, by slices or by overlapping blocks.

    The volume's score is the highest of its map's evidence: the mean logit over a cube of 12 mm (`detect/evidence.py`).
    The map leaves out what is smaller than such a cube. Of a detector that does not localise, the score is the highest
    of a slice (M3Dsynth, section 3).

    name, model_id, threshold: as in the detector's card. The verdict's own threshold is that of the volume searched.
    fast: of thin slices, only every second or third; one that was left out takes the map of the nearest that was not.
    batch: slices at a time, for a detector of slices. Memory beyond the volume, its mask and its map does not grow with
        the number of slices.

    The map (float32, 0..1) lies on the volume's own grid and is 0 where nothing was looked at. A verdict above the
    threshold lists regions: parts of the map at 0.5 (or at the threshold, where that is lower) whose evidence reaches
    the threshold somewhere. A verdict below it lists none. A detector that does not localise leaves the map 0 and lists
    none.
    Raises ModelError where the detector's scores are not numbers.
    """
    step = _fast_step(volume.geometry) if fast else 1
    area = search_area(volume, detector)
    level = threshold.at(area.ml)
    judged = judge_box(volume, detector, area.box, Looking(name, step, device, batch))
    regions = verdict_regions(judged, volume.geometry, level)
    return Verdict(name, model_id, judged.score, level, judged.map, volume.geometry, regions)


def search_area(volume: Volume, detector: Detector) -> Area:
    """Where a detector looks: the box of its area, lungs or body, with a margin in the plane."""
    return _lungs(volume) if detector.area == "lungs" else _body(volume)


def judge_box(volume: Volume, detector: Detector, box: Box, how: Looking) -> Judged:
    """What a detector says of a box, weighed; as `detect_volume` says."""
    score, map_ = own_map(volume, detector, box, how)
    if not detector.localises:
        return Judged(score, map_, map_)
    spacing = volume.geometry.spacing_zyx_mm
    weighed, kept = (np.zeros(volume.hu.shape, dtype=np.float32) for _ in range(2))
    weighed[box] = evidence(map_[box], spacing)
    kept[box] = supported(map_[box], weighed[box], spacing)
    kept.flags.writeable = False
    return Judged(float(weighed.max()), kept, weighed)


def own_map(volume: Volume, detector: Detector, box: Box, how: Looking) -> tuple[float, NDArray[np.float32]]:
    """The highest of the detector's own scores of a box, and its own map (0..1, on the volume's grid), as the paper has
    them."""
    indices = list(range(box[0].start, box[0].stop, how.step))
    flat = detector.dims == 2
    size = how.batch if flat else BLOCK
    batches = [indices[i : i + size] for i in range(0, len(indices), size)]
    judged = _judge if flat else _judge_blocks
    map_ = np.zeros(volume.hu.shape, dtype=np.float32)
    score = -np.inf
    was_training = detector.training
    detector.to(how.device).eval()
    channels_last(detector)
    try:
        done = zip(batches, judged(volume, detector, batches, box[1:], how.device), strict=True)
        quiet = not log.isEnabledFor(20)  # logging.INFO
        for slices, (scores, maps) in progress(done, "slices", len(batches), quiet):
            if not (np.isfinite(scores).all() and np.isfinite(maps).all()):
                raise ModelError(
                    f"detector {how.name!r} gave no number for slices {slices[0]} to {slices[-1]}",
                    remedy="its weights are damaged, or voxels of the scan are not numbers",
                )
            score = max(score, float(scores.max()))
            if not detector.localises:
                continue
            for z, plane in zip(slices, maps, strict=True):
                first = max(box[0].start, z - (how.step - 1) // 2)
                last = box[0].stop if z == indices[-1] else z + how.step // 2 + 1
                map_[first:last, box[1], box[2]] = plane
    finally:
        detector.to(memory_format=torch.contiguous_format).train(was_training)  # type: ignore[call-overload]
    map_.flags.writeable = False
    return score, map_


def verdict_regions(judged: Judged, geometry: Geometry, threshold: float) -> tuple[Region, ...]:
    """The regions that carry a verdict; the strongest one, however faint, where none is plain; none below it."""
    if judged.score < threshold:
        return ()
    low = region_level(threshold)
    plain = find_regions(judged.map, geometry, low, values=judged.evidence, peak=threshold)
    if plain:
        return plain
    highest = float(judged.evidence[judged.map >= low].max(initial=0.0))
    return find_regions(judged.map, geometry, low, values=judged.evidence, peak=highest, min_mm3=0.0)[:1]


def _judge(
    volume: Volume, detector: Detector, batches: list[list[int]], plane: tuple[slice, slice], device: str
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Per batch the scores (b) and the maps (b, y, x), both 0..1."""
    for slices in batches:
        block = volume.hu[slices][:, plane[0], plane[1]].astype(np.float32)
        with torch.inference_mode():
            score, logit = detector(torch.from_numpy(block)[:, None].to(device))
            scores, maps = score.sigmoid().cpu().numpy(), logit[:, 0].sigmoid().cpu().numpy()
        yield scores, maps


def _judge_blocks(
    volume: Volume, detector: Detector, blocks: list[list[int]], plane: tuple[slice, slice], device: str
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """As `_judge`, for a 3-D detector: each block sees a few slices more on either side, whose map is dropped."""
    for number, slices in enumerate(blocks):
        before = blocks[number - 1][-OVERLAP:] if number else []
        after = blocks[number + 1][:OVERLAP] if number + 1 < len(blocks) else []
        block = volume.hu[[*before, *slices, *after]][:, plane[0], plane[1]].astype(np.float32)
        with torch.inference_mode():
            score, logit = detector(torch.from_numpy(block)[None, None].to(device))
            scores, maps = score.sigmoid().cpu().numpy(), logit[0, 0].sigmoid().cpu().numpy()
        yield scores, maps[len(before) : len(before) + len(slices)]


def _fast_step(geometry: Geometry) -> int:
    return int(np.clip(FAST_GAP_MM // geometry.spacing_zyx_mm[0], 1, FAST_STEP))


def _body(volume: Volume) -> Area:
    mask = body_mask(volume)
    if not mask.any():
        log.warning("no body found in the scan: looking at the whole of every slice")
        return _area(volume, np.ones(volume.hu.shape, dtype=bool), (0, 0, 0))
    whole = slice(0, volume.hu.shape[0])
    area = _area(volume, mask, (0, MARGIN, MARGIN))
    return Area((whole, *area.box[1:]), area.slice_ml)


def _lungs(volume: Volume) -> Area:
    mask = lung_mask(volume)
    if not mask.any():
        log.warning("no lungs found in the scan: looking at the whole body")
        return _body(volume)
    return _area(volume, mask, (1, MARGIN, MARGIN))


def _area(volume: Volume, mask: NDArray[np.bool_], margins: IntTriple) -> Area:
    """The box of a mask with margins, and the mask's volume."""
    z, y, x = (
        _span(mask.any(axis=others), margin) for others, margin in zip(((1, 2), (0, 2), (0, 1)), margins, strict=True)
    )
    return Area((z, y, x), mask.sum(axis=(1, 2)) * volume.geometry.voxel_mm3 / 1000)


def _span(present: ArrayLike, margin: int) -> slice:
    where = np.flatnonzero(present)
    return slice(max(int(where[0]) - margin, 0), min(int(where[-1]) + 1 + margin, np.size(present)))
