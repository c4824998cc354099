"""`ctguard bench general`: the matrix of general pictures and CT, with networks too small to be of use."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ctguard.bench.general.matrix import SCALES, Scale, figures, logits, train_row
from ctguard.bench.general.pictures import FAMILIES, GENERAL, PARTS, REAL, Family, Pictures, folder_note, read_families
from ctguard.bench.general.tables import ACCURACY, NO_FORGERIES
from ctguard.core.errors import CtguardError, DataError, ReadError, RecipeError
from ctguard.detect.general import GeneralDetector
from tests.bench.make import data_set
from tests.cli.runner import Done, run

TINY = Scale("cpu", 16, 1, 2, 4, 4, 2, 4, {"train": 11, "test": 11})
STARTED = ("general.csv", "general.json", "general.md", "general.html", "matrix.png", "examples.png")


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SCALES, "cpu", TINY)
    monkeypatch.setattr("ctguard.train.fit._RECALIBRATION_BATCHES", 1)


@pytest.fixture(scope="module")
def forged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return data_set(tmp_path_factory.mktemp("forged"), {"train": 1, "test": 2}, ("pix2pix", "cyclegan"))


def bench(capfd: pytest.CaptureFixture[str], data: Path, out: Path, *more: object) -> Done:
    return run(capfd, "bench", "general", "--data", data, "--out", out, "--device", "cpu", "--json", *map(str, more))


def outputs(out: Path) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in STARTED}


def killed_at(monkeypatch: pytest.MonkeyPatch, call: int) -> None:
    """Stop, as Ctrl-C does, at this training step of a detector."""
    step, calls = GeneralDetector.step, []

    def stopping(self: GeneralDetector, batch: dict[str, torch.Tensor], turn: str) -> dict[str, torch.Tensor]:
        calls.append(turn)
        if len(calls) == call:
            raise KeyboardInterrupt
        return step(self, batch, turn)

    monkeypatch.setattr(GeneralDetector, "step", stopping)


def test_stand_ins_in_the_layout_of_the_slides_and_again_after_a_kill(
    forged: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    done = bench(capfd, forged, out)
    assert done.code == 0, done.err
    _check_layout(done.json["tables"])
    notes = " ".join(done.json["notes"])
    assert "stand-ins" in notes and "They are not ProGAN, StyleGAN2 and LDM" in notes and "16 x 16 pixels" in notes
    assert "No forgeries to learn from in the data set: diffusion." in notes and "width 1 of 64" in notes
    with (out / "general.csv").open() as stream:
        lines = list(csv.DictReader(stream))
    assert [(line["trained"], line["test"]) for line in lines] == [(a, b) for a in FAMILIES for b in FAMILIES]
    assert {line["auc"] != "" for line in lines if "diffusion" in line.values()} == {False}
    first = outputs(out)
    shutil.rmtree(out)
    with monkeypatch.context() as context:
        killed_at(context, 7)  # in the third row
        assert bench(capfd, forged, out).code == 130
    trained = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    assert len(trained) == 3 + 2 and len(list((out / "cells").iterdir())) == 2 * 5
    assert bench(capfd, forged, out).code == 0
    assert outputs(out) == first
    assert {path: path.stat().st_mtime_ns for path in trained} == trained
    refused = bench(capfd, forged, out, "--seed", 1)
    assert refused.code == 1 and "choose another --out" in refused.err


def _check_layout(tables: list[dict[str, Any]]) -> None:
    accuracy, auc = tables
    tests = accuracy["columns"][2:]
    assert [column.split()[1] for column in tests] == list(FAMILIES) == list(ACCURACY)
    ours = [row for row in accuracy["rows"] if row["by"] == "ours"]
    assert [row["training set"] for row in ours] == [
        *(f"stand-ins: {name}" for name in GENERAL),
        *("CT: pix2pix", "CT: cyclegan", "CT: diffusion"),
    ]
    for row in ours:
        missing = [row[column] == NO_FORGERIES for column in tests]
        assert missing == [row["training set"] == "CT: diffusion"] * 5 + [True]
    printed = [row for row in accuracy["rows"] if row["by"].startswith("slides")]
    assert printed[0]["by"] == "slides: ProGAN" and printed[0][tests[1]] == "98.1" and printed[5][tests[5]] == "97.3"
    assert not any(row["by"].startswith("slides") for row in auc["rows"])
    assert sum(row["by"] == "95 %" for row in auc["rows"]) == 5


def noise_folder(folder: Path, count: int, seed: int, suffix: str = ".png") -> Path:
    """RGB noise of 24 x 20 pixels."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for k in range(count):
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(folder / f"{k:03}{suffix}")
    return folder


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    """Real ones and three families."""
    return {name: noise_folder(tmp_path / name, 16, k) for k, name in enumerate((REAL, *GENERAL))}


