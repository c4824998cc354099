"""`ctguard bench detection` on a data set that anybody can judge, with detectors that know, or do not."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from ctguard import zoo
from ctguard.bench.calibrated import alarms_of
from ctguard.bench.detection import Measuring, Protocol, Scored, forged_cases, measure_models
from ctguard.bench.judging import Judge, Remembering, slab_slices
from ctguard.bench.models import find_matrix, find_models
from ctguard.core.errors import ModelError, ReadError
from ctguard.core.threshold import Threshold
from ctguard.detect.infer import detect_volume
from ctguard.detect.unet import UNet2d
from tests.bench.make import SEEN, SHAPE, Stub, add_detectors, data_set, save
from tests.cli.runner import run
from tests.detect.scans import thorax


@pytest.fixture(scope="module")
def forged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return data_set(tmp_path_factory.mktemp("forged"), {"test": 3, "valid": 1})


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    add_detectors(monkeypatch, tmp_path / "weights")
    return tmp_path / "weights"


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures take most of a run's time, and are looked at by two of the tests."""
    monkeypatch.setattr("ctguard.report.detection_bench._figures", lambda *_: {})


def bench(
    capfd: pytest.CaptureFixture[str], data: Path, out: Path, *more: object
) -> dict[str, list[dict[str, object]]]:
    """Run the verb; its tables by title."""
    done = run(capfd, "bench", "detection", "--data", data, "--out", out, "--device", "cpu", "--json", *more)
    assert done.code == 0, done.err
    return {table["title"]: table["rows"] for table in json.loads(done.out)["tables"]}


def test_one_that_knows_and_one_that_does_not(
    forged: Path, weights: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    tables = bench(capfd, forged, out, "--weights", weights)
    rows = {(row["detector"], row["forgery"]): row for row in tables["Calibrated protocol: forgeries"]}
    knows, constant, mute = (rows[f"{name} (cpu)", "all generators"] for name in ("stub", "constant", "mute"))
    for figure in ("auc", "sensitivity", "f1", "f1 pooled", "iou", "precision", "pointing"):
        assert knows[figure]["value"] == 1.0, figure
    assert constant["auc"]["value"] == 0.5 and constant["sensitivity"]["value"] == 0.0
    assert constant["f1"]["value"] == 0.0 and constant["precision"]["value"] < 0.01
    assert mute["auc"]["value"] == 1.0 and mute["f1"] is None  # never a zero for what was not measured
    assert knows["n"] == 6 and rows["stub (cpu)", "copy-move"]["n"] == 6
    pristine = {row["detector"]: row for row in tables["Calibrated protocol: pristine scans"]}
    assert pristine["stub (cpu)"]["specificity"]["value"] == 1.0
    assert pristine["stub (cpu)"]["false alarms"] == "0 of 3 (<= 63.2%)"
    head = {row["detector"]: row for row in tables["Calibrated protocol: all generators"]}
    assert head["stub (cpu)"]["f1"] == knows["f1"] and head["constant (cpu)"]["n"] == 6
    assert pristine["stub (cpu)"]["false regions per scan"]["value"] == 0.0
    assert pristine["stub (cpu)"]["identity called forged"]["value"] == 0.0
    assert pristine["stub (cpu)"]["auc pix2pix : identity"]["value"] == 1.0
    paper = {(row["detector"], row["test"]): row for row in tables["Paper protocol: detectors as shipped"]}
    assert paper["stub (cpu)", "pix2pix"]["acc"]["value"] == paper["stub (cpu)", "pix2pix"]["pd@1%"]["value"] == 1.0
    assert paper["constant (cpu)", "pix2pix"]["acc"]["value"] == 0.5
    assert paper["constant (cpu)", "pix2pix"]["pd@1%"]["value"] == 0.0
    for name in ("detection.csv", "detection.md", "detection.html", "roc.png", "calibration.png", "maps.png"):
        assert (out / name).stat().st_size > 0
    with (out / "detection.csv").open() as stream:
        lines = list(csv.DictReader(stream))
    assert len(lines) == 3 * 3 * (1 + 6) and lines[0]["slab_score"]


def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(
    forged: Path, weights: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    options = (forged, out, "--weights", weights, "--detectors", "stub,constant")
    bench(capfd, *options)
    made = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file() and path.name != "run.json"}
    for path in made:
        (out / path).unlink()
    (out / "scans" / "stub" / "scan-1.json").unlink()  # the scan that was at work when it was killed
    SEEN.clear()
    bench(capfd, *options)
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.name in made} == made
    again = sum(SEEN)
    assert again < 3 * SHAPE[0] * 7  # one of three scans (and the examples of the figure) was judged anew


