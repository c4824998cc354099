"""Lung nodules: what is drawn about them, and the voxels that they become.

How benign and malignant nodules differ follows the literature: size, spiculation, part-solid density and upper-lobe
place raise the odds of cancer (McWilliams et al., NEJM 369, 2013, 910-919, the Brock model; Gould et al., Chest 131,
2007, 383-388); calcification, fat and a smooth, sharp margin speak for a benign nodule, lobulation, bubbly lucencies
and pleural tags against it (Erasmus et al., RadioGraphics 20, 2000, 43-58); terms of density as in the
Fleischner Society's guideline (MacMahon et al., Radiology 284, 2017, 228-243).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np

from ctguard.core.geometry import FloatTriple
from ctguard.core.provenance import Json
from ctguard.phantom.anatomy import Anatomy, lobe, lungs
from ctguard.phantom.fields import F32, F64, Axes, blend, texture
from ctguard.phantom.vessels import splat, trees

Texture = Literal["solid", "part-solid", "ground-glass"]
Margin = Literal["smooth", "lobulated", "spiculated"]
Attachment = Literal["none", "vessel", "pleura"]
Content = Literal["plain", "central calcification", "diffuse calcification", "popcorn", "fat", "bubbly"]


@dataclass(frozen=True)
class Nodule:
    """One nodule. diameter_mm: of the sphere with its volume, ground glass included, spicules left out."""

    center_lps_mm: FloatTriple
    diameter_mm: float
    malignant: bool
    texture: Texture
    margin: Margin
    attachment: Attachment
    content: Content
    solid_share: float
    seed: int

    def to_json(self) -> dict[str, Json]:
        """As plain JSON."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


def _pick(rng: np.random.Generator, odds: dict[str, float]) -> str:
    names = list(odds)
    weights = np.array([odds[name] for name in names])
    return names[int(rng.choice(len(names), p=weights / weights.sum()))]


def draw_nodule(a: Anatomy, rng: np.random.Generator, malignant: bool, taken: tuple[Nodule, ...] = ()) -> Nodule:
    """A nodule at random in the lung, at least 45 mm from those already there."""
    middle, spread = (12.5, 0.36) if malignant else (7.6, 0.42)
    low, high = (7.0, 25.0) if malignant else (4.0, 24.0)
    diameter = float(np.clip(middle * np.exp(spread * rng.normal()), low, high))
    if malignant:
        kinds = {"solid": 0.62, "part-solid": 0.28, "ground-glass": 0.10}
        margins = {"smooth": 0.13, "lobulated": 0.35, "spiculated": 0.52}
        places = {"none": 0.52, "vessel": 0.28, "pleura": 0.20}
        contents = {"plain": 0.80, "bubbly": 0.20}
    else:
        kinds = {"solid": 0.82, "part-solid": 0.06, "ground-glass": 0.12}
        margins = {"smooth": 0.74, "lobulated": 0.21, "spiculated": 0.05}
        places = {"none": 0.55, "vessel": 0.20, "pleura": 0.25}
        contents = {
            "plain": 0.72,
            "central calcification": 0.10,
            "diffuse calcification": 0.09,
            "popcorn": 0.05,
            "fat": 0.04,
        }
    kind = _pick(rng, kinds)
    margin = _pick(rng, margins) if kind != "ground-glass" else _pick(rng, {"smooth": 0.7, "lobulated": 0.3})
    content = _pick(rng, contents) if kind == "solid" else "plain"
    place = _pick(rng, places)
    center = _place(a, rng, diameter, malignant, place, taken)
    return Nodule(
        center_lps_mm=center,
        diameter_mm=round(diameter, 2),
        malignant=malignant,
        texture=kind,  # type: ignore[arg-type]
        margin=margin,  # type: ignore[arg-type]
        attachment=place,  # type: ignore[arg-type]
        content=content,  # type: ignore[arg-type]
        solid_share=float(rng.uniform(0.4, 0.7)),
        seed=int(rng.integers(2**31)),
    )


def _place(
    a: Anatomy, rng: np.random.Generator, diameter: float, malignant: bool, place: str, taken: tuple[Nodule, ...]
) -> FloatTriple:
    upper = rng.random() < (0.62 if malignant else 0.40)
    radius = diameter / 2
    if place == "vessel":
        arteries = trees(a)[0]
        pool = arteries.end[(arteries.radius_end > 0.6) & (arteries.radius_end < 1.6)]
        pool = pool + rng.normal(size=pool.shape) * 0.35 * radius
    else:
        half = np.array([a.half_width, a.half_depth, 110.0])
        pool = rng.uniform(-1, 1, (4000, 3)) * half
    pool = pool[rng.permutation(len(pool))[:1500]]
    depth = _depth(a, pool)
    if place == "pleura":
        near = (depth < -2) & (depth > -22)
        pool, depth = pool[near], depth[near]
        pool = pool - slope(a, pool) * (depth + rng.uniform(0.35, 0.8) * radius)[:, None]
        depth = _depth(a, pool)
        good = depth < -0.25 * radius
    else:
        good = depth < -radius - 5
    good &= pool[:, 2] > -70
    for other in taken:
        good &= np.linalg.norm(pool - np.asarray(other.center_lps_mm), axis=1) > 45
    names = lobe(a, pool[:, 0], pool[:, 1], pool[:, 2])
    wanted = good & (np.isin(names, (0, 3)) == upper)
    choice = np.flatnonzero(wanted if wanted.any() else good)[0]
    x, y, z = (round(float(v), 2) for v in pool[choice])
    return x, y, z


