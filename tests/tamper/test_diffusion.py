"""The diffusion generator: schedule and steps against closed forms and MONAI, replay, known voxels, gradients."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.networks.schedulers.ddim import DDIMScheduler
from torch import Tensor

from ctguard.core.errors import RecipeError
from ctguard.tamper.cube import core_mask
from ctguard.tamper.diffusion import SCALE, Diffusion, fold, timesteps, unfold
from ctguard.tamper.pipeline import Plan, Sampler, generate_cube, initial_noise, make_plan
from ctguard.tamper.pix2pix import Pix2Pix
from ctguard.train.recipe import Size, read_recipe

RECIPES = Path(__file__).parents[2] / "recipes"
TINY: Mapping[str, Any] = {"channels": (4, 8), "attention": (False, False), "patch": 4, "steps": 12}
MASK = core_mask(16)[None, None]
NOISE = initial_noise(3)
DDIM, DDPM = Sampler("ddim", 4), Sampler("ddpm", 12)


def tiny(sampler: Sampler = DDIM, **changes: Any) -> Diffusion:
    """An untrained model whose last layer is not zero, as MONAI leaves it."""
    torch.manual_seed(0)
    module = Diffusion(**{**TINY, **changes})
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.2) if not parameter.any() else None
    return module.eval().with_sampler(sampler)


def a_cube(seed: int = 0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.rand((1, 1, 32, 32, 32), generator=rng) - 0.5


def a_plan(sampler: Sampler | None, seed: int = 5) -> Plan:
    site = (16.0, 16.0, 16.0)
    return make_plan("inject", "diffusion", site, mode="clean", core_mm=None, seed=seed, sampler=sampler)


@pytest.mark.parametrize("sampler", [DDIM, DDPM, replace(DDIM, reimpose=True), replace(DDPM, reimpose=True)])
def test_a_plan_decides_the_sample(sampler: Sampler) -> None:
    module, hu = tiny(), 400 * a_cube()[0, 0] - 700
    plan = a_plan(sampler)
    again = Plan.from_json(json.loads(json.dumps(plan.to_json())))
    assert again == plan
    with torch.no_grad():
        first, second = generate_cube(hu, plan, module), generate_cube(hu, again, tiny())
        other = generate_cube(hu, replace(plan, seed=6), module)
    assert torch.equal(first, second)
    core = MASK[0, 0] > 0
    assert (first - other).abs()[core].mean() > 1


def test_each_sampler_gives_its_own_result_and_leaves_the_model_as_it_was() -> None:
    module, hu = tiny(), 400 * a_cube()[0, 0] - 700
    choices = [None, DDPM, Sampler("ddim", 5), replace(DDIM, reimpose=True)]
    with torch.no_grad():
        made = [generate_cube(hu, a_plan(choice), module) for choice in choices]
        assert torch.equal(made[0], generate_cube(hu, a_plan(None), module))
        assert torch.equal(made[0], generate_cube(hu, a_plan(DDIM), module))
    assert all(not torch.equal(a, b) for i, a in enumerate(made) for b in made[:i])


@pytest.mark.parametrize("sampler", [DDIM, DDPM])
def test_temperature_scales_all_noise_of_sampling(sampler: Sampler) -> None:
    """With none left, every seed draws the same cube; with some, the seeds differ less than with all."""

    def spread(temperature: float) -> float:
        module = tiny(sampler, temperature=temperature)
        with torch.no_grad():
            cubes = [module(a_cube(), MASK, initial_noise(seed)) for seed in (1, 2, 3)]
        return float(torch.stack(cubes).std(dim=0).mean())

    assert spread(0.0) == 0.0 and 0 < spread(0.3) < spread(1.0)


def test_plans_written_before_there_were_samplers_still_load() -> None:
    plan = a_plan(None)
    old = plan.to_json()
    del old["sampler"]
    assert Plan.from_json(old) == plan


def test_wrong_samplers_are_refused() -> None:
    with pytest.raises(RecipeError, match="ddim or ddpm"):
        Sampler("euler")  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match="float32 or bfloat16"):
        Sampler(precision="half")  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match="at least one"):
        Sampler("ddim", 0)
    with pytest.raises(RecipeError, match="but the model was trained on 12"):
        tiny().with_sampler(Sampler("ddim", 13))
    with pytest.raises(RecipeError, match="pix2pix is no diffusion model"):
        generate_cube(a_cube()[0, 0], replace(a_plan(DDIM), generator="pix2pix"), Pix2Pix(width=1))


def test_the_sample_does_not_depend_on_its_neighbours_in_a_batch() -> None:
    cubes = torch.cat([a_cube(1), a_cube(2)])
    noises = torch.cat([initial_noise(1), initial_noise(2)])
    for sampler in (DDIM, DDPM):
        module = tiny(sampler)
        with torch.no_grad():
            both = module(cubes, MASK, noises)
            second = module(cubes[1:], MASK, noises[1:])
        assert torch.allclose(both[1:], second, atol=1e-4)


def test_the_sampler_alone_decides_the_precision_whatever_surrounds_the_call() -> None:
    cube = a_cube()
    with torch.no_grad():
        single, half = tiny()(cube, MASK, NOISE), tiny(replace(DDIM, precision="bfloat16"))(cube, MASK, NOISE)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(tiny()(cube, MASK, NOISE), single)
    assert half.dtype == torch.float32
    assert 0 < (half - single).abs().mean() < 0.02


def test_noise_ends_where_the_chain_of_1000_steps_of_ho_ends() -> None:
    """And step by step: products of sqrt(1 - beta) and sums of beta are the closed form that training uses."""
    schedule = Diffusion(**{**TINY, "steps": 2000}).schedule
    ho = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    assert float(schedule.alphas_cumprod[-1]) == pytest.approx(float(ho[-1]), rel=0.05)
    assert float(schedule.alphas_cumprod[999]) == pytest.approx(float(ho[499]), rel=0.02)
    mean, variance = 1.0, 0.0
    for beta in schedule.betas.double()[:800]:
        mean, variance = mean * float(1 - beta) ** 0.5, variance * float(1 - beta) + float(beta)
    noised = [
        schedule.add_noise(torch.tensor([[x]]), torch.tensor([[n]]), torch.tensor([799]))
        for x, n in ((1.0, 0.0), (0.0, 1.0))
    ]
    assert float(noised[0]) == pytest.approx(mean, rel=1e-4)
    assert float(noised[1]) == pytest.approx(variance**0.5, rel=1e-4)


class Blank(torch.nn.Module):
    """A denoiser whose output is always the same."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = output

    def forward(self, x: Tensor, step: Tensor) -> Tensor:
        return self.output.expand(len(x), -1, -1, -1, -1)


