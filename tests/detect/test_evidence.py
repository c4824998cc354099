"""Evidence: the mean logit of a cube of 12 mm, whatever the grid."""

from __future__ import annotations

import numpy as np
import pytest

from ctguard.core.geometry import FloatTriple
from ctguard.detect.evidence import evidence, supported


def logit(p: np.ndarray) -> np.ndarray:
    return np.log(p / (1 - p))


@pytest.mark.parametrize("value", [1e-6, 0.2, 0.5, 0.999])
def test_a_map_of_one_value_keeps_it(value: float) -> None:
    map_ = np.full((7, 30, 40), value, np.float32)
    np.testing.assert_allclose(evidence(map_, (2.5, 0.7, 0.8)), map_, rtol=1e-4)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (2.4, 0.75, 1.5), (6.0, 0.5, 4.0)])
def test_a_forged_cube_of_12_mm_counts_whole_and_half_of_it_by_half(spacing: FloatTriple) -> None:
    counts = [round(12 / s) for s in spacing]
    map_ = np.full([3 * n for n in counts], 0.02, np.float32)
    inside = tuple(slice(n, 2 * n) for n in counts)
    map_[inside] = 0.98
    assert evidence(map_, spacing).max() == pytest.approx(0.98, rel=1e-4)
    map_[inside[0], counts[1] : counts[1] + counts[1] // 2] = 0.02
    halved = -logit(np.array(0.02)) * (1 - 2 * (counts[1] // 2) / counts[1])
    assert logit(evidence(map_, spacing).max()) == pytest.approx(halved, abs=0.01)


def test_certainty_has_a_bound_and_the_map_is_left_alone() -> None:
    map_ = np.zeros((1, 40, 40), np.float32)
    map_[:, :, 20:] = 1.0
    before = map_.copy()
    found = evidence(map_, (2.0, 1.0, 1.0))
    assert np.isfinite(found).all() and found.min() < 1e-6 and found.max() > 1 - 1e-6
    np.testing.assert_array_equal(map_, before)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (2.4, 0.75, 1.5), (6.0, 0.5, 4.0), (4.0, 1.3, 1.1)])
def test_a_cube_stays_whole_and_a_speck_goes(spacing: FloatTriple) -> None:
    counts = [round(12 / s) for s in spacing]
    map_ = np.full([4 * n for n in counts], 0.02, np.float32)
    cube = tuple(slice(n, 2 * n) for n in counts)
    map_[cube] = 0.98
    map_[-1, -counts[1] // 3 :, -counts[2] // 3 :] = 0.9
    kept = supported(map_, evidence(map_, spacing), spacing)
    np.testing.assert_allclose(kept[cube], 0.98, rtol=1e-4)
    assert (np.delete(kept.reshape(-1), np.ravel_multi_index(np.nonzero(map_ > 0.95), map_.shape)) < 0.5).all()
    assert (kept <= map_).all()
