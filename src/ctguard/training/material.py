"""What a run learns from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from ctguard.core.threshold import Threshold
from ctguard.phantom.patients import COLLECTION as PHANTOM
from ctguard.train.fit import Batch

LICENCES = {
    PHANTOM: "synthetic",
    "LIDC-IDRI": "CC BY 3.0",
    "NSCLC Radiogenomics": "CC BY 3.0",
    "Lung-PET-CT-Dx": "CC BY 4.0",
}
"""Of the collections that the recipes name; a card carries them."""


@dataclass(frozen=True)
class Material:
    """What a run learns from: batches by step, how to judge, what it was trained against, and a line for the card."""

    batches: Callable[[int], Batch]
    validate: Callable[[nn.Module], dict[str, float]]
    trained_against: dict[str, str]
    description: str
    calibrate: Callable[[nn.Module], tuple[Threshold, str]] | None = None


def named(collection: str) -> str:
    """A collection with its licence, where that is known."""
    return f"{collection}, {LICENCES[collection]}" if collection in LICENCES else collection
