"""A protector network over a whole scan: tile by tile, overlaps blended, whole HU, memory that does not grow."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from ctguard.core.console import progress
from ctguard.core.errors import ModelError, RecipeError
from ctguard.protect.network import ProtectorNet

Tile = tuple[int, NDArray[np.float32]]
"""Where a tile begins along one axis, and the weight of each of its voxels; the weights of all tiles sum to 1."""


def perturb(
    hu: NDArray[np.int16],
    allowed: NDArray[np.bool_],
    network: ProtectorNet,
    *,
    budget_hu: float,
    seed: int = 0,
    quiet: bool = False,
) -> NDArray[np.float32]:
    """What a network adds to a scan (z, y, x): whole HU, |d| <= budget_hu, zero outside `allowed`.

    The same seed gives the same perturbation. Beside the scan and the result, memory holds one row of tiles.
    Raises RecipeError for a budget below 1 HU, ModelError where the network gives no numbers.
    """
    bound = float(np.floor(budget_hu))
    if bound < 1:
        raise RecipeError(f"a budget of {budget_hu:g} HU protects nothing", remedy="give at least 1 HU")
    rows, *planes = (
        tiles(n, side, overlap)
        for n, side, overlap in zip(hu.shape, network.tile_zyx, network.overlap_zyx, strict=True)
    )
    delta = np.zeros(hu.shape, dtype=np.float32)
    row = np.zeros((len(rows[0][1]), *hu.shape[1:]), dtype=np.float32)
    was_training = network.training
    network.eval()
    try:
        with torch.random.fork_rng(devices=[]), torch.inference_mode():
            torch.manual_seed(seed)
            for number, (z, weight_z) in enumerate(progress(rows, "protecting", len(rows), quiet)):
                for y, weight_y in planes[0]:
                    for x, weight_x in planes[1]:
                        here = (slice(y, y + len(weight_y)), slice(x, x + len(weight_x)))
                        window = (slice(z, z + len(weight_z)), *here)
                        if allowed[window].any():
                            added = _tile(hu[window], network, budget_hu)
                            row[:, *here] += np.einsum("zyx,z,y,x->zyx", added, weight_z, weight_y, weight_x)
                done = rows[number + 1][0] - z if number + 1 < len(rows) else len(row)
                delta[z : z + done] = row[:done]
                row = np.concatenate([row[done:], np.zeros_like(row[:done])])
    finally:
        network.train(was_training)
    if not np.isfinite(delta).all():
        raise ModelError("the protector gave no number for some voxels", remedy="its weights are damaged")
    np.clip(np.rint(delta, out=delta), -bound, bound, out=delta)
    delta *= allowed
    return delta


def tiles(n: int, side: int, overlap: int) -> list[Tile]:
    """Tiles of `side` voxels that cover n with at least that overlap, one of n where n is smaller.

    Weights rise linearly over the overlap and are divided by their sum.
    """
    side = min(side, n)
    count = 1 if side == n else int(np.ceil((n - overlap) / (side - overlap)))
    starts = np.linspace(0, n - side, count).round().astype(int)
    inward = np.arange(side) + 1
    ramp = np.minimum(np.minimum(inward, inward[::-1]), overlap + 1).astype(np.float32)
    total = np.zeros(n, dtype=np.float32)
    for start in starts:
        total[start : start + side] += ramp
    return [(int(start), ramp / total[start : start + side]) for start in starts]


def _tile(hu: NDArray[np.int16], network: ProtectorNet, budget_hu: float) -> NDArray[np.float32]:
    block = torch.from_numpy(hu.astype(np.float32))[None, None]
    added: NDArray[np.float32] = network.blocks(block, budget_hu)[0, 0].numpy()
    return added
