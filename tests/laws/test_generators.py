"""What every generator of the zoo promises, trained or not."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ctguard import zoo
from ctguard.tamper.controls import CopyMove
from ctguard.tamper.cube import core_mask

SMALL: dict[str, dict[str, Any]] = {
    "pix2pix": {"width": 4, "noise_sd": 0.1},
    "cyclegan": {"width": 4, "blocks": 1, "discriminator_width": 4},
    "diffusion": {"channels": [8, 16], "attention": [False, False], "patch": 2, "steps": 50},
}
LEARNED = [entry for entry in zoo.ENTRIES if entry.kind == "generator" and entry.weights]
ALL = [entry for entry in zoo.ENTRIES if entry.kind == "generator"]


def build(entry: zoo.Entry) -> Any:
    torch.manual_seed(0)
    if entry.name == "copy-move":
        return CopyMove(torch.full((32, 32, 32), -800.0))
    module = zoo.build(entry, SMALL.get(entry.name, {})).eval()
    with torch.no_grad():
        for parameter in module.parameters():  # layers that begin at zero would let nothing through
            parameter.add_(0.02 * torch.randn_like(parameter))
    return module


def batch(core_mm: float = 16) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(1)
    cube = torch.rand((2, 1, 32, 32, 32), generator=rng) - 0.5
    noise = torch.randn((2, 1, 32, 32, 32), generator=rng)
    return cube, core_mask(core_mm).expand(2, 1, 32, 32, 32), noise


def ids(entry: zoo.Entry) -> str:
    return f"{entry.name}-{entry.task}"


@pytest.mark.parametrize("entry", ALL, ids=ids)
def test_shape_range_and_determinism(entry: zoo.Entry) -> None:
    module = build(entry)
    cube, mask, noise = batch()
    with torch.no_grad():
        a, b = module(cube, mask, noise), module(cube, mask, noise)
    assert a.shape == cube.shape
    assert torch.isfinite(a).all() and a.abs().max() <= 1.0
    assert torch.equal(a, b)


@pytest.mark.parametrize("core_mm", [16, 18, 20])
@pytest.mark.parametrize("entry", LEARNED, ids=ids)
def test_the_core_is_never_seen_and_the_shell_is(entry: zoo.Entry, core_mm: float) -> None:
    module = build(entry)
    cube, mask, noise = batch(core_mm)
    with torch.no_grad():
        base = module(cube, mask, noise)
        other_core = module(torch.where(mask > 0, cube + 0.3, cube), mask, noise)
        other_shell = module(torch.where(mask > 0, cube, cube + 0.3), mask, noise)
    assert torch.equal(base, other_core)
    assert not torch.allclose(base, other_shell)


@pytest.mark.parametrize("entry", LEARNED, ids=ids)
def test_gradient_flows_from_core_to_shell(entry: zoo.Entry) -> None:
    module = build(entry)
    cube, mask, noise = batch()
    cube.requires_grad_(True)
    (gradient,) = torch.autograd.grad((module(cube, mask, noise) * mask).sum(), cube)
    assert (gradient * (1 - mask)).abs().sum() > 0
    assert (gradient * mask).abs().sum() == 0


@pytest.mark.parametrize("entry", LEARNED, ids=ids)
def test_equaliser_inverts_itself_and_keeps_order(entry: zoo.Entry) -> None:
    equaliser = build(entry).equaliser
    equaliser.fit(torch.randn(20000).mul(150).sub(800).numpy())
    hu = torch.linspace(-1000, 1500, 501)
    norm = equaliser(hu)
    assert (norm.diff() > 0).all() and norm.abs().max() <= 0.5
    assert torch.allclose(equaliser.inverse(norm), hu, atol=0.5)


@pytest.mark.parametrize("entry", LEARNED, ids=ids)
def test_every_turn_of_training_lowers_its_own_loss(entry: zoo.Entry) -> None:
    torch.manual_seed(0)
    module = zoo.build(entry, SMALL[entry.name])
    optimizers = module.optimizers({"lr_generator": 1e-3, "lr_discriminator": 1e-3, "lr": 1e-3})
    cube, mask, noise = batch()
    data = {"hu": cube * 800 - 600, "mask": mask, "noise": noise}
    for turn in module.turns:
        losses = []
        for _ in range(8):
            optimizers[turn].zero_grad()
            torch.manual_seed(1)  # the same draws in every step
            loss = module.step(data, turn)["loss"]
            loss.backward()
            optimizers[turn].step()
            losses.append(loss.item())
        assert losses[-1] < losses[0]
