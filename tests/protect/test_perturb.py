"""Tiles of a scan: seams, memory and errors."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from ctguard.core.errors import ModelError, RecipeError
from ctguard.protect.network import Batch, ProtectorNet
from ctguard.protect.perturb import perturb, tiles


class Slope(ProtectorNet):
    """Adds a hundredth of each voxel's own HU: what it adds does not depend on the tile."""

    def __init__(self, dims: Literal[2, 3], tile_zyx: tuple[int, int, int], overlap_zyx: tuple[int, int, int]) -> None:
        super().__init__()
        self.dims, self.tile_zyx, self.overlap_zyx, self.budget_hu = dims, tile_zyx, overlap_zyx, 9.0
        self.seen: list[tuple[int, ...]] = []
        self.gain = 0.01

    def forward(self, hu: Tensor, budget_hu: float | None = None) -> Tensor:
        self.seen.append(tuple(hu.shape))
        bound = self.bound(budget_hu)
        return (self.gain * hu).clamp(-bound, bound)

    def step(self, batch: Batch, turn: str) -> dict[str, Tensor]:
        return {"loss": torch.zeros(())}

    def optimizers(self, settings: Mapping[str, Any]) -> dict[str, torch.optim.Optimizer]:
        return {}


def scan(shape: tuple[int, int, int] = (11, 37, 41)) -> np.ndarray:
    return np.random.default_rng(0).integers(-1000, 800, shape).astype(np.int16)


@pytest.mark.parametrize(
    ("dims", "tile", "overlap"),
    [(2, (4, 16, 20), (0, 4, 6)), (3, (5, 16, 20), (2, 8, 6)), (3, (64, 64, 64), (8, 8, 8)), (2, (1, 9, 9), (0, 0, 0))],
)
def test_tiles_leave_no_seams(dims: Literal[2, 3], tile: tuple[int, int, int], overlap: tuple[int, int, int]) -> None:
    network = Slope(dims, tile, overlap)
    hu = scan()
    added = perturb(hu, np.ones(hu.shape, bool), network, budget_hu=7.5, quiet=True)
    assert np.abs(added - np.clip(0.01 * hu.astype(np.float32), -7, 7)).max() <= 0.5 + 1e-3
    most = np.minimum(tile, hu.shape)
    assert {shape[2:] for shape in network.seen} == {tuple(most[1:] if dims == 2 else most)}


def test_tiles_without_an_allowed_voxel_are_not_computed() -> None:
    network, hu = Slope(3, (5, 10, 10), (0, 0, 0)), scan((10, 40, 40))
    allowed = np.zeros(hu.shape, bool)
    allowed[7, 15, 15] = True
    added = perturb(hu, allowed, network, budget_hu=5, quiet=True)
    assert len(network.seen) == 1 and np.count_nonzero(added) <= 1


@pytest.mark.parametrize(("n", "side", "overlap"), [(140, 32, 8), (33, 32, 8), (32, 32, 0), (5, 32, 8), (100, 7, 3)])
def test_weights_of_tiles_sum_to_one(n: int, side: int, overlap: int) -> None:
    total = np.zeros(n)
    found = tiles(n, side, overlap)
    for start, weight in found:
        total[start : start + len(weight)] += weight
    np.testing.assert_allclose(total, 1, rtol=1e-5)
    assert found[0][0] == 0 and found[-1][0] + len(found[-1][1]) == n
    assert all(b - a <= side - overlap for (a, _), (b, _) in pairwise(found))


def test_damaged_weights_and_budgets_that_protect_nothing_are_named() -> None:
    network, hu = Slope(2, (4, 16, 16), (0, 0, 0)), scan()
    with pytest.raises(RecipeError, match="protects nothing"):
        perturb(hu, np.ones(hu.shape, bool), network, budget_hu=0.9, quiet=True)
    network.gain = float("nan")
    with pytest.raises(ModelError, match="no number"):
        perturb(hu, np.ones(hu.shape, bool), network, budget_hu=5, quiet=True)
