"""HP-FCN: the published layers, filters that are high-pass, and its loss."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from ctguard.core.errors import RecipeError
from ctguard.detect.hpfcn import HPFCN, bilinear_kernels, focal_loss


def meta(width: int) -> HPFCN:
    with torch.device("meta"):
        return HPFCN(width)


def params(width: int) -> int:
    return sum(p.numel() for p in meta(width).parameters())


def test_the_published_layers() -> None:
    net = meta(32)
    y = torch.zeros(1, 3, 64, 64, device="meta")
    shapes = []
    for block in net.blocks:
        y = block(y)
        shapes.append(tuple(y.shape[1:]))
    assert shapes == [(128, 32, 32), (256, 16, 16), (512, 8, 8), (1024, 4, 4)]
    assert net.rise[0](y).shape[1:] == (64, 16, 16)
    assert net.rise(y).shape[1:] == (4, 64, 64)
    assert net.rise[0].weight.numel() == 8 * 8 * 1024 * 64


def test_sizes() -> None:
    assert params(16) * 2 < 5e6, "fp16 weights of the CPU size"
    assert params(7) < 0.4e6, "the smallest"


def test_the_filters_start_as_first_differences() -> None:
    weight = HPFCN(2).filters.weight.detach()[:, 0]
    assert torch.equal(weight.sum(dim=(1, 2)), torch.zeros(3))
    assert weight[:, 1, 1].tolist() == [-1, -1, -1]
    assert (weight[0, 2, 1], weight[1, 1, 2], weight[2, 2, 2]) == (1, 1, 1) and (weight != 0).sum() == 6
    assert HPFCN(2).filters.weight.requires_grad, "learnt along, as published"


def test_residuals_are_differences_of_scaled_hu() -> None:
    net = HPFCN(2, window_hu=(-1000.0, 1000.0))
    x = torch.randn(1, 1, 12, 14) * 100
    with torch.no_grad():
        down, right, diagonal = net.residuals(x)[0]
        assert torch.allclose(down[:-1], (x[0, 0, 1:] - x[0, 0, :-1]) / 2000, atol=1e-6)
        assert torch.allclose(right[:, :-1], (x[0, 0, :, 1:] - x[0, 0, :, :-1]) / 2000, atol=1e-6)
        assert torch.allclose(diagonal[:-1, :-1], (x[0, 0, 1:, 1:] - x[0, 0, :-1, :-1]) / 2000, atol=1e-6)
        flat = net.residuals(torch.full_like(x, 37.0))
    assert torch.equal(flat, torch.zeros_like(flat)), "no edge at the border either"


def test_one_hu_survives_mixed_precision() -> None:
    x = torch.full((1, 1, 16, 16), -900.0)
    x[..., 8:, :] += 1
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        residual = HPFCN(2).residuals(x)
    assert residual.dtype == torch.float32 and residual[0, 0, 7, 3].item() == pytest.approx(1 / 1500, rel=1e-3)


def test_transposed_convolutions_start_as_interpolation() -> None:
    x = torch.rand(1, 3, 6, 6)
    made = F.conv_transpose2d(x, bilinear_kernels(3, 2), stride=4, padding=2)
    wanted = F.interpolate(x[:, :2], scale_factor=4, mode="bilinear", align_corners=False)
    assert torch.allclose(made[..., 4:-4, 4:-4], wanted[..., 4:-4, 4:-4], atol=1e-6)


def test_focal_loss() -> None:
    logit = torch.tensor([-2.0, 0.5, 3.0])
    mask = torch.tensor([0.0, 1.0, 0.0])
    entropy = F.binary_cross_entropy_with_logits(logit, mask, reduction="none")
    assert torch.allclose(focal_loss(logit, mask, 0.0), entropy)
    truth = torch.where(mask > 0, logit.sigmoid(), 1 - logit.sigmoid())
    assert torch.allclose(focal_loss(logit, mask, 2.0), (1 - truth) ** 2 * entropy)


def a_batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(6, 1, 48, 48, generator=generator) * 60 - 800
    mask = torch.zeros_like(x)
    mask[:3, :, 10:30, 14:34] = 1
    return {"x": x + 300 * mask, "mask": mask, "ignore": torch.zeros_like(x), "label": mask.flatten(1).amax(1)}


def test_the_losses_are_those_of_its_logits() -> None:
    torch.manual_seed(0)
    net, batch = HPFCN(2, gamma=0.0).eval(), a_batch()
    score, logit = net(batch["x"])
    losses = net.step(batch, "detector")
    assert losses["focal"].item() == pytest.approx(F.binary_cross_entropy_with_logits(logit, batch["mask"]).item())
    assert losses["score"].item() == pytest.approx(F.binary_cross_entropy_with_logits(score, batch["label"]).item())
    assert losses["loss"].item() == pytest.approx((losses["focal"] + 0.1 * losses["score"]).item())


def test_ignored_pixels_do_not_move_the_losses() -> None:
    torch.manual_seed(0)
    net, batch = HPFCN(2).eval(), a_batch()
    batch["ignore"][..., 36:, :] = 1
    wrong = {**batch, "mask": torch.where(batch["ignore"] > 0, 1 - batch["mask"], batch["mask"])}
    ours, theirs = net.step(batch, "detector"), net.step(wrong, "detector")
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_steps_lower_the_loss() -> None:
    torch.manual_seed(0)
    net, batch = HPFCN(4), a_batch()
    optimizer = net.optimizers({"lr": 5e-3})["detector"]
    losses = []
    for _ in range(8):
        loss = net.step(batch, "detector")["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[1] < losses[0] and losses[-1] < 0.7 * losses[0]


def test_the_map_lies_where_the_pixels_are() -> None:
    """What is padded on is cropped off: a slice of odd size gets the map of the same slice inside a larger one."""
    torch.manual_seed(0)
    net = HPFCN(2).eval()
    x = torch.randn(1, 1, 352, 352) * 100 - 800
    with torch.no_grad():
        large, small = net.map_logit(x), net.map_logit(x[..., :343, :341])
    assert small.shape[-2:] == (343, 341)
    assert torch.allclose(small[..., :64, :64], large[..., :64, :64], atol=1e-5)


def test_wrong_use_says_what_to_do() -> None:
    with pytest.raises(RecipeError, match="odd smooth"):
        HPFCN(smooth=4)
    with pytest.raises(RecipeError, match="no turn 'generator'"):
        HPFCN(2).step({}, "generator")
