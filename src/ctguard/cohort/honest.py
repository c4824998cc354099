"""What honest handling does to a scan, in training patches: other kernels and doses, and a seal."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Floats = NDArray[np.float32]


def laid_over(seal: Floats, mask: Floats, rng: np.random.Generator) -> Floats:
    """What a seal adds: to everything, as if it came after a forgery, or by the same chance not to forged tissue."""
    after = rng.random() < 0.5
    return seal if after else np.where(mask > 0, np.float32(0), seal)


def benign_change(rng: np.random.Generator) -> Callable[[Floats], Floats]:
    """A change of everything that it is given: a little smoother, or sharper, or with more noise."""
    kind = int(rng.integers(3))
    sigma, gain, level_hu = float(rng.uniform(0.3, 0.9)), float(rng.uniform(0.2, 0.8)), float(rng.uniform(3, 25))
    grain = float(rng.uniform(0.0, 1.0))

    def change(hu: Floats) -> Floats:
        if kind == 0:
            changed = ndimage.gaussian_filter(hu, (0, sigma, sigma))
        elif kind == 1:
            changed = hu + np.float32(gain) * (hu - ndimage.gaussian_filter(hu, (0, 0.8, 0.8)))
        else:
            noise = ndimage.gaussian_filter(rng.standard_normal(hu.shape).astype(np.float32), (0, grain, grain))
            changed = hu + np.float32(level_hu) * noise / max(float(noise.std()), 1e-6)
        return np.asarray(np.rint(changed), np.float32)

    return change
