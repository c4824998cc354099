"""Training patches for 2-D detectors, from a folder of forgeries and the pristine scans beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ctguard.cohort.honest import laid_over
from ctguard.core.console import progress
from ctguard.core.errors import DataError
from ctguard.core.geometry import FloatTriple, IntTriple, as_int_triple, lps_mm_to_index
from ctguard.core.records import Edit, Split
from ctguard.core.volume import Volume
from ctguard.image.box import mask_box
from ctguard.image.lung import lung_mask
from ctguard.io.cases import read_case, read_cases
from ctguard.io.forgeries import Forgery, read_manifest


@dataclass(frozen=True, eq=False)
class ForgedScan:
    """A pristine scan, the forgeries of it, and the bounding box of its lungs; of a scan without lungs, all of it.

    seal: what a seal would add to each voxel, in HU; None for a scan that is shown without one.
    """

    hu: NDArray[Any]
    spacing_zyx_mm: FloatTriple
    forgeries: tuple[Forgery, ...]
    lung_box: tuple[slice, slice, slice]
    seal: NDArray[np.int8] | None = None


@dataclass(frozen=True, eq=False)
class Untouched:
    """A nodule that nobody forged, in a pristine scan or block: without it, a nodule by itself would look forged.

    reach_z: slices on each side of its middle that still show it.
    """

    scan: ForgedScan
    center_zyx: IntTriple
    reach_z: int

    def place(self, rng: np.random.Generator) -> IntTriple:
        """A voxel on its axis, in one of its slices."""
        z, y, x = self.center_zyx
        low, high = max(z - self.reach_z, 0), min(z + self.reach_z, self.scan.hu.shape[0] - 1)
        return int(rng.integers(low, high + 1)), y, x


SealOf = Callable[[Volume, int], NDArray[np.int8] | None]
"""(scan, its number) to what a seal adds, or None."""


def read_slices(
    folder: Path, split: Split, generators: Sequence[str], seal_of: SealOf | None = None
) -> list[ForgedScan]:
    """All scans of a split that have forgeries by these generators, in memory. Raises DataError where there is none."""
    index, forgeries = read_manifest(folder)
    by_scan: dict[str, list[Forgery]] = {}
    for forgery in forgeries:
        if forgery.edit.generator in generators:
            by_scan.setdefault(forgery.scan_id, []).append(forgery)
    chosen = [case for case in read_cases(index) if case.split == split and case.scan_id in by_scan]
    if not chosen:
        raise DataError(f"no {split} scan has a forgery by {', '.join(generators)}", where=folder)
    scans = []
    for number, case in enumerate(progress(chosen, f"reading {split} scans", len(chosen))):
        volume = read_case(index, case)
        z, y, x = mask_box(lung_mask(volume)) or (slice(0, n) for n in volume.hu.shape)
        seal = seal_of(volume, number) if seal_of is not None else None
        spacing, found = volume.geometry.spacing_zyx_mm, tuple(by_scan[case.scan_id])
        scans.append(ForgedScan(volume.hu, spacing, found, (z, y, x), seal))
    return scans


def read_untouched(index: Path, split: Split) -> list[Untouched]:
    """The nodules of a split's pristine scans or blocks, in memory. Raises DataError where there is none."""
    cases = [case for case in read_cases(index) if (case.split or "train") == split and case.findings]
    if not cases:
        raise DataError(f"no {split} case has a nodule", where=index, remedy="give pristine cases with findings")
    found = []
    for case in progress(cases, f"reading untouched {split} nodules", len(cases)):
        volume = read_case(index, case)
        whole = (slice(0, volume.hu.shape[0]), slice(0, volume.hu.shape[1]), slice(0, volume.hu.shape[2]))
        scan = ForgedScan(volume.hu, volume.geometry.spacing_zyx_mm, (), whole)
        for finding in case.findings:
            center = np.rint(lps_mm_to_index(volume.geometry, finding.center_lps_mm))
            reach = round(finding.diameter_mm / 2 / volume.geometry.spacing_zyx_mm[0])
            found.append(Untouched(scan, as_int_triple(center), reach))
    return found