def _depth(a: Anatomy, points: F64) -> F64:
    return lungs(a, points[:, 0], points[:, 1], points[:, 2])


def slope(a: Anatomy, points: F64) -> F64:
    """Unit vectors (n, 3) towards the nearest pleura at points x, y, z."""
    steps = np.eye(3)
    gradient = np.stack([_depth(a, points + s) - _depth(a, points - s) for s in steps], -1)
    result: F64 = gradient / np.maximum(np.linalg.norm(gradient, axis=1, keepdims=True), 1e-6)
    return result


def _directions(count: int) -> F64:
    k = np.arange(count) + 0.5
    phi, theta = np.arccos(1 - 2 * k / count), np.pi * (1 + 5**0.5) * k
    return np.stack([np.cos(theta) * np.sin(phi), np.sin(theta) * np.sin(phi), np.cos(phi)], -1)


class Surface:
    """Radius of a nodule in every direction, scaled so that its volume is that of the stated sphere."""

    def __init__(self, nodule: Nodule) -> None:
        rng = np.random.default_rng([nodule.seed, 1])
        lobes = {"smooth": 2, "lobulated": 6, "spiculated": 9}[nodule.margin]
        depth = {"smooth": 0.05, "lobulated": 0.36, "spiculated": 0.24}[nodule.margin]
        self.bumps = rng.normal(size=(lobes, 3))
        self.bumps /= np.linalg.norm(self.bumps, axis=1, keepdims=True)
        self.heights = depth * rng.uniform(0.5, 1.3, lobes)
        self.sharp = rng.uniform(4.0, 9.0, lobes)
        self.frame = np.linalg.qr(rng.normal(size=(3, 3)))[0]
        self.squash = np.array([1.0, rng.uniform(0.8, 1.0), rng.uniform(0.72, 1.0)])
        self.scale = 1.0
        mean = float(np.mean(self(_directions(600)) ** 3))
        self.scale = nodule.diameter_mm / 2 / mean ** (1 / 3)

    def __call__(self, unit: F64) -> F64:
        """Radius (mm) along unit vectors (..., 3)."""
        own = unit @ self.frame
        radius = 1 / np.sqrt(np.maximum(((own / self.squash) ** 2).sum(-1), 1e-12))  # 0 at the very centre
        for bump, height, sharp in zip(self.bumps, self.heights, self.sharp, strict=True):
            radius = radius + height * np.exp(sharp * (unit @ bump - 1))
        result: F64 = self.scale * radius
        return result


def nodule_window(nodule: Nodule, axes: Axes) -> tuple[slice, slice, slice] | None:
    """The part of a grid that a nodule with its strands may change; None where it lies outside."""
    reach = 1.6 * nodule.diameter_mm + 14.0
    slices = []
    for axis, at in zip(axes, nodule.center_lps_mm[::-1], strict=True):
        inside = np.flatnonzero(np.abs(axis - at) <= reach)
        if len(inside) < 2:
            return None
        slices.append(slice(int(inside[0]), int(inside[-1]) + 1))
    return slices[0], slices[1], slices[2]


def paint_nodule(a: Anatomy, nodule: Nodule, axes: Axes, hu: F32, lung_share: F32) -> None:
    """Blend a nodule into HU (z, y, x), in place; what the pleura bounds stays in the lung."""
    window = nodule_window(nodule, axes)
    if window is None:
        return
    local: Axes = tuple(axis[w] for axis, w in zip(axes, window, strict=True))  # type: ignore[assignment]
    block = hu[window]
    lung = np.clip(lung_share[window] * 1.2, 0, 1)
    body, core = _body(nodule, local)
    lines = np.zeros_like(block)
    _strands(a, nodule, local, lines)
    blend(block, np.clip(lines, 0, 0.95) * lung, 20.0)
    rng = np.random.default_rng([nodule.seed, 2])
    grain = texture(nodule.seed, 1.8, local) + 0.7 * texture(nodule.seed + 1, max(2.5, nodule.diameter_mm / 4), local)
    if nodule.texture != "solid":
        glass = rng.uniform(0.27, 0.42) * (1 + 0.16 * grain)
        blend(block, body * lung * np.clip(glass, 0.1, 0.7).astype(np.float32), 30.0)
    if nodule.texture != "ground-glass":
        rough = 24.0 if nodule.malignant else 12.0
        value = np.float32(rng.uniform(15, 55)) + np.float32(rough) * grain
        value = _contents(nodule, local, value, rng)
        blend(block, (body if nodule.texture == "solid" else core) * lung, value.astype(np.float32))


