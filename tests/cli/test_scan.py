"""tamper, detect, protect, report, on small scans and with small untrained networks."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import torch

from ctguard import io
from ctguard.detect.unet import UNet2d
from ctguard.train.checkpoint import Card, save_checkpoint
from tests.cli.runner import Done, run
from tests.cli.scans import small_volume

Capture = pytest.CaptureFixture[str]
SITE = ["--task", "inject", "--at", "12,24,24", "--generator", "identity"]


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The log of forgings stays out of the user's home."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / "ctguard" / "forgings.jsonl"


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return io.write(small_volume(5, (24, 48, 48)), tmp_path_factory.mktemp("scan") / "scan.mha")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An untrained detector that calls every scan tampered, one that calls none so, and one without threshold."""
    torch.manual_seed(0)
    found = {}
    for name, threshold in (("alarm", 0.0), ("calm", 1.0), ("uncalibrated", None)):
        folder = tmp_path_factory.mktemp(name)
        card = Card(name, "unet", "", "cpu", {"width": 2}, "none", 0, 0, "", "", threshold=threshold)
        save_checkpoint(UNet2d(width=2), card, folder)
        found[name] = folder / f"{name}.safetensors"
    return found


def _detect(capfd: Capture, scan: Path, weights: Path, *more: str | Path) -> Done:
    return run(capfd, "detect", scan, "--weights", weights, "--device", "cpu", "--quiet", *more)


