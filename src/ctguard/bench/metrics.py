"""The numbers of protocols.md that more than one table uses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from ctguard.core.errors import DataError

RESAMPLES = 2000
Scores = Sequence[float] | NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Interval:
    """A figure with its 95 % confidence interval from a bootstrap by patient."""

    value: float
    low: float
    high: float


def auc(
    positive: Sequence[float] | NDArray[np.floating[Any]], negative: Sequence[float] | NDArray[np.floating[Any]]
) -> float:
    """Area under the ROC curve from raw scores; ties count one half. NaN where one side is empty."""
    if len(positive) == 0 or len(negative) == 0:
        return float("nan")
    ranks = stats.rankdata(np.concatenate([positive, negative]))
    n, m = len(positive), len(negative)
    return float((ranks[:n].sum() - n * (n + 1) / 2) / (n * m))


def conformal_threshold(pristine: Sequence[float], false_alarms: float = 0.01) -> float:
    """The score that at most `false_alarms` of new pristine scans reach, by split conformal prediction.

    It is the ceil((n + 1)(1 - rate))-th smallest score, stepped up by one float so that a tie is no alarm. With
    fewer scans than 1 / rate - 1 there is none: the largest score is taken, and the bound that n allows is
    1 / (n + 1), which a table has to print. Raises DataError without any score.
    """
    if len(pristine) == 0:
        raise DataError("no pristine scan to find a threshold on", remedy="give an index with validation cases")
    ranked = np.sort(np.asarray(pristine, dtype=np.float64))
    rank = int(np.ceil((len(ranked) + 1) * (1 - false_alarms)))
    return float(np.nextafter(ranked[min(rank, len(ranked)) - 1], np.inf))


def overlap(found: NDArray[np.bool_], truth: NDArray[np.bool_]) -> tuple[float, float]:
    """F1 and IoU of two masks; 0 where they do not meet."""
    both = float(np.sum(found & truth))
    either = float(np.sum(found | truth))
    return 2 * both / max(float(found.sum()) + float(truth.sum()), 1), both / max(either, 1)


def bootstrap(
    patients: Sequence[str], statistic: Callable[[NDArray[np.int64]], float], seed: int = 0, resamples: int = RESAMPLES
) -> Interval:
    """A statistic of row indices, and its 95 % interval when patients are drawn with replacement (none of one)."""
    names = sorted(set(patients))
    rows = {name: np.flatnonzero(np.asarray(patients) == name) for name in names}
    rng = np.random.default_rng(seed)
    draws = []
    for _ in range(resamples if len(names) > 1 else 0):
        chosen = [rows[names[int(i)]] for i in rng.integers(len(names), size=len(names))]
        draws.append(statistic(np.concatenate(chosen)))
    finite = [draw for draw in draws if np.isfinite(draw)]
    whole = statistic(np.arange(len(patients)))
    low, high = np.percentile(finite, (2.5, 97.5)) if finite else (float("nan"), float("nan"))
    return Interval(whole, float(low), float(high))


def exact_share(count: int, of: int) -> Interval:
    """A share with its exact 95 % interval (Clopper and Pearson, Biometrika 26, 1934)."""
    exact = stats.binomtest(count, of).proportion_ci(method="exact")
    return Interval(count / of, float(exact.low), float(exact.high))
