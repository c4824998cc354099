"""A detector's threshold from pristine scans, and how it grows with the lung (or body) that is searched."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ctguard.bench.metrics import conformal_threshold
from ctguard.core.threshold import REFERENCE_ML, Threshold, logit

FEWEST = 20
"""With fewer scans no tail is fitted: a quarter of them says nothing of it."""


def find_threshold(scans: Sequence[tuple[float, float]], false_alarms: float = 0.01) -> tuple[Threshold, str]:
    """The conformal threshold of pristine scans, and the sentence for the card that says what n allows.

    scans: of each, the score and the millilitres searched. The tail is the mean by which the highest quarter of the
    scans' logits exceed the rest (peaks over a threshold with exponential tail: Pickands, Ann Stat 3, 1975). Scores
    moved to one litre by it are exchangeable with those of new scans of any size, as far as the tail is exponential.
    Raises DataError without any scan.
    """
    tail = tail_of(scans) if len(scans) >= FEWEST else 0.0
    moved = [logit(score) - tail * _over_reference(ml) for score, ml in scans]
    level = conformal_threshold(moved, false_alarms) + 1e-9  # more than rounding: a tie is no alarm
    bound = max(false_alarms, 1 / (len(scans) + 1))
    grown = f"tail {tail:.2f} fitted to the highest quarter" if tail else "no tail: too few scans to fit one"
    note = f"split conformal at {false_alarms:.0%} on n = {len(scans)} pristine validation scans, {grown}"
    value = 1 / (1 + math.exp(-level))
    return Threshold(value, tail), f"{note}; false alarms on new scans <= {bound:.1%} on average"


def tail_of(scans: Sequence[tuple[float, float]]) -> float:
    """The scale of the exponential tail of scores moved to one litre, by iteration: moving needs the tail itself."""
    scores = np.array([logit(score) for score, _ in scans])
    volumes = np.array([_over_reference(ml) for _, ml in scans])
    tail = 0.0
    for _ in range(50):
        moved = scores - tail * volumes
        quarter = float(np.quantile(moved, 0.75))
        above = moved[moved > quarter]
        tail = float((above - quarter).mean()) if len(above) else 0.0
    return tail


def _over_reference(ml: float) -> float:
    return math.log(ml / REFERENCE_ML)
