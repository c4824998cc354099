"""The chest wall as signed distances: skin, fat, muscle, ribs, sternum, vertebrae, shoulder blades, clavicles."""

from __future__ import annotations

import numpy as np

from ctguard.phantom.anatomy import Anatomy, column, ripple, tube
from ctguard.phantom.fields import F64, smooth_max, smooth_min

VERTEBRA_MM = 27.0
RIB_PITCH_MM = 25.0


def angle(a: Anatomy, x: F64, y: F64) -> F64:
    """Position on the wall's circumference: 0 at the spine, 1 at the sternum."""
    result: F64 = np.arctan2(np.abs(x) / a.half_width, -(y - 4.0) / a.half_depth) / np.pi
    return 1.0 - result


def _bump(value: F64, center: float, width: float) -> F64:
    result: F64 = np.exp(-(((value - center) / width) ** 2))
    return result


def muscle_depth(a: Anatomy, phi: F64, z: F64) -> F64:
    """Thickness (mm) of ribs and muscle together over the pleura."""
    up = np.clip((z + 20) / 100, 0, 1.3)
    back = 42.0 * _bump(phi, 0.07, 0.11) + 9.0 * up * _bump(phi, 0.3, 0.13)
    side = 9.0 * _bump(phi, 0.42, 0.16) * (0.4 + up)
    front = 10.0 * up * _bump(phi, 0.80, 0.13)
    return 8.0 + 0.55 * a.muscle * (1 + back / 14.0 + side / 14.0 + front / 14.0)


def body(a: Anatomy, x: F64, y: F64, z: F64) -> tuple[F64, F64, F64]:
    """Signed distances of the skin and of the muscle layer, and the distance outside the pleura (mm)."""
    open_column = column(a, x, y, z, apex=False)
    out = open_column + 0.5 * ripple(a, x, y, z, 2, 6)
    phi = angle(a, x, y)
    muscle = out - muscle_depth(a, phi, z)
    up = np.clip((z - 60) / 70, 0, 1.2)
    muscle = muscle - 34.0 * up * _bump(phi, 0.5, 0.22)
    bust = a.breast * _bump(phi, 0.74, 0.13) * _bump(z, -15.0, 55.0)
    fat = a.fat * (0.75 + 0.5 * _bump(phi, 0.62, 0.25) + 0.35 * _bump(phi, 0.2, 0.15)) + bust
    skin = smooth_max(muscle - fat, y - (a.half_depth + 0.55 * a.muscle + 0.8 * a.fat + 34.0), 22.0)
    return skin + 0.4 * ripple(a, x, y, z, 8, 6), muscle, column(a, x, y, z, apex=True) + 0.6 * ripple(a, x, y, z)


def ribs(a: Anatomy, x: F64, y: F64, z: F64, out: F64) -> tuple[F64, F64]:
    """Signed distance of the ribs, and how far along the bone has become cartilage (> 0: cartilage)."""
    phi = angle(a, x, y)
    run = phi * 1.9 * a.half_width
    height = z + a.rib_slope * run * (1 - 0.25 * phi) + a.rib_phase
    w = np.abs((height / RIB_PITCH_MM) % 1.0 - 0.5) * RIB_PITCH_MM * 0.9
    center = 5.5 + 0.25 * ripple(a, x, y, z, 3, 5)
    thick, tall = 3.9, 6.6 - 1.0 * np.cos(2 * np.pi * phi)
    d = out - center
    g = np.sqrt((d / thick) ** 2 + (w / tall) ** 2) + 1e-6
    rib = (1 - 1 / g) * np.sqrt(d**2 + w**2)
    limits = np.maximum((phi - 0.93) * 1.5 * a.half_width, 14.0 - np.hypot(x, y - a.spine_y))
    limits = np.maximum(limits, z - a.apex_z + 2.0)
    cartilage = (phi - 0.80 + 0.0006 * z) * 1.5 * a.half_width
    return smooth_max(rib, limits, 3.0), cartilage


