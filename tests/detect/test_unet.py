"""The U-Net: the published size, what it says of a pixel, and that its losses teach it."""

from __future__ import annotations

import pytest
import torch

from ctguard.core.errors import RecipeError
from ctguard.detect.unet import UNet2d


def params(width: int) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in UNet2d(width).parameters())


def test_sizes() -> None:
    assert params(64) == pytest.approx(31.0e6, rel=0.005), "Ronneberger 2015"
    assert params(16) * 2 < 5e6, "fp16 weights of the CPU size"


def test_a_pixel_depends_on_its_surroundings_alone() -> None:
    torch.manual_seed(0)
    net = UNet2d(4).eval()
    x = torch.randn(1, 1, 512, 512) * 200 - 700
    with torch.no_grad():
        whole = net.map_logit(x)[..., 192:320, 192:320]
        other = x.clone()
        other[..., :16, :] = 3000.0
        assert torch.equal(net.map_logit(other)[..., 192:320, 192:320], whole)
        crop = net.map_logit(x[..., 64:448, 64:448])[..., 128:256, 128:256]
    assert torch.allclose(crop, whole, atol=1e-5)


def test_values_outside_the_window_are_clipped_not_followed() -> None:
    net = UNet2d(4).eval()
    x = torch.full((1, 1, 32, 32), -1150.0)
    with torch.no_grad():
        assert torch.equal(net.map_logit(x), net.map_logit(torch.full_like(x, -3024.0)))


def test_the_score_is_the_maximum_of_the_smoothed_map() -> None:
    net = UNet2d(4, smooth=3)
    map_logit = torch.full((1, 1, 20, 20), -5.0)
    map_logit[..., 10, 10] = 4.0
    assert net.score_logit(map_logit).item() == pytest.approx((8 * -5 + 4) / 9)
    ignore = torch.zeros_like(map_logit)
    ignore[..., 8:13, 8:13] = 1
    assert net.score_logit(map_logit, ignore).item() == pytest.approx(-5)


def test_ignored_pixels_do_not_move_the_losses() -> None:
    torch.manual_seed(0)
    net = UNet2d(4).eval()
    x = torch.randn(2, 1, 32, 32) * 200 - 700
    mask, ignore = torch.zeros_like(x), torch.zeros_like(x)
    mask[0, :, 8:16, 8:16] = 1
    ignore[:, :, 20:, 20:] = 1
    wrong = torch.where(ignore > 0, 1 - mask, mask)
    label = torch.tensor([1.0, 0.0])
    ours = net.step({"x": x, "mask": mask, "ignore": ignore, "label": label}, "detector")
    theirs = net.step({"x": x, "mask": wrong, "ignore": ignore, "label": label}, "detector")
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_it_learns_to_find_a_bright_square() -> None:
    torch.manual_seed(0)
    net = UNet2d(4)
    optimizer = net.optimizers({"lr": 1e-2})["detector"]
    for _ in range(40):
        x = torch.randn(8, 1, 32, 32) * 100 - 800
        mask = torch.zeros_like(x)
        for i, (row, column) in enumerate(torch.randint(2, 22, (4, 2)).tolist()):
            mask[i, :, row : row + 8, column : column + 8] = 1
        label = mask.flatten(1).amax(1)
        losses = net.step({"x": x + 500 * mask, "mask": mask, "label": label}, "detector")
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
    net.eval()
    with torch.no_grad():
        score, logit = net(x + 500 * mask)
    found, truth = logit > 0, mask > 0
    assert 2 * (found & truth).sum() / (found.sum() + truth.sum()) > 0.8
    assert score[:4].min() > score[4:].max()


def test_wrong_use_says_what_to_do() -> None:
    with pytest.raises(RecipeError, match="odd smooth"):
        UNet2d(smooth=4)
    with pytest.raises(RecipeError, match="set lr"):
        UNet2d(4).optimizers({})
    with pytest.raises(RecipeError, match="no turn 'generator'"):
        UNet2d(4).step({}, "generator")
