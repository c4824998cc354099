"""Weights and their card: what was trained, on what, how well, and against what."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from ctguard.core.errors import ModelError
from ctguard.core.threshold import Threshold
from ctguard.io.manifest import sha256_file

NOT_SHIPPED = ("discriminator.", "reverse.", "pool.")
"""Parts of a model that only training needs."""


@dataclass(frozen=True)
class Card:
    """What stands beside a weights file, as JSON.

    settings: of the architecture. data: collections, licences and counts. metrics: measured on validation data.
    threshold, threshold_tail: of a detector's score, as core.threshold says; threshold_note: how they were found.
    trained_against: name -> sha256 of the weights (generators
    of a detector's forgeries, attacks of a protector) that were in force; a test lists stale ones.
    """

    name: str
    model: str
    task: str
    size: str
    settings: dict[str, Any]
    data: str
    seed: int
    steps: int
    recipe: str
    commit: str
    metrics: dict[str, float] = field(default_factory=dict)
    threshold: float | None = None
    threshold_tail: float = 0.0
    threshold_note: str = ""
    trained_against: dict[str, str] = field(default_factory=dict)
    notes: str = ""
    sha256: str = ""

    @property
    def scan_threshold(self) -> Threshold:
        """A detector's threshold. Raises ModelError where there is none."""
        if self.threshold is None:
            raise ModelError("its card has no threshold", where=self.name, remedy="calibrate it on pristine scans")
        return Threshold(self.threshold, self.threshold_tail)


def save_checkpoint(module: nn.Module, card: Card, folder: Path) -> Card:
    """Write NAME.safetensors (parameters fp16, buffers fp32) and NAME.json. Returns the card with its hash."""
    parameters = {name for name, _ in module.named_parameters()}
    state = {
        name: (value.detach().cpu().half() if name in parameters else value.detach().cpu()).contiguous()
        for name, value in module.state_dict().items()
        if not name.startswith(NOT_SHIPPED)
    }
    folder.mkdir(parents=True, exist_ok=True)
    weights = folder / f"{card.name}.safetensors"
    partial = weights.with_suffix(".partial")
    save_file(state, partial)
    partial.chmod(0o644)  # safetensors leaves it to the owner alone
    partial.replace(weights)
    card = replace(card, sha256=sha256_file(weights))
    write_card(card, folder)
    return card


def write_card(card: Card, folder: Path) -> None:
    """Write the card alone (a threshold found later, say)."""
    (folder / f"{card.name}.json").write_text(json.dumps(asdict(card), indent=2, sort_keys=True) + "\n")


def read_card(path: Path) -> Card:
    """A card. Raises ModelError where it is missing or damaged."""
    try:
        values = json.loads(path.read_text())
        return Card(**{f.name: values[f.name] for f in fields(Card) if f.name in values})
    except FileNotFoundError as error:
        raise ModelError("no card stands beside the weights", where=path, remedy="train the model first") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise ModelError(f"its card is damaged: {error}", where=path) from error


def load_weights(module: nn.Module, weights: Path, sha256: str = "") -> None:
    """Load a weights file into a module (in float32), checking its hash. Raises ModelError."""
    if not weights.is_file():
        raise ModelError("the weights file is missing", where=weights, remedy="train the model: ctguard train")
    if sha256 and sha256_file(weights) != sha256:
        raise ModelError("the weights are not those of their card", where=weights, remedy="fetch or train them again")
    try:
        state = {
            name: value.float() if value.is_floating_point() else value for name, value in load_file(weights).items()
        }
    except (SafetensorError, OSError) as error:
        raise ModelError(f"the weights file is damaged: {error}", where=weights) from error
    try:
        missing, unexpected = module.load_state_dict(state, strict=False)
    except RuntimeError as error:  # shapes that differ
        raise ModelError(
            "the weights are of another architecture: of other sizes", where=weights, remedy="see its card's settings"
        ) from error
    missing = [name for name in missing if not name.startswith(NOT_SHIPPED)]
    if missing or unexpected:
        raise ModelError(f"the weights are of another architecture: {[*missing, *unexpected][:3]}", where=weights)


def rounded_to_half(module: nn.Module) -> None:
    """Round parameters to what fp16 storage keeps, so that metrics speak of the shipped weights."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(parameter.half().float())
