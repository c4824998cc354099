"""The shape of one chest as signed distances in patient millimetres (LPS; negative inside).

The thoracic cavity is a superellipsoid with a tapered apex; what the mediastinum, the spine and the diaphragm
leave of it are the lungs, so that the lungs wrap around heart, aorta and vertebrae as they do in a patient. Sizes are
those of adult anatomy (thoracic width 22-32 cm, lung height 20-27 cm; ICRP Publication 110). The origin lies in the
middle of the cavity, a hand's breadth above the diaphragm.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from ctguard.core.geometry import FloatTriple
from ctguard.phantom.fields import F64, smooth_max, smooth_min

Polyline = tuple[tuple[float, float, float, float], ...]
"""Points x, y, z and radius, in mm."""


@dataclass(frozen=True)
class Anatomy:
    """One chest. Lengths in mm, densities in HU.

    half_width, half_depth: of the cavity at its widest; apex_z, dome_right_z, dome_left_z: heights.
    fat, muscle: layer thickness; breast: how far breasts stand out; heart: scale.
    lung_hu: mean parenchyma before vessels; gravity_hu_mm: gain towards the back; emphysema: 0..1.
    vessel_density: terminals of the vessel trees relative to the usual; texture_hu: lobular texture;
        capillary_hu: vessels too small for the trees.
    waves: random wave vectors, phases and amplitudes that make every surface irregular.
    """

    seed: int
    half_width: float
    half_depth: float
    apex_z: float
    dome_right_z: float
    dome_left_z: float
    exponent: float
    fat: float
    muscle: float
    breast: float
    heart: float
    lung_hu: float
    gravity_hu_mm: float
    emphysema: float
    vessel_density: float
    vessel_scale: float
    texture_hu: float
    capillary_hu: float
    fissure_hu: float
    rib_phase: float
    rib_slope: float
    bone_hu: float
    blood_hu: float
    fissure_tilt: float
    waves: tuple[tuple[float, float, float, float, float], ...]

    @property
    def spine_y(self) -> float:
        """Where the vertebral bodies' centre lies."""
        return self.half_depth - 9.0

    @property
    def hila(self) -> tuple[FloatTriple, FloatTriple]:
        """Right and left hilum."""
        return (-0.30 * self.half_width, 10.0, 14.0), (0.30 * self.half_width, 12.0, 22.0)

    @property
    def carina(self) -> FloatTriple:
        """Where the trachea divides."""
        return 0.0, 14.0, 44.0


def draw_anatomy(rng: np.random.Generator, style: int) -> Anatomy:
    """A chest at random. `style` > 0 moves the distributions of shape, texture and vessels."""
    u = rng.uniform
    size = float(np.clip(rng.normal(1.0, 0.07), 0.85, 1.18))
    waves = []
    for _ in range(14):
        length = float(np.exp(u(np.log(18), np.log(90))))
        direction = rng.normal(size=3)
        k = direction / np.linalg.norm(direction) * 2 * np.pi / length
        waves.append((float(k[0]), float(k[1]), float(k[2]), float(u(0, 2 * np.pi)), 0.018 * length))
    shift = 0.0 if style == 0 else 1.0
    return Anatomy(
        seed=int(rng.integers(2**31)),
        half_width=size * u(122, 140),
        half_depth=size * u(84, 100),
        apex_z=size * u(112, 130),
        dome_right_z=size * u(-66, -48),
        dome_left_z=size * u(-78, -58),
        exponent=u(2.1, 2.5) + 0.2 * shift,
        fat=float(np.exp(u(np.log(7), np.log(30)))),
        muscle=size * u(13, 20),
        breast=max(0.0, u(-20, 32)),
        heart=size * u(0.88, 1.12),
        lung_hu=float(np.clip(rng.normal(-872 + 8 * shift, 15), -910, -830)),
        gravity_hu_mm=u(0.10, 0.40),
        emphysema=max(0.0, u(-1.6, 0.9)),
        vessel_density=u(0.75, 1.25) * (1 - 0.2 * shift),
        vessel_scale=u(0.98, 1.16) * (1 + 0.06 * shift),
        texture_hu=u(56, 89) * (1 + 0.2 * shift),
        capillary_hu=u(120, 200) * (1 - 0.15 * shift),
        fissure_hu=u(70, 160),
        rib_phase=u(0, 25),
        rib_slope=u(0.42, 0.6),
        bone_hu=u(140, 260),
        blood_hu=u(34, 48),
        fissure_tilt=u(0.75, 1.05),
        waves=tuple(waves),
    )


