"""Xception: the published size, a score that a large slice does not dilute, and that it says nothing of where."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from ctguard.core.errors import RecipeError
from ctguard.core.threshold import Threshold
from ctguard.detect.infer import detect_volume
from ctguard.detect.xception import Xception
from ctguard.training.detectors import judge_detector
from tests.detect.scans import thorax


def params(width: int) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in Xception(width).parameters())


def test_sizes() -> None:
    # Keras and its ports: 22,855,952 learnt numbers, 2,049,000 of them in the classifier of 1,000 classes
    trunk, first_of_rgb, first_of_hu, head = 22_855_952 - 2_049_000, 3 * 32 * 9, 32 * 9, 2048 + 1
    assert params(32) == trunk - first_of_rgb + first_of_hu + head
    assert params(10) * 2 < 5e6, "fp16 weights of the CPU size"
    assert params(4) < 0.4e6, "the smallest"


def batch_of(size: int = 64) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(6, 1, size, size, generator=generator) * 60 - 800
    mask = torch.zeros_like(x)
    mask[:3, :, 20:40, 20:40] = 1
    return {"x": x + 400 * mask, "mask": mask, "ignore": torch.zeros_like(x), "label": mask.flatten(1).amax(1)}


def test_the_loss_is_the_cross_entropy_of_the_score_s_logit() -> None:
    torch.manual_seed(0)
    net, batch = Xception(4, window_px=64).eval(), batch_of()
    score, _ = net(batch["x"])
    expected = F.binary_cross_entropy_with_logits(score, batch["label"])
    assert net.step(batch, "detector")["loss"].item() == pytest.approx(expected.item(), rel=1e-6)


def test_a_slice_that_is_ignored_does_not_count() -> None:
    torch.manual_seed(0)
    net, batch = Xception(4, window_px=64).eval(), batch_of()
    batch["ignore"][4:] = 1
    whole = net.step(batch, "detector")["loss"]
    part = net.step({key: value[:4] for key, value in batch.items()}, "detector")["loss"]
    assert whole.item() == pytest.approx(part.item(), rel=1e-5)


def test_steps_lower_the_loss() -> None:
    torch.manual_seed(0)
    net, batch = Xception(4, window_px=64), batch_of()
    optimizer = net.optimizers({"lr": 2e-3})["detector"]
    losses = []
    for _ in range(5):
        loss = net.step(batch, "detector")["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[1] < losses[0] and losses[-1] < 0.5 * losses[0]


def test_a_nodule_weighs_the_same_on_a_large_slice() -> None:
    """Trained on 64 pixels, judged on 320: one hot cell of 100 weighs a quarter as in training, not a hundredth."""
    features = torch.zeros(1, 128, 10, 10)
    features[..., 3, 7] = 1.0
    rise = {}
    for window_px in (64, 0):
        net = Xception(2, window_px=window_px).eval()
        net.head.weight.data.fill_(1 / 128)
        net.exit.register_forward_hook(lambda _, __, ___: features)
        with torch.no_grad():
            rise[window_px] = net(torch.zeros(1, 1, 320, 320))[0].item() - net.head.bias.item()
    assert rise[64] == pytest.approx(1 / 4, rel=1e-5) and rise[0] == pytest.approx(1 / 100, rel=1e-5)


def test_on_a_training_patch_the_squares_are_the_published_global_mean() -> None:
    torch.manual_seed(0)
    squares, whole = Xception(4, window_px=96).eval(), Xception(4).eval()
    whole.load_state_dict(squares.state_dict())
    x = torch.randn(2, 1, 96, 96) * 100 - 800
    with torch.no_grad():
        assert torch.allclose(squares(x)[0], whole(x)[0])


def test_a_verdict_has_no_map_and_no_regions_and_says_so() -> None:
    torch.manual_seed(0)
    verdict = detect_volume(
        thorax(), Xception(2, window_px=32), name="xception", model_id="x", threshold=Threshold(1e-6)
    )
    assert verdict.tampered and verdict.regions == () and not verdict.map.any()
    assert verdict.words == "evidence of tampering; this detector does not say where"
    clean = detect_volume(thorax(), Xception(2, window_px=32), name="xception", model_id="x", threshold=Threshold(2.0))
    assert clean.words == "no evidence of tampering found"


def test_its_checkpoints_are_chosen_by_the_score_alone() -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        metrics = judge_detector(Xception(2, window_px=32).eval(), [batch_of()])
    assert set(metrics) == {"score", "patch_accuracy"} and metrics["score"] == metrics["patch_accuracy"]


def test_mixed_precision_does_not_blur_the_input() -> None:
    """One HU more must still be seen: at -1000 HU bf16 would round it away."""
    torch.manual_seed(0)
    net = Xception(4).eval()
    x = torch.full((1, 1, 32, 32), -1000.0)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        seen = net.root.register_forward_hook(lambda _, __, y: outputs.append(y))
        outputs: list[torch.Tensor] = []
        net(x), net(x + 1)
        seen.remove()
    assert outputs[0].dtype == torch.float32 and not np.array_equal(outputs[0], outputs[1])


def test_wrong_use_says_what_to_do() -> None:
    with pytest.raises(RecipeError, match="window_px >= 0"):
        Xception(window_px=-1)
    with pytest.raises(RecipeError, match="no turn 'generator'"):
        Xception(2).step({}, "generator")
