"""Pulmonary arteries, veins and airways: trees that fill each lobe and the voxels that they occupy.

Growth follows Tawhai, Pullan and Hunter (Annals of Biomedical Engineering 28, 2000, 793-802): a cloud of terminals in
a lobe is halved again and again by a plane through the branch, and each daughter grows towards the centre of its
half. Radii follow Murray's law in the number of terminals fed. Bronchi run beside arteries.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from ctguard.phantom.anatomy import Anatomy, airway_trunk, lobe, lungs, main_bronchi
from ctguard.phantom.fields import F32, F64, Axes

TERMINALS_PER_TREE = 7000
_TERMINAL_RADIUS_MM = 0.335
_MURRAY = 1 / 3.1
_BRONCHUS_TERMINALS = 120
_GROWING = Lock()


@dataclass(frozen=True, eq=False)
class Tree:
    """Branches as quadratic Bezier curves: (n, 3) x, y, z points in mm, radii (n,) and terminals fed (n,)."""

    start: F64
    bend: F64
    end: F64
    radius_start: F64
    radius_end: F64
    fed: F64

    def near(self, low: F64, high: F64) -> Tree:
        """The branches that may touch a box given by its corners x, y, z."""
        first = np.minimum(np.minimum(self.start, self.end), self.bend) - self.radius_start[:, None]
        last = np.maximum(np.maximum(self.start, self.end), self.bend) + self.radius_start[:, None]
        keep = np.all((last >= low) & (first <= high), axis=1)
        return self.take(keep)

    def take(self, keep: NDArray[np.bool_]) -> Tree:
        """A selection of branches."""
        parts = (self.start, self.bend, self.end, self.radius_start, self.radius_end, self.fed)
        return Tree(*(part[keep] for part in parts))

    def at(self, index: NDArray[np.int64], t: F64) -> F64:
        """Points at parameter t (0..1) of the branches `index`."""
        t = t[:, None]
        result: F64 = (1 - t) ** 2 * self.start[index] + 2 * t * (1 - t) * self.bend[index] + t**2 * self.end[index]
        return result


def trees(a: Anatomy) -> tuple[Tree, Tree, Tree]:
    """Arteries, veins and airways of one chest; cached. Who asks while they grow waits for them."""
    with _GROWING:
        return _trees(a)


@lru_cache(maxsize=4)
def _trees(a: Anatomy) -> tuple[Tree, Tree, Tree]:
    rng = np.random.default_rng([a.seed, 11])
    points = _lung_points(a, rng, round(4 * TERMINALS_PER_TREE * a.vessel_density))
    label = lobe(a, points[:, 0], points[:, 1], points[:, 2]).astype(int)
    half = rng.random(len(points)) < 0.5
    arteries_from = [(0, 0, 2, 8), (0, 0, -4, -2), (0, 0, 6, -8), (1, 0, 0, 6), (1, 0, 8, -6)]
    veins_from = [(0, 2, -14, 0), (0, 2, -14, -8), (0, 4, 4, -26), (1, -2, -16, -4), (1, -4, 2, -28)]
    artery_roots, vein_roots = (
        np.array([np.add(a.hila[side], offset) for side, *offset in rows]) for rows in (arteries_from, veins_from)
    )
    arteries = _grow(points[half], label[half], artery_roots, rng, a.vessel_scale)
    veins = _grow(points[~half], label[~half], vein_roots, rng, a.vessel_scale * 0.97)
    return arteries, veins, _airways(a, arteries)


def _lung_points(a: Anatomy, rng: np.random.Generator, wanted: int) -> F64:
    box = np.array([[-a.half_width, -a.half_depth, -150.0], [a.half_width, a.half_depth + 14, a.apex_z]])
    cell = (np.prod(box[1] - box[0]) * 0.42 / wanted) ** (1 / 3)
    axes = [np.arange(low + cell / 2, high, cell) for low, high in box.T]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
    grid += rng.uniform(-0.5, 0.5, grid.shape) * cell
    depth = lungs(a, grid[:, 0], grid[:, 1], grid[:, 2])
    return grid[depth < -2.5]


def _grow(points: F64, label: NDArray[np.int64], roots: F64, rng: np.random.Generator, scale: float) -> Tree:
    node = label.copy()
    place = roots.astype(float)
    heading = np.zeros_like(place)
    for k in range(len(roots)):
        middle = points[label == k].mean(0) - roots[k]
        heading[k] = middle / np.linalg.norm(middle)
    thick = np.full(len(roots), np.inf)
    out: list[tuple[F64, ...]] = []
    for level in range(30):
        count = np.bincount(node, minlength=len(place)).astype(float)
        side = _split(points, node, place, count, rng) if level else np.zeros(len(points), bool)
        child = node * 2 + side
        used, child = np.unique(child, return_inverse=True)
        fed = np.bincount(child).astype(float)
        center = np.stack([np.bincount(child, points[:, k]) for k in range(3)], -1) / fed[:, None]
        parent = used // 2
        reach = center - place[parent]
        part = np.where(fed > 1, rng.uniform(0.33, 0.52, len(fed)), 0.93)[:, None]
        end = place[parent] + reach * part
        length = np.linalg.norm(end - place[parent], axis=1, keepdims=True)
        end += rng.normal(size=end.shape) * 0.04 * length
        bend = place[parent] + heading[parent] * length * 0.42 + rng.normal(size=end.shape) * 0.05 * length
        radius = scale * _TERMINAL_RADIUS_MM * fed**_MURRAY
        first = np.minimum(thick[parent], radius * 1.12)
        out.append((place[parent], bend, end, first, radius, fed))
        new = end - bend
        heading = new / np.maximum(np.linalg.norm(new, axis=1, keepdims=True), 1e-6)
        place, thick = end, radius
        alive = fed[child] > 1
        if not alive.any():
            break
        points, node = points[alive], child[alive]
    return Tree(*(np.concatenate(part) for part in zip(*out, strict=True)))


def _split(points: F64, node: NDArray[np.int64], place: F64, count: F64, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Which half of its branch's cloud each terminal belongs to: across the widest direction seen along the branch."""
    n = np.maximum(count, 1)
    center = np.stack([np.bincount(node, points[:, k], len(place)) for k in range(3)], -1) / n[:, None]
    offset = points - center[node]
    axis = center - place
    axis /= np.maximum(np.linalg.norm(axis, axis=1, keepdims=True), 1e-6)
    across = np.cross(axis, np.eye(3)[np.argmin(np.abs(axis), axis=1)])
    across /= np.linalg.norm(across, axis=1, keepdims=True)
    upward = np.cross(axis, across)
    u, v = np.sum(offset * across[node], 1), np.sum(offset * upward[node], 1)
    uu, vv, uv = (np.bincount(node, product, len(place)) for product in (u * u, v * v, u * v))
    turn = 0.5 * np.arctan2(2 * uv, uu - vv)
    widest = np.cos(turn)[node] * u + np.sin(turn)[node] * v
    power = 0.5 * (uu + vv) + np.hypot(0.5 * (uu - vv), uv)
    cut = rng.uniform(-0.75, 0.75, len(place)) * np.sqrt(power / n)
    side: NDArray[np.bool_] = widest > cut[node]
    return side


