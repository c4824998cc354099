"""`ctguard train`: recipe and data in, weights and card out. Joins the sampler, the model and the loop."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor, nn

from ctguard import zoo
from ctguard.bench.detection import find_threshold, score_pristine
from ctguard.bench.malignancy import NoduleScores, judge_scorer, score_batches, youden
from ctguard.cohort.acquisitions import Acquisition, AcquisitionBatches, read_acquisitions
from ctguard.cohort.nodules import SLACK, NoduleBatches, NoduleBlocks, joined, judged_batches, read_blocks
from ctguard.cohort.patches import CubeBatches, CubeRule, read_cubes
from ctguard.cohort.slices import SliceBatches, read_slices
from ctguard.core.console import log
from ctguard.core.errors import DataError, RecipeError
from ctguard.core.records import Case
from ctguard.detect.residual import judge_residual
from ctguard.io.cases import read_cases
from ctguard.io.forgeries import read_manifest
from ctguard.phantom.patients import COLLECTION as PHANTOM
from ctguard.phantom.planted import COLLECTION as PLANTED
from ctguard.train.checkpoint import Card, load_weights, read_card, rounded_to_half, save_checkpoint
from ctguard.train.fit import Batch, fit
from ctguard.train.recipe import Recipe, read_recipe

Bank = list[tuple[NDArray[np.float32], float]]
"""Arrays of cubes with their weights."""

_KINDS: dict[str, zoo.Kind] = {
    "inject": "generator",
    "remove": "generator",
    "malignancy": "scorer",
    "residual": "extractor",
}
"""Of a recipe's task; every other task is a detector's."""

SURROGATE = (
    "A surrogate for measuring forgeries, no medical device: malignant means a phantom's label, or a mean rating of "
    "radiologists of at least 4 against at most 2, never a diagnosis. It shares no patient with the generators."
)

LICENCES = {
    PHANTOM: "synthetic",
    "LIDC-IDRI": "CC BY 3.0",
    "NSCLC Radiogenomics": "CC BY 3.0",
    "Lung-PET-CT-Dx": "CC BY 4.0",
}
"""Of the collections that the recipes name; a card carries them."""


@dataclass(frozen=True)
class Material:
    """What a run learns from: batches by step, how to judge, what it was trained against, and a line for the card."""

    batches: Callable[[int], Batch]
    validate: Callable[[nn.Module], dict[str, float]]
    trained_against: dict[str, str]
    description: str
    calibrate: Callable[[nn.Module], tuple[float, str]] | None = None


def train(
    recipe_path: Path,
    data: Sequence[Path],
    out: Path,
    *,
    size: str = "cpu",
    resume: bool = False,
    devices: int = 1,
    init: Path | None = None,
    seed: int | None = None,
) -> Card:
    """Train a recipe and write NAME.safetensors and NAME.json into `out`.

    data: index CSVs (generators) or one folder of forgeries (detectors). init: weights to start from.
    Raises RecipeError, DataError, ModelError.
    """
    recipe = read_recipe(recipe_path, "full" if size == "full" else "cpu")
    if seed is not None:
        recipe = replace(recipe, seed=seed)
    kind = _KINDS.get(recipe.task, "detector")
    entry = zoo.find(recipe.model, kind, recipe.task)
    torch.manual_seed(recipe.seed)
    module: nn.Module = zoo.build(entry, recipe.model_settings)
    if kind == "generator":
        material = cube_material(recipe, data, module, out)
    elif kind == "extractor":
        material = residual_material(recipe, data)
    else:
        material = scorer_material(recipe, data, module, out) if kind == "scorer" else slice_material(recipe, data)
    started_from = _take_parts(module, recipe) if init is None else {}
    if init is not None:
        load_weights(module, init)
    if kind == "detector":  # a narrow 2-D network trains nearly twice as fast on a CPU this way
        module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if kind == "scorer":
        module = module.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
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
        commit=_commit(recipe_path),
        metrics=metrics,
        threshold=threshold,
        threshold_note=note,
        trained_against=material.trained_against | started_from,
        notes=SURROGATE if kind == "scorer" else "",
    )
    return save_checkpoint(trained, card, out)


def cube_material(recipe: Recipe, data: Sequence[Path], module: nn.Module, out: Path) -> Material:
    """Cubes for a generator; fits the module's equaliser to them.

    data_settings: nodules_mm = [low, high] with nodule_share of each batch; lung_sites, lung_sites_planted and
    lung_sites_real places a scan, by its collection; real_share, the weight of scans that are no phantoms; unpaired, a
    table of the same keys: cubes whose cores are to be replaced, drawn apart from the wanted ones; pairs_share, the
    weight of planted nodules of pairs_mm with the same tissue without them; valid_batches, how many are judged in the
    end (8; fewer where a model samples slowly).
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
            kinds = [("nodules", CubeRule(low, high), share), ("lung", lung, 1 - share)]
            kinds += [("pairs", pairs, float(settings.get("pairs_share", 0.0)))] if planted else []
            for kind, rule, part in kinds:
                if part > 0 and (rule.lung_sites > 0 if kind == "lung" else has_nodules):
                    name = f"cubes_{purpose}{index.parent.name}_{index.stem}_{split}_{kind}.npy"
                    cubes = _cached_cubes(out / name, index, chosen, rule, recipe)
                    if len(cubes) == 0:
                        continue
                    bank.append((cubes, part * float(settings.get("real_share", 0.5)) if real else part))
                    names = ", ".join(sorted({_named(case.collection) for case in chosen}))
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


