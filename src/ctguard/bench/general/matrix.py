"""Rows learn, columns are tested: six detectors on six families, each cell kept."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ctguard.bench.general.ct import CtSide, read_ct
from ctguard.bench.general.kept import train_kept
from ctguard.bench.general.pictures import Family, Part, PictureBatches, Pictures, folder_note, read_families
from ctguard.bench.general.stand_ins import StandIns, make_stand_ins
from ctguard.bench.kept import read_kept, write_kept
from ctguard.bench.metrics import Interval
from ctguard.bench.resampling import Patients, interval
from ctguard.core.console import log, progress
from ctguard.detect.general import GeneralDetector
from ctguard.train.checkpoint import Card
from ctguard.train.recipe import Recipe, Size

AT_ONCE = 64
RATE = 1e-3


@dataclass(frozen=True)
class Scale:
    """How large everything is. side: of all patches, in pixels; width: of the detector; counts: of general pictures."""

    size: Size
    side: int
    width: int
    steps: int
    batch: int
    generator_width: int
    generator_steps: int
    generator_batch: int
    counts: Mapping[Part, int]

    def changed(self, steps: int | None, pictures: int | None) -> Scale:
        """The same with so many steps of every training, and so many general pictures, a quarter as many to test."""
        scale = self if steps is None else replace(self, steps=steps, generator_steps=steps)
        return scale if pictures is None else replace(scale, counts={"train": pictures, "test": -(-pictures // 4)})


SCALES: dict[Size, Scale] = {
    "cpu": Scale("cpu", 32, 8, 1500, 32, 32, 4000, 16, {"train": 1760, "test": 440}),
    "full": Scale("full", 64, 64, 10_000, 64, 128, 30_000, 32, {"train": 11_000, "test": 2750}),
}


@dataclass(frozen=True)
class Cell:
    """How well the detector of a row tells the column's pictures. accuracy: at 0.5, real and generated alike."""

    real: int
    generated: int
    accuracy: Interval | None
    auc: Interval | None


Cells = dict[tuple[str, str], Cell]
"""(training family, test family) to its figures; cells that cannot be are missing."""


@dataclass(frozen=True, eq=False)
class Matrix:
    """All that was measured. families: in the order of rows and columns. stand_ins: whether general images are."""

    families: list[Family]
    cells: Cells
    cards: dict[str, Card]
    stand_ins: bool
    phantom: bool
    notes: list[str]


def measure_matrix(
    data: Path, images: Mapping[str, Path], scale: Scale, out: Path, *, seed: int = 0, device: str = "cpu"
) -> Matrix:
    """Read or make the pictures, train the rows, score the cells; OUT keeps generators, detectors and scores.

    images: family to folder, see `read_families`; empty: stand-ins. Raises ReadError, DataError and RecipeError.
    """
    ct: CtSide = read_ct(data, scale.side)
    if images:
        general, note = read_families(images, scale.side, scale.counts, seed), folder_note(images)
    else:
        how = StandIns(
            size=scale.size,
            side=scale.side,
            width=scale.generator_width,
            steps=scale.generator_steps,
            batch=scale.generator_batch,
            counts=dict(scale.counts),
            seed=seed,
        )
        general, note = make_stand_ins(how, out / "stand-ins", device)
    families = [*general, *ct.families]
    cells: Cells = {}
    cards: dict[str, Card] = {}
    for row in families:
        if not row.has("train"):
            continue
        detector, cards[row.name] = train_row(row, scale, out / "detectors", seed)
        for column in families:
            if column.has("test"):
                kept = out / "cells" / f"{row.name}_on_{column.name}.json"
                scores = _scores(detector.to(device), cards[row.name], column, kept, device)
                cells[row.name, column.name] = figures(column, *scores)
    return Matrix(families, cells, cards, not images, ct.phantom, [note, ct.note, _detector_note(scale)])


def train_row(family: Family, scale: Scale, out: Path, seed: int) -> tuple[nn.Module, Card]:
    """The detector of one family, trained or loaded."""
    recipe = Recipe(
        name=f"general_on_{family.name}",
        model="resnet50-nodown",
        size=scale.size,
        steps=scale.steps,
        batch=scale.batch,
        seed=seed,
        decay=True,
        optimiser={"lr": RATE},
        model_settings={"width": scale.width},
        data_settings={"side": scale.side, "material": family.digest("train")},
    )
    batches = PictureBatches(family.real["train"], family.fake["train"], scale.batch, seed)
    log.info("training on %s: %d patches", family.name, 2 * len(family.real["train"].values))
    return train_kept(partial(GeneralDetector, scale.width), batches, recipe, out, f"{family.name}, patches")


def _scores(
    detector: nn.Module, card: Card, column: Family, kept: Path, device: str
) -> tuple[list[float], list[float]]:
    """Logits of the column's real and generated test patches, from the work folder where they are there already."""
    key = hashlib.sha256(f"{card.sha256} {column.digest('test')}".encode()).hexdigest()
    stored = read_kept(kept, key)
    if stored is None:
        real, fake = (logits(detector, side["test"], device) for side in (column.real, column.fake))
        stored = [{"real": real, "generated": fake}]
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_kept(kept, key, stored)
    return stored[0]["real"], stored[0]["generated"]


@torch.no_grad()
def logits(detector: nn.Module, pictures: Pictures, device: str = "cpu") -> list[float]:
    """One logit per patch."""
    found: list[float] = []
    count = len(pictures.values)
    for start in progress(range(0, count, AT_ONCE), "scoring", -(-count // AT_ONCE)):
        found += detector(pictures.tensor(slice(start, start + AT_ONCE)).to(device)).cpu().tolist()
    return found


def figures(column: Family, real: Sequence[float], fake: Sequence[float]) -> Cell:
    """Accuracy and AUC with intervals over the units of the column."""
    ours, theirs = column.real["test"].units, column.fake["test"].units
    patients = Patients((*ours, *theirs))
    passed = patients.mean(ours, (np.asarray(real) < 0).astype(float).tolist())
    caught = patients.mean(theirs, (np.asarray(fake) >= 0).astype(float).tolist())
    area = patients.auc(theirs, fake, ours, real)
    return Cell(len(real), len(fake), interval((passed + caught) / 2), interval(area))


def _detector_note(scale: Scale) -> str:
    words = "the published width" if scale.width == 64 else f"width {scale.width} of 64"
    return (
        f"Detector: ResNet-50 without early down-sampling (Gragnaniello et al. 2021), {words}, from random weights, "
        f"{scale.steps} steps of {scale.batch} patches, half real and half generated, flipped and turned; the "
        "published one starts from ImageNet and also learns from blurred and compressed images. Intervals: 2,000 "
        "bootstrap resamples, seed 0, by patient, photograph or image; real and generated pictures weigh the same."
    )
