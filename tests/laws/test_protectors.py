"""What every protector network of the zoo promises, trained or not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ctguard import zoo
from ctguard.core.errors import RecipeError
from ctguard.protect.network import Batch, ProtectorNet
from ctguard.protect.perturb import perturb

SMALL: dict[str, dict[str, Any]] = {
    "mitsgan": {"width": 4, "discriminator": [1, 2]},
    "mitsgan-paper": {"mode": "paper", "width": 4, "discriminator": [1, 2]},
    "tafim": {"width": 4, "side": 32},
    "shield": {"waves": 2, "width": 4},
    "tafim-global": {"width": 4, "side": 32},
}
NETWORKS = [entry for entry in zoo.ENTRIES if entry.kind == "protector" and entry.weights]


def build(entry: zoo.Entry) -> ProtectorNet:
    torch.manual_seed(0)
    network: ProtectorNet = zoo.build(entry, SMALL.get(entry.name, {}))
    return network


def lung(shape: tuple[int, ...] = (2, 1, 9, 40, 36)) -> Tensor:
    return -850 + 40 * torch.randn(shape, generator=torch.Generator().manual_seed(1))


def answering(hu: Tensor, batch: Batch) -> Tensor:
    """An attack that overdoes whatever mean the block has."""
    return hu + 10 * (hu.mean(dim=(1, 2, 3, 4), keepdim=True) + 850)


def batch() -> Batch:
    hu = lung()
    core = torch.zeros_like(hu)
    core[:, :, 2:7, 10:30, 10:30] = 1
    return {"hu": hu, "core": core}


@pytest.mark.parametrize("entry", NETWORKS, ids=lambda entry: entry.name)
def test_what_is_added_keeps_every_budget_and_the_size(entry: zoo.Entry) -> None:
    network = build(entry).eval()
    for budget in (1.0, 3.7, 12.0):
        added = network.blocks(lung(), budget)
        assert added.shape == lung().shape and added.dtype == torch.float32
        assert 0 < added.abs().max() <= np.floor(budget)
    assert network.blocks(lung()).abs().max() <= network.budget_hu


@pytest.mark.parametrize("entry", NETWORKS, ids=lambda entry: entry.name)
def test_gradients_reach_the_network_through_rounding_and_attack(entry: zoo.Entry) -> None:
    network = build(entry)
    here = batch()
    network.attack = answering
    added = network.rounded(here["hu"], 1e4)
    assert torch.allclose(added, added.round(), atol=1e-3)
    network.forge(here["hu"] + added, here).square().mean().backward()
    assert sum(float(p.grad.abs().sum()) for p in network.parameters() if p.grad is not None) > 0


@pytest.mark.parametrize("entry", NETWORKS, ids=lambda entry: entry.name)
def test_every_turn_of_training_lowers_its_own_loss(entry: zoo.Entry) -> None:
    network = build(entry).train()
    network.attack = answering
    optimizers = network.optimizers({"lr": 1e-2})
    here = batch()
    for turn in network.turns:
        losses = []
        for _ in range(12):
            optimizers[turn].zero_grad()
            torch.manual_seed(1)  # the same draws in every step
            loss = network.step(here, turn)["loss"]
            loss.backward()  # type: ignore[no-untyped-call]
            optimizers[turn].step()
            losses.append(loss.item())
        assert min(losses[-3:]) < losses[0]


@pytest.mark.parametrize("entry", NETWORKS, ids=lambda entry: entry.name)
def test_without_an_attack_training_says_so(entry: zoo.Entry) -> None:
    with pytest.raises(RecipeError, match="attack"):
        build(entry).step(batch(), "protector")


@pytest.mark.parametrize("entry", NETWORKS, ids=lambda entry: entry.name)
def test_a_scan_is_protected_in_whole_hu_where_allowed_and_repeatably(entry: zoo.Entry) -> None:
    network = build(entry)
    hu = lung((7, 50, 44)).round().numpy().astype(np.int16)
    allowed = np.ones(hu.shape, dtype=bool)
    allowed[:, :20] = False
    one, same = (perturb(hu, allowed, network, budget_hu=4.6, seed=3, quiet=True) for _ in range(2))
    assert np.array_equal(one, same)
    assert np.array_equal(one, np.rint(one)) and 0 < np.abs(one).max() <= 4
    assert not one[~allowed].any()
    assert network.training  # as it was
