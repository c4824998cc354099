"""Stand-ins: what they change is what they say, and nothing of the scan moves where they do not work."""

from __future__ import annotations

import numpy as np
import pytest

from ctguard.tamper.stand_ins import CONTENTS, forge_stand_in

SPACING = (1.5, 0.8, 0.8)
SHAPE = (33, 61, 61)


def lung(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.rint(-850 + 40 * rng.standard_normal(SHAPE)).astype(np.float32)


@pytest.fixture(scope="module")
def forged() -> list[tuple[np.ndarray, np.ndarray]]:
    return [forge_stand_in(lung(1), lung(2), SPACING, np.random.default_rng(seed)) for seed in range(60)]


def test_every_voxel_that_differs_is_in_the_mask(forged: list[tuple[np.ndarray, np.ndarray]]) -> None:
    for hu, changed in forged:
        assert hu.dtype == np.float32 and changed.dtype == bool
        assert not (hu != lung(1))[~changed].any()
        assert changed.any()


def test_the_rim_of_the_block_is_the_scan_s_own(forged: list[tuple[np.ndarray, np.ndarray]]) -> None:
    for hu, _ in forged:
        for axis in range(3):
            for end in (0, -1):
                assert np.array_equal(np.take(hu, end, axis), np.take(lung(1), end, axis))


def test_chains_differ_in_size_and_in_what_they_do_to_noise(forged: list[tuple[np.ndarray, np.ndarray]]) -> None:
    sides = [np.ptp(np.flatnonzero(changed.any(axis=(0, 1)))) * SPACING[2] for _, changed in forged]
    assert min(sides) < 26 and max(sides) > 34
    levels = [float(hu[12:21, 24:37, 24:37].std()) for hu, _ in forged]
    assert min(levels) < 25 and max(levels) > 100 and len({round(level) for level in levels}) > 20
    assert len(CONTENTS) == 6


def test_values_are_whole_numbers_and_the_same_draw_gives_the_same_voxels() -> None:
    one, two = (forge_stand_in(lung(1), lung(2), SPACING, np.random.default_rng(7)) for _ in range(2))
    assert np.array_equal(one[0], two[0]) and np.array_equal(one[1], two[1])
    assert np.array_equal(one[0], np.rint(one[0]))


def test_a_single_slice_can_be_forged() -> None:
    flat = lung(1)[:1]
    hu, changed = forge_stand_in(flat, lung(2)[:1], SPACING, np.random.default_rng(3))
    assert hu.shape == flat.shape and changed.any()
