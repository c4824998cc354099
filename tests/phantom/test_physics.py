"""Noise against a full projection and filtered back-projection, fields, kernels."""

from __future__ import annotations

import numpy as np
import pytest
from skimage.transform import iradon, radon

from ctguard.phantom import physics
from ctguard.phantom.fields import texture


def _ellipse(half_x_mm: float, half_y_mm: float) -> np.ndarray:
    axis = physics.coarse_axis_mm()
    inside = (axis / half_x_mm) ** 2 + (axis[:, None] / half_y_mm) ** 2 < 1
    lungs = ((np.abs(axis) - 75) / 45) ** 2 + (axis[:, None] / 70) ** 2 < 1
    return np.where(inside, np.where(lungs, -860.0, 40.0), -1000.0)


def test_noise_map_agrees_with_full_projection_and_filtered_back_projection() -> None:
    hu = _ellipse(170.0, 110.0)
    predicted = physics.noise_sd(hu[None], 100.0, 2.0, "standard", (0.7, 0.7))[0]
    angles = np.arange(120) * 180 / 120
    mu = np.clip(1 + hu / 1000, 0, None) * physics.MU_WATER_MM
    line = radon(mu, angles, circle=True) * physics.COARSE_MM
    ray = physics.coarse_axis_mm()[:, None]
    sd = np.sqrt(physics.ray_variance(line, ray, 100.0, 2.0))
    rng = np.random.default_rng(0)
    images = [iradon(sd * rng.standard_normal(sd.shape), angles, circle=True) for _ in range(24)]
    measured = np.std(images, axis=0)
    y, x = np.mgrid[:112, :112] - 55.5
    places = {"middle": (0, 0), "lung": (15, 0), "side": (29, 0), "back": (0, 18)}
    ratios = {}
    for name, (px, py) in places.items():
        near = np.hypot(x - px, y - py) < 4
        ratios[name] = np.sqrt((measured[near] ** 2).mean()) / predicted[near].mean()
    middle = ratios["middle"]
    assert all(ratio == pytest.approx(middle, rel=0.15) for ratio in ratios.values()), ratios


def test_wide_patients_are_noisier() -> None:
    slim, stout = (
        physics.noise_sd(_ellipse(150.0, 100.0 * grow)[None], 100.0, 2.0, "standard", (0.7, 0.7))[0, 56, 56]
        for grow in (1.0, 1.4)
    )
    assert stout > 1.4 * slim


@pytest.mark.parametrize("kernel", physics.KERNELS)
def test_shaped_noise_has_unit_variance_and_no_mean(kernel: physics.Kernel) -> None:
    noise = physics.shaped_noise(1, (12, 96, 96), (1.25, 0.7, 0.7), kernel, 1.25)
    assert noise.std() == pytest.approx(1.0, rel=0.05)
    assert abs(noise.mean()) < 0.02
    again = physics.shaped_noise(1, (12, 96, 96), (1.25, 0.7, 0.7), kernel, 1.25)
    assert np.array_equal(noise, again)


def test_overlapping_slices_share_noise() -> None:
    def lag(thickness_mm: float) -> float:
        noise = physics.shaped_noise(1, (24, 64, 64), (1.25, 0.7, 0.7), "standard", thickness_mm)
        return float(np.corrcoef(noise[1:].ravel(), noise[:-1].ravel())[0, 1])

    assert lag(2.5) > lag(1.25) + 0.05 > 0.2


def test_sharp_kernel_overshoots_at_an_edge_and_soft_does_not() -> None:
    edge = np.full((1, 48, 64), -860.0, np.float32)
    edge[..., 32:] = 40.0
    soft, sharp = (physics.blur(edge, (0.7, 0.7), kernel)[0, 24] for kernel in ("soft", "sharp"))
    assert sharp.max() > 80 and soft.max() < 60
    assert np.ptp(np.diff(sharp)) > np.ptp(np.diff(soft))


def test_texture_is_a_function_of_place_alone() -> None:
    z, y, x = np.arange(4) * 1.25, np.arange(40) * 0.7 - 9, np.arange(50) * 0.7 + 3
    whole = texture(5, 2.3, (z, y, x))
    part = texture(5, 2.3, (z[1:3], y[10:30], x[5:20]))
    assert np.allclose(whole[1:3, 10:30, 5:20], part, atol=1e-5)
    large = texture(5, 1.0, (np.arange(40.0), np.arange(60) * 0.7, np.arange(60) * 0.7))
    assert large.std() == pytest.approx(1.0, rel=0.1)
