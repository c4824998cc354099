"""Threshold: from where on a detector's score counts as tampering, given how much of a scan was searched."""

from __future__ import annotations

import math
from dataclasses import dataclass

REFERENCE_ML = 1000.0
"""The volume searched that a threshold is stated for."""
_MOST = 1 - 2.0**-24
"""The largest score below 1 that float32 can tell from 1."""


@dataclass(frozen=True)
class Threshold:
    """Of a score in 0..1, at one litre searched. tail: what its logit grows by when e times as much is searched.

    The score of a scan is a maximum over all that was searched, so pristine scans with more lung score higher. Where
    the scores of places have an exponential tail of scale `tail` in their logit, the maximum over V litres exceeds
    `value` moved by tail * ln(V) as often as the maximum over one litre exceeds `value` (Gumbel, Statistics of
    Extremes, 1958, chapter 4).
    """

    value: float
    tail: float = 0.0

    def __str__(self) -> str:
        moved = f" at 1 l searched, its logit + {self.tail:.2f} ln(litres)" if self.tail else ""
        return f"{self.value:.4f}{moved}"

    def at(self, searched_ml: float) -> float:
        """The threshold of a scan, in 0..1, of which so much was searched."""
        if self.tail == 0 or searched_ml <= 0 or not 0 < self.value < 1:
            return self.value
        moved = logit(self.value) + self.tail * math.log(searched_ml / REFERENCE_ML)
        return min(1 / (1 + math.exp(-moved)), 1.0)


def logit(score: float) -> float:
    """ln(p / (1 - p)); scores that float32 cannot tell from 0 or 1 count as the nearest that it can."""
    inside = min(max(score, 1 - _MOST), _MOST)
    return math.log(inside / (1 - inside))
