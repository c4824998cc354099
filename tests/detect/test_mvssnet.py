"""MVSS-Net: the published trunks, its two kinds of filters, its edges, and its three losses."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from ctguard.core.errors import RecipeError
from ctguard.detect.mvssnet import (
    BayarConv,
    DilatedResNet50,
    MVSSNet,
    SobelGate,
    _channel_attention,
    edge_of,
    squared_dice_loss,
)


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def params(width: int) -> int:
    with torch.device("meta"):
        return count(MVSSNet(width))


def test_the_published_trunk() -> None:
    with torch.device("meta"):
        trunk = DilatedResNet50(3, 64)
    classifier = 2048 * 1000 + 1000
    assert count(trunk) == 25_557_032 - classifier, "ResNet-50"
    assert [stage[-1].body[-1].num_features for stage in trunk.stages] == [256, 512, 1024, 2048]
    with torch.no_grad():
        features = DilatedResNet50(3, 2)(torch.zeros(1, 3, 128, 128))
    assert [tuple(f.shape[1:]) for f in features] == [(8, 32, 32), (16, 16, 16), (32, 8, 8), (64, 8, 8)]
    dilations = [unit.body[3].dilation[0] for unit in trunk.stages[3]]
    assert dilations == [1, 2, 4]


def test_sizes() -> None:
    assert params(64) == pytest.approx(142.7e6, rel=0.001), "2 trunks and a fusion of 4096 channels to 1024"
    assert params(8) * 2 < 5e6, "fp16 weights of the CPU size"
    assert params(3) < 0.4e6, "the smallest"


def constraint(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    centre = weight[..., 2, 2]
    return centre, weight.sum(dim=(-2, -1)) - centre


def test_the_bayar_constraint_holds_before_and_after_a_step() -> None:
    torch.manual_seed(0)
    bayar = BayarConv(1, 3)
    optimizer = torch.optim.AdamW(bayar.parameters(), lr=0.1)
    before = bayar.weight().detach().clone()
    for _ in range(2):
        centre, others = constraint(bayar.weight().detach())
        assert torch.equal(centre, -torch.ones(3, 1)) and torch.allclose(others, torch.ones(3, 1), atol=1e-5)
        loss = bayar(torch.randn(2, 1, 9, 9)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert not torch.allclose(bayar.weight(), before, atol=0.01)


def test_a_constant_leaves_no_noise_and_no_edge() -> None:
    torch.manual_seed(0)
    flat = torch.full((1, 4, 9, 11), 0.7)
    with torch.no_grad():
        assert BayarConv(4, 3)(flat).abs().max() < 1e-5, "not at the border either"
        assert SobelGate().gradients(flat).abs().max() < 1e-6


def test_sobel_measures_slopes_along_x_and_y() -> None:
    ramp = torch.arange(8.0).expand(1, 1, 6, 8)
    with torch.no_grad():
        along_x, along_y = SobelGate().gradients(ramp)[0]
    assert torch.allclose(along_x[:, 1:-1].abs(), torch.full((6, 6), 8.0)) and along_y.abs().max() < 1e-6


def test_a_flat_feature_passes_the_gate_at_half_and_has_a_gradient() -> None:
    flat = torch.ones(2, 3, 6, 6, requires_grad=True)
    gated = SobelGate()(flat)
    assert torch.allclose(gated, 0.5 * flat, atol=1e-3)
    gated.sum().backward()
    assert flat.grad is not None and torch.isfinite(flat.grad).all()


def test_the_edge_of_a_mask_is_both_sides_of_its_border() -> None:
    mask = torch.zeros(1, 1, 12, 12)
    mask[..., 3:8, 4:9] = 1
    edge = edge_of(mask)
    assert edge.unique().tolist() == [0, 1] and edge.sum() == 7 * 7 - 3 * 3
    assert edge_of(torch.zeros(1, 1, 8, 8)).sum() == edge_of(torch.ones(1, 1, 8, 8)).sum() == 0


def test_channel_attention_does_not_grow_with_the_slice() -> None:
    x = torch.randn(1, 4, 8, 8)
    tiled = x.repeat(1, 1, 3, 3)
    assert torch.allclose(_channel_attention(tiled)[..., :8, :8], _channel_attention(x), atol=1e-4)


def test_squared_dice() -> None:
    truth = torch.zeros(1, 1, 8, 8)
    truth[..., 2:6, 2:6] = 1
    counted = torch.ones_like(truth)
    assert squared_dice_loss(40 * truth - 20, truth, counted).item() == pytest.approx(0, abs=1e-5)
    assert squared_dice_loss(20 - 40 * truth, truth, counted).item() == pytest.approx(1, abs=0.02)
    assert squared_dice_loss(truth[:0], truth[:0], counted[:0]).item() == 0, "a batch without forged slices"


def a_batch(size: int = 64) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(6, 1, size, size, generator=generator) * 60 - 800
    mask = torch.zeros_like(x)
    mask[:3, :, 10:30, 14:34] = 1
    return {"x": x + 300 * mask, "mask": mask, "ignore": torch.zeros_like(x), "label": mask.flatten(1).amax(1)}


def test_the_losses_are_those_of_its_logits() -> None:
    torch.manual_seed(0)
    net, batch = MVSSNet(2).eval(), a_batch()
    score, logit = net(batch["x"])
    assert torch.equal(score, logit.flatten(1).amax(1)), "global max pooling"
    losses = net.step(batch, "detector")
    assert losses["image"].item() == pytest.approx(F.binary_cross_entropy_with_logits(score, batch["label"]).item())
    found, mask = logit[:3].sigmoid(), batch["mask"][:3]
    dice = 1 - (2 * (found * mask).sum() + 1) / (found.square().sum() + mask.sum() + 1)
    assert losses["pixel"].item() == pytest.approx(dice.item(), rel=1e-5)
    whole = 0.16 * losses["pixel"] + 0.04 * losses["image"] + 0.80 * losses["edge"]
    assert losses["loss"].item() == pytest.approx(whole.item(), rel=1e-6)


def test_pristine_slices_enter_the_score_s_loss_alone() -> None:
    torch.manual_seed(0)
    net, batch = MVSSNet(2).eval(), a_batch()
    forged = {key: value[:3] for key, value in batch.items()}
    ours, theirs = net.step(batch, "detector"), net.step(forged, "detector")
    assert ours["pixel"].item() == pytest.approx(theirs["pixel"].item(), rel=1e-4)
    assert ours["edge"].item() == pytest.approx(theirs["edge"].item(), rel=1e-4)
    assert ours["image"].item() != pytest.approx(theirs["image"].item(), rel=1e-4)


def test_ignored_pixels_do_not_move_the_losses() -> None:
    torch.manual_seed(0)
    net, batch = MVSSNet(2).eval(), a_batch()
    batch["ignore"][..., 40:, :] = 1
    wrong = {**batch, "mask": torch.where(batch["ignore"] > 0, torch.ones_like(batch["mask"]), batch["mask"])}
    ours, theirs = net.step(batch, "detector"), net.step(wrong, "detector")
    assert ours["image"].item() == theirs["image"].item()
    assert ours["pixel"].item() == pytest.approx(theirs["pixel"].item(), rel=1e-5)


@pytest.mark.parametrize("size", [(96, 96), (50, 75), (128, 40)])
def test_edges_come_at_a_quarter_of_any_size(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        logit, edge = MVSSNet(2).eval().views(torch.randn(1, 1, *size) * 100 - 800)
    assert logit.shape[-2:] == size
    assert edge is not None and edge.shape[-2:] == tuple(-(-n // 4) for n in size)


def test_steps_lower_the_loss() -> None:
    torch.manual_seed(0)
    net, batch = MVSSNet(4), a_batch()
    optimizer = net.optimizers({"lr": 2e-3})["detector"]
    losses = []
    for _ in range(6):
        loss = net.step(batch, "detector")["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert min(losses[1:3]) < losses[0] and losses[-1] < losses[0]


def test_wrong_use_says_what_to_do() -> None:
    with pytest.raises(RecipeError, match="three weights"):
        MVSSNet(loss_weights=(1.0, -1.0, 1.0))
    with pytest.raises(RecipeError, match="no turn 'generator'"):
        MVSSNet(2).step({}, "generator")
