"""Training blocks for the malignancy scorer, from a case table: nodules with a label, and healthy lung."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from ctguard.cohort.patches import cut_cube, draw_lung_sites
from ctguard.core.console import progress
from ctguard.core.errors import DataError
from ctguard.core.geometry import FloatTriple, as_float_triple, index_to_lps_mm, lps_mm_to_index
from ctguard.core.records import Case
from ctguard.core.volume import Volume
from ctguard.image.box import mask_box
from ctguard.image.lung import lung_mask
from ctguard.io.cases import read_case

SLACK = 12
"""Blocks are kept this much wider than what a network sees, so that shifts need no padding."""
CASE = 5
"""Blocks that make up a case of a batch: the five proposals of the noisy-or."""
BLOCK_STEP = "block"
BOX = "lung_box_lps_mm"
_NODULES_PER_CASE = 3
_CLEAR_MM = 28.0
_AIR_HU = -1024.0


@dataclass(frozen=True, eq=False)
class NoduleBlocks:
    """Blocks at 1 mm with what lies in the middle of each.

    hu: float16 (n, side, side, side). diameter_mm: (n), 0 where there is no nodule. malignant: (n) bool.
    location: (n, 2, 3), where the middle lies in the box of the lungs, which reaches from -1 to 1, and how much of it
    one millimetre is (z, y, x); zeros where that is not known. patient: (n).
    """

    hu: NDArray[np.float16]
    diameter_mm: NDArray[np.float32]
    malignant: NDArray[np.bool_]
    location: NDArray[np.float32]
    patient: NDArray[np.str_]

    def save(self, path: Path) -> None:
        """Write all arrays to one .npz, by rename."""
        partial = path.with_suffix(".partial")
        with partial.open("wb") as file:
            np.savez(file, **vars(self))
        partial.replace(path)

    @classmethod
    def load(cls, path: Path) -> NoduleBlocks:
        """What `save` wrote."""
        with np.load(path, allow_pickle=False) as stored:
            return cls(**{name: stored[name] for name in stored.files})

    def summary(self) -> str:
        """Counts for a card."""
        nodules = self.diameter_mm > 0
        return (
            f"{int((nodules & self.malignant).sum())} malignant and {int((nodules & ~self.malignant).sum())} benign "
            f"nodules, {int((~nodules).sum())} places without, {len(np.unique(self.patient))} patients"
        )


def joined(parts: Sequence[NoduleBlocks]) -> NoduleBlocks:
    """Several sets of blocks of one side as one."""
    return NoduleBlocks(*(np.concatenate([getattr(p, name) for p in parts]) for name in NoduleBlocks.__annotations__))


def label_of(malignancy: float | None) -> bool | None:
    """Malignant (mean rating >= 4), benign (<= 2), or None in between and where nobody rated (protocols.md)."""
    if malignancy is None or 2 < malignancy < 4:
        return None
    return malignancy >= 4


def lung_box_lps_mm(volume: Volume) -> tuple[FloatTriple, FloatTriple] | None:
    """Lowest and highest corner (x, y, z) of the box of the lungs in patient space; None where no lung is seen.

    A training block knows the box of the scan that it stands for: it is in its provenance.
    """
    for step in volume.provenance.steps:
        if step.name == BLOCK_STEP and BOX in step.params:
            corners = np.asarray(step.params[BOX], dtype=float)
            return as_float_triple(corners[0]), as_float_triple(corners[1])
    return mask_box_lps_mm(volume, lung_mask(volume))


def mask_box_lps_mm(volume: Volume, mask: NDArray[np.bool_]) -> tuple[FloatTriple, FloatTriple] | None:
    """Lowest and highest corner (x, y, z) in patient space of the box of a mask; None where it is empty."""
    box = mask_box(mask)
    if box is None:
        return None
    corners = index_to_lps_mm(volume.geometry, np.array([[s.start for s in box], [s.stop - 1 for s in box]]))
    return as_float_triple(corners.min(0)), as_float_triple(corners.max(0))


def location_of(point_lps_mm: FloatTriple, box: tuple[FloatTriple, FloatTriple] | None) -> NDArray[np.float32]:
    """Where a point lies in the box of the lungs, and what a millimetre is there: (2, 3), rows and axes z, y, x."""
    if box is None:
        return np.zeros((2, 3), np.float32)
    low, high = np.asarray(box[0]), np.asarray(box[1])
    scale = 2 / np.maximum(high - low, 1.0)
    place = (np.asarray(point_lps_mm) - low) * scale - 1
    return np.stack([place[::-1], scale[::-1]]).astype(np.float32)


def case_blocks(
    volume: Volume, case: Case, side: int, lung_sites: int, rng: np.random.Generator
) -> list[tuple[NDArray[np.float32], float, bool, NDArray[np.float32]]]:
    """Block, diameter, label and location of every nodule that has a label, and of places in healthy lung.

    A case that is one block without a finding (`ctguard phantom --blocks`) gives its middle.
    """
    box = lung_box_lps_mm(volume)
    places: list[tuple[FloatTriple, float, bool]] = []
    for finding in case.findings:
        label = label_of(finding.malignancy)
        index = lps_mm_to_index(volume.geometry, finding.center_lps_mm)
        if label is not None and volume.geometry.contains(index):
            places.append((as_float_triple(index), finding.diameter_mm, label))
    is_block = any(step.name == BLOCK_STEP for step in volume.provenance.steps)
    if is_block and not case.findings:
        places.append((as_float_triple((np.asarray(volume.hu.shape) - 1) / 2), 0.0, False))
    if lung_sites and not is_block:
        places += [(site, 0.0, False) for site in draw_lung_sites(volume, case.findings, lung_sites, _CLEAR_MM, rng)]
    return [
        (
            cut_cube(volume, site, side),
            diameter,
            malignant,
            location_of(as_float_triple(index_to_lps_mm(volume.geometry, site)), box),
        )
        for site, diameter, malignant in places
    ]


def read_blocks(index: Path, cases: Sequence[Case], side: int, lung_sites: int, seed: int) -> NoduleBlocks:
    """Blocks of `side` mm of all cases. Raises DataError where no case has a nodule with a label."""
    rows: list[tuple[NDArray[np.float16], float, bool, NDArray[np.float32]]] = []
    patients: list[str] = []
    for number, case in enumerate(progress(cases, "cutting blocks", len(cases))):
        volume = read_case(index, case)
        found = case_blocks(volume, case, side, lung_sites, np.random.default_rng([seed, number]))
        rows += [(hu.astype(np.float16), diameter, label, place) for hu, diameter, label, place in found]
        patients += [case.patient] * len(found)
    if not any(row[1] > 0 for row in rows):
        raise DataError(
            "no nodule has a label",
            where=index,
            remedy="give findings with a malignancy of at most 2 or at least 4",
        )
    hu, diameter, malignant, location = (list(column) for column in zip(*rows, strict=True))
    return NoduleBlocks(
        np.stack(hu), np.array(diameter, np.float32), np.array(malignant, bool), np.stack(location), np.array(patients)
    )


@dataclass(frozen=True, eq=False)
class NoduleBatches:
    """Batches of augmented blocks as a function of the step.

    A batch is made of cases of five blocks: three nodules and two places without one. Half of the cases hold one to
    three malignant nodules, the others none. Blocks of a case come from different patients.
    Augmentation: shift, flips, right-angle turns in the plane, an offset of all HU, a little blur, noise.
    batch: a multiple of five. side: of the blocks that the network sees.
    """

    blocks: NoduleBlocks
    batch: int
    seed: int
    side: int = 48
    augment: bool = True

    def __call__(self, step: int) -> dict[str, Tensor]:
        """hu (b, 1, side, side, side); location (b, 2, 3); site_mm (b, 3); diameter_mm, malignant and case (b)."""
        rng = np.random.default_rng([self.seed, step])
        chosen = np.concatenate([self._case(rng) for _ in range(max(1, self.batch // CASE))])
        hu = np.empty((len(chosen), 1, self.side, self.side, self.side), np.float32)
        site = np.empty((len(chosen), 3), np.float32)
        location = np.empty((len(chosen), 2, 3), np.float32)
        for i, row in enumerate(chosen):
            hu[i, 0], site[i], location[i] = self._seen(int(row), rng)
        arrays: dict[str, NDArray[Any]] = {
            "hu": hu,
            "location": location,
            "site_mm": site,
            "diameter_mm": self.blocks.diameter_mm[chosen],
            "malignant": self.blocks.malignant[chosen].astype(np.float32),
            "case": np.arange(len(chosen)) // CASE,
        }
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def _case(self, rng: np.random.Generator) -> NDArray[np.int64]:
        malignant = self.blocks.malignant
        nodule = self.blocks.diameter_mm > 0
        pools = [np.flatnonzero(malignant), np.flatnonzero(nodule & ~malignant), np.flatnonzero(~nodule)]
        sick = int(rng.integers(1, _NODULES_PER_CASE + 1)) if rng.random() < 0.5 else 0
        counts = (sick, _NODULES_PER_CASE - sick, CASE - _NODULES_PER_CASE)
        return np.concatenate([_drawn(pools, k, count, rng) for k, count in enumerate(counts)])

    def _seen(
        self, row: int, rng: np.random.Generator
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        """One block as the network sees it, where its site lies in it, and its location."""
        whole = self.blocks.hu[row]
        slack = whole.shape[0] - self.side
        start = np.full(3, slack // 2)
        if self.augment:  # most often near the middle, where a site is scored
            start = rng.integers(0, slack // 2 + 1, size=3) + rng.integers(0, slack - slack // 2 + 1, size=3)
        hu = whole[tuple(slice(int(a), int(a) + self.side) for a in start)].astype(np.float32)
        site = (whole.shape[0] - 1) / 2 - start
        location = self.blocks.location[row].copy()
        location[0] += location[1] * ((self.side - 1) / 2 - site)
        location[1] *= self.side / 2
        if self.augment:
            hu, site = _turned(hu, site, rng)
            hu = _disturbed(hu, rng)
            location[0] += 0.1 * rng.normal(size=3) * (location[1] > 0)
            if rng.random() < 0.1:
                location[:] = 0
        return hu, site.astype(np.float32), location.astype(np.float32)


def _drawn(pools: list[NDArray[np.int64]], k: int, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Rows of one kind; of another kind where there is none of it."""
    pool = pools[k] if len(pools[k]) else np.concatenate(pools)
    return rng.choice(pool, size=count)


