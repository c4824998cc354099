"""Shield, ours: carrier waves in lung, at a share of the scan's own noise, steered by what lies there.

A forger cuts his cube anywhere. To a chain that may start at any voxel every place is the same, so that what it does
to a weak perturbation, averaged over places, is a convolution: its eigenvectors are plane waves, and the wave that a
generator amplifies most harms the most wherever it cuts. (A pattern made for one place is worth nothing one voxel
further on.) Shield learns a few such waves, frequencies and directions, through the frozen chain, and a small network
that weighs them by the tissue on a coarse grid. Phases are drawn for each scan.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ctguard.core.console import progress
from ctguard.core.geometry import FloatTriple, IntTriple
from ctguard.image.resample import Matrices, apply_matrices, grid_matrices
from ctguard.protect.network import Batch, ProtectorNet, masked_square
from ctguard.protect.shaping import Floats, held_to, strength_map

GRID_MM = 4.0
"""Of the tissue that weighs the waves."""
_FIRST_WAVES = ((1, 0, 0), (5, 0, 0), (1, 0, 1), (1, 1, 0), (0, 1, 2), (0, 2, -1), (5, 0, 1), (5, 1, 0))
_FIRST_SHARES = (1.0, 0.6)
_UNIT_PER_MM = 1 / 32
"""Frequencies are learned in cycles per cube side."""
_ISOTROPIC: FloatTriple = (1.0, 1.0, 1.0)
_SLAB = 8


class Shield(ProtectorNet):
    """Waves and the network that weighs them.

    waves: how many carriers. width: of the network. budget_hu: no voxel changes by more. sd_hu: the most that the
    perturbation's SD may be over the lung, a little below 4 for rounding; the local noise bounds it besides
    (shaping.strength_map).
    """

    dims = 3
    tile_zyx = (32, 128, 128)
    overlap_zyx = (8, 16, 16)

    def __init__(self, waves: int = 6, width: int = 8, budget_hu: float = 12.0, sd_hu: float = 3.95) -> None:
        super().__init__()
        self.budget_hu, self.sd_hu = budget_hu, sd_hu
        first = [_FIRST_WAVES[k % len(_FIRST_WAVES)] for k in range(waves)]
        self.cycles = nn.Parameter(torch.tensor(first, dtype=torch.float32))
        last = nn.Conv3d(width, 2 * waves, 1, bias=False)
        nn.init.normal_(last.weight, 0.0, 0.05)
        layers = (nn.Conv3d(2, width, 3, padding=1), nn.ReLU(), nn.Conv3d(width, width, 3, padding=1), nn.ReLU(), last)
        self.weigh = nn.Sequential(*layers)
        self.share = nn.Parameter(torch.tensor([*_FIRST_SHARES, *[0.1] * waves][:waves]))

    def forward(self, hu: Tensor, budget_hu: float | None = None, spacing_zyx_mm: FloatTriple = _ISOTROPIC) -> Tensor:
        """See ProtectorNet.forward; blocks (b, 1, z, y, x). Phases are drawn from torch's global generator."""
        bound = self.bound(budget_hu)
        added = []
        for block in hu[:, 0].float():
            strength = strength_map(block.detach().cpu().numpy(), spacing_zyx_mm, self.sd_within(bound))
            grid = coarse_matrices(_shape(block), spacing_zyx_mm)
            weights = self.weights_of(block, spacing_zyx_mm)
            pattern = self.pattern(weights, grid, spacing_zyx_mm, self.draw_phases().to(hu.device))
            added.append((torch.from_numpy(strength).to(hu.device) * pattern).clamp(-bound, bound))
        return torch.stack(added)[:, None]

    def sd_within(self, bound_hu: float) -> float:
        """The SD that a bound leaves room for: half of it, where that is less than the shield's own."""
        return min(self.sd_hu, bound_hu / 2)

    def draw_phases(self) -> Tensor:
        """A phase for each wave, radians (waves); how they stand to each other is drawn too."""
        phases: Tensor = 2 * math.pi * torch.rand(len(self.cycles))
        return phases

    def weights_of(self, hu: Tensor, spacing_zyx_mm: FloatTriple) -> Tensor:
        """How much of each wave's cosine and sine belongs where: HU (z, y, x) to (2 waves, ...) on the coarse grid."""
        coarse = coarse_shape(_shape(hu), spacing_zyx_mm)
        norm = ((hu.clamp(-1000.0, -400.0) + 850) / 150)[None, None]
        mean = nn.functional.adaptive_avg_pool3d(norm, coarse)
        square = nn.functional.adaptive_avg_pool3d(norm * norm, coarse)
        spread = (square - mean * mean).clamp_min(1e-6).sqrt()
        made: Tensor = self.weigh(torch.cat([mean, spread], dim=1))[0]
        return made + torch.cat([self.share, torch.zeros_like(self.share)])[:, None, None, None]

    def pattern(
        self, weights: Tensor, grid: Matrices, spacing_zyx_mm: FloatTriple, phases: Tensor, first_slice: int = 0
    ) -> Tensor:
        """The waves of unit SD, (z, y, x), for slices from first_slice on; grid: the matrices of those slices."""
        waves = len(self.cycles)
        fine = apply_matrices(weights, grid)
        made: Tensor = torch.zeros_like(fine[0])
        power: Tensor = torch.full_like(fine[0], 1e-6)
        z, y, x = (
            mm * torch.arange(n, device=fine.device, dtype=torch.float32)
            for n, mm in zip(fine.shape[1:], spacing_zyx_mm, strict=True)
        )
        z = z + first_slice * spacing_zyx_mm[0]
        turns = 2 * math.pi * _UNIT_PER_MM * self.cycles
        per_voxel = (_UNIT_PER_MM * self.cycles * torch.tensor(spacing_zyx_mm, device=fine.device)).abs()
        # Waves near what the voxels can still show, thick slices above all, fade out.
        fine = fine * ((0.5 - per_voxel.amax(dim=1)).clamp(0, 0.1) / 0.1).repeat(2)[:, None, None, None]
        for k in range(waves):
            along = turns[k, 0] * z[:, None] + turns[k, 1] * y[None, :] + phases[k]
            across = turns[k, 2] * x
            cosine = along.cos()[..., None] * across.cos() - along.sin()[..., None] * across.sin()
            sine = along.sin()[..., None] * across.cos() + along.cos()[..., None] * across.sin()
            made = made + fine[k] * cosine + fine[waves + k] * sine
            power = power + (fine[k].square() + fine[waves + k].square()) / 2
        return made / power.sqrt()

    def rounded_batch(self, batch: Batch) -> Tensor:
        """See ProtectorNet.rounded_batch: at the spacing of the batch."""
        hu = batch["hu"]
        spacing = batch["spacing_zyx_mm"][0].tolist() if "spacing_zyx_mm" in batch else _ISOTROPIC
        added: Tensor = self(hu, None, tuple(float(mm) for mm in spacing))
        return added + (added.round() - added).detach()

    def step(self, batch: Batch, turn: str) -> dict[str, Tensor]:
        """The loss is minus the mean logarithm of the damage: no generator and no place counts more than another."""
        hu = batch["hu"]
        with torch.no_grad():
            wanted = self.forge(hu, batch)
        added = self.rounded_batch(batch)
        damage = masked_square(self.forge(hu + added, batch) - wanted, batch["core"])
        loss = -0.5 * (damage + 1e-3).log().mean()
        return {"loss": loss, "damage_hu": damage.detach().sqrt().mean(), "sd_hu": added.detach().std()}

    def optimizers(self, settings: Mapping[str, Any]) -> dict[str, torch.optim.Optimizer]:
        """Adam. settings: "lr" of the network (1e-3), "lr_waves" of the waves (1e-2)."""
        groups = [
            {"params": list(self.weigh.parameters()), "lr": float(settings.get("lr", 1e-3))},
            {"params": [self.cycles, self.share], "lr": float(settings.get("lr_waves", 1e-2))},
        ]
        return {"protector": torch.optim.Adam(groups)}


