"""Pristine patches for a noise residual."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ctguard.cohort.acquisitions import Acquisition, AcquisitionBatches, read_acquisitions
from ctguard.core.errors import DataError
from ctguard.detect.residual import judge_residual
from ctguard.io.cases import read_cases
from ctguard.train.recipe import Recipe
from ctguard.training.material import Material, named


def residual_material(recipe: Recipe, data: Sequence[Path]) -> Material:
    """Patches of pristine series for a noise residual; every index is equally likely.

    data_settings: patch (48), planes a scan (8), valid_batches (8). Raises DataError where no index has a fitting scan
    to train on. Where none has one to validate on, it is judged on other patches of the series that it learned from.
    """
    settings = recipe.data_settings
    patch, planes = int(settings.get("patch", 48)), int(settings.get("planes", 8))
    banks: dict[str, list[list[Acquisition]]] = {"train": [], "valid": []}
    lines = []
    for index in data:
        cases = read_cases(index)
        for split, bank in banks.items():
            chosen = [case for case in cases if (case.split or "train") == split]
            found = read_acquisitions(index, chosen, patch, planes, recipe.seed)
            if found:
                bank.append(found)
                names = ", ".join(sorted({named(case.collection) for case in chosen}))
                lines.append(f"{split}: {len(found)} pristine series ({names})")
    if not banks["train"]:
        raise DataError("no series to train on", where=", ".join(map(str, data)), remedy="give an index with train")
    held_out = AcquisitionBatches(banks["valid"] or banks["train"], recipe.batch, recipe.seed + 1, patch)
    judged = [held_out(step) for step in range(int(settings.get("valid_batches", 8)))]
    batches = AcquisitionBatches(banks["train"], recipe.batch, recipe.seed, patch)
    return Material(batches, lambda model: judge_residual(model, judged), {}, "; ".join(lines))
