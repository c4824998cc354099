"""Scans, places and forgers of the protection benchmark: what is forged, where, by whom, the same for all protectors.

protocols.md "Protection": sites are drawn in lung, all positions equally likely, in a block of 80 mm of each scan.
Every forgery of a scan shares Plan, seed and noise with those of its protected copies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctguard import zoo
from ctguard.core.errors import DataError, ModelError, RecipeError
from ctguard.core.geometry import FloatTriple, IntTriple, as_float_triple, index_to_lps_mm, lps_mm_to_index
from ctguard.core.records import Case, Task
from ctguard.core.volume import Volume
from ctguard.image.lung import body_mask, lung_mask
from ctguard.io.manifest import sha256_file
from ctguard.synth.forge import apply_plan, check_source, fitted, load_generator
from ctguard.synth.sites import site_seed
from ctguard.tamper.cube import CUBE_MM, Box
from ctguard.tamper.pipeline import CORE_MM, Plan, make_plan

TASKS: tuple[Task, ...] = ("inject", "remove")
OTHER_SEED = 1
"""Added to a site's seed for the floor "another seed"."""
_TRIES = 100
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Forger:
    """A generator with its weights. label: in tables. folder: of other weights than the shipped ones.

    sha256: of the weights by task; empty where there are none, and then tables say so.
    """

    label: str
    generator: str
    folder: Path | None = None
    sha256: tuple[tuple[Task, str], ...] = ()

    @property
    def known(self) -> bool:
        """Whether it has weights for both tasks."""
        return len(self.sha256) == len(TASKS)

    def module(self, task: Task) -> Any:
        """The generator in eval mode, once per process."""
        return load_generator(
            self.generator, task, zoo.find(self.generator, "generator", task).weights_in(self.folder)
        )[0]


def find_forger(text: str) -> Forger:
    """A forger from "GENERATOR", or "LABEL=GENERATOR:FOLDER" for other weights than the shipped ones.

    Raises ModelError for a generator that the zoo does not have or whose own weights were asked for and are missing,
    RecipeError for copy-move, which would need a donor at each site.
    """
    label, named, rest = text.partition("=")
    generator, _, folder = rest.partition(":") if named else (label, "", "")
    if generator == "copy-move":
        raise RecipeError("copy-move has no generator to protect against", remedy="choose pix2pix, cyclegan, diffusion")
    where = Path(folder) if folder else None
    hashes: list[tuple[Task, str]] = []
    for task in TASKS:
        path = zoo.find(generator, "generator", task).weights_in(where)
        if path is None:
            hashes.append((task, "none"))
        elif path.is_file():
            hashes.append((task, sha256_file(path)))
        elif where is not None:
            raise ModelError("the weights of a forger are missing", where=path, remedy="train it, or leave it out")
    return Forger(label, generator, where, tuple(hashes))


@dataclass(frozen=True)
class Place:
    """One site, the same for all forgers and tasks. number: within its scan, from 0."""

    number: int
    center_zyx: FloatTriple


@dataclass(frozen=True, eq=False)
class Forged:
    """What a forging made: the box that may have changed and its voxels, and the core and the cube within the box."""

    box: Box
    hu: NDArray[np.int16]
    core: Mask
    cube: Mask

    def paste(self, hu: NDArray[np.int16]) -> NDArray[np.int16]:
        """The whole scan with it."""
        out = hu.copy()
        out[self.box.slices()] = self.hu
        return out


@dataclass(frozen=True, eq=False)
class Scene:
    """A scan, its masks, the block that is protected and measured, and the sites in it.

    box: the block. Its voxels are what every protector is judged on; feed-forward protectors see the whole scan.
    """

    case: Case
    volume: Volume
    lung: Mask
    body: Mask
    box: Box
    places: tuple[Place, ...]
    seed: int
    made: dict[tuple[object, ...], Forged] = field(default_factory=dict)

    def plan(self, place: Place, task: Task, forger: Forger, *, other_seed: bool = False) -> Plan:
        """The Plan of a forgery: by site and task alone, so that all forgers start from the same noise."""
        seed = site_seed(self.seed, self.case, task, place.center_zyx) + OTHER_SEED * other_seed
        sha = dict(forger.sha256).get(task, "")
        return make_plan(task, forger.generator, place.center_zyx, mode="clean", core_mm=None, seed=seed, sha=sha)

    def forge(self, volume: Volume, plan: Plan, forger: Forger) -> Forged:
        """t(volume): rounded and clipped to what the source's files can hold."""
        box, made = apply_plan(volume.hu, volume.geometry, plan, forger.module(plan.task))
        if volume.hu.shape == self.volume.hu.shape:
            made = fitted(self.volume, volume.hu[box.slices()], made)
        core, cube = (near(volume, box, plan.center_zyx, mm) for mm in (plan.core_mm, CUBE_MM))
        return Forged(box, made, core, cube)

    def original(self, place: Place, task: Task, forger: Forger) -> Forged:
        """t(x), made once."""
        key = (place.number, task, forger.label)
        if key not in self.made:
            self.made[key] = self.forge(self.volume, self.plan(place, task, forger), forger)
        return self.made[key]

    def cubes(self) -> Mask:
        """Voxels of the body in the cube of any site, within the block."""
        inside = np.zeros(self.volume.hu.shape, dtype=bool)
        for place in self.places:
            inside[cube_box(self.volume, place.center_zyx).slices()] = True
        return (inside & self.body)[self.box.slices()]


