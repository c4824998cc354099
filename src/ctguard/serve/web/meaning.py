"""What a verdict is worth where forgeries are rare (docs/concepts/verdicts-in-practice.md)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ctguard import zoo
from ctguard.core.errors import CtguardError

FALSE_ALARMS = 0.01
"""Of pristine scans like those that set a shipped threshold (protocols: split conformal at 1 %)."""


@dataclass(frozen=True)
class Worth:
    """Of an alarm, where one scan in `one_in` is forged: how many alarms are true at best, and are false."""

    one_in: float
    predictive_value: float

    @property
    def words(self) -> str:
        """The share of true alarms for people."""
        percent = 100 * self.predictive_value
        return f"at most {percent:.2g} %" if percent < 10 else f"at most {percent:.0f} %"


def worth(prevalences: Sequence[float], found: float = 1.0, false_alarms: float = FALSE_ALARMS) -> list[Worth]:
    """The positive predictive value at each prevalence (Bayes). found: share of forgeries that raise an alarm."""
    return [Worth(1 / p, found * p / (found * p + false_alarms * (1 - p))) for p in prevalences]


def threshold_note(detector: str, model_id: str) -> str:
    """How the threshold of this very model was found, as its card says; empty for weights of one's own."""
    try:
        path = zoo.find(detector, "detector").weights_path
    except CtguardError:
        return ""
    if path is None or not path.with_suffix(".json").is_file():
        return ""
    card: dict[str, Any] = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    return str(card.get("threshold_note", "")) if card.get("sha256") == model_id else ""
