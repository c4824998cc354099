"""MITS-GAN: the released sizes, what each mode minimises, and that gradient mode learns to harm."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ctguard.core.errors import RecipeError
from ctguard.protect.mitsgan import MITSGAN, SliceDiscriminator, SliceGenerator, noise_net
from ctguard.protect.network import Batch, masked_square
from tests.laws.test_protectors import answering, batch, lung


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_the_networks_have_the_released_sizes() -> None:
    assert count(noise_net()) == 62
    assert count(SliceDiscriminator(1, 7)) == 3964
    # the release has no normalisation after the first convolution (128), and a bias there instead (64); the paper has
    assert count(SliceGenerator(64)) == 223_295 + 128 - 64
    convolutions = [layer for layer in SliceDiscriminator(1, 7).modules() if isinstance(layer, nn.Conv2d)]
    assert len(convolutions) == 8
    assert SliceDiscriminator(1, 7)(torch.zeros(1, 1, 512, 512)).shape == (1, 1, 4, 4)


def test_noise_is_drawn_anew_and_matters() -> None:
    network = MITSGAN(width=4, discriminator=(1, 2)).train()
    torch.manual_seed(0)
    one, other = network.blocks(lung(), 50), network.blocks(lung(), 50)
    torch.manual_seed(0)
    assert torch.equal(one, network.blocks(lung(), 50)) and not torch.equal(one, other)


def paper(stop_gradient: bool) -> MITSGAN:
    torch.manual_seed(0)
    return MITSGAN("paper", 4, (1, 2), alpha=1e3, stop_gradient=stop_gradient).train()


def test_in_paper_mode_the_gradient_stops_at_the_forging_unless_it_is_told_not_to() -> None:
    seen: list[bool] = []

    def attack(hu: Tensor, here: Batch) -> Tensor:
        seen.append(hu.requires_grad and torch.is_grad_enabled())
        return answering(hu, here)

    for stopped in (True, False):
        network = paper(stopped)
        network.attack = attack
        network.step(batch(), "protector")["loss"].backward()  # type: ignore[no-untyped-call]
    assert seen == [False, True]


def test_in_paper_mode_the_slice_is_made_anew_and_cut_to_the_budget_in_use_only() -> None:
    network = paper(True)
    network.attack = answering
    assert network.blocks(lung(), 1e4).abs().max() > 100
    assert network.blocks(lung()).abs().max() <= 5
    assert network.step(batch(), "protector")["manipulation"] > 0


def test_gradient_mode_learns_to_harm_more_than_noise_of_its_own_size() -> None:
    torch.manual_seed(0)
    network = MITSGAN(width=4, discriminator=(1, 2), fidelity=0.1).train()
    network.attack = answering
    optimizer = network.optimizers({"lr": 1e-2})["protector"]
    here = batch()
    for _ in range(25):
        optimizer.zero_grad()
        network.step(here, "protector")["loss"].backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    with torch.no_grad():
        added = network.rounded(here["hu"])
        noise = (
            torch.randn(added.shape, generator=torch.Generator().manual_seed(0)) * added.square().mean().sqrt()
        ).round()
        damage, floor = (
            masked_square(answering(here["hu"] + d, here) - answering(here["hu"], here), here["core"]).sqrt().mean()
            for d in (added, noise)
        )
    assert damage > 5 * floor


def test_fidelity_weighs_what_is_added() -> None:
    torch.manual_seed(0)
    light, heavy = (MITSGAN(width=4, discriminator=(1, 2), fidelity=weight, budget_hu=50) for weight in (0.0, 10.0))
    heavy.load_state_dict(light.state_dict())
    found = []
    for network in (light, heavy):
        network.attack = answering
        torch.manual_seed(1)
        found.append(network.step(batch(), "protector"))
    more = found[1]["loss"].item() - found[0]["loss"].item()
    assert more == pytest.approx(10 * found[0]["price"].item(), rel=1e-3) and more > 0


def test_a_perturbation_without_level_leaves_every_mean_over_its_square_alone() -> None:
    torch.manual_seed(0)
    free, held = (MITSGAN(width=4, discriminator=(1, 2), budget_hu=50, level_px=side).eval() for side in (0, 9))
    held.load_state_dict(free.state_dict())
    wide = lung((1, 1, 2, 60, 60))

    def level(network: MITSGAN) -> float:
        torch.manual_seed(0)
        added = network.blocks(wide).detach()[0]
        assert 0 < added.abs().max() <= 50
        return float(nn.functional.avg_pool2d(added, 30).abs().max() / added.abs().mean())

    assert level(held) < 0.2 and level(free) > 0.5


def test_an_unknown_mode_is_named() -> None:
    with pytest.raises(RecipeError, match="paper or gradient"):
        MITSGAN("best")  # type: ignore[arg-type]