def constant(steps: int) -> Diffusion:
    module = Diffusion(**{**TINY, "steps": steps})
    module.denoiser = Blank(fold(0.3 * initial_noise(8), 4))
    return module


def test_all_steps_with_fresh_noise_are_ancestral_sampling_as_monai_does_it() -> None:
    module, now = constant(2000), 700
    module.schedule.clip_sample_values = [-SCALE / 2, SCALE / 2]
    x, fresh = 0.6 * NOISE, torch.randn(NOISE.shape, generator=torch.Generator().manual_seed(4))
    ours = module._step(x, x, MASK, NOISE, fresh, now, now - 1)
    noise = module._noise(x, x, MASK, torch.tensor([now]))
    theirs, _ = module.schedule.step(noise, now, x, generator=torch.Generator().manual_seed(4))
    assert torch.allclose(ours, theirs, atol=1e-4)


def test_ddim_steps_are_those_of_monai_where_nothing_is_clipped() -> None:
    module, now = constant(2000), 799
    monai = DDIMScheduler(2000, clip_sample=False, beta_start=5e-5, beta_end=0.01)
    monai.set_timesteps(50)
    x = 0.2 * NOISE
    noise = module._noise(x, x, MASK, torch.tensor([now]))
    assert torch.allclose(module._step(x, x, MASK, NOISE, None, now, now - 40), monai.step(noise, now, x)[0], atol=1e-4)


def test_true_noise_is_taken_off_exactly_whatever_the_number_of_steps() -> None:
    """DDIM along the true noise is a straight path, so one step or all end in the clean cube."""
    clean = SCALE * a_cube()
    for count in (1, 5, 12):
        module = Diffusion(**TINY).with_sampler(Sampler("ddim", count))
        x = module.schedule.add_noise(clean, NOISE, torch.tensor([11]))
        for now, then in pairwise([*timesteps(12, count), -1]):
            a = module._alpha_bar(now)
            velocity = (a**0.5) * NOISE - ((1 - a) ** 0.5) * clean
            module.denoiser = Blank(fold(velocity, 4))
            x = module._step(x, clean, MASK, NOISE, None, now, then)
        assert torch.allclose(x, clean, atol=1e-3)


def test_steps_fall_ever_more_finely_from_the_noisiest_to_the_last() -> None:
    assert timesteps(12, 12) == list(range(11, -1, -1))
    assert timesteps(2000, 2000) == list(range(1999, -1, -1))
    assert timesteps(2000, 1) == [1999]
    for count in (2, 10, 50, 999):
        chosen = timesteps(2000, count)
        gaps = [a - b for a, b in pairwise(chosen)]
        assert len(set(chosen)) == count and chosen[0] == 1999 and min(gaps) > 0
        assert all(a >= b - 1 for a, b in pairwise(gaps))
    assert timesteps(2000, 50)[-3:] == [6, 2, 0]


class Texture(torch.nn.Module):
    """The best denoiser of white Gaussian texture, in a closed form."""

    def __init__(self, module: Diffusion, sd: float) -> None:
        super().__init__()
        self.module, self.sd = [module], sd

    def forward(self, x: Tensor, step: Tensor) -> Tensor:
        a = self.module[0]._alpha_bar(int(step[0]))
        noise_share = (1 - a) ** 0.5 / (a * self.sd**2 + 1 - a)
        return (noise_share - (1 - a) ** 0.5) / a**0.5 * x[:, :64]


