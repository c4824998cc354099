"""The panels: which scans, which rows, and what is said where an operation cannot be done."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from ctguard.bench.detection import Measuring, forged_cases
from ctguard.bench.metrics import exact_share
from ctguard.bench.models import find_models
from ctguard.bench.operations import OPERATIONS, operations
from ctguard.bench.panels import Probe, measure_panels, panel_items, panel_tables
from tests.bench.make import SEEN, add_detectors, data_set
from tests.cli.runner import run


@pytest.fixture(scope="module")
def forged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return data_set(tmp_path_factory.mktemp("forged"), {"test": 4}, ("pix2pix", "cyclegan"))


def test_forgeries_take_turns(forged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_detectors(monkeypatch, tmp_path)
    _, items = forged_cases(forged, "test")
    chosen = [forgery.edit for _, forgery, _ in panel_items(items, find_models(), 4) if forgery]
    assert [(edit.generator, edit.task) for edit in chosen] == [
        ("cyclegan", "inject"),
        ("pix2pix", "inject"),
        ("cyclegan", "remove"),
        ("pix2pix", "remove"),
    ]


def test_panels_of_one_that_knows(
    forged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    add_detectors(monkeypatch, tmp_path / "weights")
    monkeypatch.setitem(sys.modules, "jpeg_ls", None)
    index, items = forged_cases(forged, "test")
    models = find_models(["stub", "constant"], tmp_path / "weights")
    probes = measure_panels(models, index, items, Measuring(tmp_path / "work"), scans=1)
    alarms, found = panel_tables(models, probes, "run")
    rows = {row["operation"]: row for row in alarms.rows}
    assert len(rows) == 2 + len(OPERATIONS) and rows["untouched malignant nodules, 8-20 mm"]["n"] == 1
    assert rows["as it is"]["stub (cpu)"] == exact_share(0, 1)
    assert "no phantom" in rows["another kernel"]["left out"] and "stub (cpu)" not in rows["another kernel"]
    assert "pyjpegls" in rows["JPEG-LS, near-lossless, 3 HU"]["left out"]
    robust = {row["operation"]: row for row in found.rows}
    assert len(robust) == len(operations(after_forging=True))
    assert robust["16-bit resave"]["stub (cpu)"].value == 1.0
    assert robust["16-bit resave"]["stub (cpu) points"].value == 1.0
    assert robust["5 mm slices"]["stub (cpu) points"].value == 1.0  # the site moved along to the other grid
    assert robust["as it is"]["constant (cpu)"].value == 0.0
    SEEN.clear()
    assert repr(measure_panels(models, index, items, Measuring(tmp_path / "work"), scans=1)) == repr(probes)
    assert not SEEN  # all of it was kept


def test_the_verb_writes_the_panels(
    forged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    add_detectors(monkeypatch, tmp_path / "weights")
    few = tuple(one for one in OPERATIONS if one.name in ("none", "shorter", "jpeg-2000-5"))
    for module in ("operations", "panels"):
        monkeypatch.setattr(f"ctguard.bench.{module}.OPERATIONS", few)
    monkeypatch.setattr("ctguard.report.detection_bench._figures", lambda *_: {})
    words = ("--weights", tmp_path / "weights", "--detectors", "mute", "--patients", 1, "--panels", "--panel-scans", 1)
    done = run(
        capfd, "bench", "detection", "--data", forged, "--out", tmp_path / "out", "--device", "cpu", *words, "--json"
    )
    assert done.code == 0, done.err
    titles = [table["title"] for table in json.loads(done.out)["tables"]]
    assert titles[-2:] == [
        "False-alarm panel: pristine scans called forged, exact intervals",
        "Robustness panel: forged scans called forged, exact intervals",
    ]
    assert "jpeg-2000-5" in (tmp_path / "out" / "panels.csv").read_text()


def test_the_interval_of_a_share_is_exact() -> None:
    assert exact_share(0, 30).high == pytest.approx(1 - 0.025 ** (1 / 30))
    assert (exact_share(30, 30).low, exact_share(30, 30).high) == (pytest.approx(0.025 ** (1 / 30)), 1.0)


def test_a_probe_survives_its_file() -> None:
    probe = Probe("p", "s", "thick", True, left_out="no codec")
    assert repr(Probe.from_json(json.loads(json.dumps(probe.to_json())))) == repr(probe)
