"""Metal in the patient: a pacemaker lead and surgical clips, with the streaks that they throw.

The metal's own sinogram is exact (chords of discs); beam hardening makes the measured line integral fall short by its
square (De Man et al., IEEE Trans Nucl Sci 46, 1999), and filtered back-projection of that error is the streaks.
"""

from __future__ import annotations

import numpy as np

from ctguard.phantom.anatomy import Anatomy
from ctguard.phantom.fields import F32, F64, Axes

_ANGLES = 180
_RAY_MM = 0.8
_MU_MM = 0.25
_METAL_HU = 3000.0


def rods(a: Anatomy) -> F64:
    """Metal spheres of one patient, rows x, y, z, radius (mm): a lead through the right heart and clips in the chest."""
    rng = np.random.default_rng([a.seed, 29])
    t = np.linspace(0, 1, 60)[:, None]
    begin = np.array([-26.0, -0.12 * a.half_depth, 95.0])
    end = np.array([0.12 * a.half_width, -0.45 * a.half_depth, a.dome_left_z + 30.0])
    bow = np.array([-12.0, -6.0, 0.0])
    lead = begin + (end - begin) * t + bow * np.sin(np.pi * t)
    clips = np.array([0.0, -0.2 * a.half_depth, 20.0]) + rng.normal(size=(6, 3)) * (22.0, 14.0, 40.0)
    points = np.concatenate([lead, clips])
    radius = np.concatenate([np.full(len(lead), 1.3), rng.uniform(1.5, 2.6, len(clips))])
    return np.column_stack([points, radius])


def streaks(a: Anatomy, axes: Axes, thickness_mm: float) -> F32:
    """What metal adds to the image (HU; z, y, x)."""
    out = np.zeros(tuple(len(axis) for axis in axes), np.float32)
    metal = rods(a)
    for k, z in enumerate(axes[0]):
        reach = metal[:, 3] + 0.5 * thickness_mm
        hit = metal[np.abs(metal[:, 2] - z) < reach]
        if len(hit):
            out[k] = _slice_streaks(_merged(hit), axes[1], axes[2])
    return out


def _merged(hit: F64) -> F64:
    """Spheres of a lead that overlap in one slice count once."""
    kept: list[F64] = []
    for row in hit:
        if all(np.hypot(*(row[:2] - other[:2])) > 0.8 * (row[3] + other[3]) for other in kept):
            kept.append(row)
    return np.array(kept)


def _slice_streaks(discs: F64, y: F64, x: F64) -> F32:
    half = 260.0
    rays = np.arange(-half, half, _RAY_MM)
    theta = np.arange(_ANGLES) * np.pi / _ANGLES
    line = np.zeros((_ANGLES, len(rays)))
    for cx, cy, _, radius in discs:
        center = cx * np.cos(theta) + cy * np.sin(theta)
        line += 2 * np.sqrt(np.maximum(radius**2 - (rays - center[:, None]) ** 2, 0)) * _MU_MM
    error = -0.10 * line**2
    f = np.abs(np.fft.rfftfreq(len(rays), _RAY_MM))
    window = np.exp(-((f / 0.35) ** 2))
    filtered = np.fft.irfft(np.fft.rfft(error, axis=1) * f * window, n=len(rays), axis=1)
    total = np.zeros((len(y), len(x)))
    for k, angle in enumerate(theta):
        t = y[:, None] * np.sin(angle) + x * np.cos(angle)
        total += np.interp(t, rays, filtered[k])
    hu = total * np.pi / _ANGLES / 0.0195 * 1000.0
    for cx, cy, _, radius in discs:
        gap = np.hypot(y[:, None] - cy, x - cx) - radius
        hu += _METAL_HU * np.clip(0.5 - gap / 1.2, 0, 1)
    return hu.astype(np.float32)