@pytest.mark.parametrize(
    ("sampler", "sd", "least"),
    [
        (Sampler(), 0.05, 0.91),
        (Sampler(), 0.1, 0.93),
        (Sampler(), 0.3, 0.95),
        (Sampler("ddpm", 500), 0.1, 0.96),
    ],
)
def test_texture_keeps_its_level(sampler: Sampler, sd: float, least: float) -> None:
    module = Diffusion(**{**TINY, "steps": 2000}).with_sampler(sampler)
    module.denoiser = Texture(module, sd)
    made = SCALE * module(a_cube(), MASK, NOISE)
    assert least < float(made.std()) / sd < 1.01


@pytest.mark.parametrize("sampler", [DDIM, DDPM])
def test_reimposed_shells_are_the_input_bit_for_bit(sampler: Sampler) -> None:
    cube, shell = a_cube(), MASK == 0
    with torch.no_grad():
        plain = tiny(sampler)(cube, MASK, NOISE)
        kept = tiny(replace(sampler, reimpose=True))(cube, MASK, NOISE)
    assert torch.equal(kept[shell], cube[shell])
    assert not torch.equal(plain[shell], cube[shell])
    assert not torch.equal(plain[~shell], kept[~shell])
    assert kept.abs().max() <= 0.5 + 1e-6


@pytest.mark.parametrize("reimpose", [False, True])
def test_gradients_reach_the_shell_and_not_what_was_in_the_core(reimpose: bool) -> None:
    module = tiny(replace(DDIM, reimpose=reimpose))
    cube = a_cube().requires_grad_()
    made = module(cube, MASK, NOISE)
    (gradient,) = torch.autograd.grad(made[MASK > 0].square().sum(), cube)
    assert torch.isfinite(gradient).all()
    assert gradient[MASK > 0].abs().max() == 0
    assert gradient[MASK == 0].abs().max() > 0
    other = torch.where(MASK > 0, a_cube(9), cube.detach())
    with torch.no_grad():
        assert torch.equal(module(other, MASK, NOISE), made)


def test_gradients_are_those_of_finite_differences() -> None:
    module = tiny().double()
    module.denoiser.double()
    cube, mask, noise = a_cube().double().requires_grad_(), MASK.double(), NOISE.double()
    direction = torch.randn(cube.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * (1 - mask)

    def loss(x: Tensor) -> Tensor:
        return module(x, mask, noise)[mask > 0].square().sum()

    (gradient,) = torch.autograd.grad(loss(cube), cube)
    with torch.no_grad():
        slope = (loss(cube + 1e-4 * direction) - loss(cube - 1e-4 * direction)) / 2e-4
    assert float((gradient * direction).sum()) == pytest.approx(float(slope), rel=0.02)


def test_folding_keeps_neighbours_together_and_unfolds() -> None:
    x = torch.arange(2 * 3 * 4 * 6 * 8.0).reshape(2, 3, 4, 6, 8)
    folded = fold(x, 2)
    assert folded.shape == (2, 24, 2, 3, 4)
    assert torch.equal(folded[1, 8:16, 1, 2, 3], x[1, 1, 2:4, 4:6, 6:8].ravel())
    assert torch.equal(unfold(folded, 2), x)


@pytest.mark.parametrize("weighting", ["simple", "velocity"])
def test_training_learns_to_tell_noise_from_a_repeated_cube(weighting: str) -> None:
    module = tiny(weighting=weighting, steps=2000).train()
    optimiser = module.optimizers({"lr": 1e-2})["denoiser"]
    assert set(module.optimizers({})) == set(module.turns)
    hu = module.equaliser.inverse(torch.full((4, 1, 32, 32, 32), 0.3))
    errors = []
    for step in range(15):
        rng = torch.Generator().manual_seed(step)
        batch = {"hu": hu, "mask": MASK.expand(4, -1, -1, -1, -1), "noise": torch.randn(hu.shape, generator=rng)}
        losses = module.step(batch, "denoiser")
        optimiser.zero_grad()
        losses["loss"].backward()
        optimiser.step()
        errors.append(float(losses["core"]))
    assert sum(errors[-3:]) < 0.5 * sum(errors[:3])


def test_an_unknown_weighting_is_refused() -> None:
    with pytest.raises(RecipeError, match="simple or velocity"):
        tiny(weighting="snr")


@pytest.mark.parametrize("task", ["inject", "remove"])
@pytest.mark.parametrize("size", ["cpu", "full"])
def test_recipes_build_and_cpu_width_fits_in_5_mb_at_half_precision(task: str, size: Size) -> None:
    recipe = read_recipe(RECIPES / f"diffusion_{task}.toml", size)
    with torch.device("meta"):
        parameters = sum(p.numel() for p in Diffusion(**recipe.model_settings).denoiser.parameters())
    assert (parameters * 2 < 4.95e6) == (size == "cpu")
