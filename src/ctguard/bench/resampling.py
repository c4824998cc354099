"""Many figures of the same patients from one set of bootstrap draws, so that two detectors can be compared in pairs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from ctguard.bench.metrics import RESAMPLES, Interval

Draws = NDArray[np.float64]
"""A figure of the whole sample (first) and of every resample. Sums and differences of draws stay in pairs."""

_STEP = 4_000_000


class Patients:
    """Patients, and how often each comes in every bootstrap resample.

    The draws are those of `metrics.bootstrap` with the same seed; figures of whole samples stand first. All figures
    are sums over patients, so that 2,000 resamples cost one matrix product. NaN where a figure has nothing to count. Of
    a single patient there are no resamples: how much patients differ cannot be seen.
    """

    def __init__(self, patients: Iterable[str], seed: int = 0, resamples: int = RESAMPLES) -> None:
        self.names = sorted(set(patients))
        self._order = {name: k for k, name in enumerate(self.names)}
        size = len(self.names)
        rng = np.random.default_rng(seed)
        count = resamples if size > 1 else 0
        drawn = [np.bincount(rng.integers(size, size=size), minlength=size) for _ in range(count)]
        self.weights = np.array([np.ones(size), *drawn], dtype=np.float64).reshape(-1, size)

    def ratio(self, patients: Sequence[str], tops: Sequence[float], bottoms: Sequence[float]) -> Draws:
        """Sum of the tops over the sum of the bottoms."""
        top, bottom = (self.weights @ self._summed(patients, values) for values in (tops, bottoms))
        return _divided(top, bottom)

    def mean(self, patients: Sequence[str], values: Sequence[float]) -> Draws:
        """Mean of the values that are numbers."""
        array = np.asarray(values, dtype=np.float64)
        known = np.isfinite(array)
        return self.ratio(patients, np.where(known, array, 0.0).tolist(), known.astype(float).tolist())

    def auc(
        self, patients: Sequence[str], positive: Sequence[float], others: Sequence[str], negative: Sequence[float]
    ) -> Draws:
        """Area under the ROC curve; ties count one half. `others` are the patients of the negatives."""
        rows, columns = self._index(patients), self._index(others)
        above, size = np.asarray(positive, float), len(self.names)
        below = np.asarray(negative, float)
        wins = np.zeros((len(above), size))
        block = max(1, _STEP // max(len(below), 1))
        member = np.zeros((len(below), size))
        member[np.arange(len(below)), columns] = 1.0
        for k in range(0, len(above), block):
            part = above[k : k + block, None]
            wins[k : k + block] = ((part > below) + 0.5 * (part == below)) @ member
        pairs = np.zeros((size, size))
        np.add.at(pairs, rows, wins)
        won = np.einsum("bp,pq,bq->b", self.weights, pairs, self.weights, optimize=True)
        ones = (self.weights @ np.bincount(side, minlength=size) for side in (rows, columns))
        return _divided(won, np.prod(list(ones), axis=0))

    def detected_at(
        self,
        patients: Sequence[str],
        positive: Sequence[float],
        others: Sequence[str],
        negative: Sequence[float],
        false_alarms: float = 0.01,
    ) -> Draws:
        """Share of positives above the lowest threshold that at most `false_alarms` of the negatives exceed.

        With fewer than 1 / false_alarms negatives, that is above the highest of them (M3Dsynth, section 3, Pd@1%).
        """
        if len(positive) == 0 or len(negative) == 0:
            return np.full(len(self.weights), np.nan)
        order = np.argsort(-np.asarray(negative, float), kind="stable")
        ranked = np.asarray(negative, float)[order]
        counts = self.weights[:, self._index(others)[order]]
        total = counts.sum(axis=1, keepdims=True)
        over = np.cumsum(counts, axis=1) > np.floor(false_alarms * total + 1e-9)
        threshold = np.where(over.any(axis=1), ranked[over.argmax(axis=1)], np.nan)
        scores, rows = np.asarray(positive, float), self._index(patients)
        found = np.zeros(len(self.weights))
        for b, level in enumerate(threshold):
            found[b] = self.weights[b, rows[scores > level]].sum()
        found[np.isnan(threshold)] = np.nan
        return _divided(found, self.weights @ np.bincount(rows, minlength=len(self.names)))

    def _index(self, patients: Sequence[str]) -> NDArray[np.int64]:
        return np.array([self._order[name] for name in patients], dtype=np.int64)

    def _summed(self, patients: Sequence[str], values: Sequence[float]) -> NDArray[np.float64]:
        weights = np.asarray(values, dtype=np.float64)
        return np.bincount(self._index(patients), weights, minlength=len(self.names)).astype(np.float64)


def _divided(top: Draws, bottom: Draws) -> Draws:
    ratio: Draws = np.full(len(top), np.nan)
    np.divide(top, bottom, out=ratio, where=bottom > 0)
    return ratio


def interval(draws: Draws) -> Interval | None:
    """The figure and the 2.5 and 97.5 percentiles of its resamples; None where it is no number."""
    known = draws[1:][np.isfinite(draws[1:])]
    if not np.isfinite(draws[0]):
        return None
    low, high = np.percentile(known, (2.5, 97.5)) if len(known) else (np.nan, np.nan)
    return Interval(float(draws[0]), float(low), float(high))
