"""The paper's layout: every figure in its own cell, ours and theirs."""

from __future__ import annotations

from pathlib import Path

import pytest

from ctguard.bench.calibrated import difference_table
from ctguard.bench.detection import Scored
from ctguard.bench.models import Model
from ctguard.bench.paper_protocol import matrix_rows, matrix_tables, paper_cell
from ctguard.bench.paper_tables import CELLS, DETECTION, GENERATORS, LOCALISATION, METHODS
from ctguard.bench.resampling import Patients
from ctguard.bench.unseen import gain_table
from ctguard.core.threshold import Threshold
from ctguard.train.checkpoint import Card

CARD = Card("unet", "unet", "", "cpu", {}, "made for a test", 0, 0, "", "", sha256="f" * 64)


def slabs(f1: dict[str, float], score: float = 0.9, patients: int = 4) -> list[Scored]:
    """One pristine and one forged slab of each generator per patient."""
    rows = []
    for k in range(patients):
        rows.append(Scored(f"p{k}", "pristine", "", float("nan"), slab_score=0.1 + 0.01 * k))
        for generator, value in f1.items():
            forged = Scored(f"p{k}", generator, "inject", float("nan"), slab_score=score)
            rows.append(Scored(**{**vars(forged), "slab_f1": value, "slab_iou": value / 2}))
    return rows


def cell(trained: str) -> Model:
    return Model(f"unet_on_{trained}", "unet", Path("unet.safetensors"), CARD, trained)


def test_the_column_group_is_the_test_generator() -> None:
    """Each pair of generators gets an F1 of its own, so that a figure in a wrong cell would show."""
    f1 = {
        (test, train): (10 * i + k + 11) / 100
        for i, test in enumerate(GENERATORS)
        for k, train in enumerate(GENERATORS)
    }
    models = [cell(train) for train in GENERATORS]
    rows = {f"unet_on_{train}": slabs({test: f1[test, train] for test in GENERATORS}) for train in GENERATORS}
    localisation, detection = matrix_tables(models, rows, "run")
    ours, bounds, paper = _three(localisation.rows, "U-Net")
    assert ours["test P2P, trained Cyc"] == "12.0/6.0" and paper["test P2P, trained Cyc"] == "39.7/26.6"
    assert ours["test DM, trained P2P"] == "31.0/15.5" and paper["test DM, trained P2P"] == "46.9/33.3"
    assert ours["test Cyc, trained DM"] == "23.0/11.5" and bounds["test Cyc, trained DM"] == "23–23/12–12"
    assert list(ours)[2:] == list(localisation.columns)[2:]
    found, _, printed = _three(detection.rows, "U-Net")
    assert found["test DM, trained DM"] == "100.0/100.0" and printed["test DM, trained DM"] == "53.7/96.8"
    lines = {(line["test"], line["trained"]): line for line in matrix_rows(models, rows) if line["detector"] == "unet"}
    assert lines["cyclegan", "diffusion"]["f1"] == pytest.approx(0.23)
    assert lines["cyclegan", "diffusion"]["f1 paper"] == pytest.approx(0.227)


def _three(rows: tuple[dict[str, str], ...], method: str) -> list[dict[str, str]]:
    """Ours, its bounds, and the paper's row."""
    first = next(k for k, row in enumerate(rows) if row["method"] == method)
    return list(rows[first : first + 3])


def test_methods_that_were_not_trained_still_stand_beside_the_paper() -> None:
    tables = matrix_tables([cell("pix2pix")], {"unet_on_pix2pix": slabs({"pix2pix": 0.5})}, "run")
    for table, printed in zip(tables, (LOCALISATION, DETECTION), strict=True):
        assert [row["method"] for row in table.rows if row["method"]] == [
            METHODS[name] for name in METHODS if name in printed
        ]
        trufor = next(row for row in table.rows if row["method"] == "TruFor")
        assert set(list(trufor.values())[2:]) == {"not trained"}


def test_the_paper_s_figures_are_whole_and_not_transposed() -> None:
    """ManTraNet alarms on everything: its Acc at 0.5 follows the training generator and ignores the test generator."""
    assert set(DETECTION) == set(METHODS) and set(LOCALISATION) == set(METHODS) - {"xception"}
    assert all(len(nine) == len(CELLS) for nine in (*DETECTION.values(), *LOCALISATION.values()))
    accuracy = {pair: figures[0] for pair, figures in zip(CELLS, DETECTION["mantranet"], strict=True)}
    for train, expected in zip(GENERATORS, (52.7, 56.6, 52.8), strict=True):
        assert {accuracy[test, train] for test in GENERATORS} == {expected}
    best = {pair: figures[0] for pair, figures in zip(CELLS, LOCALISATION["trufor"], strict=True)}
    assert best["pix2pix", "pix2pix"] == 89.9 and best["pix2pix", "diffusion"] == 68.0


def test_accuracy_is_balanced_whatever_the_numbers_of_slabs() -> None:
    rows = [*slabs({"pix2pix": 0.5}, score=0.9), *slabs({"pix2pix": 0.5}, score=0.2)[1::2]]
    found = paper_cell(rows, "pix2pix", Patients(row.patient for row in rows))
    assert found is not None and found.acc is not None and found.pd is not None
    assert found.acc.value == pytest.approx((0.5 + 1.0) / 2)  # half of the forged, all of the pristine
    assert found.pd.value == 1.0  # all lie above the highest pristine slab
    assert paper_cell(rows, "cyclegan", Patients(["p0"])) is None


def test_the_gain_over_the_best_is_paired_by_patient() -> None:
    def whole(gain: float) -> list[Scored]:
        rows = [Scored(f"p{k}", "pristine", "", 0.1 + 0.001 * k) for k in range(30)]
        forged = [(k, 0.3 + 0.02 * k) for k in range(30)]
        return rows + [Scored(f"p{k}", "pix2pix", "inject", 0.9, f1=min(f1 + gain, 1)) for k, f1 in forged]

    names = {"volumetric": 0.02, "unet": 0.0, "trufor": -0.1}
    models = [Model(name, name, Path("w"), CARD, threshold=Threshold(0.5)) for name in names]
    rows = {name: whole(gain) for name, gain in names.items()}
    table = difference_table(models, rows, "run")
    assert table is not None
    row = next(row for row in table.rows if row["forgery"] == "all generators" and row["figure"] == "f1")
    assert row["best of the others"] == "unet (cpu)"
    assert row["difference"].value == pytest.approx(0.02)
    assert row["difference"].low > 0.019 and row["volumetric"].low < row["its figure"].high
    assert difference_table(models[1:], rows, "run") is None


def test_the_gain_in_the_matrix_is_over_those_that_learned_from_the_same() -> None:
    f1 = {"volumetric_on_pix2pix": 0.7, "unet_on_pix2pix": 0.6, "trufor_on_pix2pix": 0.5, "unet_on_diffusion": 0.9}
    models = [Model(name, name.split("_")[0], Path("w"), CARD, name.split("_")[2]) for name in f1]
    rows = {name: slabs({"pix2pix": value, "diffusion": value - 0.1}) for name, value in f1.items()}
    table = gain_table(models, rows, "run")
    assert table is not None
    gains = {(row["trained"], row["test"]): row for row in table.rows if row["figure"] == "f1"}
    assert set(gains) == {("pix2pix", "pix2pix"), ("pix2pix", "diffusion")}  # nothing of ours learned from the DDPM
    for row in gains.values():
        assert row["best of the six"] == "unet (cpu)" and row["difference"].value == pytest.approx(0.1)
    assert gain_table(models[1:], rows, "run") is None
