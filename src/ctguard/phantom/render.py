"""An acquisition of a patient: tissue sampled through the slice profile, blurred by the kernel, with its noise."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ctguard.core.geometry import Geometry
from ctguard.phantom import physics
from ctguard.phantom.anatomy import Anatomy
from ctguard.phantom.fields import F32, F64, Axes, grid_axes, linear_weights, separable
from ctguard.phantom.metal import streaks
from ctguard.phantom.nodules import Nodule, nodule_window, paint_nodule
from ctguard.phantom.physics import Kernel
from ctguard.phantom.tissue import Canvas, paint_chest, paint_lungs
from ctguard.phantom.vessels import trees

_SUB_MM = 2.0
_CHUNK_VOXELS = 24 * 512 * 512
_NOISE_PLANE_MM = 10.0
_EDGE = 6
_TAIL = 24
Change = tuple[tuple[slice, slice], F32]
"""Rows and columns of a grid, and what is added there: (z, y, x)."""


@dataclass(frozen=True)
class Scan:
    """How one volume is taken: grid, dose (mAs), kernel, slice thickness (mm), noise seed, and metal in the patient."""

    geometry: Geometry
    dose_mas: float
    kernel: Kernel
    thickness_mm: float
    seed: int
    metal: bool


def attenuation(a: Anatomy, nodules: tuple[Nodule, ...], scan: Scan) -> F32:
    """Noise-free HU (z, y, x), float32, as kernel and slice profile show the patient."""
    axes = grid_axes(scan.geometry)
    step = scan.geometry.spacing_zyx_mm[0]
    parts = int(np.ceil(step / _SUB_MM - 1e-6))
    margin = int(np.ceil(0.5 * scan.thickness_mm / step * parts)) + 1
    sub = step / parts
    chunks = []
    pixel = scan.geometry.spacing_zyx_mm[2]
    wide = [
        np.concatenate([axis[0] + pixel * np.arange(-_EDGE, 0), axis, axis[-1] + pixel * np.arange(1, _EDGE + 1)])
        for axis in axes[1:]
    ]
    chunk = max(4, _CHUNK_VOXELS // (len(axes[1]) * len(axes[2]) * parts))
    for first in range(0, len(axes[0]), chunk):
        z = axes[0][first : first + chunk]
        count = (len(z) - 1) * parts + 1 + 2 * margin
        fine = z[0] + sub * (np.arange(count) - margin)
        tissue, changes = _paint(a, nodules, (fine, wide[0], wide[1]))
        profile = _profile(fine, z, scan.thickness_mm, sub)
        seen = _seen(tissue, profile, scan)
        for (rows, columns), change in changes:
            seen[:, rows, columns] += _seen(change, profile, scan) * _fade(change.shape[1:])
        chunks.append(seen[:, _EDGE:-_EDGE, _EDGE:-_EDGE])
    return np.concatenate(chunks)


def _seen(tissue: F32, profile: F32, scan: Scan) -> F32:
    sharp = (profile @ tissue.reshape(len(tissue), -1)).reshape(len(profile), *tissue.shape[1:])
    return physics.blur(sharp, scan.geometry.spacing_zyx_mm[1:], scan.kernel)


def _paint(a: Anatomy, nodules: tuple[Nodule, ...], axes: Axes) -> tuple[F32, list[Change]]:
    """Tissue HU without nodules on axes z, y, x before any blur, and what each nodule adds to it.

    They are blurred apart, so that twins are equal to the last bit where no nodule reaches.
    """
    canvas = Canvas(a, axes)
    paint_chest(canvas)
    share = paint_lungs(canvas)
    painted = canvas.hu.copy()
    changes: list[Change] = []
    for nodule in nodules:
        window = nodule_window(nodule, axes)
        if window is None:
            continue
        before = painted[window].copy()
        paint_nodule(a, nodule, axes, painted, share)
        change = painted[window] - before
        touched = np.argwhere(change.any(axis=0))
        if len(touched) == 0:
            continue
        low = touched.min(0) + [w.start for w in window[1:]]
        high = touched.max(0) + [w.start for w in window[1:]] + 1
        rows, columns = (
            slice(max(int(first) - _TAIL, 0), min(int(last) + _TAIL, n))
            for first, last, n in zip(low, high, painted.shape[1:], strict=True)
        )
        whole = np.zeros_like(painted)
        whole[window] = change
        changes.append(((rows, columns), whole[:, rows, columns]))
    return canvas.hu, changes


def _fade(shape_yx: tuple[int, ...]) -> F32:
    """1 inside, falling to 0 at the rim, where the tail of the blur is cut off."""
    sides = [np.clip(np.minimum(np.arange(n) + 1, n - np.arange(n)) / (_TAIL / 2), 0, 1) for n in shape_yx]
    fade: F32 = np.outer(sides[0], sides[1]).astype(np.float32)
    return fade


def _profile(fine: F64, z: F64, thickness_mm: float, sub_mm: float) -> F32:
    """Share of each sub-plane in each slice: a box of the slice thickness with soft shoulders."""
    gap = np.abs(fine[None, :] - z[:, None])
    weights = np.clip((0.5 * thickness_mm + 0.5 * sub_mm - gap) / sub_mm, 0, 1)
    shares: F32 = (weights / weights.sum(1, keepdims=True)).astype(np.float32)
    return shares


def noise_map(a: Anatomy, scan: Scan) -> F32:
    """SD of the noise (HU) at every voxel (z, y, x); nodules are left out, so that twins share it."""
    axes = grid_axes(scan.geometry)
    sd, planes, across = _coarse_noise(a, scan)
    weights = (linear_weights(planes, axes[0]), linear_weights(across, axes[1]), linear_weights(across, axes[2]))
    return separable(sd.astype(np.float32), *weights)


def _coarse_noise(a: Anatomy, scan: Scan) -> tuple[F64, F64, F64]:
    z = grid_axes(scan.geometry)[0]
    first, last = int(np.floor(z[0] / _NOISE_PLANE_MM)), int(np.ceil(z[-1] / _NOISE_PLANE_MM))
    hu, planes, across = _coarse_hu(a, first, max(first + 1, last))
    sd = physics.noise_sd(hu, scan.dose_mas, scan.thickness_mm, scan.kernel, scan.geometry.spacing_zyx_mm[1:])
    return sd, planes, across


@lru_cache(maxsize=4)
def _coarse_hu(a: Anatomy, first: int, last: int) -> tuple[F64, F64, F64]:
    planes: F64 = np.arange(first, last + 1, dtype=np.float64) * _NOISE_PLANE_MM
    across = physics.coarse_axis_mm()
    canvas = Canvas(a, (planes, across, across), coarse_mm=(_NOISE_PLANE_MM, physics.COARSE_MM, physics.COARSE_MM))
    paint_chest(canvas)
    paint_lungs(canvas, detail=False)
    return canvas.hu.astype(float), planes, across


def image(a: Anatomy, nodules: tuple[Nodule, ...], scan: Scan, noise: bool) -> F32:
    """HU (z, y, x), float32: attenuation, metal streaks and noise."""
    with ThreadPoolExecutor(1) as other:  # NumPy lets go of the interpreter, so that trees and noise cost little time
        other.submit(trees, a)
        grains = other.submit(_grains, a, scan) if noise else None
        hu = attenuation(a, nodules, scan)
        if scan.metal:
            hu += streaks(a, grid_axes(scan.geometry), scan.thickness_mm)
        if grains is not None:
            hu += grains.result()
    return hu


def _grains(a: Anatomy, scan: Scan) -> F32:
    """Noise (HU) of the kernel's spectrum and of each voxel's SD: (z, y, x)."""
    geometry = scan.geometry
    grains = physics.shaped_noise(
        scan.seed, geometry.shape_zyx, geometry.spacing_zyx_mm, scan.kernel, scan.thickness_mm
    )
    grains *= noise_map(a, scan)
    return grains
