"""Regions: connected, large enough, strongest first, placed in patient space."""

from __future__ import annotations

import numpy as np
import pytest

from ctguard.core.errors import GeometryError
from ctguard.core.geometry import Geometry, index_to_lps_mm
from ctguard.core.records import Verdict
from ctguard.detect.regions import find_regions, label_regions

GRID = Geometry((6, 40, 40), (2.5, 0.8, 0.7), (10.0, -20.0, 30.0))


def a_map(*boxes: tuple[slice, slice, slice, float]) -> np.ndarray:
    values = np.zeros(GRID.shape_zyx, np.float32)
    for z, y, x, score in boxes:
        values[z, y, x] = score
    return values


def test_the_strongest_region_comes_first_with_its_place_and_size() -> None:
    weak = (slice(0, 2), slice(2, 12), slice(2, 12), 0.6)
    strong = (slice(3, 6), slice(20, 30), slice(25, 35), 0.9)
    regions = find_regions(a_map(weak, strong), GRID, 0.5)
    assert [round(region.score, 3) for region in regions] == [0.9, 0.6]
    assert regions[0].center_zyx == pytest.approx((4.0, 24.5, 29.5))
    assert regions[0].center_lps_mm == pytest.approx(tuple(index_to_lps_mm(GRID, (4.0, 24.5, 29.5))))
    assert regions[0].extent_mm == pytest.approx((7.5, 8.0, 7.0))


def test_what_touches_at_a_corner_is_one_region() -> None:
    parts = (slice(0, 2), slice(0, 8), slice(0, 8), 0.8), (slice(2, 4), slice(8, 16), slice(8, 16), 0.7)
    assert len(find_regions(a_map(*parts), GRID, 0.5)) == 1


def test_specks_and_regions_that_do_not_reach_the_peak_are_left_out() -> None:
    speck = (slice(0, 1), slice(0, 2), slice(0, 2), 0.99)
    faint = (slice(3, 6), slice(20, 30), slice(25, 35), 0.7)
    values = a_map(speck, faint)
    assert len(find_regions(values, GRID, 0.5)) == 1
    assert len(find_regions(values, GRID, 0.5, min_mm3=0)) == 2
    assert find_regions(values, GRID, 0.5, peak=0.8) == ()


def test_an_empty_map_has_none_and_a_threshold_of_zero_is_refused() -> None:
    assert find_regions(a_map(), GRID, 0.5) == ()
    with pytest.raises(ValueError, match="whole map"):
        find_regions(a_map(), GRID, 0.0)


def test_labels_are_the_voxels_of_the_regions_in_their_order() -> None:
    weak = (slice(0, 2), slice(2, 12), slice(2, 12), 0.6)
    strong = (slice(3, 6), slice(20, 30), slice(25, 35), 0.9)
    left_out = (slice(0, 2), slice(30, 40), slice(0, 10), 0.55)
    values = a_map(weak, strong, left_out)
    regions = find_regions(values, GRID, 0.5, peak=0.58)
    labels = label_regions(Verdict("d", "m", 0.9, 0.58, values, GRID, regions))
    assert np.array_equal(labels == 1, values == np.float32(0.9))
    assert np.array_equal(labels == 2, values == np.float32(0.6))
    assert set(np.unique(labels)) == {0, 1, 2}
    assert not label_regions(Verdict("d", "m", 0.1, 0.58, values, GRID)).any()


def test_regions_of_another_map_are_refused() -> None:
    regions = find_regions(a_map((slice(0, 2), slice(2, 12), slice(2, 12), 0.9)), GRID, 0.5)
    other = a_map((slice(3, 6), slice(20, 30), slice(25, 35), 0.9))
    with pytest.raises(GeometryError, match="no part of its map"):
        label_regions(Verdict("d", "m", 0.9, 0.6, other, GRID, regions))
