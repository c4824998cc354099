"""Recipes: what trains a model, at two or three sizes, in one TOML file."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

from ctguard.core.errors import RecipeError

Size = Literal["cpu", "matrix", "full"]
"""matrix: of the detectors that the benchmark's 3 x 3 matrix trains, three of each."""
SIZES: tuple[str, ...] = get_args(Size)


@dataclass(frozen=True)
class Recipe:
    """One training run.

    name: of the checkpoint; model: of the architecture in the zoo; task: inject, remove or empty.
    steps, batch: optimiser steps and samples in each. seed: of weights, sampling and noise.
    precision: Fabric's name; mixed precision acts inside networks only, images stay float32.
    validate_every: steps between validations; patience: validations without gain before stopping (0: never).
    ema: decay of the averaged weights that are kept (0: none).
    decay: let the learning rates fall to zero along a cosine (Loshchilov and Hutter, ICLR 2017).
    optimiser, model_settings, data_settings: handed to the model and to the sampler.
    """

    name: str
    model: str
    size: Size
    task: str = ""
    steps: int = 1000
    batch: int = 16
    seed: int = 0
    precision: str = "32-true"
    validate_every: int = 250
    patience: int = 0
    ema: float = 0.0
    decay: bool = False
    optimiser: dict[str, Any] = field(default_factory=dict)
    model_settings: dict[str, Any] = field(default_factory=dict)
    data_settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Changes:
    """What a run changes of its recipe.

    seed: instead of the recipe's. generators: whose forgeries a detector learns, instead of the recipe's; its weights
    are then called NAME_on_GENERATORS.
    """

    seed: int | None = None
    generators: tuple[str, ...] = ()


def read_recipe(path: Path, size: Size) -> Recipe:
    """The recipe of one size. Raises RecipeError naming the key that is missing, unknown or of another type."""
    try:
        table = tomllib.loads(path.read_text())
    except FileNotFoundError as error:
        raise RecipeError("no such recipe", where=path, remedy="give a file of the recipes folder") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"not TOML: {error}", where=path) from error
    common = {key: value for key, value in table.items() if key not in SIZES}
    if size not in table:
        there = ", ".join(known for known in SIZES if known in table)
        raise RecipeError(f"it has no [{size}] size", where=path, remedy=f"choose of: {there}" if there else "add it")
    values = {**common, **table[size], "size": size}
    known = {f.name: f for f in fields(Recipe)}
    for key, value in values.items():
        if key not in known:
            raise RecipeError(f"unknown key {key!r}", where=path, remedy=f"known: {', '.join(known)}")
        if known[key].type == "int" and not isinstance(value, int):
            raise RecipeError(f"{key} = {value!r} is not a whole number", where=path)
    for key in ("name", "model"):
        if key not in values:
            raise RecipeError(f"{key} is missing", where=path)
    return Recipe(**values)
