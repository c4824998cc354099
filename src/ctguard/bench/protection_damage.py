"""What protection does to a forgery: damage, gain, floors, ceiling, partial protection, pictures.

protocols.md "Protection": damage is RMSE(t(p), t(x)) over the masked core and over the cube, in HU; gain is damage over
RMSE(p, x) in the cube. A value's name says over what: "core" or "cube".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctguard.bench.protection_paper import picture_figures, vif
from ctguard.bench.protection_scene import TASKS, Forged, Forger, Mask, Place, Scene, cube_box
from ctguard.bench.protection_setups import ceiling
from ctguard.core.records import Task
from ctguard.core.volume import Volume
from ctguard.defence import site_attack
from ctguard.protect.ascent import AscentSettings
from ctguard.tamper.pipeline import Plan

SHARES = (25, 50, 100)
"""Per cent of the cube's slices that are protected, or edited."""
Values = dict[str, float]


def rmse(a: NDArray[Any], b: NDArray[Any], mask: Mask | None = None) -> float:
    """Root mean square of the difference of two blocks, of all or within a mask, HU; NaN where the mask is empty."""
    squares = (a.astype(np.float64) - b) ** 2 if mask is None else (a[mask].astype(np.float64) - b[mask]) ** 2
    return float(np.sqrt(squares.mean())) if squares.size else float("nan")


def damages(made: Forged, original: Forged, name: str = "damage") -> Values:
    """RMSE between two forgeries of one Plan, over core and cube."""
    return {
        f"{name} core": rmse(made.hu, original.hu, original.core),
        f"{name} cube": rmse(made.hu, original.hu, original.cube),
    }


def added(forged: Forged, changed: Volume, volume: Volume) -> float:
    """RMSE(p, x) over the cube of a site, HU."""
    here = forged.box.slices()
    return rmse(changed.hu[here], volume.hu[here], forged.cube)


@dataclass(frozen=True, eq=False)
class Attempt:
    """One forging of one protected scan: where, and t(p)."""

    scene: Scene
    place: Place
    task: Task
    forger: Forger
    p: Volume
    tp: Forged

    @property
    def tx(self) -> Forged:
        """t(x), with the same Plan."""
        return self.scene.original(self.place, self.task, self.forger)

    @property
    def plan(self) -> Plan:
        """Of t(x) and t(p) alike."""
        return self.scene.plan(self.place, self.task, self.forger)


def attempts(scene: Scene, forgers: tuple[Forger, ...], p: Volume) -> Iterator[Attempt]:
    """Every site, task and forger with weights."""
    for place in scene.places:
        for task in TASKS:
            for forger in forgers:
                if forger.known:
                    tx = scene.original(place, task, forger)
                    tp = tx if p is scene.volume else scene.forge(p, scene.plan(place, task, forger), forger)
                    yield Attempt(scene, place, task, forger, p, tp)


def attempt_values(attempt: Attempt, noise: Volume) -> Values:
    """Damage of p and of noise of the same SD, what p and the noise changed, and the pictures of t(p) beside x."""
    scene, tx, tp, p = attempt.scene, attempt.tx, attempt.tp, attempt.p
    floor = tx if noise is scene.volume else scene.forge(noise, attempt.plan, attempt.forger)
    here = tx.box.slices()
    return {
        **damages(tp, tx),
        **damages(floor, tx, "noise"),
        "edit core": rmse(tx.hu, scene.volume.hu[here], tx.core),
        "edit cube": rmse(tx.hu, scene.volume.hu[here], tx.cube),
        "added cube": added(tx, p, scene.volume),
        "noise added cube": added(tx, noise, scene.volume),
        **pictures("tampered", scene.volume, tp.paste(p.hu), attempt.place),
    }


def pictures(name: str, real: Volume, hu: NDArray[np.int16], place: Place) -> Values:
    """METRICS of the site's slice and of the 32 mm square in it, real beside other voxels of the scan."""
    z = int(np.clip(round(place.center_zyx[0]), 0, len(real.hu) - 1))
    _, rows, columns = cube_box(real, place.center_zyx).slices()
    out: Values = {}
    for part, window in (("slice", (slice(None), slice(None))), ("square", (rows, columns))):
        figures = picture_figures(real.hu[z][window], hu[z][window])
        out |= {f"{name} {part} {metric}": value for metric, value in figures.items()}
    return out


def protected_pictures(scene: Scene, place: Place, p: Volume) -> Values:
    """METRICS of p beside x, and VIF of the whole slice."""
    z = int(np.clip(round(place.center_zyx[0]), 0, len(p.hu) - 1))
    return {**pictures("real", scene.volume, p.hu, place), "VIF": vif(scene.volume.hu[z], p.hu[z])}


def other_seed(attempt: Attempt) -> Values:
    """The floor "another seed": how far t(x) moves when nothing but the noise of generator and blend changes."""
    scene, forger = attempt.scene, attempt.forger
    plan = scene.plan(attempt.place, attempt.task, forger, other_seed=True)
    return damages(scene.forge(scene.volume, plan, forger), attempt.tx, "seed")


def known_site(attempt: Attempt, settings: AscentSettings) -> Values:
    """The ceiling: gradient ascent that knows site, task, generator and noise."""
    scene, plan, forger = attempt.scene, attempt.plan, attempt.forger
    attack = site_attack(
        scene.volume, attempt.place.center_zyx, attempt.task, forger.generator, plan.seed, forger.folder
    )
    best = ceiling(scene, attack, settings, plan.seed)
    found = damages(scene.forge(best, plan, forger), attempt.tx, "ceiling")
    return found | {"ceiling added cube": added(attempt.tx, best, scene.volume)}


def partial_values(attempt: Attempt) -> Values:
    """Damage where only some of the cube's slices are protected, and over those slices that alone are edited.

    Protected: a run of neighbouring slices, at a place drawn by the site's seed. Edited: the forger pastes the middle
    slices of his cube alone, so that the damage is that of the whole forgery within them.
    """
    scene, plan, tx, tp, p = attempt.scene, attempt.plan, attempt.tx, attempt.tp, attempt.p
    z = cube_box(scene.volume, attempt.place.center_zyx).slices()[0]
    count = z.stop - z.start
    out: Values = {}
    for share in SHARES:
        run = max(1, round(count * share / 100))
        made = tp
        if share < SHARES[-1]:
            first = z.start + int(np.random.default_rng([plan.seed, share]).integers(count - run + 1))
            hu = scene.volume.hu.copy()
            hu[first : first + run] = p.hu[first : first + run]
            made = scene.forge(Volume(hu, p.geometry, p.provenance), plan, attempt.forger)
        out |= damages(made, tx, f"{share} % protected")
        middle = z.start - tx.box.start_zyx[0] + (count - run) // 2
        edited = np.zeros(tx.cube.shape, dtype=bool)
        edited[middle : middle + run] = True
        out[f"{share} % edited core"] = rmse(tp.hu, tx.hu, tx.core & edited)
        out[f"{share} % edited cube"] = rmse(tp.hu, tx.hu, tx.cube & edited)
    return out
