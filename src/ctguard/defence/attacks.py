"""What forges, for protectors: attacks at one site, at random sites in lung, and on batches of blocks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ctguard import zoo
from ctguard.core.errors import DataError, GeometryError
from ctguard.core.geometry import Geometry, as_float_triple
from ctguard.core.records import Task
from ctguard.core.volume import Volume
from ctguard.image.lung import lung_mask
from ctguard.protect.network import Batch, ForgeBlocks
from ctguard.protect.protector import Attack, DrawAttack
from ctguard.synth.forge import load_generator
from ctguard.tamper.pipeline import forge, make_plan, plan_cube

TASKS: tuple[Task, ...] = ("inject", "remove")


def attack_generator(generator: str, task: Task, folder: Path | None = None) -> tuple[Any, str]:
    """A generator with its weights from a folder (None: the shipped ones), and their hash."""
    return load_generator(generator, task, zoo.find(generator, "generator", task).weights_in(folder))


def lung_attacks(volume: Volume, generator: str = "pix2pix", folder: Path | None = None) -> DrawAttack:
    """Attacks at random sites in lung, both tasks, random noise. Raises DataError where no lung is found."""
    voxels = np.argwhere(lung_mask(volume))
    if len(voxels) == 0:
        raise DataError("no lung was found in this scan", remedy="protect it with --protector noise")

    def draw(rng: np.random.Generator) -> Attack:
        while True:
            site = voxels[rng.integers(len(voxels))]
            task = TASKS[int(rng.integers(2))]
            try:
                return site_attack(volume, tuple(site), task, generator, int(rng.integers(2**31)), folder)
            except GeometryError:
                continue  # too near the border of the scan: draw again

    return draw


def site_attack(
    volume: Volume, center_zyx: Any, task: Task, generator: str, seed: int, folder: Path | None = None
) -> Attack:
    """The attack at one place. Raises GeometryError where the core does not fit the scan."""
    module, _ = attack_generator(generator, task, folder)
    plan = make_plan(task, generator, as_float_triple(center_zyx), mode="clean", core_mm=None, seed=seed)
    box = plan_cube(volume.geometry, plan).support
    local = make_plan(
        task,
        generator,
        as_float_triple(np.subtract(center_zyx, box.start_zyx)),
        mode="clean",
        core_mm=None,
        seed=seed,
    )
    geometry = volume.geometry.crop(box.start_zyx, box.shape_zyx)

    def attack(block: Tensor) -> Tensor:
        return forge(block, geometry, local, module)

    return Attack(box.slices(), attack)


def block_attack(generators: Sequence[str], folder: Path | None = None) -> tuple[ForgeBlocks, dict[str, str]]:
    """Frozen generators as one attack on batches of blocks, and the hashes of their weights.

    The attack takes HU (b, 1, z, y, x) and a batch with "site_zyx" (b, 3), voxels of the block, "spacing_zyx_mm" and
    "core_mm" (b), "seed" (b), and "attack" (b), which of `attack_names`. Float32 throughout, whatever the precision
    around it: bf16 would round a perturbation away.
    Raises ModelError where a generator has no weights.
    """
    names = attack_names(generators)
    loaded = [attack_generator(name, task, folder) for name, task in names]
    for module, _ in loaded:
        module.requires_grad_(False)

    def forge_blocks(hu: Tensor, batch: Batch) -> Tensor:
        forged = []
        with torch.autocast(hu.device.type, enabled=False):
            for i, block in enumerate(hu[:, 0].float()):
                which = int(batch["attack"][i])
                plan = make_plan(
                    names[which][1],
                    names[which][0],
                    as_float_triple(batch["site_zyx"][i].cpu()),
                    mode="clean",
                    core_mm=float(batch["core_mm"][i]),
                    seed=int(batch["seed"][i]),
                )
                spacing = as_float_triple(batch["spacing_zyx_mm"][i].cpu())
                geometry = Geometry((block.shape[0], block.shape[1], block.shape[2]), spacing)
                forged.append(forge(block, geometry, plan, loaded[which][0].to(hu.device), noise=False))
        return torch.stack(forged)[:, None]

    return forge_blocks, {
        zoo.find(n, "generator", t).weights: sha for (n, t), (_, sha) in zip(names, loaded, strict=True)
    }


def attack_names(generators: Sequence[str]) -> list[tuple[str, Task]]:
    """Each generator with each task, in the order that "attack" of a batch counts."""
    return [(name, task) for name in generators for task in TASKS]
