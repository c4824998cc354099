"""Thresholds that hold for scans of every size: promises kept on new scans, drawn from a known distribution."""

from __future__ import annotations

import numpy as np
import pytest

from ctguard.bench.calibration import find_threshold, tail_of
from ctguard.core.threshold import logit


def drawn(rng: np.random.Generator, scans: int, litres: float, tail: float = 0.8) -> list[tuple[float, float]]:
    """Scans with a score that is the largest of 40 places a litre, whose logits have an exponential tail."""
    places = rng.exponential(tail, (scans, int(40 * litres))).max(axis=1) - 3
    return [(float(1 / (1 + np.exp(-value))), 1000 * litres) for value in places]


def test_a_longer_scan_raises_no_more_alarms_than_a_short_one() -> None:
    rng = np.random.default_rng(0)
    rates: dict[str, list[float]] = {"grown": [], "fixed": [], "same size": []}
    for _ in range(60):
        threshold, _ = find_threshold(drawn(rng, 100, 1.0))
        rates["same size"].append(float(np.mean([s >= threshold.at(ml) for s, ml in drawn(rng, 200, 1.0)])))
        longer = drawn(rng, 200, 6.0)
        rates["grown"].append(float(np.mean([s >= threshold.at(ml) for s, ml in longer])))
        rates["fixed"].append(float(np.mean([s >= threshold.value for s, _ in longer])))
    assert np.mean(rates["same size"]) <= 0.015
    assert np.mean(rates["grown"]) <= 0.02
    assert np.mean(rates["fixed"]) > 0.03, "without the tail six times as much lung gives several times the alarms"


def test_scans_of_mixed_sizes_calibrate_together() -> None:
    rng = np.random.default_rng(1)
    scans = [scan for litres in (0.5, 1.0, 2.0, 4.0) for scan in drawn(rng, 200, litres)]
    assert tail_of(scans) == pytest.approx(0.8, rel=0.2)
    threshold, _ = find_threshold(scans)
    assert threshold.at(500) < threshold.value < threshold.at(4000) < 1
    assert threshold.at(1000) == pytest.approx(threshold.value)


def test_a_tie_with_the_threshold_is_no_alarm_and_the_note_states_the_bound() -> None:
    threshold, note = find_threshold([(0.5, 1200.0)] * 40)
    assert threshold.at(1200.0) > 0.5
    assert "n = 40" in note and "2.4%" in note


def test_few_scans_fit_no_tail_and_the_note_says_so() -> None:
    threshold, note = find_threshold([(0.3, 800.0), (0.4, 2000.0)])
    assert threshold.tail == 0 and threshold.at(100) == threshold.at(9000) > 0.4
    assert "no tail" in note and "33.3%" in note


def test_scores_at_the_end_of_float32_still_give_a_threshold_that_a_score_of_one_reaches() -> None:
    threshold, _ = find_threshold([(1 - 10.0**-k, 1000.0) for k in range(1, 7)] * 5)
    assert threshold.at(30_000) <= 1.0
    assert logit(1.0) > logit(1 - 1e-6) > 0 > logit(0.0)
