"""Patches of pristine scans, grouped by where their noise comes from: series, kind of tissue, history of processing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from ctguard.core.console import progress
from ctguard.core.records import Case
from ctguard.image.lung import body_mask, lung_mask
from ctguard.io.cases import read_case

PER_GROUP = 4
"""Patches of a group in a batch."""
SHARE = 0.8
"""A patch belongs to a kind of tissue that fills this much of it."""
ZOOM = 1.25
"""The largest zoom of a history; patches are cut this much wider."""
OFFSET_HU = 60.0
"""Each patch is shifted by up to this, so that a patient's density of lung does not give the series away."""


@dataclass(frozen=True, eq=False)
class Acquisition:
    """Slices of one pristine series, and where patches of one kind of tissue may be cut from them.

    planes: int16 HU (n, y, x). places: per kind (lung, other tissue) that has any, (k, 3) of plane, row, column of the
    first corner of a patch of `cut` pixels.
    """

    planes: NDArray[np.int16]
    places: tuple[NDArray[np.intp], ...]


def cut_side(patch: int) -> int:
    """Pixels that are cut for a patch, so that a zoom needs no padding."""
    return int(np.ceil(patch * ZOOM)) + 2


def read_acquisitions(
    index: Path, cases: Sequence[Case], patch: int, planes: int, seed: int, places: int = 200
) -> list[Acquisition]:
    """A few slices (`planes` a scan, drawn among those with lung) of each case; cases without a fitting patch drop."""
    found = []
    cut = cut_side(patch)
    for number, case in enumerate(progress(cases, "reading series", len(cases))):
        rng = np.random.default_rng([seed, number])
        volume = read_case(index, case)
        lung = lung_mask(volume)
        other = body_mask(volume) & ~lung
        with_lung = np.flatnonzero(lung.any(axis=(1, 2)))
        if len(with_lung) == 0 or min(volume.hu.shape[1:]) <= cut:
            continue
        chosen = np.sort(rng.choice(with_lung, size=min(planes, len(with_lung)), replace=False))
        kinds = [_corners(mask[chosen], patch, cut, places, rng) for mask in (lung, other)]
        kept = tuple(corners for corners in kinds if len(corners) >= PER_GROUP)
        if kept:
            found.append(Acquisition(np.round(volume.hu[chosen]).astype(np.int16), kept))
    return found


def _corners(mask: NDArray[np.bool_], patch: int, cut: int, count: int, rng: np.random.Generator) -> NDArray[np.intp]:
    share = ndimage.uniform_filter(mask.astype(np.float32), size=(1, patch, patch), mode="constant")
    half = cut // 2
    inner = share[:, half : mask.shape[1] - (cut - half), half : mask.shape[2] - (cut - half)]
    corners = np.argwhere(inner >= SHARE)
    return corners[rng.choice(len(corners), size=min(count, len(corners)), replace=False)]


@dataclass(frozen=True)
class AcquisitionBatches:
    """Batches as a function of the step: groups of four patches of one series, kind of tissue and history.

    banks: acquisitions by index; every bank is equally likely, so that few real series are seen as often as many
    phantoms. Half of the groups are as acquired, the others zoomed, blurred or with added noise, one value a group.
    """

    banks: Sequence[Sequence[Acquisition]]
    batch: int
    seed: int
    patch: int = 48

    def __call__(self, step: int) -> dict[str, Tensor]:
        """x: HU float32 (batch, 1, patch, patch); group: int64 (batch)."""
        rng = np.random.default_rng([self.seed, step])
        x = np.empty((self.batch, 1, self.patch, self.patch), np.float32)
        group = np.arange(self.batch) // PER_GROUP
        seen: set[tuple[int, int, int, float]] = set()
        for number in range(int(group[-1]) + 1):
            for _ in range(50):  # few series: the same one comes again, then with another history
                bank = int(rng.integers(len(self.banks)))
                which = int(rng.integers(len(self.banks[bank])))
                kind = int(rng.integers(len(self.banks[bank][which].places)))
                history = float(rng.random()) if rng.random() < 0.5 else 0.0
                if (bank, which, kind, history) not in seen:
                    break
            seen.add((bank, which, kind, history))
            acquisition = self.banks[bank][which]
            places = acquisition.places[kind]
            members = np.flatnonzero(group == number)
            for i, place in zip(members, rng.choice(len(places), size=len(members), replace=False), strict=True):
                x[i, 0] = self._patch(acquisition, places[place], history, rng)
        return {"x": torch.from_numpy(x), "group": torch.from_numpy(group.astype(np.int64))}

    def _patch(
        self, acquisition: Acquisition, place: NDArray[np.intp], history: float, rng: np.random.Generator
    ) -> NDArray[np.float32]:
        plane, row, column = (int(value) for value in place)
        cut = cut_side(self.patch)
        hu = np.maximum(acquisition.planes[plane, row : row + cut, column : column + cut], -1024).astype(np.float32)
        hu = processed(hu, history, rng)
        first = (hu.shape[0] - self.patch) // 2
        hu = hu[first : first + self.patch, first : first + self.patch]
        return np.asarray(hu + rng.uniform(-OFFSET_HU, OFFSET_HU), np.float32)


def processed(hu: NDArray[np.float32], history: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """A patch after one of three operations. history: 0 nothing; (0, 1/3) zoom, to 2/3 blur, to 1 added noise."""
    kind, amount = divmod(history * 3, 1.0)
    if history == 0.0:
        return hu
    if kind == 0:  # the core of CT-GAN's chain: resampled tissue
        zoom = 1 / ZOOM + amount * (ZOOM - 1 / ZOOM)
        return np.asarray(ndimage.zoom(hu, max(zoom, 1.02 / ZOOM), order=1), np.float32)
    if kind == 1:
        return np.asarray(ndimage.gaussian_filter(hu, 0.3 + 0.6 * amount), np.float32)
    return np.asarray(hu + rng.normal(0, 10 + 30 * amount, hu.shape), np.float32)