def _airways(a: Anatomy, arteries: Tree) -> Tree:
    keep = arteries.take(arteries.fed > _BRONCHUS_TERMINALS)
    beside = np.array([0.35, -0.55, 0.76])

    def shifted(point: F64, radius: F64) -> F64:
        outward = beside * np.where(point[:, :1] < 0, [[-1.0, 1, 1]], [[1.0, 1, 1]])
        moved: F64 = point - outward * (1.8 * np.minimum(radius, 5.0) + 0.6)[:, None]
        return moved

    start, end = shifted(keep.start, keep.radius_start), shifted(keep.end, keep.radius_end)
    bend = shifted(keep.bend, 0.5 * (keep.radius_start + keep.radius_end))
    lines = [airway_trunk(a), *main_bronchi(a)]
    trunk = np.array([[*p, *q] for line in lines for p, q in pairwise(line)])
    many = np.full(len(trunk), 1e4)
    return Tree(
        np.concatenate([trunk[:, :3], start]),
        np.concatenate([0.5 * (trunk[:, :3] + trunk[:, 4:7]), bend]),
        np.concatenate([trunk[:, 4:7], end]),
        np.concatenate([trunk[:, 3], 0.72 * keep.radius_start]),
        np.concatenate([trunk[:, 7], 0.72 * keep.radius_end]),
        np.concatenate([many, keep.fed]),
    )


