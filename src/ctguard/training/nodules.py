"""Nodules with a label for the malignancy scorer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from ctguard.bench.malignancy import NoduleScores, judge_scorer, score_batches, youden
from ctguard.cohort.nodules import SLACK, NoduleBatches, NoduleBlocks, joined, judged_batches, read_blocks
from ctguard.core.errors import DataError
from ctguard.core.threshold import Threshold
from ctguard.io.cases import read_cases
from ctguard.train.recipe import Recipe
from ctguard.training.material import Material

SURROGATE = (
    "A surrogate for measuring forgeries, no medical device: malignant means a phantom's label, or a mean rating of "
    "radiologists of at least 4 against at most 2, never a diagnosis. It shares no patient with the generators."
)


def scorer_material(recipe: Recipe, data: Sequence[Path], module: Any, out: Path) -> Material:
    """Nodules with a label and healthy lung for the malignancy scorer; data_settings: lung_sites places a scan.

    Raises DataError where a split has no nodule with a label.
    """
    sides = {"train": module.block_mm + SLACK, "valid": module.block_mm}
    banks: dict[str, list[NoduleBlocks]] = {"train": [], "valid": []}
    for index in data:
        cases = read_cases(index)
        for split, side in sides.items():
            chosen = [case for case in cases if (case.split or "train") == split]
            path = out / f"blocks_{index.parent.name}_{index.stem}_{split}.npz"
            if chosen and not path.is_file():
                path.parent.mkdir(parents=True, exist_ok=True)
                read_blocks(index, chosen, side, int(recipe.data_settings.get("lung_sites", 4)), recipe.seed).save(path)
            if chosen:
                banks[split].append(NoduleBlocks.load(path))
    if not all(banks.values()):
        raise DataError("no training or no validation case", where=", ".join(map(str, data)), remedy="split the index")
    train_blocks, valid = joined(banks["train"]), joined(banks["valid"])
    judged = judged_batches(valid, module.block_mm)
    nodules = valid.diameter_mm > 0

    def score(model: nn.Module) -> NoduleScores:
        return NoduleScores(
            score_batches(model, judged), valid.malignant[nodules], valid.diameter_mm[nodules].astype(float)
        )

    def calibrate(model: nn.Module) -> tuple[Threshold, str]:
        value, note = youden(score(model))
        return Threshold(value), note

    return Material(
        NoduleBatches(train_blocks, recipe.batch, recipe.seed, module.block_mm),
        lambda model: judge_scorer(score(model)),
        {},
        "; ".join(f"{split}: {joined(bank).summary()}" for split, bank in banks.items()),
        calibrate,
    )
