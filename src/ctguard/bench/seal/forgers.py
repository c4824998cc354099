"""Forgers who know the method but not the key (protocols.md "Protection", Seal): what each puts into his sites.

Every one replaces or changes cubes of 32 mm in a copy of the sealed scan; generators do so through
their whole chain. Whoever adds, adds a smooth nodule; whoever replaces, takes tissue of another place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from ctguard.bench.protection_scene import TASKS, Forger
from ctguard.bench.seal.scene import Box, SealScene, Voxels, bare
from ctguard.core.geometry import FloatTriple, Geometry
from ctguard.core.records import Mode, Task
from ctguard.protect.seal import SealSettings, seal_volume
from ctguard.synth.forge import apply_plan, plan_generator
from ctguard.tamper.pipeline import Generator, Plan, generate_cube, make_plan, plan_cube
from ctguard.tamper.touchup import limit_range

SITE_MM = 32.0
AVERAGED = (1, 8, 64)
"""Sealed scans of one key that a pattern is averaged over."""
_LIMITS_HU = (-1024, 3071)
_PATTERN_HU = 3
_NODULE_SD_MM = 4.0
_ELSEWHERE_YX = (61, 43)
_BESIDE = 48
WHOLE_CUBE = "whole cube"
WAYS: dict[str, Mode] = {WHOLE_CUBE: "clean", "m3dsynth mode": "m3dsynth", "clean mode": "clean"}
"""How generators paste: all of their cube of 32 mm, by the weights of M3Dsynth's release, or the core with a fade."""
Content = Callable[[Box], Voxels]


def put(scene: SealScene, boxes: Sequence[Box], content: Content) -> NDArray[np.int16]:
    """A copy of the sealed scan with other content in its boxes."""
    hu = scene.sealed.hu.copy()
    for box in boxes:
        hu[box] = np.clip(content(box), *_LIMITS_HU)
    return hu


def from_elsewhere(hu: NDArray[np.int16]) -> NDArray[np.int16]:
    """Tissue of another place of the same slices, at each place."""
    return np.roll(hu, _ELSEWHERE_YX, (1, 2))


def contents(scene: SealScene) -> dict[str, Content]:
    """Forgers by name, but those that need other sealed scans."""
    original, sealed = scene.original.hu, scene.sealed.hu
    d = sealed.astype(np.int32) - original
    other = from_elsewhere(original)
    moved = from_elsewhere(sealed)
    by_tiles = np.roll(sealed, [3 * n for n in scene.seal.header.tiling.tile_yx], (1, 2))
    return {
        "the unsealed original put back": lambda box: original[box],
        "replaced by other tissue": lambda box: other[box],
        "nodule of +700 HU added": lambda box: sealed[box] + nodule(scene, box, 700),
        "nodule of +30 HU added": lambda box: sealed[box] + nodule(scene, box, 30),
        "replaced, sealed residual put back": lambda box: _smooth(other[box]) + sealed[box] - _smooth(sealed[box]),
        "replaced, original and sealed known": lambda box: other[box] + d[box],
        "copied from another place of the scan": lambda box: moved[box],
        "the same, by whole tiles": lambda box: by_tiles[box],
    }


def foreign_contents(scene: SealScene, box: Box) -> Iterator[tuple[str, Content]]:
    """Forgers with other sealed scans of the same key, for one site.

    Other scans: this one's slices of the site, moved within the plane by other amounts, each sealed with a nonce of its
    own. The pattern of each is known to the last bit (original and sealed), which is more than a forger has.
    """
    slab = np.ascontiguousarray(scene.original.hu[box[0]])
    z, y, x = slab.shape
    geometry = scene.original.geometry.crop((box[0].start, 0, 0), (z, y, x))
    rng = np.random.default_rng([scene.seed, *(s.start for s in box)])
    total = np.zeros(slab.shape, np.int32)
    other = from_elsewhere(scene.original.hu)
    here = (slice(None), *box[1:])
    for number in range(1, AVERAGED[-1] + 1):
        moved = np.roll(slab, rng.integers(1, (y, x)), (1, 2))
        again = seal_volume(bare(moved, geometry), scene.key, SealSettings(seed=number))[0].hu
        if number == 1:
            yield "replaced from another sealed scan", lambda _, hu=again: hu[here]  # type: ignore[misc]
        total += again.astype(np.int32) - moved
        if number in AVERAGED:
            pattern = np.sign(total) * _PATTERN_HU
            words = f"replaced, pattern averaged over {number} sealed scan{'s' if number > 1 else ''}"
            yield words, lambda box, d=pattern: other[box] + d[here]  # type: ignore[misc]


