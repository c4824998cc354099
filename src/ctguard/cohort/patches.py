"""Training cubes from a case table: around nodules, and in healthy lung."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ctguard.core.console import progress
from ctguard.core.geometry import FloatTriple, lps_mm_to_index, sphere_diameter_mm
from ctguard.core.records import Case, Finding
from ctguard.core.volume import Volume
from ctguard.image.lung import NODULE_HU, lung_mask
from ctguard.image.resample import apply_matrices, grid_matrices
from ctguard.io.cases import read_case, twin_path

CUBE = 32
SLACK = 8
"""Cubes are kept this much wider than 32 mm, so that shifts and rotations need no padding."""


@dataclass(frozen=True)
class CubeRule:
    """Which places of a case become cubes.

    min_mm, max_mm, malignant: nodules to centre on (malignancy >= 4 or <= 2; None: any). min_mm None: no nodules.
    lung_sites: places per scan in lung, at least `clear_mm` from every nodule's centre.
    twins: each cube comes as a pair, as it is and as it is in the scan's twin without the nodule.
    dense_mm: leave out nodules whose dense part (above -400 HU) has a smaller equivalent sphere, as ground glass has.
    """

    min_mm: float | None = None
    max_mm: float = 100.0
    malignant: bool | None = None
    lung_sites: int = 0
    clear_mm: float = 28.0
    twins: bool = False
    dense_mm: float = 0.0


def cut_cube(volume: Volume, center_zyx: FloatTriple, side: int = CUBE + SLACK) -> NDArray[np.float32]:
    """A cube of `side` mm at 1 mm around a site, float32 HU; the border of the scan repeats beyond it."""
    spacing = np.asarray(volume.geometry.spacing_zyx_mm)
    half = np.ceil((side / 2 + 2) / spacing).astype(int)
    center = np.round(center_zyx).astype(int)
    start = np.maximum(center - half, 0)
    stop = np.minimum(center + half + 1, volume.hu.shape)
    block = volume.hu[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))].astype(np.float32)
    first = np.asarray(center_zyx) - start - (side - 1) / 2 / spacing
    shape = (block.shape[0], block.shape[1], block.shape[2])
    step = 1 / spacing
    matrices = grid_matrices(shape, tuple(first), tuple(step), (side, side, side))
    cube: NDArray[np.float32] = apply_matrices(torch.from_numpy(np.maximum(block, -1024)), matrices).numpy()
    return cube


def case_cubes(volume: Volume, case: Case, rule: CubeRule, rng: np.random.Generator) -> list[NDArray[np.float32]]:
    """All cubes of one case."""
    cubes = []
    for finding in case.findings:
        center = tuple(lps_mm_to_index(volume.geometry, finding.center_lps_mm))
        if _wanted(finding, rule) and volume.geometry.contains(center):
            cube = cut_cube(volume, center)
            if _dense_mm(cube, finding.diameter_mm) >= rule.dense_mm:
                cubes.append(cube)
    if rule.lung_sites:
        sites = draw_lung_sites(volume, case.findings, rule.lung_sites, rule.clear_mm, rng)
        cubes += [cut_cube(volume, site) for site in sites]
    return cubes


def _dense_mm(cube_hu: NDArray[np.float32], diameter_mm: float) -> float:
    """Equivalent sphere of what lies above -400 HU in a cube of 1 mm voxels, no further out than the nodule reaches."""
    place = np.arange(len(cube_hu)) - (len(cube_hu) - 1) / 2
    radius = np.sqrt(place[:, None, None] ** 2 + place[:, None] ** 2 + place**2)
    voxels = int((cube_hu[radius <= diameter_mm / 2 + 2] > NODULE_HU).sum())
    return sphere_diameter_mm(voxels)


def draw_lung_sites(
    volume: Volume, findings: Sequence[Finding], count: int, clear_mm: float, rng: np.random.Generator
) -> list[FloatTriple]:
    """Voxels in lung, all equally likely, at least `clear_mm` from each finding and 8 mm inside the scan."""
    margin = np.ceil(8.0 / np.asarray(volume.geometry.spacing_zyx_mm)).astype(int)
    allowed = np.zeros(volume.hu.shape, dtype=bool)
    inner = tuple(slice(min(m, n // 2), max(n - m, n // 2 + 1)) for m, n in zip(margin, volume.hu.shape, strict=True))
    allowed[inner] = lung_mask(volume)[inner]
    voxels = np.argwhere(allowed)
    for finding in findings:
        offset = voxels - lps_mm_to_index(volume.geometry, finding.center_lps_mm)
        distance = np.linalg.norm(offset * np.asarray(volume.geometry.spacing_zyx_mm), axis=1)
        voxels = voxels[distance >= clear_mm]
    if len(voxels) == 0:
        return []
    picked = voxels[rng.choice(len(voxels), size=min(count, len(voxels)), replace=False)]
    return [(float(z), float(y), float(x)) for z, y, x in picked]


def _wanted(finding: Finding, rule: CubeRule) -> bool:
    if rule.min_mm is None or not rule.min_mm <= finding.diameter_mm <= rule.max_mm:
        return False
    if rule.malignant is None or finding.malignancy is None:
        return rule.malignant is None
    return finding.malignancy >= 4 if rule.malignant else finding.malignancy <= 2


def read_cubes(index: Path, cases: Sequence[Case], rule: CubeRule, seed: int) -> NDArray[np.float32]:
    """Cubes (n, 40, 40, 40) of all cases, or pairs of them (n, 2, 40, 40, 40) by a rule with twins; n may be 0."""
    cubes: list[NDArray[np.float32]] = []
    for number, case in enumerate(progress(cases, "cutting cubes", len(cases))):
        twin = replace(case, path=twin_path(Path(case.path)).as_posix())
        views = [
            case_cubes(read_case(index, one), one, rule, np.random.default_rng([seed, number]))
            for one in ((case, twin) if rule.twins else (case,))
        ]
        cubes += [np.stack(pair) for pair in zip(*views, strict=True)] if rule.twins else views[0]
    side = CUBE + SLACK
    return np.stack(cubes) if cubes else np.empty((0, *(2,) * rule.twins, side, side, side), np.float32)


@dataclass(frozen=True)
class CubeBatches:
    """Batches of augmented cubes as a function of the step: crop with a shift, flips and right-angle turns in-plane.

    groups: arrays of cubes (n, 40, 40, 40), or of pairs (n, 2, 40, 40, 40) of what is given and what is wanted, with
        their shares of a batch. core_mm: range of masked cores.
    unpaired: the same for a second, independent draw of cubes ("masked_hu": places whose cores are to be replaced).
    """

    groups: tuple[tuple[NDArray[np.float32], float], ...]
    batch: int
    seed: int
    shift: int = 2
    core_mm: tuple[int, int] = (16, 20)
    unpaired: tuple[tuple[NDArray[np.float32], float], ...] = ()

    def __call__(self, step: int) -> dict[str, Tensor]:
        """hu (wanted), mask and noise, and by what there is given_hu (pairs) and masked_hu (`unpaired`).

        All float32 (batch, 1, 32, 32, 32).
        """
        rng = np.random.default_rng([self.seed, step])
        hu = np.empty((self.batch, 1, CUBE, CUBE, CUBE), np.float32)
        given, mask = np.empty_like(hu), np.zeros_like(hu)
        for i in range(self.batch):
            drawn = self._drawn(self.groups, rng)
            given[i, 0], hu[i, 0] = drawn if drawn.ndim == 4 else (drawn, drawn)
            rim = (CUBE - 2 * int(rng.integers(self.core_mm[0] // 2, self.core_mm[1] // 2 + 1))) // 2
            mask[i, 0, rim:-rim, rim:-rim, rim:-rim] = 1
        noise = rng.standard_normal(hu.shape, dtype=np.float32)
        batch = {"hu": hu, "mask": mask, "noise": noise}
        if any(cubes.ndim == 5 for cubes, _ in self.groups):
            batch["given_hu"] = given
        if self.unpaired:
            batch["masked_hu"] = np.stack([self._drawn(self.unpaired, rng)[None] for _ in range(self.batch)])
        return {name: torch.from_numpy(values) for name, values in batch.items()}

    def _drawn(
        self, groups: tuple[tuple[NDArray[np.float32], float], ...], rng: np.random.Generator
    ) -> NDArray[np.float32]:
        shares = np.asarray([share for _, share in groups])
        cubes, _ = groups[rng.choice(len(groups), p=shares / shares.sum())]
        return self._augmented(cubes[rng.integers(len(cubes))], rng)

    def _augmented(self, cube: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
        z, y, x = SLACK // 2 + rng.integers(-self.shift, self.shift + 1, size=3)
        cube = cube[..., z : z + CUBE, y : y + CUBE, x : x + CUBE]
        cube = np.rot90(cube, int(rng.integers(4)), axes=(-2, -1))
        for axis in (-3, -2, -1):
            if rng.random() < 0.5:
                cube = np.flip(cube, axis)
        return cube
