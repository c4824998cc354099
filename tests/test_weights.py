"""Shipped weights: sizes, cards, hashes, and whether what they were trained against is still in force."""

from __future__ import annotations

from pathlib import Path

import pytest

from ctguard import zoo
from ctguard.bench.models import Model, detector_of, find_matrix
from ctguard.io.manifest import sha256_file
from ctguard.train.checkpoint import Card, read_card

PENDING = {
    "mantranet",
}
"""Models that are built and tested and not yet trained; the command line says so where one is asked for."""
TRAINED = sorted({entry.weights for entry in zoo.ENTRIES if entry.weights} - PENDING)


MATRIX = Path(__file__).parents[1] / "docs/benchmarks/matrix"
CELLS = [cell for cell in find_matrix(MATRIX) if cell.card is not None]


def stale(card: Card) -> list[str]:
    """What a model was trained against and is no longer shipped."""
    current = {path.stem: sha256_file(path) for path in zoo.WEIGHTS.glob("*.safetensors")}
    return [key for key, sha in card.trained_against.items() if sha and current.get(key) != sha]


@pytest.mark.parametrize("name", TRAINED)
def test_weights_are_those_of_their_card_and_load(name: str) -> None:
    entry = next(entry for entry in zoo.ENTRIES if entry.weights == name)
    module, card = zoo.load(entry)
    assert card.sha256 == sha256_file(zoo.WEIGHTS / f"{name}.safetensors")
    assert not module.training
    assert card.data and card.metrics and card.commit and card.size == "cpu"


@pytest.mark.parametrize("name", TRAINED)
def test_weights_are_not_stale(name: str) -> None:
    assert stale(read_card(zoo.WEIGHTS / f"{name}.json")) == []


def test_what_is_pending_is_not_there() -> None:
    assert {entry.weights for entry in zoo.ENTRIES} >= PENDING
    assert not [name for name in PENDING if (zoo.WEIGHTS / f"{name}.safetensors").exists()]


def test_weights_fit_the_package() -> None:
    sizes = {path.name: path.stat().st_size for path in zoo.WEIGHTS.glob("*.safetensors")}
    assert sizes and max(sizes.values()) < 5e6 and sum(sizes.values()) < 60e6


def test_detectors_have_a_threshold_and_say_how_it_was_found() -> None:
    for entry in zoo.ENTRIES:
        if entry.kind == "detector" and entry.weights not in PENDING:
            card = read_card(Path(zoo.WEIGHTS) / f"{entry.weights}.json")
            assert card.threshold is not None and 0 < card.threshold <= 1
            assert "pristine" in card.threshold_note


@pytest.mark.parametrize("cell", CELLS, ids=[cell.name for cell in CELLS])
def test_a_cell_of_the_matrix_is_small_fresh_and_of_one_generator(cell: Model) -> None:
    assert cell.card is not None and cell.weights is not None
    assert cell.card.sha256 == sha256_file(cell.weights) and cell.weights.stat().st_size <= 0.8e6
    assert cell.card.size == "matrix" and f"forgeries by {cell.trained_on}" in cell.card.data
    own = f"tissue_on_{cell.trained_on}"
    assert {f"{cell.trained_on}_inject", f"{cell.trained_on}_remove"} <= set(cell.card.trained_against)
    assert [key for key in stale(cell.card) if key != own] == []
    assert not detector_of(cell).training
