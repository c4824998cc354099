"""TruFor: its published size, its stages, its pooled statistics, and that it learns."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from ctguard.core.errors import RecipeError
from ctguard.detect.trufor import LEFT_OUT, TruFor, pooled


def small() -> TruFor:
    torch.manual_seed(0)
    return TruFor(width=2, depths=(1, 1, 1, 1), extractor_width=4, extractor_depth=3)


def smoothed_squares(count: int = 4, side: int = 64) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    x = torch.randn(count, 1, side, side) * 60 - 800
    mask = torch.zeros_like(x)
    mask[::2, :, 16:40, 20:44] = 1
    x = torch.where(mask > 0, x + 300, x)
    return {"x": x, "mask": mask, "label": mask.amax((1, 2, 3))}


def test_sizes() -> None:
    with torch.device("meta"):
        published, cpu, least = (
            TruFor(),
            TruFor(8, extractor_width=16, extractor_depth=9),
            TruFor(4, (3, 4, 6, 3), 16, 9),
        )
    count = [sum(p.numel() for p in net.parameters()) for net in (published, cpu, least)]
    assert count[0] == pytest.approx(68.7e6, rel=0.001), "SegFormer-B2 twice, CMX, two decoders, 17 layers of residual"
    assert 2 * count[1] < 5e6 and count[2] <= 0.4e6
    assert sum(p.numel() for p in published.encoder.image.parameters()) == pytest.approx(24.2e6, rel=0.001), "MiT-B2"
    assert published.encoder.channels == (64, 128, 320, 512)


def test_scales_are_a_quarter_to_a_thirty_second() -> None:
    with torch.no_grad():
        features = small().eval().features(torch.randn(1, 1, 64, 96) * 100 - 800)
    assert [tuple(f.shape[1:]) for f in features] == [(2, 16, 24), (4, 8, 12), (10, 4, 6), (16, 2, 3)]


def test_the_extractor_is_frozen_statistics_included() -> None:
    net = small().train()
    before = {key: value.clone() for key, value in net.extractor.state_dict().items()}
    optimizers = net.optimizers({"lr": 1e-2})
    for turn in net.turns:
        optimizers[turn].zero_grad()
        net.step(smoothed_squares(), turn)["loss"].backward()
        optimizers[turn].step()
    assert all(parameter.grad is None for parameter in net.extractor.parameters())
    assert all(torch.equal(before[key], value) for key, value in net.extractor.state_dict().items())


def test_each_stage_trains_its_own_parts() -> None:
    parts = {"map": {"encoder", "anomaly"}, "score": {"confidence", "integrity"}}
    for turn, expected in parts.items():
        net = small().train()
        net.step(smoothed_squares(), turn)["loss"].backward()
        moved = {name.split(".")[0] for name, p in net.named_parameters() if p.grad is not None and p.grad.any()}
        assert moved == expected
        in_optimizer = {id(p) for g in net.optimizers({"lr": 1.0})[turn].param_groups for p in g["params"]}
        assert in_optimizer == {id(p) for name, p in net.named_parameters() if name.split(".")[0] in expected}


def test_there_is_one_sigmoid() -> None:
    net = small().eval()
    batch = smoothed_squares()
    score, logit = net(batch["x"])
    weight = torch.where(batch["mask"] > 0, 2.5, 0.5)
    expected = F.binary_cross_entropy_with_logits(logit, batch["mask"], weight=weight, reduction="sum") / weight.sum()
    assert torch.allclose(net.step(batch, "map")["bce"], expected)
    detection = net.step(batch, "score")["detection"]
    assert torch.allclose(detection, F.binary_cross_entropy_with_logits(score, batch["label"]), atol=1e-6)


def test_confidence_learns_how_likely_the_true_class_is() -> None:
    net = small().eval()
    batch = smoothed_squares()
    with torch.no_grad():
        forged = net(batch["x"])[1].sigmoid()
        right = torch.where(batch["mask"] > 0, forged, 1 - forged)
        expected = F.mse_loss(net.confidence_map(batch["x"]), right)
        assert torch.allclose(net.step(batch, "score")["confidence"], expected)


def test_pooled_statistics() -> None:
    x = torch.randn(2, 1, 5, 7)
    flat = x.flatten(1)
    stats = pooled(x, torch.zeros_like(x))
    n = math.log(flat.shape[1])
    expected = (-(-flat).logsumexp(1) + n, flat.logsumexp(1) - n, flat.mean(1), flat.square().mean(1))
    assert torch.allclose(stats, torch.stack(expected, 1), atol=1e-5)
    hidden = torch.zeros_like(x)
    hidden[..., 2:] = LEFT_OUT
    assert torch.allclose(pooled(x, hidden), pooled(x[..., :2], hidden[..., :2]), atol=1e-4)


def test_an_unsure_place_counts_less_in_the_score() -> None:
    net = small().eval()
    coarse = torch.full((1, 1, 8, 8), -4.0)
    sure = torch.full_like(coarse, 4.0)
    hot = coarse.clone()
    hot[..., 3, 3] = 8.0
    unsure = sure.clone()
    unsure[..., 3, 3] = -8.0
    weighted = [pooled(hot, F.logsigmoid(confidence))[0, 1] for confidence in (sure, unsure)]
    assert weighted[0] > weighted[1] + 3
    with torch.no_grad():
        assert net.score_logit(hot, sure) != net.score_logit(coarse, sure)


def test_ignored_pixels_do_not_move_the_losses() -> None:
    net = small().eval()
    batch = smoothed_squares()
    ignore = torch.zeros_like(batch["mask"])
    ignore[..., 48:, 48:] = 1
    wrong = torch.where(ignore > 0, 1 - batch["mask"], batch["mask"])
    for turn in net.turns:
        ours = net.step({**batch, "ignore": ignore}, turn)
        theirs = net.step({**batch, "mask": wrong, "ignore": ignore}, turn)
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_steps_lower_both_losses() -> None:
    net = small().train()
    batch = smoothed_squares()
    optimizers = net.optimizers({"lr": 5e-3})
    curve: dict[str, list[float]] = {turn: [] for turn in net.turns}
    for _ in range(12):
        for turn in net.turns:
            losses = net.step(batch, turn)
            optimizers[turn].zero_grad()
            losses["loss"].backward()
            optimizers[turn].step()
            curve[turn].append(float(losses["loss"].detach()))
    assert curve["map"][-1] < 0.9 * curve["map"][0]
    assert min(curve["score"][-4:]) < curve["score"][0]


def test_wrong_use_says_what_to_do() -> None:
    with pytest.raises(RecipeError, match="four depths"):
        TruFor(2, depths=(1, 1))
    with pytest.raises(RecipeError, match="set lr"):
        small().optimizers({})
    with pytest.raises(RecipeError, match="no turn 'detector'"):
        small().step({}, "detector")
