"""The shield: its strength, its waves, refining, and a protected scan whose refining can be done again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ctguard import io
from ctguard.core.errors import ModelError, RecipeError
from ctguard.core.geometry import FloatTriple
from ctguard.core.marks import Mark
from ctguard.core.provenance import Provenance, Source
from ctguard.core.volume import Volume
from ctguard.defence import protect_scan
from ctguard.defence.shield import lung_volleys
from ctguard.image.lung import lung_mask
from ctguard.image.noise import local_sd_map
from ctguard.protect.channel import PASSAGES, blurred, compressed, resampled
from ctguard.protect.shaping import NOISE_SHARE, fit_to, held_to, strength_map
from ctguard.protect.shield import Shield, coarse_matrices, shield_scan
from ctguard.protect.shield_refine import Effort, Limits, Volley, refine
from ctguard.train.checkpoint import Card, save_checkpoint
from tests.cli.runner import run
from tests.detect.scans import thorax

SPACING: FloatTriple = (2.0, 1.0, 1.0)
SHAPE = (20, 44, 40)


def hu() -> np.ndarray:
    return np.random.default_rng(0).normal(-850, 40, SHAPE).astype(np.int16)


def network(seed: int = 0) -> Shield:
    torch.manual_seed(seed)
    return Shield(waves=3, width=4).eval()


def rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values.astype(np.float64) ** 2)))


def test_strength_is_a_share_of_local_noise_capped_and_in_lung_alone() -> None:
    scan = hu()
    scan[:, :, 20:] = (scan[:, :, 20:] + 850) // 8 - 850  # a quiet half
    lung = np.ones(SHAPE, dtype=bool)
    lung[:, :6] = False
    strength = strength_map(scan, SPACING, 4.0, lung)
    assert not strength[:, :6].any()
    assert np.all(strength <= NOISE_SHARE * local_sd_map(scan, SPACING) + 1e-5)
    loud, quiet = strength[:, 10:, :10], strength[:, 10:, 34:]
    assert 4.0 < loud.min() == loud.max() <= 6.0 and quiet.max() < 1.5  # the loud half has what the quiet one cannot
    assert rms(strength[lung]) <= 4.0
    tissue = np.full(SHAPE, 40, np.int16)
    assert not strength_map(tissue, SPACING, 4.0).any()


def test_a_perturbation_is_brought_to_its_strength_everywhere() -> None:
    strength = np.full(SHAPE, 3.0, np.float32)
    strength[:, :10] = 0
    uneven = np.random.default_rng(1).normal(0, 1, SHAPE).astype(np.float32) * np.linspace(0.1, 9, 40, dtype=np.float32)
    fitted = fit_to(uneven, strength, SPACING, 9.0)
    assert not fitted[:, :10].any() and np.abs(fitted).max() <= 9.0
    assert rms(fitted) == pytest.approx(rms(strength), rel=0.02)
    left, right = (rms(fitted[:, 10:, part]) for part in (slice(0, 20), slice(20, 40)))
    assert left > 0.6 * right > 0.6 * 0.1 * left  # it was 30 times weaker on the left
    held = held_to(uneven, strength, 100.0)
    assert rms(held) == pytest.approx(rms(strength), rel=1e-4)


@pytest.mark.parametrize("passage", PASSAGES)
def test_what_a_block_may_go_through_keeps_slow_changes_and_passes_gradients(passage) -> None:  # type: ignore[no-untyped-def]
    block = torch.from_numpy(hu().astype(np.float32))
    z = torch.arange(SHAPE[0])[:, None, None] * SPACING[0]
    wave = (6 * torch.cos(2 * torch.pi * z / 32)).expand(SHAPE).clone().requires_grad_()
    change = passage(block + wave, SPACING) - passage(block, SPACING)
    assert change.shape == block.shape
    assert float((change * wave).detach().mean() / wave.detach().square().mean()) > 0.8
    (gradient,) = torch.autograd.grad((passage(block + wave, SPACING) * wave.detach()).sum(), wave)
    assert float((gradient * wave.detach()).mean() / wave.detach().square().mean()) > 0.5


def test_passages_take_fine_detail_away_and_differ() -> None:
    block = torch.from_numpy(hu().astype(np.float32))
    checks = block + 8 * (-1.0) ** torch.arange(SHAPE[2])
    for passage in (blurred, compressed, resampled):
        assert (passage(block, (2.0, 0.7, 0.7)) - block).abs().mean() > 1
    assert (blurred(checks, SPACING) - blurred(block, SPACING)).abs().mean() < 6.5


def test_waves_keep_strength_and_phase_through_the_scan_and_follow_the_seed() -> None:
    scan, strength = hu(), np.full(SHAPE, 4.0, np.float32)
    strength[:, :8] = 0
    one, same, other = (
        shield_scan(scan, SPACING, strength, network(), 12.0, seed=seed, quiet=True) for seed in (1, 1, 2)
    )
    assert np.array_equal(one, same) and not np.allclose(one, other)
    assert not one[:, :8].any() and rms(one) == pytest.approx(rms(strength), rel=0.02)
    with torch.inference_mode(), torch.random.fork_rng():
        torch.manual_seed(1)
        shield, block = network(), torch.from_numpy(scan.astype(np.float32))
        torch.manual_seed(1)
        whole = shield.pattern(
            shield.weights_of(block, SPACING), coarse_matrices(SHAPE, SPACING), SPACING, shield.draw_phases()
        ).numpy()
    assert np.corrcoef(whole[strength > 0], one[strength > 0])[0, 1] > 0.999  # slab by slab or at once


def test_thick_slices_are_spared_waves_that_they_cannot_show() -> None:
    shield = network()
    with torch.no_grad():
        shield.cycles.copy_(torch.tensor([[5.0, 0, 0], [16.0, 0, 0], [0, 2.0, 0]]))
        block = torch.from_numpy(hu().astype(np.float32))
        made = shield.pattern(
            shield.weights_of(block, (5.0, 1, 1)), coarse_matrices(SHAPE, (5.0, 1, 1)), (5.0, 1, 1), torch.zeros(3)
        )
    assert made.std(dim=0).max() < 0.5 * made.std(dim=1).max()  # what varies, varies in the plane


PATTERN = torch.randn((1, 12, 12), generator=torch.Generator().manual_seed(0))


def answer(blocks: Sequence[Tensor]) -> Tensor:
    """A forger that answers to a pattern of its block, in its own phase, wherever he cuts."""
    return torch.stack([20 * (block * PATTERN).mean(dim=(1, 2)) for block in blocks])


def draw(rng: np.random.Generator) -> list[Volley]:
    corners = 4 * rng.integers((4, 8, 7), size=(12, 3))
    windows = [(slice(0, 20), slice(y, y + 12), slice(x, x + 12)) for _, y, x in corners]
    return [Volley(windows[k : k + 4], answer, lambda block: block) for k in range(0, 12, 4)]


def damage(delta: np.ndarray) -> float:
    """At places that refining did not draw."""
    clean = torch.from_numpy(hu().astype(np.float32))
    both = clean + torch.from_numpy(np.rint(delta))
    windows = [volley.windows for volley in draw(np.random.default_rng(99))]
    blocks = [window for some in windows for window in some]
    change = answer([both[window] for window in blocks]) - answer([clean[window] for window in blocks])
    return float(change.square().mean().sqrt())


def test_refining_harms_more_than_its_start_and_repeats() -> None:
    strength = np.full(SHAPE, 3.0, np.float32)
    noise = 3 * np.random.default_rng(5).standard_normal(SHAPE).astype(np.float32)
    limits = Limits(strength, SPACING, 12.0)
    settings = {"seed": 1, "quiet": True}
    one, same = (refine(hu(), noise, limits, draw, Effort(steps=25), **settings) for _ in range(2))  # type: ignore[arg-type]
    assert np.array_equal(one.delta, same.delta) and one.steps == 25 == len(one.damage_hu)
    assert np.abs(one.delta).max() <= 12 and rms(one.delta) <= 3.001
    assert damage(one.delta) > 1.5 * damage(noise)
    timed = refine(hu(), noise, limits, draw, Effort(minutes=1e-9), **settings)  # type: ignore[arg-type]
    first = refine(hu(), noise, limits, draw, Effort(steps=1), **settings)  # type: ignore[arg-type]
    assert timed.steps == 1 and np.array_equal(timed.delta, first.delta)


@pytest.mark.parametrize("effort", [{}, {"steps": 0}, {"steps": 3, "minutes": 1.0}, {"minutes": -1.0}])
def test_an_effort_is_steps_or_minutes(effort: dict[str, float]) -> None:
    with pytest.raises(RecipeError, match="how long"):
        Effort(**effort)  # type: ignore[arg-type]


def scan() -> Volume:
    whole = thorax((14, 72, 84))
    return Volume(whole.hu, whole.geometry, Provenance(Source("phantom"), (), (Mark("phantom", ""),)))


def test_places_cover_the_lung_and_the_shipped_forgers_answer() -> None:
    volume = scan()
    lung = lung_mask(volume)
    draw_volleys, hashes = lung_volleys(volume.hu, volume.geometry.spacing_zyx_mm, lung, None)
    volleys = draw_volleys(np.random.default_rng(0))
    assert {"pix2pix_inject", "pix2pix_remove"} <= set(hashes)
    seen = np.zeros(lung.shape, dtype=bool)
    for volley in volleys:
        for window in volley.windows:
            seen[window] = True
    assert seen[lung].mean() > 0.9
    blocks = [torch.from_numpy(volume.hu[window].astype(np.float32)).requires_grad_() for window in volleys[0].windows]
    cores = volleys[0].forge(blocks)
    assert len(cores) == len(blocks) and torch.isfinite(cores).all()
    gradients = torch.autograd.grad(cores.square().sum(), blocks)
    assert all(gradient.abs().sum() > 0 for gradient in gradients)


def test_waves_harm_the_shipped_forgers_more_than_noise_of_their_size() -> None:
    volume = scan()
    spacing, lung = volume.geometry.spacing_zyx_mm, lung_mask(volume)
    strength = strength_map(volume.hu, spacing, 4.0, lung)
    shield = shield_scan(volume.hu, spacing, strength, network(), 12.0, seed=1, quiet=True)
    noise = np.random.default_rng(0).standard_normal(shield.shape).astype(np.float32) * strength
    draw_volleys, _ = lung_volleys(volume.hu, spacing, lung, None)
    limits = Limits(strength, spacing, 12.0)
    found = [
        refine(volume.hu, start, limits, draw_volleys, Effort(steps=1), seed=0, quiet=True) for start in (shield, noise)
    ]
    waves, floor = (refined.damage_hu[0] for refined in found)  # of the start, at places that it was not told of
    assert waves > 1.3 * floor  # on voxels of 3 mm, whose noise is coarse and harms more than that of a scan
    assert rms(found[0].delta) == pytest.approx(rms(strength), rel=0.05)


def weights(folder: Path) -> Path:
    card = Card("shield", "shield", "perturbation", "cpu", {"waves": 3, "width": 4}, "none", 0, 0, "", "")
    save_checkpoint(network(), card, folder)
    return folder / "shield.safetensors"


def test_a_scan_is_shielded_within_its_price_and_refining_can_be_done_again(tmp_path: Path) -> None:
    volume, path = scan(), weights(tmp_path)
    plain, price = protect_scan(volume, "shield", budget_hu=12, seed=3, weights=path, quiet=True)
    added = (plain.hu.astype(np.float32) - volume.hu)[lung_mask(volume)]
    assert 2.5 < added.std() <= 4.0 and price.max_hu <= 12
    outside = (plain.hu != volume.hu) & ~lung_mask(volume)
    assert not outside.any() and plain.provenance.has_mark("protected")
    refined, _ = protect_scan(
        volume, "shield", budget_hu=12, seed=3, weights=path, steps=Effort(minutes=1e-9), quiet=True
    )
    done = refined.provenance.steps[-1].params["refine_steps"]
    assert done == 1 and not np.array_equal(refined.hu, plain.hu)
    again, _ = protect_scan(volume, "shield", budget_hu=12, seed=3, weights=path, steps=Effort(steps=1), quiet=True)
    assert np.array_equal(again.hu, refined.hu)


def test_wrong_requests_are_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="not refined"):
        protect_scan(scan(), "noise", budget_hu=5, steps=Effort(steps=1))
    with pytest.raises(ModelError):
        protect_scan(scan(), "shield", budget_hu=5, weights=tmp_path / "none.safetensors")


def test_the_command_line_refines_the_shield_alone(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    io.write(scan(), tmp_path / "scan.mha")
    wrong = run(capfd, "protect", tmp_path / "scan.mha", tmp_path / "o", "--protector", "noise", "--refine", "5")
    assert wrong.code == 2 and "only the shield" in wrong.err
    settings = ["--budget-hu", "12", "--weights", weights(tmp_path), "--steps", "1", "--json", "--quiet"]
    done = run(capfd, "protect", tmp_path / "scan.mha", tmp_path / "p", "--protector", "shield", *settings)
    assert done.code == 0 and done.json["refine_steps"] == 1 and done.json["max_hu"] <= 12
