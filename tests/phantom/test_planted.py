"""Planted blocks: the nodule is where the finding says, and the twin is the scan itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ctguard import io
from ctguard.cohort.patches import CubeBatches, CubeRule, read_cubes
from ctguard.core.geometry import index_to_lps_mm, lps_mm_to_index
from ctguard.io.cases import case_path, read_cases, twin_path
from ctguard.phantom.patients import draw_acquisition, draw_patient, render
from ctguard.phantom.planted import write_planted


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A scan without nodules and the index of three nodules planted in it."""
    folder = tmp_path_factory.mktemp("planted")
    patient = draw_patient(3)
    scan = folder / "scan.mha"
    io.write(render(patient, draw_acquisition(patient, "bench", 3), nodules=False), scan)
    return scan, write_planted(scan, folder / "blocks", 3, first_seed=900, min_mm=10.0)


def test_a_twin_is_the_scan_and_differs_from_its_block_at_the_nodule_alone(planted: tuple[Path, Path]) -> None:
    scan, index = planted
    whole = io.read(scan)
    for case in read_cases(index):
        block, twin = io.read(case_path(index, case)), io.read(twin_path(case_path(index, case)))
        first = lps_mm_to_index(whole.geometry, index_to_lps_mm(twin.geometry, (0.0, 0.0, 0.0)))
        window = tuple(slice(round(a), round(a) + n) for a, n in zip(first, twin.hu.shape, strict=True))
        assert np.array_equal(twin.hu, whole.hu[window])
        assert block.geometry == twin.geometry
        assert block.provenance.has_mark("phantom")
        change = np.abs(block.hu.astype(int) - twin.hu) > 150
        finding = case.findings[0]
        offset = np.argwhere(change) - lps_mm_to_index(block.geometry, finding.center_lps_mm)
        distance = np.linalg.norm(offset * np.asarray(block.geometry.spacing_zyx_mm), axis=1)
        assert len(distance) > 50
        assert np.median(distance) < finding.diameter_mm


def test_a_pair_shares_its_surroundings_after_augmentation(planted: tuple[Path, Path]) -> None:
    _, index = planted
    pairs = read_cubes(index, read_cases(index), CubeRule(10.0, 30.0, twins=True), seed=0)
    assert pairs.shape[1:] == (2, 40, 40, 40)
    batch = CubeBatches(((pairs, 1.0),), batch=4, seed=1)(0)
    given, wanted = batch["given_hu"].numpy(), batch["hu"].numpy()
    center = (slice(None), slice(None), *(slice(12, 20),) * 3)
    assert (given[center].mean((1, 2, 3, 4)) > wanted[center].mean((1, 2, 3, 4)) + 100).all()
    assert np.mean(np.abs(given - wanted) < 1) > 0.2  # what no nodule reaches is the same, voxel by voxel


def test_at_the_wall_a_large_nodule_leans_on_tissue_that_it_leaves_alone(
    planted: tuple[Path, Path], tmp_path: Path
) -> None:
    scan, _ = planted
    index = write_planted(scan, tmp_path, 4, first_seed=950, min_mm=16.0, at_wall=True)
    leaning = 0
    for case in read_cases(index):
        assert case.findings[0].diameter_mm >= 16.0
        block, twin = io.read(case_path(index, case)), io.read(twin_path(case_path(index, case)))
        changed = np.abs(block.hu.astype(int) - twin.hu) > 150
        center = np.round(lps_mm_to_index(block.geometry, case.findings[0].center_lps_mm)).astype(int)
        near = tuple(
            slice(max(c - round(11 / mm), 0), c + round(11 / mm) + 1)
            for c, mm in zip(center, block.geometry.spacing_zyx_mm, strict=True)
        )
        leaning += bool((twin.hu[near] > -100).mean() > 0.05)
        assert not changed[twin.hu > 50].any()  # muscle and bone stay what they were
    assert leaning >= 2
