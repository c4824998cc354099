"""Small scans with CT-like noise for tests of the seal, and shorthands."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ctguard.core.geometry import Geometry
from ctguard.core.provenance import Provenance, Source
from ctguard.core.volume import Volume
from ctguard.protect.keys import SealKey

KEY = SealKey(bytes(range(1, 33)))
OTHER = SealKey(bytes(range(101, 133)))
SHAPE = (8, 120, 132)
SPACING = (2.5, 0.8, 0.8)


def scan(seed: int = 0, shape: tuple[int, int, int] = SHAPE, noise_hu: float = 25.0, series: str = "1.2.3") -> Volume:
    """Lung in a body with vessels, air around it, and smooth noise; int16."""
    rng = np.random.default_rng(seed)
    ny, nx = shape[1:]
    y, x = np.ogrid[-1 : 1 : ny * 1j, -1 : 1 : nx * 1j]
    body = np.hypot(y, x * 0.9) < 0.95
    lung = np.hypot(y * 1.1, (np.abs(x) - 0.45) * 2) < 0.7
    plane = np.where(lung, -820.0, np.where(body, 40.0, -1000.0))
    vessels = ndimage.gaussian_filter(rng.normal(size=shape), (1, 2.5, 2.5))
    hu = plane + np.where(vessels > 1.9 * vessels.std(), 500.0, 0.0) * (lung & body)
    hu = ndimage.gaussian_filter(hu, (0, 0.8, 0.8))
    grain = ndimage.gaussian_filter(rng.normal(size=shape), (0, 0.9, 0.9))
    hu = np.clip(np.rint(hu + grain * noise_hu / grain.std()), -1024, 3071).astype(np.int16)
    return volume(hu, Geometry(shape, SPACING, (-40.0, -50.0, -300.0)), series)


def volume(hu: NDArray[np.generic], geometry: Geometry | None = None, series: str | None = None) -> Volume:
    """A volume without marks, steps or header."""
    shape = (hu.shape[0], hu.shape[1], hu.shape[2])
    grid = geometry or Geometry(shape, SPACING, (-40.0, -50.0, -300.0))
    return Volume(np.ascontiguousarray(hu), grid, Provenance(Source("mha", series_uid=series)))


def nodule(like: Volume, center_zyx: tuple[int, int, int], add_hu: float, radius_mm: float = 6.0) -> Volume:
    """The scan with a smooth ball added on its voxels."""
    z, y, x = np.ogrid[tuple(slice(-c, n - c) for c, n in zip(center_zyx, like.hu.shape, strict=True))]
    dz, dy, dx = like.geometry.spacing_zyx_mm
    r2 = (z * dz) ** 2 + (y * dy) ** 2 + (x * dx) ** 2
    ball = add_hu * np.exp(-r2 / (2 * (radius_mm / 2) ** 2))
    return volume(np.rint(like.hu + ball).astype(np.int16), like.geometry)
