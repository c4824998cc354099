"""How strong a perturbation may be where, and keeping it there: budgets relative to the scan's own local noise.

The strength at a voxel is the SD that a perturbation may have around it: a share of the local noise (the house
definition: SD, in squares of 10 mm, of the residual after a 3 x 3 x 3 median), and never more than a given SD.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ctguard.core.geometry import FloatTriple
from ctguard.image.noise import local_sd_map

Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]

NOISE_SHARE = 0.195
"""Of the local noise: below the 0.2 that adds 2 % to the SD of an image (facts: limits 7.1), with room for rounding."""
_CAPS = (1.5, 1.4, 1.3, 1.2, 1.1, 1.0)
"""Of the SD at any place, in SDs of the whole: where the noise is loud, a place may have what a quiet one cannot."""
_RMS_MM = 24.0
"""Of the cube over which RMS is held to the strength: shorter ones would break the long waves, which harm most."""
_NEAR_MM = 8.0
_AERATED_HU = (-1000.0, -500.0)
_LEAST_AERATED = 0.25


@dataclass(frozen=True)
class Budget:
    """hu: no voxel changes by more. noise_share: the most that the SD may be of the local noise."""

    hu: float
    noise_share: float = NOISE_SHARE


def strength_map(
    hu: NDArray[Any],
    spacing_zyx_mm: FloatTriple,
    sd_hu: float,
    lung: Mask | None = None,
    noise_share: float = NOISE_SHARE,
) -> Floats:
    """The SD in HU that a perturbation may have around each voxel, float32 (z, y, x); 0 outside lung.

    `noise_share` of the local noise, capped so that the SD over all lung is at most sd_hu.
    lung: bool (z, y, x); None: wherever a quarter of the voxels within 8 mm is aerated, for blocks too small to find
    lung in.
    """
    if lung is None:
        aerated = (hu > _AERATED_HU[0]) & (hu < _AERATED_HU[1])
        lung = _mean(aerated.astype(np.float32), spacing_zyx_mm, _NEAR_MM) > _LEAST_AERATED
    noise = noise_share * local_sd_map(hu, spacing_zyx_mm) * lung
    inside = noise[lung]
    cap = next((c for c in _CAPS if _rms(np.minimum(inside, c * sd_hu)) <= sd_hu), 1.0)
    return np.asarray(np.minimum(noise, cap * sd_hu), dtype=np.float32)


def fit_to(delta: Floats, strength: Floats, spacing_zyx_mm: FloatTriple, bound_hu: float) -> Floats:
    """A perturbation brought to its strength everywhere: its RMS within a cube of 24 mm is that of the strength there.

    |d| <= bound_hu, 0 where the strength is 0. The RMS of the whole is at most that of the strength.
    """
    own = _mean(delta * delta, spacing_zyx_mm, _RMS_MM)
    wanted = _mean(strength * strength, spacing_zyx_mm, _RMS_MM)
    return held_to(delta * np.sqrt(wanted / np.maximum(own, 1e-12)), strength, bound_hu)


def held_to(delta: Floats, strength: Floats, bound_hu: float) -> Floats:
    """A perturbation whose RMS over all is that of the strength, |d| <= bound_hu, 0 where the strength is 0."""
    inside = delta * (strength > 0)
    inside *= _rms(strength) / max(_rms(inside), 1e-12)
    return np.asarray(np.clip(inside, -bound_hu, bound_hu), dtype=np.float32)


def smoothed(values: Floats, spacing_zyx_mm: FloatTriple, sigma_mm: float) -> Floats:
    """A Gaussian of that SD along all axes; the frequencies that a forger's own resampling would take away go."""
    sigmas = [sigma_mm / mm for mm in spacing_zyx_mm]
    return np.asarray(ndimage.gaussian_filter(values, sigmas, mode="constant", truncate=3.0), dtype=np.float32)


def _rms(values: Floats) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64)))) if values.size else 0.0


def _mean(values: Floats, spacing_zyx_mm: FloatTriple, side_mm: float) -> Floats:
    size = [max(1, round(side_mm / mm)) for mm in spacing_zyx_mm]
    return np.asarray(np.maximum(ndimage.uniform_filter(values, size, mode="constant"), 0), dtype=np.float32)
