"""Metrics and the calibrated table: laws, and small cases that can be done by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ctguard.bench.calibrated import calibrated_table
from ctguard.bench.detection import Scored
from ctguard.bench.metrics import auc, bootstrap, conformal_threshold, overlap
from ctguard.bench.table import markdown
from ctguard.core.errors import DataError


def test_auc_by_hand_and_its_symmetry() -> None:
    assert auc([3, 4], [1, 2]) == 1.0
    assert auc([1, 2], [1, 2]) == 0.5
    rng = np.random.default_rng(0)
    a, b = rng.normal(1, 1, 50).tolist(), rng.normal(0, 1, 70).tolist()
    assert auc(a, b) == pytest.approx(1 - auc(b, a))
    assert math.isnan(auc([], [1.0]))


@pytest.mark.parametrize("n", [20, 99, 300])
def test_a_conformal_threshold_keeps_its_promise_on_new_scans(n: int) -> None:
    rng = np.random.default_rng(n)
    alarms = [np.mean(rng.random(200) >= conformal_threshold(rng.random(n).tolist(), 0.05)) for _ in range(300)]
    assert np.mean(alarms) <= max(0.05, 1 / (n + 1)) + 0.01


def test_no_pristine_scan_no_threshold() -> None:
    with pytest.raises(DataError, match="no pristine"):
        conformal_threshold([])


def test_overlap_by_hand() -> None:
    found, truth = np.zeros((2, 4), bool), np.zeros((2, 4), bool)
    found[0], truth[0, 2:], truth[1, :2] = True, True, True
    assert overlap(found, truth) == (0.5, 2 / 6)
    assert overlap(found & False, truth & False) == (0.0, 0.0)


def test_the_bootstrap_draws_patients_not_rows() -> None:
    patients = ["a"] * 100 + ["b"] * 100
    values = np.array([0.0] * 100 + [1.0] * 100)
    interval = bootstrap(patients, lambda i: float(values[i].mean()), resamples=400)
    assert interval.value == 0.5
    assert (interval.low, interval.high) == (0.0, 1.0)  # two patients say nothing, however many rows they have


def test_the_table_states_n_and_hash_and_separates_generators() -> None:
    rows = [Scored(f"p{i}", "pristine", "", 0.1, threshold=0.5) for i in range(10)]
    rows += [Scored(f"p{i}", "pix2pix", "inject", 0.9 if i else 0.2, 0.8, 0.7, 1.0, threshold=0.5) for i in range(10)]
    table = calibrated_table(rows, "title", "run", "f" * 64)
    row = table.rows[0]
    assert row["sensitivity"].value == pytest.approx(0.9) and row["n"] == 10
    text = markdown(table)
    assert "10 patients" in text and "ffffffffffff" in text and "pix2pix inject" in text
