"""The forging chain: replay, locality, gradients, and agreement with a plain NumPy/SciPy evaluation."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import ndimage

from ctguard.core.errors import GeometryError, RecipeError
from ctguard.core.geometry import Geometry
from ctguard.core.records import Mode, Task
from ctguard.tamper.controls import CopyMove, Identity
from ctguard.tamper.cube import core_mask, exact_cube, zoomed_cube
from ctguard.tamper.pipeline import Generator, Plan, forge, initial_noise, make_plan
from ctguard.tamper.pix2pix import Pix2Pix
from ctguard.tamper.touchup import AIR_HU, MERGE_HU, MERGE_WIDTH_HU, RADII_MM, RELEASED_WEIGHTS

MODES: tuple[Mode, ...] = ("clean", "m3dsynth", "ctgan")
TASKS: tuple[Task, ...] = ("inject", "remove")
GEOMETRY = Geometry((48, 96, 96), (1.25, 0.7, 0.7))
SITE = (24.0, 47.5, 46.0)


def lung(seed: int = 0, geometry: Geometry = GEOMETRY) -> torch.Tensor:
    """Correlated noise around -850 HU with a few bright tubes."""
    rng = np.random.default_rng(seed)
    hu = -850 + 60 * ndimage.gaussian_filter(rng.normal(size=geometry.shape_zyx), 0.8)
    tubes = ndimage.gaussian_filter(rng.normal(size=geometry.shape_zyx), 2.5)
    return torch.from_numpy(np.where(tubes > 0.06, 0, np.rint(hu)).astype(np.float32))


def generator(seed: int = 0) -> Pix2Pix:
    torch.manual_seed(seed)
    module = Pix2Pix(width=4, noise_sd=0.1)
    module.equaliser.fit(np.random.default_rng(0).normal(-800, 200, 20000).astype(np.float32))
    return module.eval()


def plan(mode: Mode, task: Task = "inject", **changes: object) -> Plan:
    made = make_plan(task, "pix2pix", SITE, mode=mode, core_mm=None, seed=5)
    return replace(made, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("mode", MODES)
def test_a_plan_replays_exactly_also_through_json(mode: Mode, task: Task) -> None:
    first = plan(mode, task)
    again = Plan.from_json(json.loads(json.dumps(first.to_json())))
    assert again == first
    a, b = (forge(lung(), GEOMETRY, p, generator()) for p in (first, again))
    assert torch.equal(a, b)
    other = forge(lung(), GEOMETRY, replace(first, seed=6), generator())
    assert not torch.equal(a, other)


@pytest.mark.parametrize("mode", ["clean", "m3dsynth"])
def test_edits_stay_inside_the_cube_and_the_rest_is_bit_identical(mode: Mode) -> None:
    hu = lung()
    made = forge(hu, GEOMETRY, plan(mode), generator())
    changed = np.argwhere((made != hu).numpy())
    offset = np.abs((changed - SITE) * GEOMETRY.spacing_zyx_mm)
    assert len(changed) > 1000
    assert offset.max() <= 16.0


def test_ctgan_mode_leaks_beyond_the_cube_as_the_release_does() -> None:
    hu = lung()
    changed = np.argwhere((forge(hu, GEOMETRY, plan("ctgan", "remove"), generator()) != hu).numpy())
    assert np.abs((changed[:, 0] - SITE[0]) * GEOMETRY.spacing_zyx_mm[0]).max() > 20.0


def test_an_injection_can_only_brighten_in_ctgan_mode_but_not_in_clean_mode() -> None:
    hu = lung()
    ctgan = forge(hu, GEOMETRY, plan("ctgan"), generator()) - hu
    clean = forge(hu, GEOMETRY, plan("clean"), generator()) - hu
    assert ctgan.min() >= 0
    assert clean.min() < 0


@pytest.mark.parametrize("mode", MODES)
def test_gradients_reach_the_input(mode: Mode) -> None:
    hu = lung().requires_grad_()
    module = generator()
    out = forge(hu, GEOMETRY, plan(mode, "remove"), module)
    weights = torch.zeros_like(out)
    weights[24, 48, 46] = 1.0  # one voxel in the core
    (gradient,) = torch.autograd.grad((out * weights).sum(), hu)
    shell = gradient[24, 48, 46 + 19 : 46 + 22].abs().sum()
    assert torch.isfinite(gradient).all()
    assert shell > 0  # through the generator's view of the shell


@pytest.mark.parametrize("mode", ["clean", "m3dsynth"])
def test_what_lies_under_the_mask_does_not_reach_the_generator(mode: Mode) -> None:
    hu, bright = lung(), lung()
    bright[21:28, 44:51, 43:50] += 500  # well inside the core, clear of the spline's reach
    a, b = (forge(x, GEOMETRY, plan(mode), Probe()) for x in (hu, bright))
    assert torch.allclose(a[24, 47, 46], b[24, 47, 46], atol=20)


class Probe(Identity):
    """Fills the core with soft tissue whatever was there."""

    def forward(self, cube_norm: torch.Tensor, mask: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        tissue = self.equaliser(torch.tensor([40.0]))[0]
        return cube_norm * (1 - mask) + tissue * mask


def test_identity_changes_little_and_copy_move_brings_the_donor() -> None:
    hu = lung()
    same = forge(hu, GEOMETRY, plan("clean"), Identity())
    assert (same - hu).abs().mean() < 5
    donor = exact_cube(GEOMETRY, (24.0, 30.0, 30.0), 16).cut(hu)
    moved = forge(hu, GEOMETRY, plan("m3dsynth", "remove"), CopyMove(donor))
    assert float((moved[24, 47, 46] - hu[24, 30, 30]).abs()) < 120


def test_clean_mode_keeps_the_noise_level_where_a_smooth_generator_painted() -> None:
    rng = np.random.default_rng(1)
    noise = ndimage.gaussian_filter(rng.normal(size=GEOMETRY.shape_zyx), (0.3, 0.7, 0.7))
    hu = torch.from_numpy((-850 + 40 * noise / noise.std()).astype(np.float32))
    made = forge(hu, GEOMETRY, plan("clean"), Flat()).numpy()
    core = made[20:29, 40:56, 38:54]
    away = made[20:29, 5:21, 5:21]
    assert abs(core.mean() - -850) < 15
    assert core.std() / away.std() == pytest.approx(1.0, abs=0.2)


class Flat(Identity):
    """A generator without any texture."""

    def forward(self, cube_norm: torch.Tensor, mask: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        return torch.full_like(cube_norm, float(self.equaliser(torch.tensor([-850.0]))[0]))


def test_sites_that_do_not_fit_are_refused_with_the_distance() -> None:
    with pytest.raises(GeometryError, match="from the border"):
        exact_cube(GEOMETRY, (2.0, 48.0, 48.0), 16)
    with pytest.raises(GeometryError, match="outside"):
        zoomed_cube(GEOMETRY, (200.0, 48.0, 48.0))
    with pytest.raises(RecipeError, match="16 to 20"):
        make_plan("inject", "pix2pix", SITE, mode="clean", core_mm=24.0, seed=0)


def test_masked_cores_are_those_of_the_papers() -> None:
    assert core_mask(16)[16, 16].sum() == 16
    indices = core_mask(20)[16, 16].nonzero().ravel()
    assert (int(indices[0]), int(indices[-1])) == (6, 25)  # CT-GAN's released config


@pytest.mark.parametrize("task", TASKS)
def test_ctgan_mode_agrees_with_numpy_and_scipy_within_1_hu(task: Task) -> None:
    hu, module, made = lung(3), generator(3), plan("ctgan", task)
    ours = forge(hu, GEOMETRY, made, module).detach().numpy()
    assert np.abs(ours - ctgan_by_scipy(hu.numpy(), module, made)).max() < 1.0


def ctgan_by_scipy(hu: NDArray[np.float32], module: Pix2Pix, made: Plan) -> NDArray[np.float64]:
    """CT-GAN's steps with scipy.ndimage, written from facts.md 2.3-2.4 without the torch chain."""
    spacing = np.array(GEOMETRY.spacing_zyx_mm)
    shape = np.round(32 / spacing).astype(int)
    start = np.round(SITE).astype(int) - shape // 2
    window = tuple(slice(a, a + n) for a, n in zip(start, shape, strict=True))
    cube = ndimage.zoom(hu[window].astype(float), 32 / shape, order=3)
    x, y = module.equaliser.hu_knots.numpy(), module.equaliser.norm_knots.numpy()
    norm = np.interp(cube, x, y)
    tensor = torch.from_numpy(norm).float()[None, None]
    with torch.no_grad():
        made_norm = module(tensor, core_mask(20)[None, None], initial_noise(made.seed))[0, 0].numpy()
    made_hu = np.interp(made_norm, y, x)
    made_hu = np.maximum(made_hu, -1000)
    native = ndimage.zoom(made_hu, shape / 32, order=3)
    pasted = hu.astype(float).copy()
    pasted[window] = native
    side = int(np.ceil(1.3 * shape.max()))
    low = np.maximum(np.round(SITE).astype(int) - side // 2, 0)
    high = np.minimum(np.round(SITE).astype(int) - side // 2 + side, hu.shape)
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    place = [hu.shape[0] // 2, int(hu.shape[1] * 0.43), int(hu.shape[2] * 0.27)]
    extent = high - low
    first = [min(max(c - n // 2, 0), t - n) for c, n, t in zip(place, extent, hu.shape, strict=True)]
    copied = hu[tuple(slice(a, a + n) for a, n in zip(first, extent, strict=True))].astype(float)
    copied = np.where(copied > AIR_HU, copied[copied < AIR_HU].mean(), copied)
    noise = copied - copied.mean()
    rows = (np.arange(low[1], high[1]) - round(SITE[1])) * spacing[1]
    columns = (np.arange(low[2], high[2]) - round(SITE[2])) * spacing[2]
    radius2 = rows[:, None] ** 2 + columns[None] ** 2
    known, logs = np.square(RADII_MM), np.log(RELEASED_WEIGHTS[made.task])
    beyond = logs[-1] + (logs[-1] - logs[-2]) / (known[-1] - known[-2]) * (radius2 - known[-1])
    kernel = np.exp(np.where(radius2 <= known[-1], np.interp(radius2, known, logs), beyond))[None]
    old, new = hu[box].astype(float), pasted[box] + noise
    if made.task == "inject":
        weight = kernel / (1 + np.exp(-(new - MERGE_HU) / MERGE_WIDTH_HU))
        merged = np.maximum(weight * new + (1 - weight) * old, old)
    else:
        merged = kernel * new + (1 - kernel) * old
    result = hu.astype(float).copy()
    result[box] = merged
    return result


def test_every_generator_of_these_tests_is_one() -> None:
    chosen: list[Generator] = [generator(), Identity(), Flat(), Probe()]
    assert all(hasattr(module, "equaliser") for module in chosen)
