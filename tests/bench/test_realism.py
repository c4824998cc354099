"""The realism benchmark tells a planted difference from none, and says which one it was."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import pytest
from scipy import ndimage

from ctguard.bench.realism import FEATURES, Floats, Scan, auc, describe, lung_patches, phantoms_like, separate
from ctguard.core.errors import DataError, GeometryError
from ctguard.core.geometry import Geometry
from ctguard.core.provenance import Provenance, Source
from ctguard.core.volume import Volume


def _slab(seed: int, noise_hu: float = 30.0, lung_hu: float = -860.0, sigma: float = 0.7) -> Volume:
    """A lung of 150 x 150 mm in a body of 200 x 200 mm, with random short vessels."""
    rng = np.random.default_rng(seed)
    shape = (6, 200, 200)
    hu = np.full(shape, 40.0)
    lung = np.s_[:, 25:175, 25:175]
    hu[lung] = lung_hu
    dots = ndimage.gaussian_filter((rng.random(shape) < 0.002).astype(float), (0.5, 1.2, 1.2))
    hu[lung] += 5000 * dots[lung]
    noise = ndimage.gaussian_filter(rng.standard_normal(shape), (0, sigma, sigma))
    hu += noise / noise.std() * noise_hu
    grid = Geometry((6, 200, 200), (5.0, 1.0, 1.0))
    return Volume(hu.astype(np.int16), grid, Provenance(Source("phantom")))


@functools.cache
def _set(make: Callable[[int], Volume], seeds: range) -> dict[str, tuple[str, Floats]]:
    return {f"scan {k}": (f"patient {k}", lung_patches(make(k))) for k in seeds}


def test_auc_is_the_chance_of_the_right_order() -> None:
    assert auc(np.array([2.0, 3.0]), np.array([0.0, 1.0])) == 1.0
    assert auc(np.array([0.0, 1.0]), np.array([2.0, 3.0])) == 0.0
    assert auc(np.array([1.0, 1.0]), np.array([1.0, 1.0])) == 0.5
    assert auc(np.array([1.0, 3.0]), np.array([2.0])) == 0.5


def test_patches_of_one_kind_are_not_told_apart() -> None:
    real = _set(_slab, range(3))
    phantom = {name: features for name, (_, features) in zip(real, _set(_slab, range(10, 13)).values(), strict=True)}
    results, _ = separate(real, phantom)
    assert [one.name for one in results] == sorted(real)
    assert all(one.n_real > 10 and one.n_phantom > 10 for one in results)
    assert np.mean([one.auc for one in results]) == pytest.approx(0.5, abs=0.2)


@pytest.mark.parametrize(
    ("difference", "blamed"),
    [({"lung_hu": -830.0}, "HU, "), ({"sigma": 1.4}, ("SD, ", "correlation", "kurtosis"))],
)
def test_a_planted_difference_is_found_and_named(difference: dict[str, float], blamed: str | tuple[str, ...]) -> None:
    real = _set(_slab, range(3))
    others = _set(lambda seed: _slab(seed, **difference), range(10, 13))
    phantom = {name: features for name, (_, features) in zip(real, others.values(), strict=True)}
    results, weights = separate(real, phantom)
    assert min(one.auc for one in results) > 0.95
    assert tuple(weights) == FEATURES
    assert max(weights, key=lambda name: abs(weights[name])).startswith(blamed)


def test_series_of_one_patient_are_left_out_together_and_one_patient_is_too_few() -> None:
    features = lung_patches(_slab(0))
    with pytest.raises(DataError, match="two patients"):
        separate({"a": ("p", features), "b": ("p", features)}, {"a": features, "b": features})


def test_description_measures_what_was_put_in() -> None:
    quiet, noisy = describe(_slab(1)), describe(_slab(1, noise_hu=60, lung_hu=-820))
    assert quiet.lung_hu == pytest.approx(-860, abs=8)
    assert noisy.lung_hu == pytest.approx(-820, abs=8)
    assert noisy.lung_noise.median > 1.6 * quiet.lung_noise.median
    assert describe(_slab(1, sigma=1.4)).soft_frequency < 0.8 * quiet.soft_frequency
    assert 0 < quiet.vessel_share < 0.3


def test_a_volume_without_lung_is_refused() -> None:
    flesh = Volume(
        np.full((4, 64, 64), 40, dtype=np.int16), Geometry((4, 64, 64), (2.0, 1.0, 1.0)), Provenance(Source("phantom"))
    )
    with pytest.raises(GeometryError, match="no lung"):
        describe(flesh)


def test_phantoms_need_seeds() -> None:
    with pytest.raises(DataError, match="seeds"):
        phantoms_like(Scan("s", "p", _slab(0), "standard", 5.0), [])
