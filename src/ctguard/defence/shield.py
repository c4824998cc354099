"""The shield against the forging chain: which places it is refined at, and protecting a scan with it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ctguard import zoo
from ctguard.core.errors import DataError, GeometryError
from ctguard.core.geometry import FloatTriple, Geometry, as_float_triple
from ctguard.core.provenance import Json
from ctguard.core.volume import Volume
from ctguard.defence.attacks import TASKS, attack_generator
from ctguard.image.box import mask_box
from ctguard.image.lung import lung_mask
from ctguard.image.resample import apply_matrices
from ctguard.protect.channel import PASSAGES, Passage
from ctguard.protect.shaping import Budget, strength_map
from ctguard.protect.shield import shield_scan
from ctguard.protect.shield_refine import DrawVolleys, Effort, Limits, Volley, refine
from ctguard.tamper.cube import CUBE_MM, Cube, core_mask, exact_cube
from ctguard.tamper.pipeline import CORE_LIMITS_MM, initial_noise
from ctguard.tamper.touchup import limit_range, match_level

GENERATORS = ("pix2pix", "cyclegan")
"""Those that are refined against, as far as they have weights; a diffusion model would take a hundred times as long."""
LATTICE_MM = 16.0
"""Between the places of one step: every voxel of lung lies in about eight cubes."""
_TOGETHER = 8
_SEEDS = 64
_MARGIN_MM = CUBE_MM / 2 + 8


def shield_delta(
    volume: Volume,
    budget: Budget,
    *,
    seed: int,
    weights: Path | None = None,
    effort: Effort | None = None,
    against: Path | None = None,
    lung: NDArray[np.bool_] | None = None,
    quiet: bool = False,
) -> tuple[NDArray[np.float32], dict[str, Json]]:
    """The shield's perturbation of a scan in whole HU (z, y, x), and what its provenance records.

    lung: where it is to hold, bool (z, y, x); None: all lung. effort: how long to refine it; None: feed-forward alone.
    against: folder with the weights of the generators that it is refined against; None: the shipped ones.
    Raises DataError where no lung is found, ModelError where weights are missing.
    """
    network, card = zoo.load(zoo.find("shield", "protector"), weights)
    lung = lung_mask(volume) if lung is None else lung
    inner = mask_box(lung)
    if inner is None:
        raise DataError("no lung was found in this scan", remedy="protect it with --protector noise")
    spacing = volume.geometry.spacing_zyx_mm
    reach = [round(_MARGIN_MM / mm) for mm in spacing]
    box = tuple(
        slice(max(0, s.start - r), min(n, s.stop + r)) for s, r, n in zip(inner, reach, lung.shape, strict=True)
    )
    hu, inside = volume.hu[box], lung[box]
    bound = network.bound(budget.hu)
    strength = strength_map(hu, spacing, network.sd_within(bound), inside, budget.noise_share)
    delta = shield_scan(hu, spacing, strength, network, bound, seed=seed, quiet=quiet)
    params: dict[str, Json] = {"model_sha256": card.sha256, "refine_steps": 0}
    if effort is not None:
        draw, hashes = lung_volleys(hu, spacing, inside, against)
        refined = refine(hu, delta, Limits(strength, spacing, bound), draw, effort, seed=seed, quiet=quiet)
        delta = refined.delta
        params |= {"refine_steps": refined.steps, "against_sha256": dict(hashes)}
    whole = np.zeros(volume.hu.shape, dtype=np.float32)
    whole[box] = np.rint(delta)
    return whole, params


def lung_volleys(
    hu: NDArray[np.generic], spacing_zyx_mm: FloatTriple, lung: NDArray[np.bool_], folder: Path | None
) -> tuple[DrawVolleys, dict[str, str]]:
    """Volleys at lattices over a lung (z, y, x), each place by one of the generators that have weights; their hashes.

    Raises ModelError where none has.
    """
    entries = [
        (name, task, zoo.find(name, "generator", task).weights_in(folder)) for name in GENERATORS for task in TASKS
    ]
    found = [(name, task, path) for name, task, path in entries if path is not None and path.is_file()]
    if not found:
        attack_generator(GENERATORS[0], TASKS[0], folder)  # says what is missing
    loaded = [attack_generator(name, task, folder) for name, task, _ in found]
    for module, _ in loaded:
        module.requires_grad_(False)
    geometry = Geometry((lung.shape[0], lung.shape[1], lung.shape[2]), spacing_zyx_mm)

    def draw(rng: np.random.Generator) -> Sequence[Volley]:
        cubes = _cubes(geometry, lung, rng)
        which = rng.permutation(np.arange(len(cubes)) % len(loaded))
        volleys = []
        for number, (module, _) in enumerate(loaded):
            mine = [cube for cube, chosen in zip(cubes, which, strict=True) if chosen == number]
            for first in range(0, len(mine), _TOGETHER):
                some = mine[first : first + _TOGETHER]
                core = core_mask(float(rng.uniform(*CORE_LIMITS_MM)))
                forge = partial(
                    forge_cores, cubes=some, core=core, seeds=rng.integers(_SEEDS, size=len(some)), generator=module
                )
                passage = PASSAGES[rng.integers(len(PASSAGES))]
                through = partial(_through, passage, spacing_zyx_mm)
                volleys.append(Volley([cube.support.slices() for cube in some], forge, through))
        return volleys

    return draw, {path.stem: sha for (_, _, path), (_, sha) in zip(found, loaded, strict=True)}


def forge_cores(
    blocks: Sequence[Tensor], cubes: Sequence[Cube], core: Tensor, seeds: NDArray[np.int64], generator: Any
) -> Tensor:
    """What a generator makes of blocks in their masked cores, at 1 mm: HU (places, voxels), differentiable.

    tamper.pipeline.forge in clean mode, of many cubes at once, without specks, fade and matched noise, which change
    little in the core and cost more than the rest.
    """
    cuts = torch.stack([apply_matrices(block, cube.to_cube) for block, cube in zip(blocks, cubes, strict=True)])
    noise = torch.cat([initial_noise(int(seed)) for seed in seeds])
    norm = generator.equaliser(cuts)[:, None]
    made = generator.equaliser.inverse(generator(norm, core.expand_as(norm), noise))[:, 0]
    levelled = [match_level(limit_range(one), cut, core) for one, cut in zip(made, cuts, strict=True)]
    return torch.stack([one[core > 0] for one in levelled])


def _through(passage: Passage, spacing_zyx_mm: FloatTriple, block: Tensor) -> Tensor:
    return passage(block, spacing_zyx_mm)


def _cubes(geometry: Geometry, lung: NDArray[np.bool_], rng: np.random.Generator) -> list[Cube]:
    """Cubes at the places of a randomly shifted lattice that lie in lung, but for those too near the border."""
    spacing = np.asarray(geometry.spacing_zyx_mm)
    axes = []
    for n, mm in zip(lung.shape, spacing, strict=True):
        places = np.arange(rng.uniform(0, LATTICE_MM), (n - 1) * mm, LATTICE_MM) / mm
        axes.append(np.rint(4 * places) / 4)  # quarters of a voxel, whose resampling matrices are kept
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    cubes = []
    for place in grid:
        if lung[tuple(np.rint(place).astype(int))]:
            try:
                cubes.append(exact_cube(geometry, as_float_triple(place), CORE_LIMITS_MM[1]))
            except GeometryError:
                continue
    return cubes