def ripple(a: Anatomy, x: F64, y: F64, z: F64, first: int = 0, count: int = 7) -> F64:
    """Smooth random displacement, a few millimetres."""
    total = np.zeros(np.broadcast_shapes(x.shape, y.shape, z.shape))
    for kx, ky, kz, phase, amplitude in a.waves[first : first + count]:
        if x.shape == total.shape == y.shape:  # points, not the axes of a grid: one sine each is less than four
            total += amplitude * np.sin(ky * y + kz * z + phase + kx * x)
            continue
        plane, row = ky * y + kz * z + phase, kx * x
        total += (amplitude * np.sin(plane)) * np.cos(row) + (amplitude * np.cos(plane)) * np.sin(row)
    return total


def column(a: Anatomy, x: F64, y: F64, z: F64, apex: bool) -> F64:
    """The thoracic cavity, closed by its apex or (for the chest wall) prolonged upwards."""
    shoulder = 0.25 * a.apex_z
    yc = 12.0 * np.clip((z - shoulder) / (a.apex_z - shoulder), 0, 1.2) ** 2
    lower = 1 - 0.05 * np.clip((-40 - z) / 80, 0, 1)
    p = a.exponent
    gx, gy = np.abs(x) / (a.half_width * lower), np.abs(y - yc) / a.half_depth
    rise = np.maximum(z - shoulder, 0)
    w = rise / (a.apex_z - shoulder) if apex else 0.62 * np.minimum(rise / (a.apex_z - shoulder), 1.1)
    g = (gx**p + gy**p + w**p) ** (1 / p) + 1e-6
    radius = np.sqrt(x**2 + (y - yc) ** 2 + ((rise if apex else 0.0) * np.ones_like(z)) ** 2)
    result: F64 = (1 - 1 / g) * radius
    return result


def ellipsoid(x: F64, y: F64, z: F64, center: FloatTriple, radii: FloatTriple) -> F64:
    """Approximate signed distance of an axis-aligned ellipsoid."""
    dx, dy, dz = x - center[0], y - center[1], z - center[2]
    g = np.sqrt((dx / radii[0]) ** 2 + (dy / radii[1]) ** 2 + (dz / radii[2]) ** 2) + 1e-6
    result: F64 = (1 - 1 / g) * np.sqrt(dx**2 + dy**2 + dz**2)
    return result


def tube(x: F64, y: F64, z: F64, line: Polyline) -> F64:
    """Signed distance of a chain of round cones; 40 mm where it is farther."""
    best = None
    low, high = float(np.min(z)), float(np.max(z))
    for (x0, y0, z0, r0), (x1, y1, z1, r1) in pairwise(line):
        if min(z0, z1) - max(r0, r1) - 40.0 > high or max(z0, z1) + max(r0, r1) + 40.0 < low:
            continue
        ex, ey, ez = x1 - x0, y1 - y0, z1 - z0
        t = np.clip(((x - x0) * ex + (y - y0) * ey + (z - z0) * ez) / (ex * ex + ey * ey + ez * ez), 0, 1)
        d = np.sqrt((x - x0 - t * ex) ** 2 + (y - y0 - t * ey) ** 2 + (z - z0 - t * ez) ** 2) - (r0 + t * (r1 - r0))
        best = d if best is None else np.minimum(best, d)
    if best is None:
        return np.full(np.broadcast_shapes(x.shape, y.shape, z.shape), 40.0)
    return best


