"""Protectors keep their budget; ascent against an attack does more than noise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from ctguard.core.errors import RecipeError
from ctguard.protect.ascent import AscentSettings, ascend
from ctguard.protect.noise import add_noise
from ctguard.protect.protector import Attack, round_straight

SHAPE = (12, 20, 20)
WINDOW = (slice(2, 10), slice(4, 16), slice(4, 16))


def amplifier(block: Tensor) -> Tensor:
    """An attack that answers to a fixed pattern of its input."""
    pattern = torch.randn(block.shape, generator=torch.Generator().manual_seed(0))
    return block + 10 * (block * pattern).mean()


def draw(rng: np.random.Generator) -> Attack:
    return Attack(WINDOW, amplifier)


def hu() -> np.ndarray:
    return np.random.default_rng(0).normal(-850, 30, SHAPE).astype(np.int16)


def test_ascent_stays_in_its_budget_in_whole_hu_and_where_it_may() -> None:
    allowed = np.ones(SHAPE, dtype=bool)
    allowed[:, :8] = False
    delta = ascend(hu(), allowed, draw, AscentSettings(budget_hu=4.6, steps=6), seed=1, quiet=True)
    assert np.array_equal(delta, np.rint(delta)) and np.abs(delta).max() == 4.0
    assert not delta[:, :8].any()
    outside = np.ones(SHAPE, dtype=bool)
    outside[WINDOW] = False
    assert not delta[outside].any()


def test_ascent_harms_the_forgery_more_than_noise_of_its_own_size() -> None:
    allowed = np.ones(SHAPE, dtype=bool)
    delta = ascend(hu(), allowed, draw, AscentSettings(budget_hu=5, steps=8), seed=1, quiet=True)
    noise = add_noise(allowed, 5, seed=2)

    def damage(added: np.ndarray) -> float:
        clean = torch.from_numpy(hu()[WINDOW].astype(np.float32))
        return float((amplifier(clean + torch.from_numpy(added[WINDOW])) - amplifier(clean)).square().mean())

    assert damage(delta) > 3 * damage(noise)


def test_the_same_seed_gives_the_same_perturbation() -> None:
    allowed = np.ones(SHAPE, dtype=bool)
    settings = AscentSettings(steps=3)
    a, b = (ascend(hu(), allowed, draw, settings, seed=5, quiet=True) for _ in range(2))
    assert np.array_equal(a, b)
    assert np.array_equal(add_noise(allowed, 5, 1), add_noise(allowed, 5, 1))


def test_noise_keeps_budget_and_sd() -> None:
    allowed = np.ones((40, 40, 40), dtype=bool)
    uniform, shaped = add_noise(allowed, 5.9, 0), add_noise(allowed, 12, 0, sd_hu=3.0)
    assert np.abs(uniform).max() == 5 and uniform.std() == pytest.approx(np.sqrt(10), rel=0.02)
    assert shaped.std() == pytest.approx(3.0, rel=0.05)


def test_rounding_passes_gradients_straight_through() -> None:
    d = torch.tensor([0.3, 1.7], requires_grad=True)
    rounded = round_straight(d)
    assert rounded.tolist() == [0.0, 2.0]
    assert torch.autograd.grad(rounded.sum(), d)[0].tolist() == [1.0, 1.0]


def test_a_budget_that_protects_nothing_is_refused() -> None:
    with pytest.raises(RecipeError, match="protect nothing"):
        AscentSettings(budget_hu=0.4)
