"""`train` end to end, tiny: index in, weights and a whole card out; killed and resumed to the same weights."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from ctguard import io, zoo
from ctguard.core.errors import DataError, RecipeError
from ctguard.core.marks import Mark
from ctguard.core.provenance import Provenance, Source
from ctguard.core.records import Case
from ctguard.core.volume import Volume
from ctguard.io.cases import write_cases
from ctguard.synth.dataset import synth
from ctguard.synth.rule import DatasetRule
from ctguard.synth.sites import SiteRule
from ctguard.train.recipe import Changes
from ctguard.training.run import train
from tests.detect.scans import thorax
from tests.synth.scans import at, lung_site

GENERATOR = """
name = "tiny"
model = "pix2pix"
task = "inject"
seed = 1
data_settings = { nodules_mm = [10.0, 20.0], nodule_share = 0.5, lung_sites = 2 }
[cpu]
steps = 4
batch = 2
ema = 0.5
model_settings = { width = 2, noise_sd = 0.1 }
"""
DETECTOR = """
name = "tiny-unet"
model = "unet"
seed = 1
data_settings = { patch = 48, generators = ["copy-move"], valid_batches = 1 }
[cpu]
steps = 2
batch = 4
validate_every = 1
optimiser = { lr = 1e-3 }
model_settings = { width = 4 }
"""


@pytest.fixture
def index(tmp_path: Path) -> Path:
    """A training and a validation patient, each with a 12 mm finding."""
    cases = []
    for number, split in enumerate(("train", "valid")):
        whole = thorax((24, 96, 112), seed=number)
        volume = Volume(whole.hu, whole.geometry, Provenance(Source("phantom"), (), (Mark("phantom", ""),)))
        io.write(volume, tmp_path / f"{split}.mha")
        nodule = at(volume, lung_site(volume), 12.0, 5.0)
        cases.append(Case(split, split, f"{split}.mha", "ctguard-phantom", "", split, (nodule,)))  # type: ignore[arg-type]
    write_cases(cases, tmp_path / "index.csv")
    return tmp_path / "index.csv"


def recipe(folder: Path, text: str, **changes: str) -> Path:
    for old, new in changes.items():
        text = text.replace(old, new)
    path = folder / "recipe.toml"
    path.write_text(text)
    return path


def test_a_generator_trains_resumes_and_its_card_says_on_what(tmp_path: Path, index: Path) -> None:
    path = recipe(tmp_path, GENERATOR)
    card = train(path, [index], tmp_path / "run")
    assert card.steps == 4 and set(card.metrics) == {"core_mae_hu", "texture_ratio"}
    assert "ctguard-phantom, synthetic" in card.data and card.recipe == path.read_text()
    module, _ = zoo.load(zoo.find("pix2pix", "generator", "inject"), tmp_path / "run" / "tiny.safetensors")
    assert module.equaliser.hu_knots.diff().min() >= 0

    half = recipe(tmp_path, GENERATOR, **{"steps = 4": "steps = 2"})
    train(half, [index], tmp_path / "again")
    resumed = train(recipe(tmp_path, GENERATOR), [index], tmp_path / "again", resume=True)
    assert resumed.sha256 == card.sha256


def test_a_detector_trains_and_is_calibrated_on_pristine_validation_scans(tmp_path: Path, index: Path) -> None:
    rule = DatasetRule(generators=("copy-move",), sites=SiteRule(injections=1))
    assert synth(index, tmp_path / "set", rule).forgeries > 0
    card = train(recipe(tmp_path, DETECTOR), [tmp_path / "set"], tmp_path / "run")
    assert card.threshold is not None and 0 < card.threshold <= 1
    rows = list(csv.DictReader((tmp_path / "run" / "pristine.csv").open()))
    assert [row["scan_id"] for row in rows] == ["valid", "valid"] and rows[0]["operation"] == "none"
    assert all(0 < float(row["score"]) < card.threshold and float(row["searched_ml"]) > 0 for row in rows)
    assert "n = 2 pristine" in card.threshold_note and "1 scans, each as it is and after" in card.threshold_note
    plain = {"[cpu]": "[matrix]", '"copy-move"': '"pix2pix"', "valid_batches": "calibrate = false, valid_batches"}
    sealed = train(
        recipe(tmp_path, DETECTOR, valid_batches="calibrate = false, sealed = true, valid_batches"),
        [tmp_path / "set"],
        tmp_path / "sealed",
    )
    assert "one scan of 3 with a seal" in sealed.data and sealed.sha256 != card.sha256
    cell = train(
        recipe(
            tmp_path,
            DETECTOR,
            **plain,
        ),
        [tmp_path / "set"],
        tmp_path / "cell",
        size="matrix",
        changes=Changes(generators=("copy-move",)),
    )
    assert (cell.name, cell.size) == ("tiny-unet_on_copy-move", "matrix") and "forgeries by copy-move (" in cell.data
    assert (tmp_path / "cell" / "tiny-unet_on_copy-move.safetensors").exists()
    assert cell.threshold is None and not (tmp_path / "cell" / "pristine.csv").exists()
    shown = recipe(tmp_path, DETECTOR, valid_batches="stand_ins = true, valid_batches")
    assert "copy-move and stand-ins" in train(shown, [tmp_path / "set"], tmp_path / "shown").data
    with pytest.raises(RecipeError, match="no detector"):
        train(recipe(tmp_path, GENERATOR), [index], tmp_path / "none", changes=Changes(generators=("pix2pix",)))
    with pytest.raises(RecipeError, match="one folder"):
        train(recipe(tmp_path, DETECTOR), [tmp_path / "set", tmp_path / "set"], tmp_path / "other")
    beside = train(recipe(tmp_path, DETECTOR), [tmp_path / "set", index], tmp_path / "beside")
    assert ", 1 untouched nodules more" in beside.data and beside.sha256 != card.sha256


def io_cases(index: Path) -> list[Case]:
    from ctguard.io.cases import read_cases

    return read_cases(index)


def test_an_index_without_training_cases_is_refused(tmp_path: Path, index: Path) -> None:
    cases = [case for case in io_cases(index) if case.split == "valid"]
    write_cases(cases, tmp_path / "valid.csv")
    with pytest.raises(DataError, match="no training case"):
        train(recipe(tmp_path, GENERATOR), [tmp_path / "valid.csv"], tmp_path / "run")


def test_metrics_of_a_perfect_generator(tmp_path: Path) -> None:
    import torch

    from ctguard.tamper.controls import Identity
    from ctguard.training.cubes import judge_generator

    hu = torch.from_numpy(np.random.default_rng(0).normal(-800, 40, (2, 1, 32, 32, 32)).astype(np.float32))
    batch = {"hu": hu, "mask": torch.ones_like(hu), "noise": torch.zeros_like(hu)}
    metrics = judge_generator(Identity(), [batch])
    assert metrics["core_mae_hu"] < 0.01
    assert metrics["texture_ratio"] == pytest.approx(1.0, abs=1e-3)
