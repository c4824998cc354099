"""Cubes for generators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor, nn

from ctguard.cohort.patches import CubeBatches, CubeRule, read_cubes
from ctguard.core.errors import DataError
from ctguard.core.records import Case
from ctguard.io.cases import read_cases
from ctguard.phantom.patients import COLLECTION as PHANTOM
from ctguard.phantom.planted import COLLECTION as PLANTED
from ctguard.train.fit import Batch
from ctguard.train.recipe import Recipe
from ctguard.training.material import Material, named

Bank = list[tuple[NDArray[np.float32], float]]
"""Arrays of cubes with their weights."""


def cube_material(recipe: Recipe, data: Sequence[Path], module: nn.Module, out: Path) -> Material:
    """Cubes for a generator; fits the module's equaliser to them.

    data_settings: nodules_mm = [low, high] with nodule_share of each batch, whose dense part measures dense_mm, and
    which are malignant or not where `malignant` says so; lung_sites, lung_sites_planted and lung_sites_real places a
    scan, by its collection; real_share, the weight of scans that are no phantoms; unpaired, a table of the same keys:
    cubes whose cores are to be replaced, drawn apart from the wanted ones; pairs_share, the weight of planted nodules
    of pairs_mm with the same tissue without them; valid_batches, how many are judged in the end (8; fewer where a model
    samples slowly).
    Raises DataError where an index holds no training case.
    """
    banks, lines = _read_banks(recipe, recipe.data_settings, data, out)
    apart = recipe.data_settings.get("unpaired")
    unpaired, more = _read_banks(recipe, apart, data, out, "masked_") if apart else ({"train": [], "valid": []}, [])
    lines += [f"to be replaced, {line}" for line in more]
    if apart and not unpaired["train"]:
        raise DataError("no cube to be replaced", where=", ".join(map(str, data)), remedy="see the recipe's unpaired")
    if not banks["train"]:
        raise DataError("no training case", where=", ".join(str(path) for path in data), remedy="give a larger index")
    hu = np.concatenate([cubes.ravel()[::7] for cubes, _ in (*banks["train"], *unpaired["train"])])
    module.equaliser.fit(hu)  # type: ignore[union-attr, operator]
    batches = CubeBatches(tuple(banks["train"]), recipe.batch, recipe.seed, unpaired=tuple(unpaired["train"]))
    held_out = CubeBatches(tuple(banks["valid"] or banks["train"]), recipe.batch, recipe.seed + 1)
    batches_judged = int(recipe.data_settings.get("valid_batches", 8))

    def validate(model: nn.Module) -> dict[str, float]:
        return judge_generator(model, [held_out(step) for step in range(batches_judged)])

    return Material(batches, validate, {}, "; ".join(lines))


def _read_banks(
    recipe: Recipe, settings: Mapping[str, Any], data: Sequence[Path], out: Path, purpose: str = ""
) -> tuple[dict[str, Bank], list[str]]:
    """Cubes with their weights by split, and lines for the card; see `cube_material` for the settings."""
    low, high = settings.get("nodules_mm", (10.0, 20.0))
    share = float(settings.get("nodule_share", 1.0))
    banks: dict[str, Bank] = {"train": [], "valid": []}
    lines = []
    for index in data:
        cases = read_cases(index)
        for split, bank in banks.items():
            chosen = [case for case in cases if (case.split or "train") == split]
            if not chosen:
                continue
            real = any(case.collection != PHANTOM for case in chosen)
            planted = real and all(case.collection == PLANTED for case in chosen)
            has_nodules = any(finding.diameter_mm for case in chosen for finding in case.findings)
            key = "lung_sites_planted" if planted else "lung_sites_real" if real else "lung_sites"
            lung = CubeRule(lung_sites=int(settings.get(key, 0)))
            least, most = settings.get("pairs_mm", (10.0, 20.0))
            pairs = CubeRule(least, most, twins=True)
            dense_mm = float(settings.get("dense_mm", 0.0))
            nodules = CubeRule(low, high, malignant=settings.get("malignant"), dense_mm=dense_mm)
            kinds = [("nodules", nodules, share), ("lung", lung, 1 - share)]
            kinds += [("pairs", pairs, float(settings.get("pairs_share", 0.0)))] if planted else []
            for kind, rule, part in kinds:
                if part > 0 and (rule.lung_sites > 0 if kind == "lung" else has_nodules):
                    name = f"cubes_{purpose}{index.parent.name}_{index.stem}_{split}_{kind}.npy"
                    cubes = _cached_cubes(out / name, index, chosen, rule, recipe)
                    if len(cubes) == 0:
                        continue
                    bank.append((cubes, part * float(settings.get("real_share", 0.5)) if real else part))
                    names = ", ".join(sorted({named(case.collection) for case in chosen}))
                    lines.append(f"{split}: {len(cubes)} {kind} cubes of {len(chosen)} scans ({names})")
    return banks, lines


def _cached_cubes(
    path: Path, index: Path, cases: Sequence[Case], rule: CubeRule, recipe: Recipe
) -> NDArray[np.float32]:
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, read_cubes(index, cases, rule, recipe.seed).astype(np.float16))
    cubes: NDArray[np.float32] = np.load(path).astype(np.float32)
    return cubes


def judge_generator(model: Any, batches: Sequence[Batch]) -> dict[str, float]:
    """Quality of generated cores against held-out tissue: MAE (HU) and the ratio of fine texture's SD (1 = equal)."""
    errors, made_sd, real_sd = [], [], []
    for batch in batches:
        norm = model.equaliser(batch["hu"])
        made: Tensor = model.equaliser.inverse(model(norm, batch["mask"], batch["noise"]))
        inside = batch["mask"] > 0
        real = model.equaliser.inverse(norm)
        errors.append(float((made - real).abs()[inside].mean()))
        made_sd.append(_texture_sd(made, inside))
        real_sd.append(_texture_sd(real, inside))
    return {"core_mae_hu": float(np.mean(errors)), "texture_ratio": float(np.mean(made_sd) / np.mean(real_sd))}


def _texture_sd(cubes: Tensor, inside: Tensor) -> float:
    values = cubes.numpy()
    residual = values - ndimage.median_filter(values, size=(1, 1, 3, 3, 3))
    return float(residual[inside.numpy()].std())
