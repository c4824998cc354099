"""Refining a perturbation for one scan: gradient steps through the forging chain at places all over its lung.

One step forges at a fresh lattice of places, adds up the gradients of the damage, and moves the perturbation along
them. The gradient is not reduced to its sign, as ascent usually does: near zero the damage is quadratic in the
perturbation, so that moving along the gradient and going back to the budget is a power iteration, which finds what the
chain amplifies most, while signs would spend the budget evenly on all frequencies. Most of one step's gradient is
true at its own places only; steps shrink as in Oja's rule, which averages over all steps, and a run that is cut short
is the beginning of a longer one.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ctguard.core.console import log, progress
from ctguard.core.errors import RecipeError
from ctguard.core.geometry import FloatTriple
from ctguard.protect.protector import Window, round_straight
from ctguard.protect.shaping import Floats, fit_to, smoothed

_SMOOTHING_MM = 1.0
_START_WEIGHT = 20.0
"""What the start counts for, in steps."""
_JOBS = 2


@dataclass(frozen=True, eq=False)
class Volley:
    """Some places that one generator forges together.

    windows: the blocks that it reads. forge: those blocks, HU, to the tissue that it makes in each masked core, HU
    (places, voxels); differentiable. passage: what happens to the blocks before.
    """

    windows: Sequence[Window]
    forge: Callable[[Sequence[Tensor]], Tensor]
    passage: Callable[[Tensor], Tensor]


DrawVolleys = Callable[[np.random.Generator], Sequence[Volley]]
"""One step: volleys at places spread evenly over the lung."""


@dataclass(frozen=True)
class Effort:
    """How long to refine: a number of steps, or minutes (the steps done are in the result, to do the same again)."""

    steps: int | None = None
    minutes: float | None = None

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.minutes is None) or (self.steps or self.minutes or 0) <= 0:
            raise RecipeError("how long to refine is not clear", remedy="give either steps or minutes, more than none")


@dataclass(frozen=True, eq=False)
class Limits:
    """What a perturbation keeps: its strength (shaping.strength_map) on a grid of this spacing, and |d| <= bound_hu."""

    strength: Floats
    spacing_zyx_mm: FloatTriple
    bound_hu: float


@dataclass(frozen=True, eq=False)
class Refined:
    """A perturbation in HU, not rounded; the steps done; the mean damage of each step before it, HU."""

    delta: Floats
    steps: int
    damage_hu: tuple[float, ...]


def refine(
    hu: NDArray[np.generic],
    start: Floats,
    limits: Limits,
    draw: DrawVolleys,
    effort: Effort,
    *,
    seed: int,
    quiet: bool = False,
) -> Refined:
    """Refine a perturbation of a scan (z, y, x) within its limits.

    The same start, seed and number of steps give the same perturbation.
    """
    rng = np.random.default_rng(seed)
    strength, spacing = limits.strength, limits.spacing_zyx_mm
    delta = fit_to(start, strength, spacing, limits.bound_hu)
    history: list[float] = []
    with ThreadPoolExecutor(_JOBS) as pool:
        for step in _until(effort):
            volleys = draw(rng)
            gradient = np.zeros(hu.shape, dtype=np.float32)
            damages: list[float] = []
            # map keeps the order, so that sums come out the same whichever thread is first
            answers = pool.map(partial(_answer, hu, delta), volleys)
            shown = progress(zip(volleys, answers, strict=True), f"shield, step {step + 1}", len(volleys), quiet)
            for volley, (damage, parts) in shown:
                damages += damage
                for window, part in zip(volley.windows, parts, strict=True):
                    gradient[window] += part
            history.append(float(np.mean(damages)))
            log.info("shield, step %d: damage %.1f HU before it, at %d places", step + 1, history[-1], len(damages))
            gradient = smoothed(gradient * (strength > 0), spacing, _SMOOTHING_MM)
            direction = fit_to(gradient, strength, spacing, np.inf)
            delta = fit_to(delta + direction / (_START_WEIGHT + step), strength, spacing, limits.bound_hu)
    return Refined(delta, len(history), tuple(history))


def _answer(hu: NDArray[np.generic], delta: Floats, volley: Volley) -> tuple[list[float], list[Floats]]:
    """The damage at each place of a volley, and its gradient in each window."""
    clean = [torch.from_numpy(hu[window].astype(np.float32)) for window in volley.windows]
    added = [torch.from_numpy(delta[window].copy()).requires_grad_() for window in volley.windows]
    with torch.no_grad():
        wanted = volley.forge([volley.passage(block) for block in clean])
    made = volley.forge([volley.passage(x + round_straight(d)) for x, d in zip(clean, added, strict=True)])
    damage = ((made - wanted).square().mean(dim=1) + 1e-3).sqrt()
    # Divided by the volley's own mean: the generator that answers most does not take the whole budget.
    parts = torch.autograd.grad((damage / damage.detach().mean()).sum(), added)
    return damage.tolist(), [part.numpy() for part in parts]


def _until(effort: Effort) -> Iterator[int]:
    """Step numbers, as long as the effort allows; the first one always."""
    started = time.monotonic()
    numbers: Iterable[int] = range(effort.steps) if effort.steps else itertools.count()
    for step in numbers:
        yield step
        if effort.minutes is not None and time.monotonic() - started >= 60 * effort.minutes:
            return