def heart_surface(a: Anatomy, x: F64, y: F64, z: F64, grow_mm: float = 0.0) -> F64:
    """Heart with its pericardium at `grow_mm`; the apex points left, forward and down."""
    s, c = np.sin(0.6), np.cos(0.6)
    cx, cy, cz = 0.14 * a.half_width, -0.26 * a.half_depth, a.dome_left_z + 38 * a.heart
    u = (x - cx) * c - (y - cy) * s
    v = (x - cx) * s + (y - cy) * c
    w = z - cz + 0.30 * (x - cx)
    radii = (58 * a.heart + grow_mm, 44 * a.heart + grow_mm, 54 * a.heart + grow_mm)
    left = ellipsoid(u, v, w, (0.0, 0.0, 0.0), radii)
    place = (-0.12 * a.half_width, -0.22 * a.half_depth, cz + 8.0)
    atrium = ellipsoid(x, y, z, place, (28 * a.heart + grow_mm, 32 * a.heart + grow_mm, 36 * a.heart + grow_mm))
    return smooth_min(left, atrium, 12.0)


def great_vessels(a: Anatomy) -> dict[str, Polyline]:
    """Aorta, caval vein, pulmonary trunk and arteries, oesophagus, azygos vein as tapered chains."""
    k, sy, d = a.heart, a.spine_y, a.half_depth
    arch = 62.0
    (rx, ry, rz), (lx, ly, lz) = a.hila
    ascending = [(-8.0, -0.20 * d, -12.0, 16 * k), (-14.0, -0.24 * d, 20.0, 16 * k), (-10.0, -0.16 * d, 48.0, 15 * k)]
    over = [(2.0, 0.02 * d, arch, 14 * k), (18.0, 0.28 * d, arch - 3, 13 * k)]
    descending = [(23.0, sy - 26, arch - 24, 12.5 * k), (22.0, sy - 21, 0.0, 12 * k), (10.0, sy - 27, -140.0, 11 * k)]
    return {
        "aorta": tuple(ascending + over + descending),
        "cava": ((-28.0, -0.10 * d, -18.0, 10 * k), (-27.0, -0.12 * d, 40.0, 9 * k), (-18.0, -0.12 * d, 96.0, 7 * k)),
        "innominate": ((-18.0, -0.14 * d, 84.0, 6.5), (10.0, -0.28 * d, 78.0, 6.5), (30.0, -0.1 * d, 100.0, 6.0)),
        "carotid": ((8.0, 0.05 * d, arch, 5.0), (16.0, 0.05 * d, 120.0, 4.0)),
        "brachio": ((-6.0, -0.04 * d, arch, 6.5), (-16.0, 0.05 * d, 120.0, 5.0)),
        "subclavian": ((18.0, 0.2 * d, arch, 5.0), (26.0, 0.2 * d, 100.0, 5.0), (50.0, 0.15 * d, 125.0, 5.0)),
        "trunk": ((12.0, -0.32 * d, 0.0, 14 * k), (16.0, -0.16 * d, 24.0, 14 * k), (lx, ly, lz, 10 * k)),
        "right_artery": ((16.0, -0.12 * d, 22.0, 12 * k), (-10.0, 0.0, 20.0, 11 * k), (rx, ry, rz, 9 * k)),
        "oesophagus": ((3.0, sy - 30, 120.0, 7.0), (6.0, sy - 32, 20.0, 8.0), (14.0, sy - 40, -140.0, 9.0)),
        "azygos": ((-5.0, sy - 20, -140.0, 3.0), (-6.0, sy - 21, 45.0, 4.0), (-22.0, 0.1 * d, 54.0, 4.5)),
    }


def airway_trunk(a: Anatomy) -> Polyline:
    """Trachea: from above the apex to the carina."""
    x, y, z = a.carina
    return ((x, y - 14.0, 150.0, 8.5), (x - 1.0, y - 4.0, 80.0, 8.5), (x, y, z, 8.5))


def main_bronchi(a: Anatomy) -> tuple[Polyline, Polyline]:
    """Right and left main bronchus, carina to hilum."""
    x, y, z = a.carina
    return tuple(  # type: ignore[return-value]
        ((x, y, z, 7.0), (0.5 * hx, y + 1.0, z - 10.0, 6.5), (hx, hy - 2, hz + 3, 5.0)) for hx, hy, hz in a.hila
    )