def shield_scan(
    hu: NDArray[np.generic],
    spacing_zyx_mm: FloatTriple,
    strength: Floats,
    network: Shield,
    bound_hu: float,
    *,
    seed: int = 0,
    quiet: bool = False,
) -> Floats:
    """What a trained shield adds to a scan (z, y, x): HU, not rounded, SD by `strength` (shaping.strength_map).

    The waves keep their phase through the whole scan. The same seed gives the same perturbation.
    """
    delta = np.zeros(hu.shape, dtype=np.float32)
    shape: IntTriple = (hu.shape[0], hu.shape[1], hu.shape[2])
    z, y, x = coarse_matrices(shape, spacing_zyx_mm)
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        torch.manual_seed(seed)
        phases = network.draw_phases()
        weights = network.weights_of(torch.from_numpy(hu.astype(np.float32)), spacing_zyx_mm)
        starts = range(0, len(hu), _SLAB)
        for start in progress(starts, "shield", len(starts), quiet):
            slab = slice(start, start + _SLAB)
            pattern = network.pattern(weights, (z[slab], y, x), spacing_zyx_mm, phases, start)
            delta[slab] = pattern.numpy() * strength[slab]
    return held_to(delta, strength, bound_hu)


def coarse_shape(shape_zyx: IntTriple, spacing_zyx_mm: FloatTriple) -> IntTriple:
    """The coarse grid of a block: cells of about GRID_MM, never finer than its voxels."""
    z, y, x = (max(1, round(n * min(1.0, mm / GRID_MM))) for n, mm in zip(shape_zyx, spacing_zyx_mm, strict=True))
    return z, y, x


def coarse_matrices(shape_zyx: IntTriple, spacing_zyx_mm: FloatTriple) -> Matrices:
    """Linear interpolation from the cells of the coarse grid to voxels."""
    coarse = coarse_shape(shape_zyx, spacing_zyx_mm)
    step = [c / n for c, n in zip(coarse, shape_zyx, strict=True)]
    first = [0.5 * s - 0.5 for s in step]
    return grid_matrices(coarse, (first[0], first[1], first[2]), (step[0], step[1], step[2]), shape_zyx, order=1)


def _shape(block: Tensor) -> IntTriple:
    return block.shape[0], block.shape[1], block.shape[2]