def test_folders_of_images_take_the_place_of_stand_ins(
    forged: Path, folders: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = [word for name, folder in folders.items() for word in ("--images", f"{name}={folder}")]
    done = bench(capfd, forged, tmp_path / "out", *words)
    assert done.code == 0, done.err
    assert done.json["notes"][0].startswith("General images: the folders given: real real (16 images)")
    assert done.json["tables"][1]["rows"][0]["training set"] == "general: progressive"
    assert not (tmp_path / "out" / "stand-ins").exists()


def test_real_images_are_not_told_from_real_ones_and_dull_ones_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ctguard.train.fit._RECALIBRATION_BATCHES", 8)
    scale = Scale("cpu", 16, 4, 40, 16, 4, 2, 4, {})
    rng = np.random.default_rng(0)
    real, others, more = (rng.integers(0, 256, (140, 1, 16, 16), dtype=np.uint8) for _ in range(3))
    found = {}
    for name, fake in (("same", others), ("dull", more // 2 + 64)):
        sides = [
            {"train": Pictures(side[:100], ("",) * 100), "test": Pictures(side[100:], tuple(map(str, range(40))))}
            for side in (real, fake)
        ]
        family = Family(name, *sides)  # type: ignore[arg-type]
        detector, _ = train_row(family, scale, tmp_path, seed=0)
        cell = figures(family, *(logits(detector, side["test"]) for side in (family.real, family.fake)))
        assert cell.auc is not None and cell.accuracy is not None
        found[name] = cell.auc
    assert found["same"].low < 0.5 < found["same"].high
    assert found["dull"].low > 0.95


def test_half_of_both_sides_right_is_an_accuracy_of_a_half() -> None:
    patches = Pictures(np.zeros((4, 1, 2, 2), np.float32), ("a", "a", "b", "b"))
    family = Family("style", {"test": patches}, {"test": patches})
    cell = figures(family, [-1, 2, -1, 2], [-1, 2, -1, 2])
    assert cell.accuracy is not None and cell.auc is not None
    assert (cell.accuracy.value, cell.accuracy.low, cell.accuracy.high) == (0.5, 0.5, 0.5)
    assert cell.auc.value == 0.5 and (cell.real, cell.generated) == (4, 4)
    all_right = figures(family, [-1] * 4, [0] * 4)
    assert all_right.accuracy is not None and all_right.accuracy.value == 1.0  # 0 is 0.5: called generated


def test_test_images_are_no_training_images(folders: dict[str, Path]) -> None:
    families = read_families(folders, 16, {"train": 100, "test": 100}, seed=0)
    assert [family.name for family in families] == list(GENERAL)
    units = {part: set(families[0].real[part].units) for part in PARTS}
    assert len(units["train"]) == 12 and len(units["test"]) == 4 and not units["train"] & units["test"]
    assert families[0].fake["test"].units == families[0].real["test"].units
    again = read_families(folders, 16, {"train": 100, "test": 100}, seed=0)
    assert all(a.digest(part) == b.digest(part) for a, b in zip(families, again, strict=True) for part in PARTS)


def test_images_that_cannot_be_used_are_refused_with_their_name(folders: dict[str, Path], tmp_path: Path) -> None:
    counts = {"train": 4, "test": 4}

    def refusal(kind: type[CtguardError], changes: dict[str, Path], side: int = 16) -> str:
        with pytest.raises(kind) as refused:
            read_families({**folders, **changes}, side, counts, seed=0)  # type: ignore[arg-type]
        return str(refused.value)

    assert "'biggan'" in refusal(RecipeError, {"biggan": tmp_path})
    assert "no such folder" in refusal(DataError, {"style": tmp_path / "nowhere"})
    assert "0 images are too few" in refusal(DataError, {"style": noise_folder(tmp_path / "empty", 0, 0)})
    assert "24 x 20 pixels hold no patch of 32" in refusal(DataError, {}, side=32)
    damaged = noise_folder(tmp_path / "damaged", 8, 0)
    for path in damaged.iterdir():
        path.write_bytes(b"not an image")
    assert "not an image" in refusal(ReadError, {"latent": damaged})
    with pytest.raises(RecipeError, match="latent: no folder"):
        read_families({name: folders[name] for name in (REAL, *GENERAL[:2])}, 16, counts, seed=0)  # type: ignore[arg-type]


def test_words_that_are_no_folder_are_wrong_use(
    forged: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    done = bench(capfd, forged, tmp_path / "out", "--images", "real")
    assert done.code == 2 and "not NAME=PATH" in done.err and not (tmp_path / "out").exists()


def test_formats_that_differ_are_told(folders: dict[str, Path], tmp_path: Path) -> None:
    assert "compression" not in folder_note(folders)
    folders["style"] = noise_folder(tmp_path / "jpeg", 16, 0, suffix=".jpg")
    assert "style .jpg" in folder_note(folders) and "learn compression" in folder_note(folders)
