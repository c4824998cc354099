"""Projected gradient ascent through the forging chain (Madry et al., ICLR 2018), at random sites.

Each step draws an attack, forges the clean and the perturbed block with the same Plan, and moves the perturbation
along the sign of the gradient of their squared difference. With sites drawn all over the lung it protects unknown
positions weakly; with one fixed site it is the ceiling of the protection tables.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ctguard.core.console import progress
from ctguard.core.errors import RecipeError
from ctguard.protect.protector import DrawAttack, round_straight


@dataclass(frozen=True)
class AscentSettings:
    """budget_hu bounds |d|. steps: attacks drawn. repeats: gradient steps on each. step_hu: size of one."""

    budget_hu: float = 5.0
    steps: int = 200
    repeats: int = 4
    step_hu: float = 1.0

    def __post_init__(self) -> None:
        if self.budget_hu < 1 or self.steps < 1 or self.repeats < 1:
            raise RecipeError(
                f"a budget of {self.budget_hu:g} HU and {self.steps} steps protect nothing",
                remedy="give at least 1 HU and 1 step",
            )


def ascend(
    hu: NDArray[np.generic],
    allowed: NDArray[np.bool_],
    draw_attack: DrawAttack,
    settings: AscentSettings,
    seed: int,
    *,
    quiet: bool = False,
) -> NDArray[np.float32]:
    """A perturbation in whole HU, |d| <= budget_hu, zero outside `allowed` and wherever no drawn attack reads.

    hu: (z, y, x). The same seed gives the same perturbation.
    """
    rng = np.random.default_rng(seed)
    bound = float(np.floor(settings.budget_hu))
    delta = np.zeros(hu.shape, dtype=np.float32)
    visited = np.zeros(hu.shape, dtype=bool)
    rounds: Iterable[int] = progress(range(settings.steps), "gradient ascent", settings.steps, quiet)
    for _ in rounds:
        attack = draw_attack(rng)
        clean = torch.from_numpy(hu[attack.window].astype(np.float32))
        free = torch.from_numpy(allowed[attack.window])
        # At d = 0 the difference has no gradient: voxels seen for the first time start from noise.
        first = ~visited[attack.window]
        start = rng.uniform(-bound / 2, bound / 2, first.shape).astype(np.float32)
        d = torch.from_numpy(np.where(first, start, delta[attack.window])) * free
        visited[attack.window] = True
        with torch.no_grad():
            target = attack.forge(clean)
        for _ in range(settings.repeats):
            d.requires_grad_(True)
            forged = attack.forge(clean + round_straight(d))
            (gradient,) = torch.autograd.grad((forged - target).square().mean(), d)
            d = (d.detach() + settings.step_hu * gradient.sign() * free).clamp(-bound, bound)
        delta[attack.window] = d.numpy()
    rounded: NDArray[np.float32] = np.rint(delta) * allowed
    return rounded.astype(np.float32)