def splat(points: F64, volume_mm3: F64, axes: Axes, out: F32) -> None:
    """Add small volumes at points x, y, z to the voxels around them, in shares that sum to the volume; in place."""
    steps = [float(axis[1] - axis[0]) if len(axis) > 1 else 1.0 for axis in axes]
    index = [(points[:, 2 - k] - axes[k][0]) / steps[k] for k in range(3)]
    low = [np.floor(i).astype(np.int64) for i in index]
    part = [i - b for i, b in zip(index, low, strict=True)]
    share = volume_mm3 / float(np.prod(steps))
    flat = np.zeros(out.size)
    for corner in range(8):
        bits = [(corner >> k) & 1 for k in range(3)]
        cell = [b + bit for b, bit in zip(low, bits, strict=True)]
        inside = np.ones(len(points), bool)
        for c, n in zip(cell, out.shape, strict=True):
            inside &= (c >= 0) & (c < n)
        weight = share.copy()
        for p, bit in zip(part, bits, strict=True):
            weight *= p if bit else 1 - p
        where = np.ravel_multi_index([c[inside] for c in cell], out.shape)
        flat += np.bincount(where, weight[inside], out.size)
    out += flat.reshape(out.shape).astype(np.float32)


def fill_thin(tree: Tree, axes: Axes, out: F32, step_mm: float = 0.35) -> None:
    """Add branches thinner than a voxel as the volume that they hold; in place."""
    length = np.linalg.norm(tree.end - tree.start, axis=1) * 1.05
    count = np.maximum(np.ceil(length / step_mm), 1).astype(int)
    index = np.repeat(np.arange(len(count)), count)
    order = np.arange(len(index)) - np.repeat(np.cumsum(count) - count, count)
    t = (order + 0.5) / count[index]
    radius = tree.radius_start[index] * (1 - t) + tree.radius_end[index] * t
    splat(tree.at(index, t), np.pi * radius**2 * (length / count)[index], axes, out)


def fill_thick(tree: Tree, axes: Axes, out: F32, grow: tuple[float, float] = (1.0, 0.0), parts: int = 3) -> None:
    """Raise voxels to the share that round cones along the branches cover; radius becomes grow[0] r + grow[1]."""
    steps = np.array([float(axis[1] - axis[0]) if len(axis) > 1 else 1.0 for axis in axes])
    soft = float(np.prod(steps) ** (1 / 3))
    knots = [tree.at(np.arange(len(tree.fed)), np.full(len(tree.fed), k / parts)) for k in range(parts + 1)]
    radii = [
        grow[0] * (tree.radius_start * (1 - k / parts) + tree.radius_end * k / parts) + grow[1]
        for k in range(parts + 1)
    ]
    for k in range(parts):
        for p, q, r0, r1 in zip(knots[k], knots[k + 1], radii[k], radii[k + 1], strict=True):
            _cone(p, q, float(r0), float(r1), axes, steps, soft, out)


def _cone(p: F64, q: F64, r0: float, r1: float, axes: Axes, steps: F64, soft: float, out: F32) -> None:
    reach = max(r0, r1) + soft
    low, high = np.minimum(p, q) - reach, np.maximum(p, q) + reach
    window = []
    for k in range(3):
        first = int(np.ceil((low[2 - k] - axes[k][0]) / steps[k]))
        last = int(np.floor((high[2 - k] - axes[k][0]) / steps[k])) + 1
        first, last = max(first, 0), min(last, len(axes[k]))
        if first >= last:
            return
        window.append(slice(first, last))
    z, y, x = (axes[k][window[k]] for k in range(3))
    e = q - p
    norm = float(e @ e) + 1e-9
    dx, dy, dz = x - p[0], (y - p[1])[:, None], (z - p[2])[:, None, None]
    t = np.clip((dx * e[0] + dy * e[1] + dz * e[2]) / norm, 0, 1)
    d = np.sqrt((dx - t * e[0]) ** 2 + (dy - t * e[1]) ** 2 + (dz - t * e[2]) ** 2) - (r0 + t * (r1 - r0))
    block = out[window[0], window[1], window[2]]
    np.maximum(block, np.clip(0.5 - d / soft, 0, 1), out=block)
