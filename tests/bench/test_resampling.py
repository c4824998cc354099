"""The bootstrap by patient: as the plain one, in pairs, and Pd@1% by hand."""

from __future__ import annotations

import numpy as np
import pytest

from ctguard.bench.metrics import auc, bootstrap
from ctguard.bench.resampling import Patients, interval
from ctguard.bench.table import text_of


def some(n: int, m: int) -> tuple[list[str], list[float], list[str], list[float]]:
    rng = np.random.default_rng(n)
    names = [f"p{k % 7}" for k in range(n)]
    others = [f"p{k % 9}" for k in range(m)]
    return names, rng.normal(1, 1, n).round(1).tolist(), others, rng.normal(0, 1, m).round(1).tolist()


def test_means_are_those_of_the_plain_bootstrap() -> None:
    names, values, _, _ = some(40, 3)
    plain = bootstrap(names, lambda i: float(np.mean([values[k] for k in i])), resamples=200)
    ours = interval(Patients(names, resamples=200).mean(names, values))
    assert ours is not None
    assert (ours.value, ours.low, ours.high) == pytest.approx((plain.value, plain.low, plain.high))


def test_auc_counts_ties_one_half_and_resamples_both_sides() -> None:
    names, positive, others, negative = some(40, 30)
    patients = Patients([*names, *others], resamples=50)
    draws = patients.auc(names, positive, others, negative)
    assert draws[0] == pytest.approx(auc(positive, negative))
    weights = patients.weights[7]
    index = {name: k for k, name in enumerate(patients.names)}
    above = [v for v, name in zip(positive, names, strict=True) for _ in range(int(weights[index[name]]))]
    below = [v for v, name in zip(negative, others, strict=True) for _ in range(int(weights[index[name]]))]
    assert draws[7] == pytest.approx(auc(above, below))


@pytest.mark.parametrize(("pristine", "expected"), [(99, 0.5), (100, 0.75), (300, 0.75)])
def test_pd_at_1_percent_lets_one_in_a_hundred_pass(pristine: int, expected: float) -> None:
    """The highest pristine score is an outlier: it sets the threshold until 1 % of the scans may exceed it."""
    negative = [*([0.1] * (pristine - 1)), 0.6]
    positive = [0.05, 0.3, 0.7, 0.9]
    patients = Patients([*(f"n{k}" for k in range(pristine)), "a", "b", "c", "d"], resamples=5)
    found = patients.detected_at(list("abcd"), positive, [f"n{k}" for k in range(pristine)], negative)
    assert found[0] == expected


def test_a_score_equal_to_the_threshold_is_not_detected() -> None:
    patients = Patients(["a", "b"], resamples=5)
    assert patients.detected_at(["a"], [0.5], ["b"], [0.5])[0] == 0.0


def test_what_cannot_be_counted_is_none_not_zero() -> None:
    patients = Patients(["a", "b"], resamples=20)
    assert interval(patients.mean(["a"], [float("nan")])) is None
    assert interval(patients.auc([], [], ["a"], [0.2])) is None
    assert interval(patients.detected_at(["a"], [0.2], [], [])) is None


def test_one_patient_has_a_figure_and_no_interval() -> None:
    found = interval(Patients(["a"]).mean(["a", "a"], [0.0, 1.0]))
    assert found is not None and found.value == 0.5 and np.isnan([found.low, found.high]).all()
    assert text_of(found) == "0.500"


def test_a_paired_difference_is_tighter_than_two_intervals() -> None:
    rng = np.random.default_rng(0)
    names = [f"p{k}" for k in range(60)]
    hard = rng.normal(0, 1, 60)
    patients = Patients(names)
    ours, theirs = patients.mean(names, (hard + 0.1).tolist()), patients.mean(names, hard.tolist())
    gain = interval(ours - theirs)
    assert gain is not None
    assert gain.low == pytest.approx(0.1) and gain.high == pytest.approx(0.1)