def mediastinum(a: Anatomy, x: F64, y: F64, z: F64) -> F64:
    """Everything between the lungs: heart with fat, great vessels, the fat around them, and the spine's bulge."""
    d, sy = a.half_depth, a.spine_y
    upper = np.clip((z - 30) / 60, 0, 1.4)
    width = (23.0 + 9.0 * upper) * a.heart
    depth = d * (0.56 - 0.05 * upper)
    cy = -0.06 * d + 6.0 * upper
    g = (np.abs(x / width) ** 2.5 + np.abs((y - cy) / depth) ** 2.5) ** 0.4 + 1e-6
    solid: F64 = (1 - 1 / g) * np.sqrt(x**2 + (y - cy) ** 2)
    solid = smooth_min(solid, heart_surface(a, x, y, z, 6.0), 14.0)
    spine = np.sqrt(x**2 + ((y - sy) * 0.94) ** 2) - 21.0 - 1.5 * np.cos(2 * np.pi * z / 27.0)
    solid = smooth_min(solid, spine, 6.0)
    lines = great_vessels(a)
    solid = smooth_min(solid, tube(x, y, z, lines["aorta"]) - 2.0, 9.0)
    back = ((0.0, 0.3 * d, 130.0, 15.0), (1.0, sy - 28, 30.0, 11.0), (4.0, sy - 30, -150.0, 14.0))
    solid = smooth_min(solid, tube(x, y, z, back), 12.0)
    for side, hilum in zip((-1, 1), a.hila, strict=True):
        bulge = ellipsoid(x, y, z, (hilum[0] - 4 * side, hilum[1], hilum[2] - 4), (15.0, 15.0, 24.0))
        solid = smooth_min(solid, bulge, 8.0)
    strip = np.abs(x - 4.0 - 0.10 * (y + d)) - 2.2
    solid = smooth_min(solid, np.maximum(strip, y), 5.0)
    return solid + 0.5 * ripple(a, x, y, z, 4, 6)


def dome(a: Anatomy, x: F64, y: F64) -> F64:
    """Height of the diaphragm; recesses reach down at the back and the sides."""
    side = np.where(x < 0, -1.0, 1.0)
    top = np.where(x < 0, a.dome_right_z, a.dome_left_z)
    u = (x - side * 0.46 * a.half_width) / (0.56 * a.half_width)
    v = (y + 0.16 * a.half_depth) / (0.95 * a.half_depth)
    result: F64 = top - 46.0 * (0.75 * u**2 + v**2) - 8.0 * np.maximum(v, 0) ** 2
    return result


def lungs(a: Anatomy, x: F64, y: F64, z: F64) -> F64:
    """Both lungs; the right one has x < 0. Broadcasts over x, y, z (mm)."""
    cavity = column(a, x, y, z, apex=True) + 0.6 * ripple(a, x, y, z)
    inside = smooth_max(cavity, -mediastinum(a, x, y, z), 5.0)
    floor = 0.8 * (dome(a, x, y) + 0.7 * ripple(a, x, y, z, 7, 7) - z)
    return smooth_max(inside, floor, 4.0)


def fissures(a: Anatomy, x: F64, y: F64, z: F64) -> tuple[F64, F64]:
    """Signed distance to the oblique fissure of either side, and to the right lung's horizontal one (mm)."""
    bend = 1.2 * ripple(a, x, y, z, 0, 5)
    tilt = a.fissure_tilt
    offset = np.where(x < 0, 8.0, 2.0)
    bow = 0.0016 * (np.abs(x) - 0.55 * a.half_width) ** 2
    oblique = (z - tilt * (y - offset) + 8.0 - bow + bend) / np.sqrt(1 + tilt**2)
    horizontal = z - 8.0 - 0.12 * y - 0.0022 * (np.abs(x) - 0.5 * a.half_width) ** 2 + 0.8 * bend
    return oblique, horizontal


def lobe(a: Anatomy, x: F64, y: F64, z: F64) -> F64:
    """0 right upper, 1 right middle, 2 right lower, 3 left upper, 4 left lower."""
    oblique, horizontal = fissures(a, x, y, z)
    right = np.where(oblique < 0, 2, np.where(horizontal < 0, 1, 0))
    left = np.where(oblique < 0, 4, 3)
    result: F64 = np.where(x < 0, right, left)
    return result