def _body(nodule: Nodule, axes: Axes) -> tuple[F32, F32]:
    cx, cy, cz = nodule.center_lps_mm
    offset = np.stack(np.broadcast_arrays(axes[2] - cx, (axes[1] - cy)[:, None], (axes[0] - cz)[:, None, None]), -1)
    distance = np.linalg.norm(offset, axis=-1) + 1e-6
    surface = Surface(nodule)
    gap = distance - surface(offset / distance[..., None])
    uneven = {"smooth": 0.12, "lobulated": 0.3, "spiculated": 0.6}[nodule.margin]
    gap = gap + uneven * texture(nodule.seed + 2, 2.4, axes)
    voxel = float(axes[2][1] - axes[2][0])
    soft = {"solid": 0.9, "part-solid": 2.0, "ground-glass": 3.0}[nodule.texture]
    soft += 0.8 if nodule.malignant and nodule.texture == "solid" else 0.0
    body = np.clip(0.5 - gap / max(soft, voxel), 0, 1).astype(np.float32)
    rng = np.random.default_rng([nodule.seed, 3])
    shift = rng.normal(size=3) * 0.12 * nodule.diameter_mm
    inner = np.linalg.norm(offset - shift, axis=-1) - nodule.solid_share * nodule.diameter_mm / 2
    inner = inner + 0.7 * texture(nodule.seed + 3, 2.4, axes)
    core = np.clip(0.5 - inner / max(1.2, voxel), 0, 1).astype(np.float32)
    return body, np.minimum(core, body)


def _contents(nodule: Nodule, axes: Axes, value: F32, rng: np.random.Generator) -> F32:
    cx, cy, cz = nodule.center_lps_mm
    distance = np.sqrt((axes[2] - cx) ** 2 + (axes[1] - cy)[:, None] ** 2 + (axes[0] - cz)[:, None, None] ** 2)
    radius = nodule.diameter_mm / 2
    spots = texture(nodule.seed + 4, max(1.6, radius / 3), axes)
    if nodule.content == "central calcification":
        change = rng.uniform(250, 600) * np.clip(1.2 - distance / (0.55 * radius), 0, 1)
    elif nodule.content == "diffuse calcification":
        change = rng.uniform(180, 500) * np.clip(1.5 - distance / radius, 0, 1)
    elif nodule.content == "popcorn":
        change = 400 * np.clip(spots - 0.5, 0, 1)
    elif nodule.content == "fat":
        change = -110 * np.clip(0.6 + spots, 0, 1)
    elif nodule.content == "bubbly":
        change = -700 * np.clip(2.5 * (spots - 1.1), 0, 1)
    else:
        return value
    return value + change.astype(np.float32)


def _strands(a: Anatomy, nodule: Nodule, axes: Axes, out: F32) -> None:
    """Spicules, pleural tags and feeding vessels: thin tapering lines."""
    rng = np.random.default_rng([nodule.seed, 5])
    center = np.asarray(nodule.center_lps_mm)
    radius = nodule.diameter_mm / 2
    surface = Surface(nodule)
    lines: list[tuple[F64, float, float, float]] = []
    if nodule.margin == "spiculated":
        for unit in _directions(int(rng.integers(16, 34))) + rng.normal(size=3) * 0.05:
            unit = unit + 0.25 * rng.normal(size=3)
            lines.append(
                (unit / np.linalg.norm(unit), rng.uniform(0.35, 1.2) * radius + 2.0, rng.uniform(0.55, 1.15), 0.12)
            )
    outward = slope(a, center[None])[0]
    gap = float(-_depth(a, center[None])[0])
    if nodule.malignant and radius < gap < radius + 18 and rng.random() < 0.5:
        lines.append((outward, gap - radius + 0.5, 0.7, 0.45))
    if nodule.attachment == "vessel" or (nodule.malignant and rng.random() < 0.4):
        inward = np.array([-np.sign(center[0]) * 0.8, 0.0, -0.1]) + 0.3 * rng.normal(size=3)
        lines.append((inward / np.linalg.norm(inward), 10.0, min(1.3, 0.3 * radius), 0.8))
    for unit, length, thick, thin in lines:
        bow = rng.normal(size=3) * 0.10 * length
        t = (np.arange(int(length / 0.3) + 2) + 0.5) / (int(length / 0.3) + 2)
        begin = center + unit * float(surface(unit)) * 0.75
        points = begin + unit * (t * (length + 0.25 * radius))[:, None] + bow * (t**2)[:, None]
        wide = thick + (thin - thick) * t
        splat(points, np.pi * wide**2 * (length + 0.25 * radius) / len(t), axes, out)
