"""Uniform noise within the budget: the floor that every protection has to beat."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def add_noise(
    allowed: NDArray[np.bool_], budget_hu: float, seed: int, *, sd_hu: float | None = None
) -> NDArray[np.float32]:
    """A perturbation in whole HU, |d| <= budget_hu, zero outside `allowed` (z, y, x).

    sd_hu: scale it to this SD instead (comparisons are made at equal SD); still clipped to the budget.
    """
    rng = np.random.default_rng(seed)
    bound = float(np.floor(budget_hu))
    if sd_hu is None:
        noise = rng.uniform(-bound - 0.5, bound + 0.5, allowed.shape)
    else:
        noise = rng.normal(0.0, sd_hu, allowed.shape)
    delta: NDArray[np.float32] = (np.clip(np.rint(noise), -bound, bound) * allowed).astype(np.float32)
    return delta
