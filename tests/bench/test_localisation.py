"""Overlap, average precision and the pointing game, on maps that can be judged by hand."""

from __future__ import annotations

import numpy as np
import pytest

from ctguard.bench.localisation import Counts, Truth, average_precision, cube_mask, points_at
from ctguard.core.geometry import Geometry
from ctguard.core.records import Edit

GEOMETRY = Geometry((20, 30, 30), (2.0, 1.5, 1.0))


def edit(shape: tuple[int, int, int] = (4, 4, 4), start: tuple[int, int, int] = (8, 13, 13)) -> Edit:
    mask = np.ones(shape, bool)
    return Edit("inject", "pix2pix", "clean", 0, (10.0, 15.0, 15.0), start, mask, mask, 0, {})


def brute_precision(scores: np.ndarray, truth: np.ndarray) -> float:
    levels = np.unique(scores)[::-1]
    recall, total = 0.0, 0.0
    for level in levels:
        above = scores >= level
        new = (above & truth).sum() / truth.sum()
        total += (new - recall) * (above & truth).sum() / above.sum()
        recall = new
    return total


@pytest.mark.parametrize("digits", [1, 4])
def test_average_precision_is_the_area_under_the_steps(digits: int) -> None:
    rng = np.random.default_rng(digits)
    scores = rng.random((6, 7, 8)).round(digits).astype(np.float32)
    truth = rng.random(scores.shape) < 0.1
    assert average_precision(scores, truth) == pytest.approx(brute_precision(scores, truth))
    assert average_precision(truth.astype(np.float32), truth) == 1.0
    assert average_precision(np.zeros_like(scores), truth) == pytest.approx(truth.mean())
    assert np.isnan(average_precision(scores, truth & False))


def test_a_map_that_is_the_truth_scores_one_and_an_empty_one_zero() -> None:
    truth = Truth.of(edit(), GEOMETRY)
    assert truth.counts(truth.mask).f1 == truth.counts(truth.mask).iou == 1.0
    assert truth.counts(truth.mask & False).f1 == 0.0
    assert Counts.of(truth.mask & False, truth.mask & False).iou == 0.0


def test_what_changed_beyond_the_nominal_cube_counts_neither_way() -> None:
    wide = edit((20, 4, 4), (0, 13, 13))  # 40 mm along z, the cube holds 32 of them
    truth = Truth.of(wide, GEOMETRY)
    assert truth.ignored.sum() == 3 * 16 and not (truth.mask & truth.ignored).any()
    assert truth.counts(truth.mask | truth.ignored).f1 == 1.0
    scores = np.where(truth.ignored, 0.9, np.where(truth.mask, 0.8, 0.1)).astype(np.float32)
    assert average_precision(scores, truth.mask, truth.ignored) == 1.0


def test_the_nominal_cube_is_32_mm_on_every_axis() -> None:
    cube = cube_mask(Geometry((60, 60, 60), (2.0, 1.5, 1.0)), (30.0, 30.0, 30.0))
    assert [int(cube.any(axis=tuple({0, 1, 2} - {axis})).sum()) for axis in range(3)] == [17, 21, 33]


@pytest.mark.parametrize(("peak", "hit"), [((10, 15, 15), True), ((17, 15, 15), True), ((19, 15, 15), False)])
def test_pointing_is_in_millimetres(peak: tuple[int, int, int], hit: bool) -> None:
    map_ = np.zeros(GEOMETRY.shape_zyx, np.float32)
    map_[peak] = 0.2
    assert points_at(map_, GEOMETRY, (10.0, 15.0, 15.0)) is hit


def test_an_empty_map_points_nowhere() -> None:
    assert not points_at(np.zeros(GEOMETRY.shape_zyx, np.float32), GEOMETRY, (0.0, 0.0, 0.0))