def slice_material(recipe: Recipe, data: Sequence[Path]) -> Material:
    """Patches for a 2-D detector from one folder of forgeries. Raises DataError where a split is empty."""
    if len(data) != 1:
        raise RecipeError("a detector is trained on one folder of forgeries", remedy="give --data once")
    settings = dict(recipe.data_settings)
    generators = tuple(settings.get("generators", ("pix2pix", "copy-move")))
    patch = int(settings.get("patch", 128))
    scans = {split: read_slices(data[0], split, generators) for split in ("train", "valid")}
    batches = SliceBatches(scans["train"], recipe.batch, recipe.seed, patch)
    held_out = SliceBatches(scans["valid"], recipe.batch, recipe.seed + 1, patch, augment=False)

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
        f"{split}: {len(s)} scans, {sum(len(x.forgeries) for x in s)} forgeries "
        f"({', '.join(sorted({_named(case.collection) for case in cases if case.split == split}))})"
        for split, s in scans.items()
    ]
    return Material(batches, validate, against, "; ".join(lines), lambda module: _calibrate(module, data[0]))


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
                names = ", ".join(sorted({_named(case.collection) for case in chosen}))
                lines.append(f"{split}: {len(found)} pristine series ({names})")
    if not banks["train"]:
        raise DataError("no series to train on", where=", ".join(map(str, data)), remedy="give an index with train")
    held_out = AcquisitionBatches(banks["valid"] or banks["train"], recipe.batch, recipe.seed + 1, patch)
    judged = [held_out(step) for step in range(int(settings.get("valid_batches", 8)))]
    batches = AcquisitionBatches(banks["train"], recipe.batch, recipe.seed, patch)
    return Material(batches, lambda model: judge_residual(model, judged), {}, "; ".join(lines))


def _take_parts(module: nn.Module, recipe: Recipe) -> dict[str, str]:
    """Load the trained parts that a model starts from (`starts_from`), and say by their hash which they were.

    data_settings: a part's name with the path of its weights, where they are not the shipped ones.
    Raises ModelError where such a part has no weights yet, or weights of another size than the recipe asks for.
    """
    taken = {}
    for part, name in getattr(module, "starts_from", {}).items():
        entry = zoo.find(name, "extractor")
        path = Path(recipe.data_settings.get(part) or zoo.WEIGHTS / f"{entry.weights}.safetensors")
        card = read_card(path.with_suffix(".json"))
        load_weights(module.get_submodule(part), path, card.sha256)
        taken[entry.weights] = card.sha256
    return taken


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

    return Material(
        NoduleBatches(train_blocks, recipe.batch, recipe.seed, module.block_mm),
        lambda model: judge_scorer(score(model)),
        {},
        "; ".join(f"{split}: {joined(bank).summary()}" for split, bank in banks.items()),
        lambda model: youden(score(model)),
    )


def judge_detector(model: nn.Module, batches: Sequence[Batch]) -> dict[str, float]:
    """Pixel F1 and IoU at 0.5 pooled over patches, and balanced accuracy of patch scores; "score" is F1.

    Of a detector that does not localise, the accuracy is the score and all there is.
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
    return {"score": f1, "f1": f1, "iou": hit / max(hit + false + missed, 1), "patch_accuracy": accuracy}


def _named(collection: str) -> str:
    """A collection with its licence, where that is known."""
    return f"{collection}, {LICENCES[collection]}" if collection in LICENCES else collection


def _calibrate(module: nn.Module, folder: Path) -> tuple[float, str]:
    """The threshold of whole pristine validation scans, and how it was found."""
    index, _ = read_manifest(folder)
    cases = [case for case in read_cases(index) if case.split == "valid"]
    return find_threshold(score_pristine(module, index, cases))


def _commit(path: Path) -> str:
    """The repository's commit, "unknown" outside of one; said so in the card."""
    command = ["git", "-C", str(path.resolve().parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
