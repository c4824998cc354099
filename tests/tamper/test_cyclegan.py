"""CycleGAN: what its generator may see, what each turn changes, what is kept, shipped and resumed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ctguard.cohort.patches import CubeBatches
from ctguard.core.errors import DataError, RecipeError
from ctguard.tamper.cube import core_mask
from ctguard.tamper.cyclegan import CycleGAN, ImagePool
from ctguard.tamper.touchup import FADE_MM
from ctguard.train.checkpoint import Card, load_weights, rounded_to_half, save_checkpoint
from ctguard.train.fit import fit
from ctguard.train.recipe import Recipe, read_recipe
from ctguard.training.cubes import cube_material
from tests import test_training

index = test_training.index
RECIPES = Path(__file__).parents[2] / "recipes"
RECIPE = Recipe(name="tiny", model="cyclegan", size="cpu", task="inject", steps=5, batch=2, ema=0.5)


def tiny(seed: int = 0, **settings: float) -> CycleGAN:
    torch.manual_seed(seed)
    chosen = {"width": 2, "blocks": 1, "discriminator_width": 4, **settings}
    module = CycleGAN(**chosen)  # type: ignore[arg-type]
    module.pool = nn.ModuleDict({side: ImagePool(4, number) for number, side in enumerate(module.pool)})
    return module


def cubes(seed: int = 1, core_mm: float = 16) -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    cube = 0.3 * torch.rand((2, 1, 32, 32, 32), generator=rng) - 0.3
    return cube, core_mask(core_mm).expand_as(cube), torch.randn(cube.shape, generator=rng)


def batches(step: int) -> dict[str, Tensor]:
    """Unpaired lung, and lung with a ball of soft tissue."""
    rng = np.random.default_rng(step)
    lung = rng.normal(-850, 40, (2, 2, 1, 32, 32, 32)).astype(np.float32)
    grid = np.indices((32, 32, 32)) - 15.5
    lung[0] += 850 * (np.sqrt((grid**2).sum(axis=0)) < 6)
    _, mask, noise = cubes(step, core_mm=16 + 2 * (step % 3))
    return {"hu": torch.from_numpy(lung[0]), "masked_hu": torch.from_numpy(lung[1]), "mask": mask, "noise": noise}


def train_step(module: CycleGAN, optimizers: dict[str, torch.optim.Optimizer], step: int) -> None:
    for turn in module.turns:
        optimizers[turn].zero_grad()
        module.step(batches(step), turn)["loss"].backward()  # type: ignore[no-untyped-call]
        optimizers[turn].step()


@pytest.mark.parametrize("core_mm", [16, 18, 20])
def test_only_the_shell_is_seen_and_gradients_reach_it_alone(core_mm: float) -> None:
    module = tiny()
    cube, mask, noise = cubes(core_mm=core_mm)
    cube.requires_grad_()
    made = module(cube, mask, noise)
    (gradient,) = torch.autograd.grad((made * mask).sum(), cube)
    assert (gradient * mask).abs().sum() == 0
    assert (gradient * (1 - mask)).abs().sum() > 0
    assert torch.equal(made, module(torch.where(mask > 0, cube + 0.4, cube), mask, noise))
    assert not torch.allclose(made, module(torch.where(mask > 0, cube, cube + 0.1), mask, noise))


@pytest.mark.parametrize("level", [-0.4, -0.1, 0.3])
@pytest.mark.parametrize("core_mm", [16, 20])
def test_untrained_the_core_has_the_level_around_it_and_the_shell_beyond_the_fade_is_kept(
    level: float, core_mm: float
) -> None:
    module = CycleGAN(width=4, blocks=2, discriminator_width=4)
    _, mask, noise = cubes(core_mm=core_mm)
    cube = torch.full_like(mask, level) + 0.05 * noise
    with torch.no_grad():
        made = module(cube, mask, torch.zeros_like(noise))
    assert float(made[mask > 0].mean()) == pytest.approx(level, abs=0.05)
    beyond = core_mask(core_mm + 2 * FADE_MM) == 0
    assert (made - cube)[:, 0, beyond].abs().max() < 1e-5
    ring = (core_mask(core_mm + 2) - core_mask(core_mm)) > 0
    assert (made - cube)[:, 0, ring].abs().max() > 1e-5


def test_noise_varies_the_core_unless_it_is_switched_off() -> None:
    cube, mask, noise = cubes()
    for noise_sd, same in ((0.25, False), (0.0, True)):
        module = tiny(noise_sd=noise_sd)
        assert torch.equal(module(cube, mask, noise), module(cube, mask, -noise)) == same


def test_smooth_noise_is_smoother_than_white() -> None:
    cube, mask, noise = cubes()
    steps = [
        float(module._masked(cube, mask, noise)[:, :, 8:24, 8:24, 8:24].diff(dim=-1).std())
        for module in (tiny(noise_sd=0.2, smooth=smooth) for smooth in (True, False))
    ]
    assert steps[0] < steps[1] / 2 and steps[1] == pytest.approx(0.2 * 2**0.5, rel=0.05)


def numbered(first: int, count: int) -> Tensor:
    return torch.arange(first, first + count, dtype=torch.float32).reshape(-1, 1, 1, 1, 1).expand(-1, 1, 32, 32, 32)


def test_the_first_50_cubes_pass_through_the_pool_and_then_half_are_older_ones() -> None:
    pool = ImagePool()
    assert torch.equal(pool.exchange(numbered(0, 50)), numbered(0, 50))
    shown = pool.exchange(numbered(50, 400))[:, 0, 0, 0, 0]
    new = torch.arange(50.0, 450.0)
    assert (shown == new).float().mean() == pytest.approx(0.5, abs=0.08)
    assert (shown <= new).all()
    given_out = shown[shown != new]
    assert len(set(given_out.tolist())) == len(given_out)  # each kept cube leaves the pool when it is shown


def test_the_pool_chooses_alike_for_a_seed_also_after_it_was_stored() -> None:
    whole, other, stored = ImagePool(8, seed=3), ImagePool(8, seed=4), ImagePool(8, seed=3)
    history = [whole.exchange(numbered(10 * i, 10)) for i in range(6)]
    assert any(not torch.equal(other.exchange(numbered(10 * i, 10)), shown) for i, shown in enumerate(history))
    for i in range(3):
        stored.exchange(numbered(10 * i, 10))
    resumed = ImagePool(8, seed=3)
    resumed.load_state_dict(stored.state_dict())
    for i in range(3, 6):
        assert torch.equal(resumed.exchange(numbered(10 * i, 10)), history[i])


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.named_parameters()}


@pytest.mark.parametrize(
    ("turn", "own"), [("generators", ("generator.", "reverse.")), ("discriminators", ("discriminator.",))]
)
def test_each_turn_changes_its_own_networks_and_no_other(turn: str, own: tuple[str, ...]) -> None:
    module = tiny()
    optimizers = module.optimizers({})
    train_step(module, optimizers, 0)
    before = snapshot(module)
    optimizers[turn].zero_grad()
    module.step(batches(1), turn)["loss"].backward()  # type: ignore[no-untyped-call]
    optimizers[turn].step()
    changed = {name for name, value in module.named_parameters() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if name.startswith(own)}


def test_discriminators_cannot_begin() -> None:
    with pytest.raises(RecipeError, match="let the generators begin"):
        tiny().step(batches(0), "discriminators")


def test_it_learns_to_put_a_nodule_into_lung_without_pairs() -> None:
    module = tiny(width=4, discriminator_width=8)
    module.equaliser.fit(np.concatenate([v.numpy().ravel() for k, v in batches(0).items() if k.endswith("hu")]))
    optimizers = module.optimizers({"lr_generator": 5e-4, "lr_discriminator": 2e-4})
    levels = [level_in_the_middle(module, 1000)]
    for step in range(24):
        train_step(module, optimizers, step)
        levels.append(level_in_the_middle(module, step))
    assert np.mean(levels[-10:]) > levels[0] + 0.1


def level_in_the_middle(module: CycleGAN, step: int) -> float:
    """Mean of the middle of made cores, in network range."""
    batch = batches(step)
    with torch.no_grad():
        made = module(module.equaliser(batch["masked_hu"]), batch["mask"], batch["noise"])
    return float(made[..., 13:19, 13:19, 13:19].mean())


def test_a_resumed_run_is_the_unbroken_run(tmp_path: Path) -> None:
    whole = fit(tiny(), batches, RECIPE, tmp_path / "a", quiet=True)
    fit(tiny(), batches, replace(RECIPE, steps=3), tmp_path / "b", quiet=True)
    torch.manual_seed(99)
    resumed = fit(tiny(5), batches, RECIPE, tmp_path / "b", resume=True, quiet=True)
    ours, theirs = whole.module.state_dict(), resumed.module.state_dict()
    assert int(ours["pool.tissue.seen"]) == 10  # older cubes were shown in both parts of the run
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


@pytest.mark.parametrize("name", ["cyclegan_inject", "cyclegan_remove"])
def test_what_is_shipped_is_the_forward_generator_in_less_than_5_mb(name: str, tmp_path: Path) -> None:
    recipe = read_recipe(RECIPES / f"{name}.toml", "cpu")
    torch.manual_seed(0)
    module = CycleGAN(**recipe.model_settings).eval()
    rounded_to_half(module)
    card = Card(name, "cyclegan", recipe.task, "cpu", recipe.model_settings, "", 0, 0, "", "")
    save_checkpoint(module, card, tmp_path)
    weights = tmp_path / f"{name}.safetensors"
    assert weights.stat().st_size < 5e6
    assert {key.split(".")[0] for key in load_file(weights)} == {"generator", "equaliser"}
    again = CycleGAN(**recipe.model_settings).eval()
    load_weights(again, weights)
    assert torch.equal(again(*cubes()), module(*cubes()))


def test_the_published_size_is_zhus() -> None:
    recipe = read_recipe(RECIPES / "cyclegan_inject.toml", "full")
    with torch.device("meta"):
        module = CycleGAN(**recipe.model_settings)
    assert [block.conv1.out_channels for block in module.generator.blocks] == 9 * [256]  # type: ignore[union-attr]
    assert (module.cycle, module.cycle_masked, module.identity) == (4.0, 4.0, 2.0)  # 10, 10 and 5 on Zhu's whole cubes


def test_batches_bring_other_places_without_moving_the_wanted_ones() -> None:
    rng = np.random.default_rng(0)
    wanted, lung = (rng.normal(mean, 10, (3, 40, 40, 40)).astype(np.float32) for mean in (0, -850))
    alone = CubeBatches(((wanted, 1.0),), batch=4, seed=2)
    apart = CubeBatches(((wanted, 1.0),), batch=4, seed=2, unpaired=((lung, 1.0),))
    for key, values in alone(7).items():
        assert torch.equal(values, apart(7)[key])
    other = apart(7)["masked_hu"]
    assert other.shape == (4, 1, 32, 32, 32) and other.max() < -700
    assert torch.equal(other, apart(7)["masked_hu"]) and not torch.equal(other, apart(8)["masked_hu"])


def test_the_recipe_says_which_places_are_to_be_replaced(tmp_path: Path, index: Path) -> None:
    settings = {"nodules_mm": [10.0, 20.0], "unpaired": {"nodule_share": 0.0, "lung_sites": 3}}
    recipe = replace(RECIPE, data_settings=settings)
    material = cube_material(recipe, [index], tiny(), tmp_path / "run")
    batch = material.batches(0)
    assert batch["masked_hu"].shape == batch["hu"].shape
    assert "train: 1 nodules cubes of 1 scans" in material.description
    assert "to be replaced, train: " in material.description and "lung cubes" in material.description
    empty = replace(recipe, data_settings={**settings, "unpaired": {"nodules_mm": [90.0, 95.0]}})
    with pytest.raises(DataError, match="no cube to be replaced"):
        cube_material(empty, [index], tiny(), tmp_path / "other")