def nodule(scene: SealScene, box: Box, peak_hu: float) -> NDArray[np.int32]:
    """A Gaussian of SD 4 mm in the middle of a box."""
    grids = np.ogrid[tuple(slice(0, s.stop - s.start) for s in box)]
    r2 = sum(((g - (g.size - 1) / 2) * mm) ** 2 for g, mm in zip(grids, scene.spacing_zyx_mm, strict=True))
    return np.rint(peak_hu * np.exp(-r2 / (2 * _NODULE_SD_MM**2))).astype(np.int32)


def _smooth(block: Voxels) -> NDArray[np.int32]:
    return np.asarray(ndimage.median_filter(block, 3)).astype(np.int32)


def generated(
    scene: SealScene, boxes: Sequence[Box], forgers: Sequence[Forger]
) -> Iterator[tuple[str, NDArray[np.int16]]]:
    """Copies of the sealed scan that each generator, and copy-move, forged at all sites, by way of pasting and task."""
    for way in WAYS:
        for forger in (one for one in forgers if one.known):
            for task in TASKS if forger.generator != "identity" else TASKS[:1]:
                what = f", {task}" if forger.generator != "identity" else ""
                yield f"{forger.label}{what}; {way}", _forged(scene, boxes, forger, task, way)
        yield f"copy-move; {way}", _forged(scene, boxes, None, "remove", way)


def _forged(scene: SealScene, boxes: Sequence[Box], forger: Forger | None, task: Task, way: str) -> NDArray[np.int16]:
    """forger: None is copy-move, which takes the tissue of the next site, or of a place beside the only one."""
    hu, geometry = scene.sealed.hu.copy(), scene.sealed.geometry
    centers = [scene.center_zyx(box) for box in boxes]
    donors = [*centers[1:], *centers[:1]] if len(centers) > 1 else [_beside(scene, center) for center in centers]
    for number, (center, donor) in enumerate(zip(centers, donors, strict=True)):
        name = forger.generator if forger else "copy-move"
        sha = dict(forger.sha256).get(task, "") if forger else ""
        plan = make_plan(task, name, center, mode=WAYS[way], core_mm=None, seed=scene.seed + number, sha=sha)
        plan = plan if forger else replace(plan, donor_zyx=donor)
        module = forger.module(task) if forger else plan_generator(scene.sealed, plan)
        if way == WHOLE_CUBE:
            _paste_cube(hu, geometry, plan, module)
        else:
            box, made = apply_plan(hu, geometry, plan, module)
            hu[box.slices()] = made
    return hu


def _paste_cube(hu: NDArray[np.int16], geometry: Geometry, plan: Plan, module: Generator) -> None:
    """All 32 mm that the generator gives back, in place, without any blending."""
    cube = plan_cube(geometry, plan)
    with torch.no_grad():
        made = cube.back(limit_range(generate_cube(cube.cut(torch.from_numpy(hu.astype(np.float32))), plan, module)))
    hu[cube.paste.slices()] = np.rint(made.numpy()).astype(np.int16)


def _beside(scene: SealScene, center_zyx: FloatTriple) -> FloatTriple:
    z, y, x = center_zyx
    half = scene.original.hu.shape[2] / 2
    return z, y, x + _BESIDE if x < half else x - _BESIDE
