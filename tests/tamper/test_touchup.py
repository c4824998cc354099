"""Blending: levels, weights and ranges."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from ctguard.core.geometry import Geometry
from ctguard.tamper.cube import core_mask, exact_cube
from ctguard.tamper.touchup import (
    RELEASED_WEIGHTS,
    blend_clean,
    fade_weight,
    limit_range,
    match_level,
    merge,
    released_weight,
    remove_specks,
)

GEOMETRY = Geometry((64, 96, 96), (1.0, 0.8, 0.8))
CUBE = exact_cube(GEOMETRY, (32.0, 48.0, 48.0), 16.0)


def test_a_generator_that_is_too_bright_is_brought_to_the_level_of_the_lung_around_it() -> None:
    cube = torch.full((32, 32, 32), -860.0)
    core = core_mask(16)
    made = torch.where(core > 0, -800.0, -850.0)
    made[14:18, 14:18, 14:18] = 30.0  # a nodule keeps its density
    level = match_level(made, cube, core)
    lung = (core > 0) & (made < -700)
    assert level[lung].mean() == pytest.approx(-860, abs=1)
    assert level[core == 0].mean() == pytest.approx(-860, abs=1)
    assert (level[14:18, 14:18, 14:18] == 30).all()


def test_without_lung_around_it_nothing_is_shifted() -> None:
    cube, made = torch.full((32, 32, 32), 40.0), torch.full((32, 32, 32), -800.0)
    assert torch.equal(match_level(made, cube, core_mask(16)), made)


def test_the_fade_is_1_in_the_core_and_0_on_the_rim() -> None:
    weight = fade_weight(CUBE, 16.0)
    z, y, x = (np.abs(offset) for offset in CUBE.offsets_mm())
    core = np.ix_(z <= 8, y <= 8, x <= 8)
    assert (weight[core] == 1).all()
    assert weight[0].max() == weight[:, 0].max() == weight[:, :, -1].max() == 0
    assert ((weight >= 0) & (weight <= 1)).all()


@pytest.mark.parametrize("task", ["inject", "remove"])
def test_released_kernels_have_the_values_of_the_release(task: str) -> None:
    kernel = released_weight(CUBE.support, CUBE, task)[0]  # type: ignore[arg-type]
    center = [round(c) - s for c, s in zip(CUBE.center_zyx[1:], CUBE.support.start_zyx[1:], strict=True)]
    at = {radius: float(kernel[center[0], center[1] + round(radius / 0.8)]) for radius in (0, 8, 16)}
    wanted = RELEASED_WEIGHTS[task]  # type: ignore[index]
    assert at[0] == pytest.approx(wanted[0])
    assert at[8] == pytest.approx(wanted[2], abs=0.005)
    assert at[16] == pytest.approx(wanted[4], abs=0.005)


def test_the_merge_of_an_injection_only_brightens_and_a_removal_mixes() -> None:
    original, made = torch.tensor([-850.0, 40.0]), torch.tensor([100.0, -850.0])
    kernel = torch.tensor([1.0, 0.5])
    assert (merge(original, made, kernel, "inject") >= original).all()
    assert merge(original, made, kernel, "remove").tolist() == [100.0, -405.0]


def test_impossible_values_of_a_generator_are_limited() -> None:
    cube = torch.full((32, 32, 32), -1500.0)
    cube[16, 16, 16] = 9000.0
    limited = limit_range(cube)
    assert limited.min() == -1000.0 and limited.max() < 2000.0


def test_specks_go_and_a_nodule_and_the_noise_of_lung_stay() -> None:
    lung = -850 + 40 * torch.randn((32, 32, 32), generator=torch.Generator().manual_seed(0))
    lung[4:28, 4:28, 28:] = 40.0
    ball = (torch.stack(torch.meshgrid(*[torch.arange(32.0)] * 3, indexing="ij")) - 14).square().sum(0) <= 25
    made = torch.where(ball, 30.0, lung)
    specked = made.clone()
    specked[24, 5, 5], specked[5, 24, 8] = 300.0, -1000.0 + 400.0
    clean = remove_specks(specked)
    assert clean[24, 5, 5] < -700 and clean[5, 24, 8] < -700
    core = (torch.stack(torch.meshgrid(*[torch.arange(32.0)] * 3, indexing="ij")) - 14).square().sum(0) <= 16
    assert torch.equal(clean[core], made[core])
    plain = (slice(None, 3),) * 3
    assert torch.equal(clean[plain], made[plain])


@pytest.mark.parametrize("own", [True, False], ids=["the scan's own content", "other content"])
def test_noise_keeps_its_level_where_the_paste_fades(own: bool) -> None:
    rng = np.random.default_rng(3)
    scan, other = (
        ndimage.gaussian_filter(rng.normal(0, 1, GEOMETRY.shape_zyx), (0.3, 0.8, 0.8)).astype(np.float32)
        for _ in range(2)
    )
    hu = torch.from_numpy(-860 + 30 * scan / scan.std())
    native = CUBE.paste.slices()
    made = hu[native] if own else torch.from_numpy(-860 + 30 * other / other.std())[native]
    result = blend_clean(hu, CUBE, made, 16.0, seed=1)
    weight = fade_weight(CUBE, 16.0)
    fading = torch.from_numpy((weight > 0.3) & (weight < 0.7))
    assert result[native][fading].std() == pytest.approx(float(hu[native][fading].std()), rel=0.08)
