"""Constrained filters, which predict a pixel from its neighbours and leave the error."""

from __future__ import annotations

import torch
from torch import Tensor


def bayar_kernels(raw: Tensor) -> Tensor:
    """Kernels whose centre is -1 and whose other weights sum to 1 (Bayar and Stamm, IH&MMSec 2016).

    raw: (outputs, inputs, k, k), k odd; its centres are not read. The nearest such kernel, and not the division by the
    sum of the paper, which has a pole at 0; computed from `raw` at each use, so that no step of an optimiser and no
    rounding breaks it.
    """
    flat = raw.flatten(2)
    middle = flat.shape[-1] // 2
    others = torch.cat((flat[..., :middle], flat[..., middle + 1 :]), dim=-1)
    others = others + (1 - others.sum(dim=-1, keepdim=True)) / others.shape[-1]
    centre = -torch.ones_like(others[..., :1])
    return torch.cat((others[..., :middle], centre, others[..., middle:]), dim=-1).view_as(raw)
