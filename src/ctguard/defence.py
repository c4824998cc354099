"""Protect a scan: the one place where a protector meets the attack that it works against."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ctguard import zoo
from ctguard.core.errors import DataError, GeometryError, RecipeError, RefusedError
from ctguard.core.geometry import as_float_triple
from ctguard.core.marks import Mark
from ctguard.core.provenance import Json, Step
from ctguard.core.records import Task
from ctguard.core.volume import Volume
from ctguard.image.lung import body_mask, lung_mask
from ctguard.protect.ascent import AscentSettings, ascend
from ctguard.protect.noise import add_noise
from ctguard.protect.protector import Attack, DrawAttack
from ctguard.synth.forge import fitted, load_generator
from ctguard.tamper.pipeline import forge, make_plan, plan_cube

PROTECTORS = ("ascent", "noise")
_TASKS: tuple[Task, ...] = ("inject", "remove")


@dataclass(frozen=True)
class Protection:
    """What was added, in HU, measured on the rounded voxels inside the body."""

    max_hu: float
    sd_hu: float
    changed_share: float

    def to_json(self) -> dict[str, Json]:
        """Plain JSON values."""
        return {"max_hu": self.max_hu, "sd_hu": self.sd_hu, "changed_share": self.changed_share}


def protect_scan(
    volume: Volume,
    protector: str,
    *,
    budget_hu: float,
    seed: int = 0,
    steps: int = 200,
    against: Path | None = None,
    quiet: bool = False,
) -> tuple[Volume, Protection]:
    """A protected copy of a volume, in whole HU within the budget, and what was added.

    against: folder with the weights of the generators that ascent works against; None: the shipped ones.
    Raises RefusedError for marked input (a forgery must not be laundered), RecipeError for an unknown protector.
    """
    check_unmarked(volume)
    if protector not in PROTECTORS:
        raise RecipeError(f"no protector is called {protector!r}", remedy=f"choose one of {', '.join(PROTECTORS)}")
    if volume.hu.dtype != np.int16:
        raise RecipeError("its HU are not whole numbers", remedy="protect the original series")
    body = body_mask(volume)
    if not body.any():
        raise DataError("no body was found in this scan", remedy="protect a chest CT")
    settings = AscentSettings(budget_hu=budget_hu, steps=steps)
    if protector == "noise":
        delta = add_noise(body, budget_hu, seed)
    else:
        delta = ascend(volume.hu, body, lung_attacks(volume, folder=against), settings, seed, quiet=quiet)
    protected = fitted(volume, volume.hu, (volume.hu + delta).astype(np.int16))
    added = (protected.astype(np.float32) - volume.hu)[body]
    price = Protection(float(np.abs(added).max()), float(added.std()), float((added != 0).mean()))
    params: dict[str, Json] = {"protector": protector, "budget_hu": budget_hu, "seed": seed, **price.to_json()}
    if protector == "ascent":
        hashes = {task: attack_generator("pix2pix", task, against)[1] for task in _TASKS}
        params |= {"steps": steps, "model_sha256": hashes["inject"], "remover_sha256": hashes["remove"]}
    detail = f"{protector}: max {price.max_hu:.0f} HU, SD {price.sd_hu:.2f} HU added"
    return volume.changed(protected, Step("protect", params), Mark("protected", detail)), price


def check_unmarked(volume: Volume) -> None:
    """Raise RefusedError where a volume is forged, or protected or sealed already. A phantom may be protected."""
    for kind in ("forged", "protected", "sealed"):
        if volume.provenance.has_mark(kind):
            raise RefusedError(f"this scan is marked {kind}", remedy="protect the original series (MISUSE.md)")


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
            task = _TASKS[int(rng.integers(2))]
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
