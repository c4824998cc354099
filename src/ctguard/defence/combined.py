"""Shield and seal in one budget: a scan that is hard to forge, and whose changes show.

The shield comes first, since the seal binds the pixels that leave the house. The two are independent, so their
variances add: each has the share of the local noise whose square is half of what one alone may have. Taking the seal
off gives the shielded scan; the shield cannot be taken off.
"""

from __future__ import annotations

import math
from pathlib import Path

from ctguard.core.errors import RecipeError
from ctguard.core.provenance import Json
from ctguard.core.volume import Volume
from ctguard.defence.protect import Protection, check_unmarked, price_of, protected_copy
from ctguard.defence.shield import shield_delta
from ctguard.image.lung import body_mask
from ctguard.io.derived import stored_range_hu
from ctguard.protect.keys import SealKey
from ctguard.protect.record import Seal
from ctguard.protect.seal import SealSettings, seal_volume
from ctguard.protect.shaping import NOISE_SHARE, Budget
from ctguard.protect.shield_refine import Effort

SHIELD_SEAL = "shield+seal"
EACH_SHARE = NOISE_SHARE / math.sqrt(2)
"""Of the local noise."""
_SEAL_HU = 3.0
"""The most that a voxel of the pattern may change; less where a third of the budget is less."""
_LEAST_HU = 3.0


def budgets(budget_hu: float, seed: int) -> tuple[Budget, SealSettings]:
    """What the shield has of a budget in HU, and the seal that has the rest.

    Raises RecipeError for a budget below 3 HU.
    """
    if budget_hu < _LEAST_HU:
        raise RecipeError(
            f"a budget of {budget_hu:g} HU is too small for shield and seal", remedy=f"give at least {_LEAST_HU:g} HU"
        )
    seal_hu = min(_SEAL_HU, budget_hu / 3)
    return Budget(budget_hu - seal_hu, EACH_SHARE), SealSettings(max_hu=seal_hu, share=EACH_SHARE, seed=seed)


def shield_and_seal(
    volume: Volume,
    key: SealKey,
    *,
    budget_hu: float,
    seed: int = 0,
    effort: Effort | None = None,
    against: Path | None = None,
    weights: Path | None = None,
    quiet: bool = False,
) -> tuple[Volume, Seal, Protection]:
    """A shielded and sealed copy, its seal, and what both added; no voxel changes by more than budget_hu.

    effort, against, weights: as in shield_delta. Raises RecipeError for a budget below 3 HU, RefusedError for marked
    input, and what shield_delta and seal_volume raise.
    """
    check_unmarked(volume)
    shield_budget, settings = budgets(budget_hu, seed)
    made = {"weights": weights, "effort": effort, "against": against, "quiet": quiet}
    delta, facts = shield_delta(volume, shield_budget, seed=seed, **made)  # type: ignore[arg-type]
    body = body_mask(volume)
    params: dict[str, Json] = {"protector": "shield", "budget_hu": shield_budget.hu, "seed": seed, **facts}
    shielded, _ = protected_copy(volume, delta * body, params, body)
    sealed, seal, _ = seal_volume(shielded, key, settings, stored_range_hu=stored_range_hu(volume))
    return sealed, seal, price_of(volume, sealed.hu, body)