def _turned(
    hu: NDArray[np.float32], site: NDArray[np.float64], rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    last = hu.shape[0] - 1
    for axis in range(3):
        if rng.random() < 0.5:
            hu = np.flip(hu, axis)
            site[axis] = last - site[axis]
    if rng.random() < 0.5:
        hu = hu.transpose(0, 2, 1)
        site = site[[0, 2, 1]]
    return hu, site


def _disturbed(hu: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Another scanner's view: blur in a third of the blocks, noise that may be correlated, an offset of all HU."""
    if rng.random() < 0.33:
        hu = ndimage.gaussian_filter(hu, rng.uniform(0.0, 0.8, size=3))
    noise = rng.standard_normal(hu.shape, dtype=np.float32)
    if rng.random() < 0.5:
        noise = ndimage.uniform_filter(noise, 2) * np.float32(2.4)
    hu = hu + noise * np.float32(rng.uniform(0, 20)) + np.float32(15 * rng.normal())
    if rng.random() < 0.3:
        hu = (hu + 700) * np.float32(rng.uniform(0.93, 1.07)) - 700
    return np.maximum(hu, np.float32(_AIR_HU))


def judged_batches(blocks: NoduleBlocks, side: int, batch: int = 16) -> list[dict[str, Tensor]]:
    """Every nodule once, in the middle of its block: hu and location, for a figure of merit."""
    rows = np.flatnonzero(blocks.diameter_mm > 0)
    slack = (blocks.hu.shape[1] - side) // 2
    inner = slice(slack, slack + side)
    out = []
    for first in range(0, len(rows), batch):
        chosen = rows[first : first + batch]
        location = blocks.location[chosen].copy()
        location[:, 1] *= side / 2
        hu = blocks.hu[chosen][:, None, inner, inner, inner].astype(np.float32)
        out.append({"hu": torch.from_numpy(hu), "location": torch.from_numpy(location)})
    return out
