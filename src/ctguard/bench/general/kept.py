"""Train once and keep: a killed run goes on where it was, a finished one is loaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from ctguard.core.errors import RecipeError
from ctguard.train.checkpoint import Card, load_weights, read_card, rounded_to_half, save_checkpoint
from ctguard.train.fit import Batch, fit
from ctguard.train.recipe import Recipe


def train_kept(
    make: Callable[[], nn.Module], batches: Callable[[int], Batch], recipe: Recipe, out: Path, data: str
) -> tuple[nn.Module, Card]:
    """The module that `recipe` trains, in eval mode on the CPU, and its card.

    OUT/NAME.safetensors is loaded where its card has the same recipe; data_settings name the material by its hash.
    Raises RecipeError where OUT holds one of another recipe.
    """
    weights, text = out / f"{recipe.name}.safetensors", json.dumps(asdict(recipe), sort_keys=True)
    torch.manual_seed(recipe.seed)
    module = make().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if weights.is_file():
        card = read_card(weights.with_suffix(".json"))
        if card.recipe != text:
            what = f"{recipe.name} was trained with other settings or on other data"
            raise RecipeError(what, where=out, remedy="choose another --out")
        load_weights(module, weights, card.sha256)
        return module.eval(), card
    work = out / recipe.name
    result = fit(module, batches, recipe, work, resume=True)
    trained = result.module.cpu()
    rounded_to_half(trained)
    card = Card(
        name=recipe.name,
        model=recipe.model,
        task=recipe.task,
        size=recipe.size,
        settings=recipe.model_settings,
        data=data,
        seed=recipe.seed,
        steps=result.steps,
        recipe=text,
        commit="",
    )
    card = save_checkpoint(trained, card, out)
    (work / "state.pt").unlink()
    return trained, card
