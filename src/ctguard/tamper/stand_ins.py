"""Forgeries without a network: chains drawn at random, so that a detector cannot learn one of them by heart.

Each takes the steps that all published forgers share (cut, resample, replace, resample back, paste, touch up) and
draws what is done at each one. They exist in training patches only and are never written to a scan.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from ctguard.core.geometry import FloatTriple, as_float_triple, as_int_triple
from ctguard.image.noise import median_residual
from ctguard.image.resample import apply_matrices, zoom_matrices

REACH_MM = 24.0
"""Half a side of the block that a stand-in works on: a cube of at most 40 mm, and what a filter needs around it."""
CONTENTS = ("own", "smoothed", "median", "donor", "filled", "lesion")
_CUBE_MM = (20.0, 38.0)
_CORE_MM = (10.0, 22.0)
_STEP_MM = (0.7, 1.3)

Floats = NDArray[np.float32]


def forge_stand_in(
    block_hu: Floats, donor_hu: Floats, spacing_zyx_mm: FloatTriple, rng: np.random.Generator
) -> tuple[Floats, NDArray[np.bool_]]:
    """Forge the middle of a block: HU (z, y, x) rounded to integers, and the voxels that changed, holes filled.

    block_hu: about REACH_MM to each side of the site. donor_hu: tissue of the same shape from elsewhere in the scan.
    """
    cube_mm = float(rng.uniform(*_CUBE_MM))
    core_mm = float(rng.uniform(_CORE_MM[0], min(_CORE_MM[1], cube_mm - 4)))
    fine, step_mm, order = _resampled(block_hu, spacing_zyx_mm, rng)
    donor, _, _ = (
        (donor_hu, spacing_zyx_mm, 0) if order == 0 else (_zoomed(donor_hu, fine.shape, order), step_mm, order)
    )
    content = str(rng.choice(CONTENTS))
    core = _window(fine.shape, step_mm, core_mm, float(rng.choice([0.0, 1.5, 3.0])), bool(rng.random() < 0.4))
    made = fine + core * (_content(content, fine, donor, core, step_mm, rng) - fine)
    if rng.random() < 0.5 or (content == "own" and order == 0):
        made = _reproduced(made, rng)
    native = made if order == 0 else _zoomed(made, block_hu.shape, order)
    if rng.random() < 0.5:
        native = native + _touch_up(block_hu, rng) * _window(block_hu.shape, spacing_zyx_mm, core_mm, 2.0, False)
    side = cube_mm if rng.random() < 0.6 else core_mm + 2.0
    paste = _window(block_hu.shape, spacing_zyx_mm, side, float(rng.choice([0.0, 2.0, 5.0])), False)
    forged = np.rint(block_hu + paste * (native - block_hu)).astype(np.float32)
    differs = (forged != np.rint(block_hu)) & (paste > 0)
    changed = differs | (ndimage.binary_closing(differs, np.ones((1, 3, 3)), iterations=2) & (paste > 0))
    return np.where(paste > 0, forged, block_hu), changed


def _resampled(block: Floats, spacing: FloatTriple, rng: np.random.Generator) -> tuple[Floats, FloatTriple, int]:
    """The block on an isotropic grid, or in one of five as it is; its spacing and the spline's order (0: none)."""
    if rng.random() < 0.2:
        return block, spacing, 0
    step = 1.0 if rng.random() < 0.5 else float(rng.uniform(*_STEP_MM))
    order = 3 if rng.random() < 0.7 else 1
    shape = as_int_triple([max(2, round((n - 1) * s / step) + 1) for n, s in zip(block.shape, spacing, strict=True)])
    exact = [(n - 1) * s / max(m - 1, 1) for n, s, m in zip(block.shape, spacing, shape, strict=True)]
    return _zoomed(block, shape, order), as_float_triple(exact), order


def _zoomed(block: Floats, shape: tuple[int, ...], order: int) -> Floats:
    matrices = zoom_matrices(as_int_triple(block.shape), as_int_triple(shape), order)
    zoomed: Floats = apply_matrices(torch.from_numpy(np.ascontiguousarray(block)), matrices).numpy()
    return zoomed


