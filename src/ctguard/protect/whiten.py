"""Take out of a slice what its neighbours predict, so that the pattern stands out of the rest.

The two-sided linear prediction of a voxel from its 5 x 5 surroundings leaves an error whose transfer function is the
inverse of the power spectrum (Kay, Fundamentals of Statistical Signal Processing I, 12.7), which is what the matched
filter for a white pattern in coloured noise asks for. CT noise is so smooth that this is worth a factor of three
to seven against plain correlation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import fft

_REACH = 2
_SAMPLES = 40000
_LOW_HU, _HIGH_HU = -1024.0, 1500.0
_ROUNDS = 3
_HALF = [(a, b) for a in range(-_REACH, _REACH + 1) for b in range(-_REACH, _REACH + 1) if (a, b) > (0, 0)]


@dataclass(frozen=True, eq=False)
class Whitener:
    """Weights of the twelve symmetric pairs of neighbours."""

    weights: NDArray[np.float64]

    def __call__(self, plane: NDArray[Any]) -> NDArray[np.float32]:
        """The prediction error of a slice (y, x) in HU, float32; its border wraps around."""
        hu = np.clip(plane, _LOW_HU, _HIGH_HU).astype(np.float32)
        kernel = np.zeros(hu.shape, dtype=np.float32)
        kernel[0, 0] = 1
        for (a, b), weight in zip(_HALF, self.weights, strict=True):
            kernel[a, b] -= weight
            kernel[-a, -b] -= weight
        product = fft.rfft2(hu) * fft.rfft2(kernel)
        return np.asarray(fft.irfft2(product, s=hu.shape), dtype=np.float32)


def fit_whitener(planes: Sequence[NDArray[Any]]) -> Whitener:
    """The predictor that fits the tissue and lung of some slices (y, x) best, edges weighted down."""
    columns, targets = [], []
    rng = np.random.default_rng(0)
    for plane in planes:
        hu = np.clip(plane, _LOW_HU, _HIGH_HU).astype(np.float64)
        inner = hu[_REACH:-_REACH, _REACH:-_REACH]
        places = np.argwhere((inner > -950) & (inner < 200)) + _REACH
        if len(places) == 0:
            continue
        y, x = rng.permutation(places)[: _SAMPLES // len(planes)].T
        targets.append(hu[y, x])
        columns.append(np.stack([hu[y + a, x + b] + hu[y - a, x - b] for a, b in _HALF], axis=1))
    if not targets:
        return Whitener(np.zeros(len(_HALF)))
    target, pairs = np.concatenate(targets), np.concatenate(columns)
    # the weights sum to one half, so that flat anatomy of any HU gives no error
    rest, free = target - pairs[:, -1] / 2, pairs[:, :-1] - pairs[:, -1:]
    weight = np.ones(len(rest))
    found = np.zeros(len(_HALF) - 1)
    for _ in range(_ROUNDS):
        found = np.linalg.lstsq(free * weight[:, None], rest * weight, rcond=None)[0]
        error = rest - free @ found
        scale = np.median(np.abs(error)) / 0.6745 + 1e-6
        weight = np.sqrt(1 / (1 + (error / (2 * scale)) ** 2))
    return Whitener(np.append(found, 0.5 - found.sum()))
