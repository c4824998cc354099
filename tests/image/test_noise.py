"""Noise measures on noise of known SD and spectrum, and the house's figures on the real series."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from ctguard import io
from ctguard.core.errors import GeometryError
from ctguard.core.geometry import Geometry
from ctguard.core.provenance import Provenance, Source
from ctguard.core.volume import Volume
from ctguard.image.noise import (
    local_noise_sd,
    local_sd_map,
    lung_noise_sd,
    mean_frequency,
    median3,
    median_residual,
    noise_covariance,
    noise_power_spectrum,
    sample_noise_like,
    soft_tissue_noise_sd,
)

SHAPE = (10, 96, 96)


def _volume(hu: NDArray[np.generic], spacing_mm: float = 1.0) -> Volume:
    z, y, x = hu.shape
    return Volume(
        hu.astype(np.float32), Geometry((z, y, x), (2.0, spacing_mm, spacing_mm)), Provenance(Source("phantom"))
    )


def _coloured(sd: float, sigma: float, shape: tuple[int, int, int] = SHAPE, seed: int = 0) -> NDArray[np.float32]:
    white = np.random.default_rng(seed).standard_normal(shape)
    noise = ndimage.gaussian_filter(white, (0.0, sigma, sigma), mode="wrap")
    return (noise / noise.std() * sd).astype(np.float32)


@pytest.mark.parametrize("shape", [(5, 70, 41), (1, 33, 64), (2, 3, 3), (3, 65, 1)])
@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_median_is_the_median_of_27_neighbours(shape: tuple[int, int, int], dtype: type) -> None:
    rng = np.random.default_rng(3)
    for spread in (1.0, 300.0):  # many ties, and hardly any
        values = (rng.standard_normal(shape) * spread).astype(dtype)
        found = median3(values)
        assert found.dtype == values.dtype
        np.testing.assert_array_equal(found, ndimage.median_filter(values, 3, mode="nearest"))


def test_median_selects_rightly_from_every_pattern_of_two_values() -> None:
    """0-1 principle: a comparator network that is right on all 0-1 inputs that matter is right on all inputs."""
    rng = np.random.default_rng(4)
    for ones in (12, 13, 14, 15):
        order = np.argsort(rng.random((5000, 27)), axis=1) < ones
        side_by_side = order.reshape(-1, 3, 3, 3).transpose(1, 0, 2, 3).reshape(3, -1, 3).astype(np.int16)
        assert (median3(side_by_side)[1, 1::3, 1] == (ones >= 14)).all()


def test_local_noise_is_proportional_to_the_noise_and_blind_to_slow_anatomy() -> None:
    noise = _coloured(20, 0.7)
    hill = 200 * np.sin(np.linspace(0, 3, SHAPE[1]))[None, :, None]
    everywhere = np.ones(SHAPE, dtype=bool)
    one = local_noise_sd(_volume(noise - 850), everywhere)
    two = local_noise_sd(_volume(2 * noise - 850 + hill), everywhere)
    assert two.median == pytest.approx(2 * one.median, rel=0.03)
    assert one.quartiles[0] < one.median < one.quartiles[1]
    assert one.n_blocks == 10 * 9 * 9


def test_local_noise_counts_only_blocks_in_the_mask() -> None:
    noise = _coloured(10, 0.7)
    noise[:, :, 48:] *= 5
    left = np.zeros(SHAPE, dtype=bool)
    left[:, :, :44] = True
    assert local_noise_sd(_volume(noise), left).median < 12
    assert local_noise_sd(_volume(noise), left).n_blocks == 10 * 9 * 4


def test_padding_is_no_noise() -> None:
    noise = _coloured(20, 0.7)
    padded = np.where(np.random.default_rng(0).random(SHAPE) < 0.5, -3024, -2048)
    residual = median_residual(padded.astype(np.int16))
    assert not residual.any()
    assert median_residual(noise).std() > 5


def test_masks_that_do_not_fit_are_refused() -> None:
    volume = _volume(_coloured(20, 0.7))
    with pytest.raises(GeometryError, match="does not fit"):
        local_noise_sd(volume, np.ones((2, 2, 2), dtype=bool))
    with pytest.raises(GeometryError, match="empty"):
        local_noise_sd(volume, np.zeros(SHAPE, dtype=bool))
    dot = np.zeros(SHAPE, dtype=bool)
    dot[3, 40:43, 40:43] = True
    with pytest.raises(GeometryError, match="no block of 10 mm"):
        local_noise_sd(volume, dot)
    with pytest.raises(GeometryError, match="no patch"):
        noise_power_spectrum(volume.hu, (1.0, 1.0), dot)


def test_map_of_local_sd_follows_the_noise() -> None:
    noise = _coloured(10, 0.7)
    noise[:, :, 48:] *= 4
    found = local_sd_map(noise - 850, (2.0, 1.0, 1.0))
    assert found.dtype == np.float32
    assert found.shape == SHAPE
    ratio = np.median(found[:, :, 60:]) / np.median(found[:, :, :36])
    assert ratio == pytest.approx(4, rel=0.1)


def test_spectrum_integrates_to_the_variance_and_white_noise_is_flat() -> None:
    white = np.random.default_rng(1).normal(0, 30, (40, 96, 96))
    frequency, power = noise_power_spectrum(white, (0.5, 0.5))
    assert power[1:] == pytest.approx(30**2 * 0.25, rel=0.08)  # SD^2 x pixel area; detrending lowers the first
    assert frequency[-1] == pytest.approx(1.0, rel=0.05)  # Nyquist of 0.5 mm


def test_even_patches_leave_edges_out_of_the_spectrum() -> None:
    noise = _coloured(20, 0.7)
    edged = noise.copy()
    edged[:, :, 10:14] += 300
    plain, all_patches, even = (
        mean_frequency(*noise_power_spectrum(hu, (0.7, 0.7), even=share))
        for hu, share in ((noise, 1.0), (edged, 1.0), (edged, 0.5))
    )
    assert all_patches < 0.8 * plain
    assert even == pytest.approx(plain, rel=0.03)


def test_mean_frequency_tells_kernels_apart_and_scales_with_spacing() -> None:
    soft, sharp = (mean_frequency(*noise_power_spectrum(_coloured(20, s), (0.7, 0.7))) for s in (1.5, 0.5))
    assert sharp > 1.5 * soft
    assert mean_frequency(*noise_power_spectrum(_coloured(20, 1.5), (1.4, 1.4))) == pytest.approx(soft / 2)


def test_sampled_noise_has_sd_and_spectrum_of_its_surroundings() -> None:
    surroundings = _coloured(35, 0.9, (24, 64, 64)) - 850
    surroundings[:, 28:34, :] = 40  # a vessel right through it must not be learned
    noise = sample_noise_like(surroundings, (24, 64, 64), np.random.default_rng(9))
    assert noise.dtype == np.float32
    assert noise.std() == pytest.approx(35, rel=0.12)
    wanted = mean_frequency(*noise_power_spectrum(_coloured(35, 0.9, (24, 64, 64)), (0.7, 0.7)))
    assert mean_frequency(*noise_power_spectrum(noise, (0.7, 0.7))) == pytest.approx(wanted, rel=0.12)
    between = np.corrcoef(noise[1:].ravel(), noise[:-1].ravel())[0, 1]
    assert abs(between) < 0.05  # slices were independent


def test_sampled_noise_repeats_with_its_generator_and_takes_any_shape() -> None:
    block = _coloured(20, 0.7, (6, 40, 40))
    one, two = (sample_noise_like(block, (9, 21, 30), np.random.default_rng(3)) for _ in range(2))
    np.testing.assert_array_equal(one, two)
    assert one.shape == (9, 21, 30)
    assert not np.array_equal(one, sample_noise_like(block, (9, 21, 30), np.random.default_rng(4)))


def test_too_little_noise_to_learn_from_is_refused() -> None:
    with pytest.raises(GeometryError, match="show noise alone"):
        noise_covariance(_coloured(20, 0.7, (2, 12, 12)))
    few = np.zeros(SHAPE, dtype=bool)
    few[0, :10, :10] = True
    with pytest.raises(GeometryError, match="larger block or mask"):
        sample_noise_like(_coloured(20, 0.7), (4, 4, 4), np.random.default_rng(0), few)


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "lung", "soft"), [("R01-001", 48, 22), ("Lung_Dx-A0001_B", 22, 7), ("Lung_Dx-A0001_L", 66, 34)]
)
def test_real_series_have_the_published_noise(real_dir: Path, name: str, lung: float, soft: float) -> None:
    """The figures that stand in the data's README, within a few HU."""
    volume = io.read(real_dir / name)
    assert lung_noise_sd(volume).median == pytest.approx(lung, abs=4)
    assert soft_tissue_noise_sd(volume).median == pytest.approx(soft, abs=3)


@pytest.mark.real
def test_longest_real_series_has_the_published_noise_and_no_mattress_in_its_lung(real_dir: Path) -> None:
    volume = io.read(real_dir / "LIDC-IDRI-0003")
    assert lung_noise_sd(volume).median == pytest.approx(30, abs=4)
    assert soft_tissue_noise_sd(volume).median == pytest.approx(16, abs=3)