@dataclass(frozen=True)
class SliceBatches:
    """Batches of patches as a function of the step; every forgery is equally likely.

    Half of a batch shows an edit; a quarter the same place of the pristine scan, so that content tells nothing; a
    quarter a random place of the pristine lungs, or every second time an untouched nodule, where some are given.
    Flips and right-angle turns augment. A scan that comes with a seal is shown sealed every second time.
    """

    scans: Sequence[ForgedScan]
    batch: int
    seed: int
    patch: int = 128
    augment: bool = True
    untouched: Sequence[Untouched] = ()

    def __call__(self, step: int) -> dict[str, Tensor]:
        """x HU, mask, ignore: float32 (batch, 1, patch, patch); label: float32 (batch)."""
        rng = np.random.default_rng([self.seed, step])
        pairs = [(scan, forgery) for scan in self.scans for forgery in scan.forgeries]
        shape = (self.batch, 1, self.patch, self.patch)
        x, mask = np.full(shape, -1024, np.float32), np.zeros(shape, np.float32)
        ignore = np.ones(shape, np.float32)
        for i in range(self.batch):
            scan, forgery = pairs[int(rng.integers(len(pairs)))]
            planes = self._planes(scan, forgery, i % 4, rng)
            turns, flip = (int(rng.integers(4)), rng.random() < 0.5) if self.augment else (0, False)
            for target, plane in zip((x, mask, ignore), planes, strict=True):
                target[i, 0] = np.flip(np.rot90(plane, turns), 0) if flip else np.rot90(plane, turns)
        label = (mask.max(axis=(1, 2, 3)) > 0).astype(np.float32)
        arrays = {"x": x, "mask": mask, "ignore": ignore, "label": label}
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def _planes(
        self, scan: ForgedScan, forgery: Forgery, kind: int, rng: np.random.Generator
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        """HU, mask and ignore (outside of the scan) of one patch. kind 0, 1: forged; 2: same place; 3: any lung."""
        edit = forgery.edit
        reach = self.patch // 4
        if kind == 3 and self.untouched and rng.random() < 0.5:
            nodule = self.untouched[int(rng.integers(len(self.untouched)))]
            scan = nodule.scan
            z, y, x = (int(v) for v in np.add(nodule.place(rng), (0, *rng.integers(-reach, reach + 1, 2))))
        elif kind == 3:
            z, y, x = (int(rng.integers(side.start, side.stop)) for side in scan.lung_box)
        else:
            z = _edited_slice(edit, rng)
            y, x = (
                start + n // 2 + int(rng.integers(-reach, reach + 1))
                for start, n in zip(edit.box_start_zyx[1:], edit.mask.shape[1:], strict=True)
            )
        plane = scan.hu[z].astype(np.float32)
        truth = np.zeros(plane.shape, np.float32)
        if kind < 2:
            row = z - edit.box_start_zyx[0]
            window = tuple(slice(a, a + n) for a, n in zip(edit.box_start_zyx[1:], edit.mask.shape[1:], strict=True))
            plane[window] = forgery.block[row]
            truth[window] = edit.mask[row]
        if self.augment and scan.seal is not None and rng.random() < 0.5:
            plane += laid_over(scan.seal[z].astype(np.float32), truth, rng)
        corner = (y - self.patch // 2, x - self.patch // 2)
        seen = np.zeros(plane.shape, np.float32)
        return (
            _crop(plane, corner, self.patch, -1024.0),
            _crop(truth, corner, self.patch, 0.0),
            _crop(seen, corner, self.patch, 1.0),
        )


def _edited_slice(edit: Edit, rng: np.random.Generator) -> int:
    """A slice of the edit, in proportion to its changed voxels."""
    weights = edit.mask.sum(axis=(1, 2)).astype(np.float64)
    return edit.box_start_zyx[0] + int(rng.choice(len(weights), p=weights / weights.sum()))


def _crop(plane: NDArray[np.float32], corner: tuple[int, int], side: int, outside: float) -> NDArray[np.float32]:
    patch = np.full((side, side), outside, np.float32)
    (y0, x0), (height, width) = corner, plane.shape
    y = slice(max(y0, 0), min(y0 + side, height))
    x = slice(max(x0, 0), min(x0 + side, width))
    patch[y.start - y0 : y.stop - y0, x.start - x0 : x.stop - x0] = plane[y, x]
    return patch
