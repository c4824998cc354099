"""What a protector works against and within. The attack is an argument: this package never imports tamper."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

Window = tuple[slice, slice, slice]
"""A block of a volume, (z, y, x)."""


@dataclass(frozen=True, eq=False)
class Attack:
    """One forging to fend off: the block of the volume that it reads, and what it makes of that block.

    forge: float32 HU (z, y, x) of the block in and out, differentiable.
    """

    window: Window
    forge: Callable[[Tensor], Tensor]


DrawAttack = Callable[[np.random.Generator], Attack]
"""Draws a site, a task and a generator's noise; all positions in lung equally likely."""


def round_straight(delta: Tensor) -> Tensor:
    """Round to whole HU, as the written file will; gradients pass as if nothing were rounded."""
    return delta + (torch.round(delta) - delta).detach()
