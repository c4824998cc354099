"""Training: a killed run that resumes ends where an unbroken one does; recipes and cards say what is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ctguard.core.errors import ModelError, RecipeError
from ctguard.train.checkpoint import Card, load_weights, read_card, rounded_to_half, save_checkpoint
from ctguard.train.fit import fit
from ctguard.train.precision import WideKernelsInFloat32
from ctguard.train.recipe import SIZES, Recipe, read_recipe

RECIPE = Recipe(name="line", model="line", size="cpu", steps=300, batch=8, validate_every=100, ema=0.9)


class Line(nn.Module):
    """Learns y = 3 x; its dropout makes the run depend on torch's random state."""

    turns = ("line",)

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.dropout = nn.Dropout(0.1)

    def optimizers(self, settings: Mapping[str, Any]) -> dict[str, torch.optim.Optimizer]:
        return {"line": torch.optim.Adam(self.parameters(), lr=settings.get("lr", 0.03))}

    def step(self, batch: dict[str, Tensor], turn: str) -> dict[str, Tensor]:
        return {"loss": (self.layer(self.dropout(batch["x"])) - 3 * batch["x"]).square().mean()}


def batches(step: int) -> dict[str, Tensor]:
    return {"x": torch.randn(8, 1, generator=torch.Generator().manual_seed(step))}


def line() -> Line:
    torch.manual_seed(1)
    return Line()


def judge(module: nn.Module) -> dict[str, float]:
    return {"score": -abs(float(module.layer.weight) - 3.0)}  # type: ignore[operator, union-attr, arg-type]


def test_it_learns_and_writes_its_curve(tmp_path: Path) -> None:
    result = fit(line(), batches, RECIPE, tmp_path, validate=judge, quiet=True)
    assert result.best is not None and result.best > -1.0
    assert len(result.curve.read_text().splitlines()) == 301


def test_a_resumed_run_ends_with_the_same_weights(tmp_path: Path) -> None:
    whole = fit(line(), batches, RECIPE, tmp_path / "a", quiet=True)
    fit(line(), batches, replace(RECIPE, steps=100), tmp_path / "b", quiet=True)
    torch.manual_seed(99)
    resumed = fit(line(), batches, RECIPE, tmp_path / "b", resume=True, quiet=True)
    assert resumed.steps == 300
    for a, b in zip(whole.module.state_dict().values(), resumed.module.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_resuming_with_another_recipe_is_refused(tmp_path: Path) -> None:
    fit(line(), batches, replace(RECIPE, steps=5), tmp_path, quiet=True)
    with pytest.raises(RecipeError, match="another seed"):
        fit(line(), batches, replace(RECIPE, seed=9), tmp_path, resume=True, quiet=True)


def test_it_stops_without_gain(tmp_path: Path) -> None:
    recipe = replace(RECIPE, steps=3000, validate_every=10, patience=3)
    result = fit(line(), batches, recipe, tmp_path, validate=lambda _: {"score": 0.0}, quiet=True)
    assert result.steps == 40


class Turns(nn.Module):
    """Two parts, each trained in a turn of its own, without dropout."""

    turns = ("slope", "offset")

    def __init__(self) -> None:
        super().__init__()
        self.slope, self.offset = nn.Linear(1, 1, bias=False), nn.Linear(1, 1)
        self.seen: torch.dtype | None = None

    def optimizers(self, settings: Mapping[str, Any]) -> dict[str, torch.optim.Optimizer]:
        return {turn: torch.optim.SGD(self.get_submodule(turn).parameters(), lr=0.1) for turn in self.turns}

    def step(self, batch: dict[str, Tensor], turn: str) -> dict[str, Tensor]:
        made = self.get_submodule(turn)(batch["x"])
        self.seen = made.dtype
        return {"loss": (made.float() - 3 * batch["x"] - 1).square().mean()}


def turns() -> Turns:
    torch.manual_seed(1)
    return Turns()


def test_two_processes_share_each_batch_and_end_where_one_does(tmp_path: Path) -> None:
    recipe = replace(RECIPE, steps=60, decay=True)
    one = fit(turns(), batches, recipe, tmp_path / "one", quiet=True)
    fit(turns(), batches, replace(recipe, steps=60), tmp_path / "two", devices=2, quiet=True)
    two = fit(turns(), batches, recipe, tmp_path / "two", devices=2, resume=True, quiet=True)
    assert two.steps == 60
    for a, b in zip(one.module.state_dict().values(), two.module.state_dict().values(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_two_processes_stop_together(tmp_path: Path) -> None:
    recipe = replace(RECIPE, steps=3000, validate_every=10, patience=3)
    result = fit(turns(), batches, recipe, tmp_path, validate=lambda _: {"score": 0.0}, devices=2, quiet=True)
    assert result.steps == 40


def test_a_batch_that_cannot_be_shared_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="batch of 8 cannot be shared equally by 3"):
        fit(line(), batches, RECIPE, tmp_path, devices=3, quiet=True)


def test_mixed_precision_acts_inside_a_step(tmp_path: Path) -> None:
    module = turns()
    fit(module, batches, replace(RECIPE, steps=1, precision="bf16-mixed"), tmp_path, quiet=True)
    assert module.seen is torch.bfloat16


def card(**changes: Any) -> Card:
    values: dict[str, Any] = {
        "name": "line", "model": "line", "task": "", "size": "cpu", "settings": {}, "data": "", "seed": 0,
        "steps": 1, "recipe": "", "commit": "",
    }  # fmt: skip
    return Card(**{**values, **changes})


def test_a_loss_that_is_lost_ends_the_training(tmp_path: Path) -> None:
    def spoiled(step: int) -> dict[str, Tensor]:
        return {"x": batches(step)["x"] * (float("nan") if step == 150 else 1)}

    with pytest.raises(RecipeError, match="line_loss is not a finite number at step 150"):
        fit(line(), spoiled, RECIPE, tmp_path, quiet=True)
    went_on = fit(line(), batches, RECIPE, tmp_path, resume=True, quiet=True)
    assert went_on.steps == 300 and len(went_on.curve.read_text().splitlines()) == 301


def test_kernels_wider_than_their_input_have_the_gradient_of_float32() -> None:
    """In bfloat16 some processors give one of memory that nobody wrote."""
    torch.manual_seed(2)
    layer, x = nn.Conv3d(16, 16, 3, padding=1), torch.randn(8, 16, 2, 2, 2)
    gradients = []
    for mixed in (False, True, True):
        layer.zero_grad()
        spoilt = [torch.full((1 << size,), float("nan")) for size in range(8, 20)]  # what fresh memory may hold
        del spoilt
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed), WideKernelsInFloat32():
            made = layer(x)
        made.float().square().sum().backward()
        gradients.append(layer.weight.grad.clone())
    assert made.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16), WideKernelsInFloat32():
        assert nn.functional.conv3d(x, layer.weight.bfloat16(), padding=1).dtype == torch.float32
        assert layer(torch.randn(8, 16, 3, 3, 3)).dtype == torch.bfloat16
    assert all(torch.allclose(gradient, gradients[0], rtol=1e-5) for gradient in gradients[1:])


