"""Protect a scan: the one place where a protector meets the attack that it works against."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctguard import zoo
from ctguard.core.errors import DataError, RecipeError, RefusedError
from ctguard.core.marks import Mark
from ctguard.core.provenance import Json, Step
from ctguard.core.volume import Volume
from ctguard.defence.attacks import TASKS, attack_generator, lung_attacks
from ctguard.defence.shield import shield_delta
from ctguard.image.lung import body_mask
from ctguard.protect.ascent import AscentSettings, ascend
from ctguard.protect.noise import add_noise
from ctguard.protect.perturb import perturb
from ctguard.protect.shaping import Budget
from ctguard.protect.shield_refine import Effort
from ctguard.synth.forge import fitted

NETWORKS = tuple(entry.name for entry in zoo.ENTRIES if entry.kind == "protector" and entry.weights)
PROTECTORS = ("ascent", "noise", *NETWORKS)


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
    steps: int | Effort = 200,
    against: Path | None = None,
    weights: Path | None = None,
    quiet: bool = False,
) -> tuple[Volume, Protection]:
    """A protected copy of a volume, in whole HU within the budget, and what was added.

    against: folder with the weights of the generators that ascent and shield work against; None: the shipped ones.
    weights: of a protector that is a network, its card beside them; None: the shipped ones.
    steps: a number: of attacks that ascent works against; an Effort: how long the shield is refined for this scan.
    Raises RefusedError for marked input (a forgery must not be laundered), RecipeError for an unknown protector and
    where another one than the shield is to be refined, ModelError where weights are missing.
    """
    check_unmarked(volume)
    refine, attacks = (steps, 0) if isinstance(steps, Effort) else (None, steps)
    if protector not in PROTECTORS:
        raise RecipeError(f"no protector is called {protector!r}", remedy=f"choose one of {', '.join(PROTECTORS)}")
    if volume.hu.dtype != np.int16:
        raise RecipeError("its HU are not whole numbers", remedy="protect the original series")
    if refine is not None and protector != "shield":
        raise RecipeError(f"{protector} is not refined", remedy="choose the protector shield, or leave --refine out")
    body = body_mask(volume)
    if not body.any():
        raise DataError("no body was found in this scan", remedy="protect a chest CT")
    params: dict[str, Json] = {"protector": protector, "budget_hu": budget_hu, "seed": seed}
    if protector == "noise":
        delta = add_noise(body, budget_hu, seed)
    elif protector == "shield":
        made = {"weights": weights, "effort": refine, "against": against, "quiet": quiet}
        delta, facts = shield_delta(volume, Budget(budget_hu), seed=seed, **made)  # type: ignore[arg-type]
        params |= facts
    elif protector in NETWORKS:
        network, card = zoo.load(zoo.find(protector, "protector"), weights)
        delta = perturb(volume.hu, body, network, budget_hu=budget_hu, seed=seed, quiet=quiet)
        params |= {"model_sha256": card.sha256}
    else:
        settings = AscentSettings(budget_hu=budget_hu, steps=attacks)
        delta = ascend(volume.hu, body, lung_attacks(volume, folder=against), settings, seed, quiet=quiet)
        hashes = {task: attack_generator("pix2pix", task, against)[1] for task in TASKS}
        params |= {"steps": attacks, "model_sha256": hashes["inject"], "remover_sha256": hashes["remove"]}
    return protected_copy(volume, delta, params, body)


def protected_copy(
    volume: Volume, delta: NDArray[np.float32], params: dict[str, Json], body: NDArray[np.bool_]
) -> tuple[Volume, Protection]:
    """A volume with whole HU added, marked, and the price of it. params: of its step; "protector" among them."""
    protected = fitted(volume, volume.hu, (volume.hu + delta).astype(np.int16))
    price = price_of(volume, protected, body)
    done = {**params, **price.to_json()}
    detail = f"{params['protector']}: max {price.max_hu:.0f} HU, SD {price.sd_hu:.2f} HU added"
    return volume.changed(protected, Step("protect", done), Mark("protected", detail)), price


def price_of(volume: Volume, changed: NDArray[Any], body: NDArray[np.bool_]) -> Protection:
    """What `changed` (z, y, x) adds to a volume inside its body."""
    added = changed[body].astype(np.float32) - volume.hu[body]
    return Protection(float(np.abs(added).max()), float(added.std()), float((added != 0).mean()))


def check_unmarked(volume: Volume) -> None:
    """Raise RefusedError where a volume is forged, or protected or sealed already. A phantom may be protected."""
    for kind in ("forged", "protected", "sealed"):
        if volume.provenance.has_mark(kind):
            raise RefusedError(f"this scan is marked {kind}", remedy="protect the original series (MISUSE.md)")
