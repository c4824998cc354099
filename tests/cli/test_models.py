"""models and train."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ctguard import zoo
from tests.cli.runner import run

Capture = pytest.CaptureFixture[str]
KEYS = ["name", "kind", "task", "weights", "sha256", "source"]


def test_models_lists_every_entry_of_the_zoo(capfd: Capture) -> None:
    rows = run(capfd, "models", "--json").json
    assert all(list(row) == KEYS for row in rows)
    assert [(row["name"], row["kind"], row["task"]) for row in rows] == [(e.name, e.kind, e.task) for e in zoo.ENTRIES]
    for row, entry in zip(rows, zoo.ENTRIES, strict=True):
        there = entry.weights_path is not None and entry.weights_path.is_file()
        assert (row["sha256"] is not None) == there


def test_models_in_words_is_one_line_each(capfd: Capture) -> None:
    lines = run(capfd, "models").out.splitlines()
    assert lines[0].split() == KEYS
    assert len(lines) == len(zoo.ENTRIES) + 1
    assert all(line.startswith(entry.name) for line, entry in zip(lines[1:], zoo.ENTRIES, strict=True))


def test_the_hash_is_that_of_the_card(capfd: Capture) -> None:
    rows = [row for row in run(capfd, "models", "--json").json if row["sha256"] is not None]
    for row in rows:
        card = json.loads((zoo.WEIGHTS / row["weights"]).with_suffix(".json").read_text())
        assert card["sha256"] == row["sha256"]


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        (None, "recipe"),
        ("not = [toml", "TOML"),
        ('name = "x"\nmodel = "unet"\n', "[cpu]"),
        ('name = "x"\nmodel = "unet"\ntypo = 1\n[cpu]\n', "typo"),
        ('name = "x"\nmodel = "nothing"\n[cpu]\n', "nothing"),
    ],
)
def test_a_bad_recipe_is_one_line(recipe: str | None, words: str, tmp_path: Path, capfd: Capture) -> None:
    path = tmp_path / "recipe.toml"
    if recipe is not None:
        path.write_text(recipe)
    (tmp_path / "index.csv").write_text("scan_id,patient,path\n")
    done = run(capfd, "train", path, "--data", tmp_path / "index.csv", "--out", tmp_path / "run")
    assert (done.code, done.out, len(done.errors)) == (1, "", 1)
    assert words in done.err
    assert not (tmp_path / "run").exists() or words == "nothing"


def test_a_run_is_not_overwritten_unless_resumed(tmp_path: Path, capfd: Capture) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "state.pt").write_bytes(b"a run that was killed")
    done = run(capfd, "train", tmp_path / "r.toml", "--data", tmp_path, "--out", tmp_path / "run")
    assert (done.code, len(done.errors)) == (1, 1)
    assert "--resume" in done.err