def test_weights_and_card_come_back_as_they_were_rounded(tmp_path: Path) -> None:
    module, other = line(), Line()
    rounded_to_half(module)
    made = save_checkpoint(module, card(metrics={"f1": 0.5}, threshold=0.7), tmp_path)
    assert read_card(tmp_path / "line.json") == made
    load_weights(other, tmp_path / "line.safetensors", made.sha256)
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), other.parameters(), strict=True))


def test_damaged_missing_or_foreign_weights_are_named(tmp_path: Path) -> None:
    made = save_checkpoint(line(), card(), tmp_path)
    weights = tmp_path / "line.safetensors"
    with pytest.raises(ModelError, match="another architecture"):
        load_weights(nn.Conv2d(1, 1, 1), weights)
    with pytest.raises(ModelError, match="not those of their card"):
        load_weights(line(), weights, "0" * 64)
    weights.write_bytes(weights.read_bytes()[:40])
    with pytest.raises(ModelError, match="damaged"):
        load_weights(line(), weights)
    with pytest.raises(ModelError, match="missing"):
        load_weights(line(), tmp_path / "none.safetensors", made.sha256)
    (tmp_path / "line.json").write_text("{")
    with pytest.raises(ModelError, match="card is damaged"):
        read_card(tmp_path / "line.json")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name = 'a'\nmodel = 'b'\n[cpu]\nstepz = 3", "unknown key 'stepz'"),
        ("name = 'a'\nmodel = 'b'\n[cpu]\nsteps = 'three'", "not a whole number"),
        ("name = 'a'\n[cpu]\nsteps = 3", "model is missing"),
        ("name = 'a'\nmodel = 'b'\n[full]\nsteps = 3", r"no \[cpu\] size"),
        ("name = ", "not TOML"),
    ],
)
def test_recipes_say_what_is_wrong(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=message):
        read_recipe(path, "cpu")
    with pytest.raises(RecipeError, match="no such recipe"):
        read_recipe(tmp_path / "none.toml", "cpu")


DETECTORS = {"unet", "xception", "hpfcn", "mantranet", "mvssnet", "trufor", "volumetric"}


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[2] / "recipes").glob("*.toml")), ids=lambda p: p.stem)
@pytest.mark.parametrize("size", SIZES)
def test_every_shipped_recipe_builds_its_model(path: Path, size: Any) -> None:
    from ctguard import zoo

    if size == "matrix" and "[matrix]" not in path.read_text():
        assert path.stem not in DETECTORS
        return
    recipe = read_recipe(path, size)
    entry = next(e for e in zoo.ENTRIES if e.name == recipe.model and e.weights == recipe.name)
    with torch.device("meta"):
        module = zoo.resolve(entry.class_path)(**recipe.model_settings)
    assert set(module.optimizers(recipe.optimiser)) == set(module.turns)
    kept = sum(values.numel() for values in module.state_dict().values())
    assert size != "matrix" or 2 * kept <= 0.8e6  # bytes in fp16