def test_rows_of_other_weights_are_measured_anew(
    forged: Path, weights: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    index, items = forged_cases(forged, "test", 1)
    models = [(model, Protocol()) for model in find_models(["stub"], weights)]
    measure_models(models, index, items, Measuring(out))
    SEEN.clear()
    measure_models(models, index, items, Measuring(out))
    assert not SEEN
    changed = [(model.at(Threshold(0.9), ""), protocol) for model, protocol in models]
    measure_models(changed, index, items, Measuring(out))
    assert SEEN


@pytest.mark.usefixtures("no_figures")
def test_a_threshold_that_the_card_lacks_comes_from_the_valid_split(
    forged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    add_detectors(monkeypatch, tmp_path / "weights", threshold=None)
    options = ("--weights", tmp_path / "weights", "--detectors", "stub", "--patients", 1)
    bench(capfd, forged, tmp_path / "out", *options)
    text = (tmp_path / "out" / "detection.md").read_text()
    assert "n = 2 pristine validation scans" in text and "33.3%" in text
    assert "1 scans, each as it is and after one honest operation" in text
    alone = data_set(tmp_path / "alone", {"test": 1})
    done = run(capfd, "bench", "detection", "--data", alone, "--out", tmp_path / "no", "--device", "cpu", *options)
    assert done.code == 1 and "no threshold" in done.err


@pytest.mark.usefixtures("no_figures")
def test_what_is_not_trained_is_printed_as_such(
    forged: Path, weights: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (weights / "constant.safetensors").unlink()
    tables = bench(capfd, forged, tmp_path / "out", "--weights", weights, "--patients", "1")
    rows = [row for row in tables["Calibrated protocol: forgeries"] if row["detector"] == "constant"]
    assert [row["forgery"] for row in rows] == ["not trained"]
    with pytest.raises(ModelError, match="not trained"):
        find_models(["constant"], weights)


@pytest.mark.usefixtures("no_figures")
def test_the_matrix_says_which_cells_are_missing(
    forged: Path, weights: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    cells = tmp_path / "matrix"
    save(Stub(), "stub_on_pix2pix", cells)
    save(Stub(), "constant_on_diffusion", cells)
    tables = bench(
        capfd, forged, tmp_path / "out", "--weights", weights, "--detectors", "stub", "--matrix", cells, "--patients", 1
    )
    row = next(
        row for title, rows in tables.items() if "detection, Acc" in title for row in rows if row["method"] == "stub"
    )
    assert row["test P2P, trained P2P"] == "100.0/100.0"
    assert row["test P2P, trained Cyc"] == "not trained"
    assert row["test Cyc, trained P2P"] == "no test"  # nothing here was forged by CycleGAN
    with (tmp_path / "out" / "matrix.csv").open() as stream:
        lines = {(line["detector"], line["test"], line["trained"]): line for line in csv.DictReader(stream)}
    assert lines["stub", "pix2pix", "pix2pix"]["f1"] == "1"
    assert lines["stub", "pix2pix", "cyclegan"]["f1"] == ""
    assert "Calibrated protocol: one training generator" not in tables  # no cell has a threshold
    save(Stub(), "stub_on_stylegan", cells)
    with pytest.raises(ModelError, match="stylegan"):
        find_matrix(cells)


@pytest.mark.usefixtures("no_figures")
def test_cells_with_a_threshold_judge_whole_scans_too(
    forged: Path, weights: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    cells = tmp_path / "matrix"
    save(Stub(), "stub_on_pix2pix", cells, threshold=0.5)
    save(Stub(), "stub_on_diffusion", cells)
    tables = bench(capfd, forged, tmp_path / "out", "--weights", weights, "--detectors", "stub", "--matrix", cells)
    rows = tables["Calibrated protocol: one training generator"]
    assert [(row["trained"], row["test"], row["n"]) for row in rows] == [("pix2pix", "pix2pix", 6)]
    assert rows[0]["sensitivity"]["value"] == 1.0 and rows[0]["false alarms"] == "0 of 3 (<= 63.2%)"


def test_an_empty_split_is_refused(
    weights: Path, forged: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    done = run(
        capfd, "bench", "detection", "--data", forged, "--out", tmp_path / "o", "--split", "train", "--device", "cpu"
    )
    assert done.code == 1 and "no train scan has a forgery" in done.err


def test_remembered_slices_give_the_verdict_of_detect() -> None:
    volume, detector = thorax((6, 48, 56), (2.5, 6.0, 6.0)), UNet2d(width=2).eval()
    judge = Judge(detector, threshold=Threshold(0.01))
    first, again = judge.look(volume), judge.look(volume)
    verdict = detect_volume(volume, detector, name="", model_id="", threshold=Threshold(0.01))
    assert first.score == again.score == pytest.approx(verdict.score, abs=1e-6)
    assert np.allclose(first.map, verdict.map, atol=1e-6) and first.regions == len(verdict.regions)


class Blocks(Stub):
    """The same of blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.dims = 3


def test_a_detector_of_blocks_is_remembered_too() -> None:
    volume = thorax((30, 48, 56), (2.5, 6.0, 6.0))
    judge = Judge(Blocks(), threshold=Threshold(1e-9))
    first = judge.look(volume)
    SEEN.clear()
    assert judge.look(volume).score == first.score and not SEEN
    verdict = detect_volume(volume, Blocks(), name="", model_id="", threshold=Threshold(1e-9))
    assert first.score == pytest.approx(verdict.score) and np.allclose(first.map, verdict.map)


def test_a_slice_that_did_not_change_is_not_judged_again() -> None:
    volume = thorax((6, 48, 56), (2.5, 6.0, 6.0))
    changed = volume.hu.copy()
    changed[3, 24, 20] += 500
    judge = Judge(Stub())
    judge.look(volume)
    judge.detector.keep()
    SEEN.clear()
    for _ in range(2):
        judge.look(type(volume)(changed, volume.geometry, volume.provenance))
        judge.detector.forget()
    assert sum(SEEN) == 2  # the changed slice, forgotten in between
    assert isinstance(judge.detector, Remembering)


@pytest.mark.parametrize(
    ("count", "center", "expected"), [(64, 30.2, (14, 46)), (64, 3, (0, 32)), (64, 62, (32, 64)), (20, 9, (0, 20))]
)
def test_a_slab_is_32_slices_that_hold_the_site(count: int, center: float, expected: tuple[int, int]) -> None:
    z = slab_slices(count, center)
    assert (z.start, z.stop) == expected


def test_no_alarm_in_299_scans_excludes_one_per_cent() -> None:
    assert alarms_of(0, 299) == "0 of 299 (<= 1.0%)" and alarms_of(3, 3) == "3 of 3 (<= 100.0%)"


def test_rows_survive_their_file() -> None:
    row = Scored("p", "pix2pix", "inject", 0.25, f1=float("nan"), scan_id="s", center_zyx=(1.0, 2.0, 3.0))
    kept = Scored.from_json(json.loads(json.dumps(row.to_json())))
    assert repr(kept) == repr(row)


def test_every_detector_of_the_package_is_asked_for_by_default() -> None:
    assert [model.detector for model in find_models()] == list(zoo.names("detector"))


def test_a_data_set_without_forgeries_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ReadError, match="no forgeries"):
        forged_cases(tmp_path, "test")
