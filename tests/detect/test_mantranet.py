"""ManTraNet: its published size, its filters, its Z-scores, the order of its memory, and that it learns."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from ctguard.core.errors import RecipeError
from ctguard.detect.bayar import bayar_kernels
from ctguard.detect.mantranet import ConvLSTM, ManTraNet, ZPool, srm_kernels, window_mean


def params(width: int) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in ManTraNet(width).parameters())


def smoothed_squares(count: int = 4) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    x = torch.randn(count, 1, 40, 40) * 60 - 800
    mask = torch.zeros_like(x)
    mask[::2, :, 12:26, 14:28] = 1
    x = torch.where(mask > 0, F.avg_pool2d(x, 3, 1, 1), x)
    return {"x": x, "mask": mask, "label": mask.amax((1, 2, 3))}


def test_sizes() -> None:
    assert params(32) == pytest.approx(3.8e6, rel=0.01), "the published network"
    assert params(8) <= 0.4e6, "0.8 MB in fp16"
    with torch.device("meta"):
        net = ManTraNet(32)
    assert [conv.out_channels for conv in net.traces.convs] == [32, 64, 64, 128, 128, 128, *(256,) * 6]
    assert net.traces.convs[0].in_channels == 16 and net.memory.gates.kernel_size == (7, 7)


def test_srm_filters_see_no_constant_and_no_slope() -> None:
    kernels = srm_kernels()
    assert kernels.shape == (9, 1, 5, 5)
    assert kernels.sum((1, 2, 3)).abs().max() < 1e-6
    assert kernels.abs().amax((1, 2, 3)).eq(1).all(), "largest weight 1"
    assert len({tuple(kernel.flatten().tolist()) for kernel in kernels}) == 9
    ramp = torch.arange(9.0).expand(1, 1, 9, 9)
    response = F.conv2d(ramp + ramp.mT, kernels)
    assert response[:, 2:].abs().max() < 1e-5 and response[:, :2].abs().min() > 0.5


def test_srm_filters_are_fixed() -> None:
    net = ManTraNet(2)
    assert "traces.srm" in net.state_dict() and "traces.srm" not in dict(net.named_parameters())


def test_bayar_filters_keep_their_constraint_through_training_and_rounding() -> None:
    net = ManTraNet(2, hidden=2)
    optimizer = net.optimizers({"lr": 0.5})["detector"]
    before = net.traces.bayar.detach().clone()
    net.step(smoothed_squares(), "detector")["loss"].backward()
    optimizer.step()
    assert not torch.equal(net.traces.bayar, before)
    for raw in (net.traces.bayar, net.traces.bayar.half().float(), torch.zeros_like(before)):
        kernels = bayar_kernels(raw.detach())
        assert kernels[..., 2, 2].eq(-1).all()
        assert torch.allclose(kernels.sum((1, 2, 3)), torch.zeros(3), atol=1e-5), "others sum to 1"


@pytest.mark.parametrize("size", [(3, 5), (40, 33), (64, 64)])
def test_windows_end_where_the_image_does(size: tuple[int, int]) -> None:
    x = torch.randn(1, 2, *size)
    expected = torch.empty_like(x)
    for i in range(size[0]):
        for j in range(size[1]):
            expected[..., i, j] = x[..., max(i - 7, 0) : i + 8, max(j - 7, 0) : j + 8].mean((2, 3))
    assert torch.allclose(window_mean(x, 15), expected, atol=1e-5)


def test_z_scores_of_a_constant_image_are_zero() -> None:
    assert ZPool(3)(torch.full((2, 3, 41, 20), 7.0)).abs().max() < 1e-3


def test_z_scores_run_from_the_whole_image_to_the_smallest_window() -> None:
    x = torch.randn(1, 1, 50, 60)
    z = ZPool(1)(x)
    assert z.shape == (1, 4, 1, 50, 60)
    assert torch.allclose(z[:, 0], (x - x.mean()) / x.std(unbiased=False), atol=1e-4)
    for number, side in ((1, 31), (2, 15), (3, 7)):
        assert torch.allclose(z[:, number], (x - window_mean(x, side)) / x.std(unbiased=False), atol=1e-4)


def test_z_scores_follow_each_image_and_not_the_first_one_s_size() -> None:
    pool = ZPool(1)
    pool(torch.randn(1, 1, 64, 64))
    x = torch.randn(1, 1, 31, 90) + 5
    z = pool(x).detach()[:, 0]
    assert float(z.mean()) == pytest.approx(0, abs=1e-4) and float(z.std()) == pytest.approx(1, abs=1e-3)


def test_the_memory_reads_far_first_and_near_last() -> None:
    net = ManTraNet(2, hidden=2).eval()
    read = []
    net.memory.gates.register_forward_pre_hook(lambda _, given: read.append(given[0][:, :4]))
    x = torch.randn(1, 1, 40, 40) * 100 - 800
    with torch.no_grad():
        net.map_logit(x)
    spread = [float(step.std()) for step in read]
    assert len(spread) == 4 and spread == sorted(spread, reverse=True), "smaller windows leave smaller scores"


def test_the_memory_keeps_what_came_before() -> None:
    torch.manual_seed(0)
    memory = ConvLSTM(2, 3)
    sequence = torch.randn(1, 4, 2, 9, 9)
    other = sequence.clone()
    other[:, 0] += 1
    with torch.no_grad():
        assert not torch.allclose(memory(sequence), memory(other))
        assert not torch.allclose(memory(sequence), memory(sequence.flip(1)))


def test_there_is_one_sigmoid() -> None:
    torch.manual_seed(0)
    net = ManTraNet(2, hidden=2).eval()
    batch = smoothed_squares()
    losses = net.step(batch, "detector")
    score, logit = net(batch["x"])
    assert torch.allclose(losses["bce"], F.binary_cross_entropy_with_logits(logit, batch["mask"]))
    assert torch.allclose(losses["score"], F.binary_cross_entropy_with_logits(score, batch["label"]))


def test_ignored_pixels_do_not_move_the_losses() -> None:
    net = ManTraNet(2, hidden=2).eval()
    batch = smoothed_squares()
    ignore = torch.zeros_like(batch["mask"])
    ignore[..., 30:, 30:] = 1
    wrong = torch.where(ignore > 0, 1 - batch["mask"], batch["mask"])
    ours = net.step({**batch, "ignore": ignore}, "detector")
    theirs = net.step({**batch, "mask": wrong, "ignore": ignore}, "detector")
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_steps_lower_the_loss() -> None:
    torch.manual_seed(0)
    net = ManTraNet(2)
    batch = smoothed_squares()
    optimizer = net.optimizers({"lr": 3e-3})["detector"]
    curve = []
    for _ in range(8):
        losses = net.step(batch, "detector")
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
        curve.append(float(losses["loss"].detach()))
    assert curve[1] < curve[0] and curve[-1] < 0.8 * curve[0]


def test_wrong_use_says_what_to_do() -> None:
    with pytest.raises(RecipeError, match="odd smooth"):
        ManTraNet(smooth=4)
    with pytest.raises(RecipeError, match="no turn 'map'"):
        ManTraNet(2).step({}, "map")