def sternum(a: Anatomy, x: F64, y: F64, z: F64) -> F64:
    """Signed distance of manubrium and body of the sternum."""
    front = -a.half_depth - 4.0 + 0.14 * np.maximum(z - 10, 0) * (z - 10) / 60
    width = 13.0 + 5.0 * _bump(z, 75.0, 22.0) + 3.0 * _bump(z, -30.0, 25.0)
    slab = np.maximum(np.abs(x) - width, np.abs(y - front) - 5.2)
    g = np.sqrt((x / width) ** 2 + ((y - front) / 6.0) ** 2) + 1e-6
    oval = (1 - 1 / g) * np.sqrt(x**2 + (y - front) ** 2)
    d = 0.5 * slab + 0.5 * oval
    return np.maximum(np.maximum(d, z - 92.0), -62.0 - z)


def spine(a: Anatomy, x: F64, y: F64, z: F64) -> tuple[F64, F64, F64]:
    """Signed distances of the vertebral bone, of the discs and of the canal."""
    sy = a.spine_y
    level = (z / VERTEBRA_MM) % 1.0
    from_disc = np.minimum(level, 1 - level) * VERTEBRA_MM
    waist = 1.6 * np.cos(2 * np.pi * level)
    round_body = np.sqrt((x / 1.12) ** 2 + (y - sy) ** 2) - 15.0 - waist
    canal = np.sqrt((x / 1.15) ** 2 + (y - sy - 22.0) ** 2) - 8.0
    whole = smooth_max(round_body, -canal, 2.0)
    bone = np.maximum(whole, 2.6 - from_disc)
    arch_gate = 9.5 - np.abs(level - 0.45) * VERTEBRA_MM
    ring = np.maximum(np.abs(canal - 2.6) - 2.4, sy + 6.0 - y)
    pedicle = np.maximum(ring, -arch_gate)
    drop = y - (sy + 30.0)
    spinous = np.maximum(np.abs(x) - 3.0, np.maximum(-drop - 2, drop - 17.0))
    spinous = np.maximum(spinous, np.abs(((z + 0.9 * drop) / VERTEBRA_MM) % 1.0 - 0.5) * VERTEBRA_MM - 8.0)
    px, py = np.abs(x) - 11.0, y - (sy + 19.0)
    along = 0.85 * px + 0.53 * py
    across = np.abs(-0.53 * px + 0.85 * py)
    transverse = np.maximum(np.maximum(across - 4.2, np.maximum(along - 24.0, -along)), -arch_gate + 3.0)
    bone = smooth_min(smooth_min(bone, pedicle, 2.0), smooth_min(spinous, transverse, 2.0), 2.0)
    disc = np.maximum(round_body - 0.5, from_disc - 2.6)
    return bone, disc, canal


def shoulder(a: Anatomy, x: F64, y: F64, z: F64) -> F64:
    """Signed distance of the shoulder blades, their spines, the clavicles and the humeral heads (arms up)."""
    phi = angle(a, x, y)
    out = column(a, x, y, z, apex=False)
    depth = 0.42 * a.muscle + 9.0 + 8.0 * np.clip((z - 40) / 60, 0, 1)
    plate = np.abs(out - depth) - 2.2 - 2.8 * _bump(phi, 0.42, 0.03)
    shift = 0.0007 * (z - 40)
    plate = np.maximum(plate, (np.abs(phi - 0.31 - shift) - 0.12) * 1.6 * a.half_width)
    plate = np.maximum(plate, np.abs(z - 60.0) - 62.0)
    w, ax = a.half_width, np.abs(x)
    d, top = a.half_depth, a.apex_z
    clavicle = ((18.0, -0.72 * d, 88.0, 7.0), (0.62 * w, -0.35 * d, 104.0, 5.5), (1.12 * w, 0.1 * d, top + 8, 6.5))
    acromion = ((0.75 * w, 0.75 * d, 84.0, 5.0), (1.18 * w, 0.15 * d, top + 4, 7.0))
    humerus = ((1.28 * w, -0.05 * d, top + 4, 21.0), (1.3 * w, -0.1 * d, top + 90, 14.0))
    bones = [tube(ax, y, z, line) for line in (clavicle, acromion, humerus)]
    return np.minimum(plate, np.minimum(np.minimum(bones[0], bones[1]), bones[2]))
