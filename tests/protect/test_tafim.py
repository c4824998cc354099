"""TAFIM: the network on image and pattern, the pattern alone, and both targets."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ctguard.core.errors import RecipeError
from ctguard.protect.network import Batch
from ctguard.protect.tafim import TAFIM, TAFIMGlobal, unet
from tests.laws.test_protectors import batch, lung


def test_the_network_is_the_published_one() -> None:
    network = unet(64)
    convolutions = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)]
    downward = [layer.out_channels for layer in convolutions if type(layer) is nn.Conv2d]
    assert len(convolutions) == 12 and sorted(downward) == [64, 128, 256, 512, 512, 512]
    assert convolutions[0].in_channels == 2
    assert not [p for layer in network.modules() if isinstance(layer, nn.InstanceNorm2d) for p in layer.parameters()]
    assert network(torch.zeros(1, 2, 64, 64)).shape == (1, 1, 64, 64)


def test_the_pattern_repeats_over_any_slice_and_is_the_same_for_all() -> None:
    network = TAFIMGlobal(width=4, side=16, budget_hu=100).eval()
    added = network.blocks(lung())
    assert torch.equal(added[0], added[1]) and torch.equal(added[..., :16], added[..., 16:32])
    assert torch.equal(added[..., :16, :, :], added[..., 16:32, :, :]) or added.shape[2] < 32
    assert added.std() > 1
    other = TAFIM(width=4, side=16, budget_hu=100).eval()
    other.load_state_dict(network.state_dict())
    assert torch.equal(other.global_perturbation(lung()[:, :, 0]), added[:, :, 0])


def test_the_perturbation_of_an_image_depends_on_image_and_pattern() -> None:
    torch.manual_seed(0)
    network = TAFIM(width=4, side=32, budget_hu=100).eval()
    base = network.blocks(lung())
    assert not torch.allclose(base[0], base[1])
    with torch.no_grad():
        network.universal.zero_()
    assert not torch.allclose(base, network.blocks(lung()))


@pytest.mark.parametrize(("target", "wanted"), [("uniform", 500.0), ("original", None)])
def test_the_loss_is_the_distance_of_the_forged_core_from_its_target(target: str, wanted: float | None) -> None:
    here = batch()

    def attack(hu: Tensor, _: Batch) -> Tensor:  # reaches either target
        return here["hu"] if wanted is None else torch.full_like(hu, wanted)

    network = TAFIM(width=4, side=32, target=target, target_hu=500.0)  # type: ignore[arg-type]
    network.attack = attack
    losses = network.step(here, "protector")
    assert losses["distance_image"] == losses["distance_global"] == 0
    assert 0 < losses["loss"] < 1e-3  # the price of both perturbations
    network.attack = lambda hu, _: hu
    missed = network.step(here, "protector")
    assert missed["distance_image"] > (0 if wanted is None else 1)


def test_an_unknown_target_is_named() -> None:
    with pytest.raises(RecipeError, match="uniform or original"):
        TAFIM(target="cat")  # type: ignore[arg-type]
