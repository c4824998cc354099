"""The residual of CT noise: its contrast, what it is taught with, and that training finds and freezes it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ctguard import zoo
from ctguard.cohort.acquisitions import Acquisition, AcquisitionBatches, cut_side, processed
from ctguard.core.errors import ModelError, RecipeError
from ctguard.detect.residual import CTResidual, contrastive_loss, distances, judge_residual, retrieval
from ctguard.train.fit import fit
from ctguard.train.recipe import Recipe

GROUP = torch.arange(4).repeat_interleave(3)


def noisy(sd_hu: float, seed: int, smooth: bool = False) -> Acquisition:
    rng = np.random.default_rng(seed)
    noise = rng.normal(0, sd_hu, (2, 96, 96))
    if smooth:
        noise = (noise + np.roll(noise, 1, 1) + np.roll(noise, 1, 2) + np.roll(noise, (1, 1), (1, 2))) / 2
    room = 96 - cut_side(24)
    places = np.stack([rng.integers(0, n, 40) for n in (2, room, room)], axis=1)
    return Acquisition((noise - 850).astype(np.int16), (places,))


def test_published_size() -> None:
    assert sum(p.numel() for p in CTResidual().parameters()) == pytest.approx(0.556e6, rel=0.01)
    convs = [m for m in CTResidual().modules() if isinstance(m, torch.nn.Conv2d)]
    norms = [m for m in CTResidual().modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert len(convs) == 17 and len(norms) == 15


@pytest.mark.parametrize("size", [(33, 47), (7, 5)])
def test_any_size_and_padding_values(size: tuple[int, int]) -> None:
    x = torch.full((1, 1, *size), -3024.0)
    net = CTResidual(4, 3).eval()
    with torch.no_grad():
        assert net(x).shape == x.shape and torch.equal(net(x), net(torch.full_like(x, -1150.0)))


def test_a_perfect_residual_has_less_loss_than_any_other() -> None:
    perfect = (GROUP.float() * 4)[:, None, None, None].expand(-1, 1, 16, 16)
    blind = torch.zeros(12, 1, 16, 16)
    random = torch.randn(12, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    losses = [float(contrastive_loss(distances(r), GROUP)) for r in (perfect, random, blind)]
    assert losses[0] < 1e-6 < losses[1]
    assert losses[2] == pytest.approx(np.log(11 / 2)), "chance: 2 of 11 others are of one's group"
    assert retrieval(distances(perfect), GROUP) == 1


def test_distances_are_mean_squares_without_the_rim() -> None:
    a = torch.randn(3, 1, 20, 20)
    b = a.clone()
    b[..., :4, :] = 100
    assert torch.allclose(distances(a), distances(b))
    inner = a[..., 4:-4, 4:-4]
    assert distances(a)[0, 1] == pytest.approx(float((inner[0] - inner[1]).square().mean()), rel=1e-4)


def test_a_patch_without_a_partner_does_not_count() -> None:
    residual = torch.randn(3, 1, 16, 16, requires_grad=True)
    loss = contrastive_loss(distances(residual), torch.tensor([0, 1, 2]))
    assert loss == 0
    loss.backward()


def test_batches_are_groups_of_one_series_and_repeat() -> None:
    batches = AcquisitionBatches([[noisy(10, 0)], [noisy(80, 1)]], batch=16, seed=3, patch=24)
    batch = batches(5)
    assert batch["x"].shape == (16, 1, 24, 24) and batch["group"].tolist() == [i // 4 for i in range(16)]
    again = batches(5)
    assert all(torch.equal(batch[key], again[key]) for key in batch)
    assert not torch.equal(batch["x"], batches(6)["x"])
    assert batch["x"].mean((1, 2, 3)).std() > 10, "its density does not tell a series"


def test_histories_change_noise_and_keep_size_enough() -> None:
    rng = np.random.default_rng(0)
    hu = rng.normal(-800, 40, (cut_side(48),) * 2).astype(np.float32)
    for history, change in ((0.0, "none"), (0.001, "less"), (0.2, "less"), (0.5, "less"), (0.9, "more")):
        out = processed(hu, history, rng)
        assert min(out.shape) >= 48
        ratio = out.std() / hu.std()
        assert {"none": ratio == 1, "less": ratio < 0.97, "more": ratio > 1.1}[change], (history, ratio)


def test_training_tells_noise_textures_apart() -> None:
    def textures(seed: int) -> list[Acquisition]:
        return [noisy(15, seed), noisy(60, seed + 1), noisy(60, seed + 2, smooth=True)]

    batches = AcquisitionBatches([textures(0)], 16, 0, 24)
    x = np.stack(
        [a.planes[0, i * 24 : i * 24 + 24, j : j + 24] for a in textures(9) for i in range(3) for j in (0, 50)]
    )
    held_out = {"x": torch.from_numpy(x[:, None].astype(np.float32)), "group": torch.arange(3).repeat_interleave(6)}
    torch.manual_seed(0)
    net = CTResidual(8, 4)
    optimizer = net.optimizers({"lr": 1e-2})["residual"]
    for step in range(40):
        optimizer.zero_grad()
        net.step(batches(step), "residual")["loss"].backward()
        optimizer.step()
    with torch.no_grad():
        assert judge_residual(net.eval(), [held_out])["score"] > 0.8, "chance is 0.29"


def test_a_detector_that_starts_from_it_keeps_its_statistics(tmp_path: Path) -> None:
    from ctguard.detect.trufor import TruFor

    torch.manual_seed(0)
    net = TruFor(2, (1, 1, 1, 1), extractor_width=4, extractor_depth=3)
    for module in net.extractor.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.fill_(0.7)  # type: ignore[union-attr]
    before = {key: value.clone() for key, value in net.extractor.state_dict().items()}
    x = torch.randn(2, 1, 32, 32) * 100 - 800
    batch = {"x": x, "mask": (x > -700).float(), "label": torch.tensor([1.0, 0.0])}
    recipe = Recipe("t", "trufor", "cpu", steps=1, batch=2, optimiser={"lr": 1e-2})
    trained = fit(net, lambda _: batch, recipe, tmp_path, quiet=True).module
    after = trained.get_submodule("extractor").state_dict()
    assert all(torch.equal(before[key], value) for key, value in after.items())


def test_trufor_names_the_extractor_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ctguard.detect.trufor import TruFor
    from ctguard.train.checkpoint import Card, save_checkpoint
    from ctguard.training.run import _take_parts

    monkeypatch.setattr(zoo, "WEIGHTS", tmp_path)
    recipe = Recipe("trufor", "trufor", "cpu")
    net = TruFor(2, (1, 1, 1, 1), extractor_width=4, extractor_depth=3)
    with pytest.raises(ModelError, match="train the model first"):
        _take_parts(net, recipe)
    residual = CTResidual(4, 3)
    card = Card("residual", "ct-residual", "residual", "cpu", {}, "", 0, 0, "", "")
    saved = save_checkpoint(residual, card, tmp_path)
    assert _take_parts(net, recipe) == {"residual": saved.sha256}
    x = torch.randn(1, 1, 16, 16) * 100 - 800
    with torch.no_grad():
        assert torch.allclose(net.extractor(x), residual.eval()(x), atol=1e-2)
    with pytest.raises(ModelError, match="another architecture"):
        _take_parts(TruFor(2, (1, 1, 1, 1), extractor_width=8, extractor_depth=3), recipe)


def test_wrong_use_says_what_to_do() -> None:
    with pytest.raises(RecipeError, match="depth >= 3"):
        CTResidual(depth=2)
    with pytest.raises(RecipeError, match="no turn 'detector'"):
        CTResidual(4, 3).step({}, "detector")