def _window(shape: tuple[int, ...], spacing: FloatTriple, side_mm: float, fade_mm: float, ball: bool) -> Floats:
    """1 in a centred cube or ball, falling to 0 within fade_mm beyond it."""
    axes = [np.abs(np.arange(n) - (n - 1) / 2) * s for n, s in zip(shape, spacing, strict=True)]
    grid = np.meshgrid(*axes, indexing="ij")
    distance = np.sqrt(sum(g**2 for g in grid)) if ball else np.maximum.reduce(grid)
    beyond = distance - side_mm / 2
    window = (beyond <= 0).astype(np.float32) if fade_mm == 0 else np.clip(1 - beyond / fade_mm, 0, 1)
    return np.asarray(window, np.float32)


def _content(
    name: str, fine: Floats, donor: Floats, core: Floats, step: FloatTriple, rng: np.random.Generator
) -> Floats:
    if name == "smoothed":
        return np.asarray(ndimage.gaussian_filter(fine, float(rng.uniform(0.5, 2.5))), np.float32)
    if name == "median":
        return np.asarray(ndimage.median_filter(fine, 3), np.float32)
    if name == "donor":
        return np.ascontiguousarray(np.flip(donor, tuple(a for a in range(3) if rng.random() < 0.5)))
    if name == "own":
        return fine
    filled = _filled(fine, core, step, rng)
    return filled if name == "filled" else _lesion(filled, step, rng)


def _filled(fine: Floats, core: Floats, step: FloatTriple, rng: np.random.Generator) -> Floats:
    """Smooth tissue carried into the core from around it, with coloured noise."""
    outside = ((core == 0) & (fine < -500)).astype(np.float32)
    sigma = [5.0 / s for s in step]
    share = ndimage.gaussian_filter(outside, sigma)
    smooth = ndimage.gaussian_filter(fine * outside, sigma) / np.maximum(share, 1e-3)
    smooth = np.where(share > 1e-3, smooth, -850.0)
    return np.asarray(smooth + _touch_up(fine, rng), np.float32)


def _lesion(base: Floats, step: FloatTriple, rng: np.random.Generator) -> Floats:
    """A lobulated ellipsoid of 6 to 20 mm on a base, with an edge of its own sharpness and a faint texture."""
    axes = [(np.arange(n) - (n - 1) / 2) * s for n, s in zip(base.shape, step, strict=True)]
    grid = np.meshgrid(*axes, indexing="ij")
    radii = rng.uniform(3.0, 10.0) * rng.uniform(0.75, 1.25, size=3)
    radius = np.sqrt(sum((g / r) ** 2 for g, r in zip(grid, radii, strict=True)))
    lobes = ndimage.gaussian_filter(rng.standard_normal(base.shape), [2.5 / s for s in step])
    radius = radius + float(rng.uniform(0, 0.25)) * lobes / max(float(lobes.std()), 1e-6)
    soft = 1 / (1 + np.exp((radius - 1) * float(rng.uniform(5, 18))))
    level = float(rng.choice([rng.uniform(-20, 90), rng.uniform(-650, -250)], p=[0.7, 0.3]))
    grain = ndimage.gaussian_filter(rng.standard_normal(base.shape), float(rng.uniform(0.5, 1.2)))
    grain *= float(rng.uniform(0, 25)) / max(float(grain.std()), 1e-6)
    return np.asarray(base + soft * (level + grain - base), np.float32)


def _reproduced(made: Floats, rng: np.random.Generator) -> Floats:
    """As a network gives back what it was shown: a little smoother, or with the lattice of its upsampling."""
    kind = int(rng.integers(3))
    if kind != 1:
        made = np.asarray(ndimage.gaussian_filter(made, float(rng.uniform(0.3, 0.8))), np.float32)
    if kind != 0:
        period = int(rng.choice([2, 4]))
        tile = rng.standard_normal((period,) * 3) * float(rng.uniform(3, 20))
        repeats = [-(-n // period) for n in made.shape]
        made = made + np.tile(tile, repeats)[tuple(slice(n) for n in made.shape)].astype(np.float32)
    return made


def _touch_up(block: Floats, rng: np.random.Generator) -> Floats:
    """Noise of 0.2 to 1.1 of the block's own level, white or coloured."""
    aerated = block < -600
    values: NDArray[Any] = median_residual(block)
    level = float(values[aerated].std()) if aerated.sum() > 200 else float(values.std())
    noise = rng.standard_normal(block.shape).astype(np.float32)
    if rng.random() < 0.7:
        sigma = float(rng.uniform(0.3, 1.0))
        noise = np.asarray(ndimage.gaussian_filter(noise, (sigma * 0.5, sigma, sigma)), np.float32)
        noise /= max(float(noise.std()), 1e-6)
    return noise * np.float32(1.3 * level * rng.uniform(0.2, 1.1))
