"""Recipe and data in, weights and card out."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from ctguard import zoo
from ctguard.core.console import log
from ctguard.core.errors import RecipeError
from ctguard.detect.detector import channels_last
from ctguard.io.manifest import sha256_file
from ctguard.train.checkpoint import Card, load_weights, read_card, rounded_to_half, save_checkpoint
from ctguard.train.fit import fit
from ctguard.train.recipe import Changes, Recipe, Size, read_recipe
from ctguard.training.cubes import cube_material
from ctguard.training.detectors import detector_material
from ctguard.training.nodules import SURROGATE, scorer_material
from ctguard.training.protectors import protector_material
from ctguard.training.residuals import residual_material

_KINDS: dict[str, zoo.Kind] = {
    "inject": "generator",
    "remove": "generator",
    "malignancy": "scorer",
    "residual": "extractor",
    "perturbation": "protector",
}
"""Of a recipe's task; every other task is a detector's."""


def train(
    recipe_path: Path,
    data: Sequence[Path],
    out: Path,
    *,
    size: Size = "cpu",
    resume: bool = False,
    devices: int = 1,
    init: Path | None = None,
    changes: Changes | None = None,
) -> Card:
    """Train a recipe and write NAME.safetensors and NAME.json into `out`.

    data: index CSVs; for detectors a folder of forgeries, then index CSVs of untouched nodules. init: weights to start
        from.
    Raises RecipeError, DataError, ModelError.
    """
    recipe = read_recipe(recipe_path, size)
    kind = _KINDS.get(recipe.task, "detector")
    recipe = _changed(recipe, kind, changes or Changes())
    entry = zoo.find(recipe.model, kind, recipe.task)
    torch.manual_seed(recipe.seed)
    module: nn.Module = zoo.build(entry, recipe.model_settings)
    if kind == "generator":
        material = cube_material(recipe, data, module, out)
    elif kind == "extractor":
        material = residual_material(recipe, data)
    elif kind == "scorer":
        material = scorer_material(recipe, data, module, out)
    elif kind == "protector":
        material = protector_material(recipe, data, module, out)  # type: ignore[arg-type]
    else:
        material = detector_material(recipe, data, module.dims, out)  # type: ignore[arg-type]
    started_from = _take_parts(module, recipe) if init is None else {}
    notes = [SURROGATE] if kind == "scorer" else []
    if init is not None:
        load_weights(module, init)
        notes.append(f"Started from weights of sha256 {sha256_file(init)}.")
    if kind in ("detector", "scorer", "protector"):  # a narrow network trains nearly twice as fast on a CPU this way
        channels_last(module)
    # A generator keeps its averaged last weights: pixel error on validation cubes would prefer blur.
    chooses = None if kind == "generator" else material.validate
    result = fit(module, material.batches, recipe, out, validate=chooses, resume=resume, devices=devices)
    trained = result.module.cpu()
    rounded_to_half(trained)
    with torch.no_grad():
        metrics = material.validate(trained)
    log.info("%s: %s", recipe.name, {name: round(value, 4) for name, value in metrics.items()})
    threshold, note = material.calibrate(trained) if material.calibrate else (None, "")
    card = Card(
        name=recipe.name,
        model=recipe.model,
        task=recipe.task,
        size=recipe.size,
        settings=recipe.model_settings,
        data=material.description,
        seed=recipe.seed,
        steps=result.steps,
        recipe=recipe_path.read_text(),
        commit=_commit(),
        metrics=metrics,
        threshold=threshold.value if threshold else None,
        threshold_tail=threshold.tail if threshold else 0.0,
        threshold_note=note,
        trained_against=material.trained_against | started_from,
        notes=" ".join(notes),
    )
    return save_checkpoint(trained, card, out)


def _changed(recipe: Recipe, kind: zoo.Kind, changes: Changes) -> Recipe:
    if changes.seed is not None:
        recipe = replace(recipe, seed=changes.seed)
    if not changes.generators:
        return recipe
    if kind != "detector":
        raise RecipeError(f"{recipe.name} is no detector", remedy="choose generators for detectors alone")
    settings = recipe.data_settings | {"generators": list(changes.generators)}
    return replace(recipe, name=f"{recipe.name}_on_{'_'.join(changes.generators)}", data_settings=settings)


def _take_parts(module: nn.Module, recipe: Recipe) -> dict[str, str]:
    """Load the trained parts that a model starts from (`starts_from`), and say by their hash which they were.

    data_settings: a part's name with the path of its weights, where they are not the shipped ones.
    Raises ModelError where such a part has no weights yet, or weights of another size than the recipe asks for.
    """
    taken = {}
    for part, (name, kind) in getattr(module, "starts_from", {}).items():
        entry = zoo.find(name, kind)
        path = Path(recipe.data_settings.get(part) or zoo.WEIGHTS / f"{entry.weights}.safetensors")
        card = read_card(path.with_suffix(".json"))
        load_weights(module.get_submodule(part), path, card.sha256)
        taken[path.stem] = card.sha256
    return taken


def _commit() -> str:
    """The commit of this code, "unknown" where no repository holds it, as after an installation."""
    here = Path(__file__).resolve()
    git = ["git", "-C", str(here.parent)]
    try:
        subprocess.run([*git, "ls-files", "--error-unmatch", here.name], capture_output=True, check=True)
        return subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
