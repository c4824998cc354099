"""Metal in the patient: rods along the spine, a pacemaker lead, clips; and the streaks that they throw.

The metal's own sinogram is exact (chords of discs); beam hardening makes the measured line integral fall short by its
square (De Man et al., IEEE Trans Nucl Sci 46, 1999), and filtered back-projection of that error is the streaks.
"""

from __future__ import annotations

import numpy as np

from ctguard.phantom.anatomy import Anatomy
from ctguard.phantom.fields import F32, F64, Axes, coarse_axis, linear_weights
from ctguard.phantom.physics import MU_WATER_MM

_ANGLES = 180
_RAY_MM = 0.8
_STREAK_MM = 1.2
_MU_MM = 0.25
_METAL_HU = 3000.0


def rods(a: Anatomy) -> F64:
    """Metal spheres of one patient: rows x, y, z, radius (mm)."""
    rng = np.random.default_rng([a.seed, 29])
    t = np.linspace(0, 1, 60)[:, None]
    begin = np.array([-26.0, -0.12 * a.half_depth, 95.0])
    end = np.array([0.12 * a.half_width, -0.45 * a.half_depth, a.dome_left_z + 30.0])
    bow = np.array([-12.0, -6.0, 0.0])
    lead = begin + (end - begin) * t + bow * np.sin(np.pi * t)
    clips = np.array([0.0, -0.2 * a.half_depth, 20.0]) + rng.normal(size=(6, 3)) * (22.0, 14.0, 40.0)
    height = np.arange(-90.0, a.apex_z - 30.0, 3.0)
    rod = [np.column_stack([np.full((len(height), 2), (x, a.spine_y + 27.0)), height]) for x in (-14.0, 14.0)]
    points = np.concatenate([lead, clips, *rod])
    radius = np.concatenate([np.full(len(lead), 1.3), rng.uniform(1.5, 2.6, len(clips)), np.full(2 * len(height), 3.2)])
    return np.column_stack([points, radius])


def streaks(a: Anatomy, axes: Axes, thickness_mm: float) -> F32:
    """What metal adds to the image (HU; z, y, x)."""
    out = np.zeros(tuple(len(axis) for axis in axes), np.float32)
    metal = rods(a)
    for k, z in enumerate(axes[0]):
        reach = metal[:, 3] + 0.5 * thickness_mm
        hit = metal[np.abs(metal[:, 2] - z) < reach]
        if len(hit):
            rng = np.random.default_rng([a.seed, 31, round(10 * float(z)) % 2**31])
            out[k] = _slice_streaks(_merged(hit), axes[1], axes[2], rng)
    return out


def _merged(hit: F64) -> F64:
    """Spheres of a lead that overlap in one slice count once."""
    kept: list[F64] = []
    for row in hit:
        if all(np.hypot(*(row[:2] - other[:2])) > 0.8 * (row[3] + other[3]) for other in kept):
            kept.append(row)
    return np.array(kept)


def _slice_streaks(discs: F64, y: F64, x: F64, rng: np.random.Generator) -> F32:
    half = 260.0
    rays = np.arange(-half, half, _RAY_MM)
    theta = np.arange(_ANGLES) * np.pi / _ANGLES
    line = np.zeros((_ANGLES, len(rays)))
    for cx, cy, _, radius in discs:
        center = cx * np.cos(theta) + cy * np.sin(theta)
        line += 2 * np.sqrt(np.maximum(radius**2 - (rays - center[:, None]) ** 2, 0)) * _MU_MM
    error = -0.22 * line**2 + 0.03 * np.expm1(line) * rng.standard_normal(line.shape)
    f = np.abs(np.fft.rfftfreq(len(rays), _RAY_MM))
    window = np.exp(-((f / 0.35) ** 2))
    filtered = np.fft.irfft(np.fft.rfft(error, axis=1) * f * window, n=len(rays), axis=1)
    wide_y, wide_x = coarse_axis(y, _STREAK_MM), coarse_axis(x, _STREAK_MM)
    total = np.zeros((len(wide_y), len(wide_x)))
    for k, angle in enumerate(theta):
        t = wide_y[:, None] * np.sin(angle) + wide_x * np.cos(angle)
        total += np.interp(t, rays, filtered[k])
    coarse = total * np.pi / _ANGLES / MU_WATER_MM * 1000.0
    hu: F64 = linear_weights(wide_y, y) @ coarse @ linear_weights(wide_x, x).T
    for cx, cy, _, radius in discs:
        share = np.clip(0.5 - (np.hypot(y[:, None] - cy, x - cx) - radius) / 1.2, 0, 1)
        hu += share * (_METAL_HU - np.minimum(hu, _METAL_HU))
    return hu.astype(np.float32)
