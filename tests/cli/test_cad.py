"""cad and bench malignancy on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from ctguard import io
from ctguard.cad.network import NoisyOr3d
from ctguard.train.checkpoint import Card, save_checkpoint
from tests.bench.test_malignancy import data  # noqa: F401  (a fixture)
from tests.cli.runner import run
from tests.cli.scans import small_volume
from tests.detect.scans import thorax

Capture = pytest.CaptureFixture[str]
KEYS = {"scan", "scorer", "threshold", "seconds", "peak_mb"}


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """An untrained scorer that proposes whatever it looks at."""
    torch.manual_seed(0)
    settings = {"width": 3, "block_mm": 16, "find_above": 0.03}
    card = Card("cad", "noisy-or", "malignancy", "cpu", settings, "nothing", 0, 0, "", "", threshold=0.5)
    save_checkpoint(NoisyOr3d(**settings), card, tmp_path / "weights")  # type: ignore[arg-type]
    return tmp_path / "weights" / "cad.safetensors"


def test_nodules_with_scores_in_words_json_and_a_folder(tmp_path: Path, weights: Path, capfd: Capture) -> None:
    scan = io.write(thorax((8, 48, 56), (2.5, 3.0, 3.0)), tmp_path / "scan.mha")
    out = tmp_path / "out"
    done = run(capfd, "cad", scan, "--weights", weights, "--out", out, "--json", "--quiet")
    assert (done.code, done.err) == (0, "")
    found = done.json
    assert set(found) == KEYS | {"case_probability", "nodules"} and found["nodules"]
    assert set(found["nodules"][0]) == {
        "center_zyx",
        "center_lps_mm",
        "diameter_mm",
        "confidence",
        "malignancy",
        "malignant",
    }
    stored = json.loads((out / "reading.json").read_text())
    assert stored["nodules"] == found["nodules"] and stored["model_id"]
    page = (out / "report.html").read_text()
    assert "surrogate" in page and "data:image/png" in page and "not for diagnosis" in page.lower()
    assert (out / "nodules.png").read_bytes().startswith(b"\x89PNG") and (out / "run.json").is_file()
    words = run(capfd, "cad", scan, "--weights", weights, "--quiet").out.splitlines()
    assert "proposed" in words[0] and len(words) == 1 + len(found["nodules"])


def test_one_place_is_scored(tmp_path: Path, weights: Path, capfd: Capture) -> None:
    scan = io.write(thorax((8, 48, 56), (2.5, 3.0, 3.0)), tmp_path / "scan.mha")
    done = run(capfd, "cad", scan, "--at", "4,24,38", "--weights", weights, "--out", tmp_path / "out", "--json")
    assert set(done.json) == KEYS | {"center_zyx", "center_lps_mm", "malignancy", "malignant"}
    assert done.json["center_zyx"] == [4, 24, 38] and 0 <= done.json["malignancy"] <= 1
    assert "One place" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize(("at", "code", "words"), [("6,32", 2, "three numbers"), ("6,32,500", 1, "outside the scan")])
def test_a_wrong_place_is_one_line(
    tmp_path: Path, weights: Path, capfd: Capture, at: str, code: int, words: str
) -> None:
    scan = io.write(small_volume(), tmp_path / "scan.mha")
    done = run(capfd, "cad", scan, "--at", at, "--weights", weights, "--out", tmp_path / "out")
    assert done.code == code and words in done.err
    assert not (tmp_path / "out").exists()


def test_bench_malignancy_writes_tables_and_the_figure(data: Path, tmp_path: Path, capfd: Capture) -> None:  # noqa: F811
    out = tmp_path / "bench"
    chosen = ("--data", data, "--weights", data / "weights" / "cad.safetensors", "--out", out)
    done = run(capfd, "bench", "malignancy", *chosen, "--json", "--quiet")
    assert (done.code, done.err) == (0, "")
    assert [table["title"] for table in done.json["tables"]] == [
        "Pristine nodules",
        "Injections and removals",
        "Forgery quality",
    ]
    for name in ("malignancy.csv", "malignancy.json", "malignancy.md", "malignancy.png", "run.json"):
        assert (out / name).is_file()
    assert "before anything was forged" in (out / "malignancy.md").read_text()


def test_bench_without_forgeries_says_what_to_do(tmp_path: Path, capfd: Capture) -> None:
    done = run(capfd, "bench", "malignancy", "--data", tmp_path, "--out", tmp_path / "out")
    assert (done.code, len(done.errors)) == (1, 1) and "ctguard synth" in done.err