def _bytes(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_tamper_writes_a_marked_series_with_its_truth(scan: Path, tmp_path: Path, state: Path, capfd: Capture) -> None:
    done = run(capfd, "tamper", scan, tmp_path / "out", *SITE, "--json")
    assert done.code == 0, done.err
    out = tmp_path / "out"
    assert sorted(p.name for p in out.iterdir()) == [
        "edit.json",
        "mask.nii.gz",
        "report.html",
        "run.json",
        "series",
        "strong.nii.gz",
    ]
    assert done.json["center_zyx"] == [12, 24, 24]
    assert done.json["center_lps_mm"] == [36.0, 36.0, 74.0]
    header = pydicom.dcmread(next((out / "series").iterdir()))
    assert header.SyntheticData == "YES"
    assert "FORGED (research)" in header.SeriesDescription
    before, after, mask = io.read(scan).hu, io.read(out / "series").hu, io.read(out / "mask.nii.gz").hu
    assert mask.any()
    assert np.array_equal(before[mask == 0], after[mask == 0])
    assert set(np.unique(mask)) == {0, 1}
    (row,) = state.read_text().splitlines()
    assert json.loads(row)["plan"]["center_zyx"] == [12.0, 24.0, 24.0]


def test_the_same_command_gives_the_same_bytes(scan: Path, tmp_path: Path, capfd: Capture) -> None:
    for name in ("a", "b"):
        run(capfd, "tamper", scan, tmp_path / name, *SITE, "--seed", "3")
        run(capfd, "protect", scan, tmp_path / f"p{name}", "--protector", "noise", "--budget-hu", "6", "--seed", "3")
    for one, other in (("a", "b"), ("pa", "pb")):
        first, second = _bytes(tmp_path / one), _bytes(tmp_path / other)
        assert [name for name in first if first[name] != second.get(name)] == ["run.json"]


def test_run_json_tells_how_to_repeat_it(scan: Path, tmp_path: Path, capfd: Capture) -> None:
    run(capfd, "tamper", scan, tmp_path / "out", *SITE, "--seed", "3")
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["command"] == ["ctguard", "tamper", str(scan), str(tmp_path / "out"), *SITE, "--seed", "3"]
    assert record["seeds"] == {"plan": 3}
    assert list(record["inputs"]) == [str(scan)]
    assert sorted(record["outputs"]) == ["edit.json", "mask.nii.gz", "report.html", "series", "strong.nii.gz"]


def test_a_site_in_millimetres_is_the_same_site(scan: Path, tmp_path: Path, capfd: Capture) -> None:
    run(capfd, "tamper", scan, tmp_path / "index", *SITE)
    words = ["--task", "inject", "--at-mm", "36,36,74", "--generator", "identity"]
    run(capfd, "tamper", scan, tmp_path / "point", *words)
    assert _bytes(tmp_path / "index" / "series") == _bytes(tmp_path / "point" / "series")


@pytest.mark.parametrize("site", [["--at", "99,24,24"], ["--at-mm", "-500,0,0"], ["--at", "1,24,24"]])
def test_a_site_that_does_not_fit_is_one_line(scan: Path, site: list[str], tmp_path: Path, capfd: Capture) -> None:
    done = run(capfd, "tamper", scan, tmp_path / "out", "--task", "remove", *site, "--generator", "identity")
    assert (done.code, done.out, len(done.errors)) == (1, "", 1)
    assert not (tmp_path / "out").exists()


def test_a_clinical_scan_is_not_forged(tmp_path: Path, state: Path, capfd: Capture) -> None:
    clinical = io.write(small_volume(6, (24, 48, 48), phantom=False), tmp_path / "clinical.nrrd")
    done = run(capfd, "tamper", clinical, tmp_path / "out", *SITE)
    assert (done.code, len(done.errors)) == (1, 1)
    assert "de-identified" in done.err
    assert not (tmp_path / "out").exists()
    assert not state.exists()


@pytest.mark.parametrize("format", ["mha", "nii.gz", "nrrd", "tiff"])
def test_other_formats_are_marked_too(scan: Path, format: str, tmp_path: Path, capfd: Capture) -> None:
    assert run(capfd, "tamper", scan, tmp_path / "out", *SITE, "--format", format).code == 0
    assert io.read(tmp_path / "out" / f"series.{format}").provenance.has_mark("forged")


def test_detect_prints_the_documented_object(scan: Path, weights: dict[str, Path], capfd: Capture) -> None:
    facts: dict[str, Any] = _detect(capfd, scan, weights["alarm"], "--json").json
    keys = ["scan", "detector", "score", "threshold", "tampered", "regions", "seconds", "peak_mb"]
    assert list(facts) == keys
    assert facts["tampered"] is True
    assert facts["detector"] == "unet"  # as the card of the weights says
    assert list(facts["regions"][0]) == ["center_zyx", "center_lps_mm", "extent_mm", "score"]
    assert facts["seconds"] > 0
    assert facts["peak_mb"] > 10


def test_only_a_tampered_scan_exits_3_and_only_when_asked(scan: Path, weights: dict[str, Path], capfd: Capture) -> None:
    ask = "--fail-if-tampered"
    assert [_detect(capfd, scan, weights["alarm"]).code, _detect(capfd, scan, weights["alarm"], ask).code] == [0, 3]
    calm = _detect(capfd, scan, weights["calm"], ask)
    assert calm.code == 0
    assert calm.out.startswith("no evidence of tampering found")
    assert "authentic" not in calm.out


def test_detect_writes_map_on_the_scans_grid_and_a_report(
    scan: Path, weights: dict[str, Path], tmp_path: Path, capfd: Capture
) -> None:
    facts = _detect(capfd, scan, weights["alarm"], "--out", tmp_path / "v", "--json").json
    assert sorted(p.name for p in (tmp_path / "v").iterdir()) == [
        "map.nii.gz",
        "report.html",
        "run.json",
        "verdict.json",
        "worst.png",
    ]
    stored = json.loads((tmp_path / "v" / "verdict.json").read_text())
    assert {key: stored[key] for key in stored if key != "model_id"} == {
        key: facts[key] for key in facts if key not in ("seconds", "peak_mb")
    }
    map_ = io.read(tmp_path / "v" / "map.nii.gz")
    assert map_.hu.dtype == np.float32
    assert map_.geometry.agrees(io.read(scan).geometry)
    assert 0 <= map_.hu.min() <= map_.hu.max() <= 1


def test_a_detector_without_threshold_is_refused(scan: Path, weights: dict[str, Path], capfd: Capture) -> None:
    done = _detect(capfd, scan, weights["uncalibrated"])
    assert (done.code, len(done.errors)) == (1, 1)
    assert "threshold" in done.err


@pytest.mark.parametrize("kind", ["detector", "generator", "protector"])
def test_unknown_models_are_refused_with_those_that_exist(
    kind: str, scan: Path, tmp_path: Path, capfd: Capture
) -> None:
    words = {
        "detector": ["detect", scan, "--detector", "oracle"],
        "generator": ["tamper", scan, tmp_path / "o", "--task", "inject", "--at", "12,24,24", "--generator", "oracle"],
        "protector": ["protect", scan, tmp_path / "o", "--protector", "oracle", "--budget-hu", "5"],
    }[kind]
    known = {"detector": "unet", "generator": "pix2pix", "protector": "ascent"}[kind]
    done = run(capfd, *words)
    assert (done.code, len(done.errors)) == (1, 1)
    assert "oracle" in done.err
    assert known in done.err


def test_protect_keeps_its_budget_and_marks_a_copy(scan: Path, tmp_path: Path, capfd: Capture) -> None:
    facts = run(capfd, "protect", scan, tmp_path / "p", "--protector", "noise", "--budget-hu", "7", "--json").json
    before, after = io.read(scan), io.read(tmp_path / "p" / "series")
    added = after.hu.astype(int) - before.hu
    assert facts["max_hu"] == np.abs(added).max() <= 7
    assert after.provenance.has_mark("protected")
    header = pydicom.dcmread(next((tmp_path / "p" / "series").iterdir()))
    assert "PROTECTED COPY - not for primary reading" in header.SeriesDescription


def test_a_forgery_cannot_be_laundered(scan: Path, tmp_path: Path, capfd: Capture) -> None:
    run(capfd, "tamper", scan, tmp_path / "forged", *SITE)
    done = run(
        capfd, "protect", tmp_path / "forged" / "series", tmp_path / "p", "--protector", "noise", "--budget-hu", "5"
    )
    assert (done.code, len(done.errors)) == (1, 1)
    assert "forged" in done.err
    assert not (tmp_path / "p").exists()


def _shown(page: str) -> list[str]:
    """Pictures, headings and numbers of the first section."""
    assert "data:image/png" in page
    return re.findall(r"data:image/png[^\"]+|<h\d.*?</h\d>|<td.*?</td>", page.split("<h2")[1])


def test_report_shows_the_same_again(scan: Path, weights: dict[str, Path], tmp_path: Path, capfd: Capture) -> None:
    run(capfd, "tamper", scan, tmp_path / "tamper", *SITE)
    run(capfd, "protect", scan, tmp_path / "protect", "--protector", "noise", "--budget-hu", "5")
    _detect(capfd, scan, weights["alarm"], "--out", tmp_path / "detect")
    for verb in ("tamper", "protect", "detect"):
        page = tmp_path / verb / "report.html"
        before = page.read_text()
        page.unlink()
        done = run(capfd, "report", tmp_path / verb, "--json")
        assert done.json == {"run": str(tmp_path / verb), "report": str(page)}
        assert _shown(page.read_text()) == _shown(before), verb


def test_report_refuses_what_is_no_run_and_a_scan_that_changed(tmp_path: Path, capfd: Capture) -> None:
    own = io.write(small_volume(8, (24, 48, 48)), tmp_path / "own.mha")
    run(capfd, "tamper", own, tmp_path / "run", *SITE)
    io.write(small_volume(9, (24, 48, 48)), own)
    for folder, words in ((tmp_path / "run", "not that of this run"), (tmp_path, "run.json"), (own, "run.json")):
        done = run(capfd, "report", folder)
        assert (done.code, len(done.errors)) == (1, 1)
        assert words in done.err