def near(volume: Volume, box: Box, center_zyx: FloatTriple, side_mm: float) -> Mask:
    """Voxels of a box whose centres lie in the cube of this side around a place: bool, the box's shape."""
    z, y, x = (
        np.abs(start + np.arange(n) - at) * mm <= side_mm / 2
        for start, n, at, mm in zip(
            box.start_zyx, box.shape_zyx, center_zyx, volume.geometry.spacing_zyx_mm, strict=True
        )
    )
    inside: Mask = z[:, None, None] & y[:, None] & x
    return inside


def cube_box(volume: Volume, center_zyx: FloatTriple, side_mm: float = CUBE_MM) -> Box:
    """The voxels whose centres lie in the cube of this side around a place, inside the scan."""
    half = side_mm / 2 / np.asarray(volume.geometry.spacing_zyx_mm)
    start = np.ceil(np.asarray(center_zyx) - half).astype(int)
    return _box(start, np.floor(np.asarray(center_zyx) + half).astype(int) + 1).inside(volume.geometry.shape_zyx)


def moved(volume: Volume, other: Volume, center_zyx: FloatTriple) -> FloatTriple:
    """The same place of the patient on the grid of another volume."""
    return as_float_triple(lps_mm_to_index(other.geometry, index_to_lps_mm(volume.geometry, center_zyx)))


def set_scene(case: Case, volume: Volume, *, sites: int, block_mm: float, seed: int) -> Scene:
    """Draw a block and sites in it. Same seed, same scene.

    The block holds the scan's first nodule, at a random place of it, where it has one (so that the price at nodules can
    be told), else a random place in lung. Sites are voxels in lung whose 32 mm cube lies in the block, all equally
    likely, none drawn twice. Raises RefusedError for a source that must not be forged, DataError where no block with
    so many sites is found.
    """
    check_source(volume)
    if block_mm < CUBE_MM:
        raise RecipeError(f"a block of {block_mm:g} mm holds no cube", remedy=f"give at least {CUBE_MM:g} mm")
    lung, body = lung_mask(volume), body_mask(volume)
    rng = np.random.default_rng([seed, *case.scan_id.encode()])
    voxels = np.argwhere(lung)
    if len(voxels) == 0:
        raise DataError("no lung was found in this scan", where=case.scan_id, remedy="take a chest CT")
    for _ in range(_TRIES):
        box = _draw_block(volume, _anchors(case, volume), voxels, block_mm, rng)
        inner = _interior(volume, box)
        if inner is None:
            break
        allowed = np.argwhere(lung[inner.slices()])
        if len(allowed) >= max(sites, 1):
            chosen = allowed[rng.choice(len(allowed), size=sites, replace=False)] + inner.start_zyx
            places = tuple(Place(k, as_float_triple(center)) for k, center in enumerate(chosen))
            return Scene(case, volume, lung, body, box, places, seed)
    raise DataError(
        f"no block of {block_mm:g} mm has {sites} places in lung for a cube",
        where=case.scan_id,
        remedy="give fewer sites, or thicker scans",
    )


def _anchors(case: Case, volume: Volume) -> list[FloatTriple]:
    centers = [as_float_triple(lps_mm_to_index(volume.geometry, one.center_lps_mm)) for one in case.findings]
    return [center for center in centers if volume.geometry.contains(center)][:1]


def _draw_block(
    volume: Volume, anchors: Sequence[FloatTriple], lung: NDArray[np.int64], block_mm: float, rng: np.random.Generator
) -> Box:
    spacing, shape = np.asarray(volume.geometry.spacing_zyx_mm), np.asarray(volume.hu.shape)
    center = np.asarray(anchors[0] if anchors else lung[rng.integers(len(lung))], dtype=float)
    center = center + rng.uniform(-1, 1, 3) * max(block_mm / 2 - CUBE_MM / 2, 0) / spacing
    size = np.minimum(np.round(block_mm / spacing).astype(int), shape)
    start = np.clip(np.round(center - size / 2).astype(int), 0, shape - size)
    return _box(start, start + size)


def _interior(volume: Volume, box: Box) -> Box | None:
    """Where centres of whole cubes lie; along an axis on which the block fills a thin scan, where the core fits."""
    rim = []
    for n, mm, whole in zip(box.shape_zyx, volume.geometry.spacing_zyx_mm, volume.hu.shape, strict=True):
        wide = int(np.ceil(CUBE_MM / 2 / mm))
        narrow = int(np.ceil(CORE_MM["clean"] / 2 / mm))
        rim.append(wide if n > 2 * wide or n < whole else narrow)
    start, stop = np.add(box.start_zyx, rim), np.add(box.start_zyx, box.shape_zyx) - rim
    return _box(start, stop) if np.all(stop > start) else None


def _box(start: NDArray[Any], stop: NDArray[Any]) -> Box:
    return Box(_ints(start), _ints(np.subtract(stop, start)))


def _ints(values: NDArray[Any]) -> IntTriple:
    z, y, x = (int(v) for v in values)
    return z, y, x
