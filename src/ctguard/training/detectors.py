"""Patches and slabs for detectors."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from torch import nn

from ctguard.bench.pristine import pristine_threshold, score_pristine
from ctguard.cohort.slabs import SHAPES, SlabBatches
from ctguard.cohort.slices import ForgedScan, SliceBatches, Untouched, read_slices, read_untouched
from ctguard.core.errors import RecipeError
from ctguard.core.records import Split
from ctguard.core.threshold import Threshold
from ctguard.io.cases import read_cases
from ctguard.io.forgeries import read_manifest
from ctguard.tamper.stand_ins import REACH_MM, forge_stand_in
from ctguard.train.fit import Batch
from ctguard.train.recipe import Recipe
from ctguard.training.material import Material, named
from ctguard.training.sealed import EVERY, seal_by_turns

PRISTINE_CSV = "pristine.csv"
_SPLITS: tuple[Split, ...] = ("train", "valid")


def detector_material(recipe: Recipe, data: Sequence[Path], dims: int, out: Path) -> Material:
    """Patches for a 2-D detector, slabs for a 3-D one, from a folder of forgeries and indexes of untouched nodules.

    data_settings: generators whose forgeries are taken; stand_ins, whether forgeries made in memory by other chains are
    shown, too (only to 3-D detectors, unless it is given); patch, the side of 2-D patches; valid_batches (16);
    sealed, whether one scan of three is shown with a seal, too (false); calibrate, whether a threshold is found (true:
    it takes longer than a matrix cell's training).
    out: gets pristine.csv, the score of each scan that the threshold was found on.
    Raises DataError where a split is empty.
    """
    if not data or any(path.is_dir() for path in data[1:]):
        raise RecipeError(
            "a detector is trained on one folder of forgeries",
            remedy="give it first, then indexes of untouched nodules",
        )
    settings = dict(recipe.data_settings)
    generators = tuple(settings.get("generators", ("pix2pix", "copy-move")))
    stand_ins = bool(settings.get("stand_ins", dims == 3))
    sealed = bool(settings.get("sealed", False))
    scans = {
        split: read_slices(data[0], split, generators, seal_by_turns if sealed and split == "train" else None)
        for split in _SPLITS
    }
    untouched = {split: [nodule for index in data[1:] for nodule in read_untouched(index, split)] for split in _SPLITS}
    batches = _batches(recipe, dims, stand_ins, scans["train"], untouched["train"])
    held_out = _batches(recipe, dims, stand_ins, scans["valid"], untouched["valid"], held_out=True)

    def validate(model: nn.Module) -> dict[str, float]:
        return judge_detector(model, [held_out(step) for step in range(int(settings.get("valid_batches", 16)))])

    against = {
        forgery.edit.generator + "_" + forgery.edit.task: str(forgery.edit.plan.get("model_sha256", ""))
        for scan in scans["train"]
        for forgery in scan.forgeries
        if forgery.edit.plan.get("model_sha256")
    }
    cases = read_cases(read_manifest(data[0])[0])
    lines = [
        f"{split}: {len(s)} scans, {sum(len(x.forgeries) for x in s)} forgeries by {', '.join(generators)}"
        f"{' and stand-ins' if stand_ins else ''}"
        f"{f', one scan of {EVERY} with a seal, too' if sealed and split == 'train' else ''}"
        f"{f', {len(untouched[split])} untouched nodules more' if untouched[split] else ''} "
        f"({', '.join(sorted({named(case.collection) for case in cases if case.split == split}))})"
        for split, s in scans.items()
    ]
    calibrate = partial(_calibrate, folder=data[0], out=out) if settings.get("calibrate", True) else None
    return Material(batches, validate, against, "; ".join(lines), calibrate)


def _batches(
    recipe: Recipe,
    dims: int,
    stand_ins: bool,
    scans: Sequence[ForgedScan],
    untouched: Sequence[Untouched],
    *,
    held_out: bool = False,
) -> Callable[[int], Batch]:
    """Patches of slices where neither the detector nor its stand-ins need depth; otherwise slabs."""
    patch, seed = int(recipe.data_settings.get("patch", 128)), recipe.seed + held_out
    if dims == 2 and not stand_ins:
        return SliceBatches(scans, recipe.batch, seed, patch, augment=not held_out, untouched=untouched)
    stand_in, shapes = forge_stand_in if stand_ins else None, SHAPES if dims == 3 else ((1, patch),)
    slabs = SlabBatches(
        scans, recipe.batch, seed, stand_in, REACH_MM, shapes, augment=not held_out, untouched=untouched
    )
    return slabs if dims == 3 else partial(_flat, slabs)


def _flat(slabs: SlabBatches, step: int) -> Batch:
    """Slabs of one slice (batch, 1, 1, side, side) as slices (batch, 1, side, side)."""
    return {name: values.squeeze(2) if values.dim() == 5 else values for name, values in slabs(step).items()}


def judge_detector(model: nn.Module, batches: Sequence[Batch]) -> dict[str, float]:
    """Pixel F1 and IoU at 0.5 pooled over patches, and balanced accuracy of patch scores.

    "score" is the mean of F1 and that accuracy: F1 alone says little of false alarms on whole pristine scans. Of a
    detector that does not localise, the accuracy is the score and all there is.
    """
    hit = false = missed = 0.0
    right: dict[int, list[float]] = {0: [], 1: []}
    for batch in batches:
        score, logit = model(batch["x"])
        counted = batch["ignore"] == 0
        found, truth = (logit > 0) & counted, (batch["mask"] > 0) & counted
        hit += float((found & truth).sum())
        false += float((found & ~truth).sum())
        missed += float((~found & truth).sum())
        for value, label in zip(score, batch["label"], strict=True):
            right[int(label)].append(float((value > 0) == (label > 0)))
    f1 = 2 * hit / max(2 * hit + false + missed, 1)
    accuracy = float(np.mean([np.mean(values) for values in right.values() if values]))
    if not getattr(model, "localises", True):
        return {"score": accuracy, "patch_accuracy": accuracy}
    iou = hit / max(hit + false + missed, 1)
    return {"score": (f1 + accuracy) / 2, "f1": f1, "iou": iou, "patch_accuracy": accuracy}


def _calibrate(module: nn.Module, folder: Path, out: Path) -> tuple[Threshold, str]:
    """The threshold of whole pristine validation scans, as they are and after one operation each; how it was found."""
    index, _ = read_manifest(folder)
    cases = [case for case in read_cases(index) if case.split == "valid"]
    unfinished = out / "pristine.json"
    rows = score_pristine(module, index, cases, unfinished)
    with (out / PRISTINE_CSV).open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("scan_id", "operation", "score", "searched_ml"))
        writer.writerows((row.scan_id, row.operation, repr(row.score), f"{row.searched_ml:.1f}") for row in rows)
    unfinished.unlink()
    return pristine_threshold(rows)
