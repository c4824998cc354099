"""Blocks of lung with attacks on them, for protectors that are networks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ctguard.cohort.patches import CubeRule, draw_lung_sites
from ctguard.core.console import progress
from ctguard.core.errors import DataError
from ctguard.core.records import Case
from ctguard.core.volume import Volume
from ctguard.defence.attacks import attack_names, block_attack
from ctguard.io.cases import read_case, read_cases
from ctguard.phantom.patients import COLLECTION as PHANTOM
from ctguard.protect.network import Batch, ProtectorNet, masked_square
from ctguard.tamper.cube import CUBE_MM
from ctguard.train.recipe import Recipe
from ctguard.training.material import Material, named

CORES_MM = (16.0, 18.0, 20.0)
"""What a forger may blank; one is drawn for each block."""
REACH_MM = 2.0
"""A site is moved by up to this along each axis, in quarters of a voxel."""
_MARGIN = 5
"""Voxels around a cube that its resampling reads, and one more."""


@dataclass(frozen=True, eq=False)
class ScanBlocks:
    """Blocks around sites in the lung of one scan: hu int16 (n, z, y, x), the sites (n, 3) in voxels of their block.

    real: whether the scan is of a patient, or of a planted nodule in one.
    """

    hu: NDArray[np.int16]
    site_zyx: NDArray[np.float32]
    spacing_zyx_mm: NDArray[np.float32]
    real: bool


def scan_blocks(
    volume: Volume, case: Case, count: int, side: int, rng: np.random.Generator, extra_slices: int = 0
) -> ScanBlocks | None:
    """Blocks of one scan, its sites anywhere in them where the whole cube fits; None where the scan is too small.

    count: sites in lung, all equally likely and far from findings. side: of a block in the plane, in voxels, more where
    a cube needs it (then a multiple of 8). extra_slices: more than the cube needs.
    """
    spacing = np.asarray(volume.geometry.spacing_zyx_mm)
    reach = np.ceil((CUBE_MM / 2 + REACH_MM) / spacing).astype(int) + _MARGIN
    need = 2 * reach + 1
    shape = np.array([need[0] + extra_slices, *(max(side, -(-int(n) // 8) * 8) for n in need[1:])])
    total = np.asarray(volume.hu.shape)
    shape[0] = min(shape[0], total[0])
    if np.any(shape > total) or np.any(shape * spacing < CORES_MM[-1] + 1):
        return None
    hu, sites = [], []
    for site in draw_lung_sites(volume, case.findings, count, CubeRule().clear_mm, rng):
        # The site lies anywhere in the block, so that its place there tells nothing.
        low, high = np.minimum(reach, shape // 2), np.maximum(shape - 1 - reach, shape // 2)
        start = np.clip(np.round(site).astype(int) - rng.integers(low, high + 1), 0, total - shape)
        hu.append(volume.hu[tuple(slice(a, a + n) for a, n in zip(start, shape, strict=True))])
        sites.append(np.asarray(site) - start)
    if not hu:
        return None
    real = case.collection != PHANTOM
    return ScanBlocks(
        np.stack(hu).astype(np.int16), np.stack(sites).astype(np.float32), spacing.astype(np.float32), real
    )


@dataclass(frozen=True)
class BlockBatches:
    """Batches of blocks of one scan with a plan for each, as a function of the step.

    attacks: how many there are to choose from. real_share: of batches that come from real scans, where there are both.
    """

    scans: Sequence[ScanBlocks]
    batch: int
    seed: int
    attacks: int
    real_share: float = 0.5

    def __call__(self, step: int) -> Batch:
        """See protect.network.Batch and defence.attacks.block_attack. Sites move, blocks are mirrored in-plane."""
        rng = np.random.default_rng([self.seed, step])
        groups = [[scan for scan in self.scans if scan.real == real] for real in (True, False)]
        share = self.real_share if all(groups) else float(bool(groups[0]))
        group = groups[int(rng.random() >= share)]
        scan = group[rng.integers(len(group))]
        chosen = rng.integers(len(scan.hu), size=self.batch)
        hu, sites = scan.hu[chosen].astype(np.float32), scan.site_zyx[chosen].copy()
        quarters = np.floor(4 * REACH_MM / scan.spacing_zyx_mm).astype(int)
        sites += rng.integers(-quarters, quarters + 1, size=sites.shape) / 4
        room = CORES_MM[-1] / 2 / scan.spacing_zyx_mm - 0.5  # at the border of a scan the core must lie inside
        sites = sites.clip(np.ceil(4 * room) / 4, np.floor(4 * (np.array(hu.shape[1:]) - 1 - room)) / 4)
        for axis in (1, 2):
            if rng.random() < 0.5:
                hu = np.flip(hu, axis + 1)
                sites[:, axis] = hu.shape[axis + 1] - 1 - sites[:, axis]
        cores = rng.choice(CORES_MM, size=self.batch)
        batch = {
            "hu": np.ascontiguousarray(hu[:, None]),
            "core": _cores(hu.shape[1:], sites, scan.spacing_zyx_mm, cores)[:, None],
            "site_zyx": sites,
            "spacing_zyx_mm": np.tile(scan.spacing_zyx_mm, (self.batch, 1)),
            "core_mm": cores,
            "attack": rng.integers(self.attacks, size=self.batch),
            "seed": rng.integers(2**31, size=self.batch),
        }
        return {name: torch.from_numpy(np.asarray(values)) for name, values in batch.items()}


def _cores(
    shape_zyx: tuple[int, ...], sites: NDArray[np.float32], spacing: NDArray[np.float32], cores: NDArray[np.float64]
) -> NDArray[np.float32]:
    """1 in the masked core around each site, (b, z, y, x)."""
    inside = [
        np.abs(np.arange(n) - sites[:, axis, None]) * spacing[axis] <= cores[:, None] / 2
        for axis, n in enumerate(shape_zyx)
    ]
    cores_zyx: NDArray[np.float32] = np.einsum("bz,by,bx->bzyx", *(part.astype(np.float32) for part in inside))
    return cores_zyx


def protector_material(recipe: Recipe, data: Sequence[Path], module: ProtectorNet, out: Path) -> Material:
    """Blocks of lung for a protector network, and its attack, which is set on the module.

    data: indexes of pristine scans. data_settings: generators (["pix2pix"]) with each task, weights, a folder of
    theirs (the shipped ones); sites a phantom (12) and sites_real a real scan (100); side of blocks in pixels (64) and
    extra_slices (0); real_share of batches (0.5); valid_batches (8).
    Raises DataError where no scan can be trained on, ModelError where a generator has no weights.
    """
    settings = recipe.data_settings
    generators, folder = tuple(settings.get("generators", ("pix2pix",))), settings.get("weights")
    module.attack, against = block_attack(generators, Path(folder) if folder else None)
    scans: dict[str, list[ScanBlocks]] = {"train": [], "valid": []}
    lines = []
    for index in data:
        for split, bank in scans.items():
            chosen = [case for case in read_cases(index) if (case.split or "train") == split]
            found = _cached_blocks(out / f"blocks_{index.parent.name}_{index.stem}_{split}", index, chosen, recipe)
            if found:
                bank += found
                names = ", ".join(sorted({named(case.collection) for case in chosen}))
                lines.append(f"{split}: {sum(len(s.hu) for s in found)} blocks of {len(found)} scans ({names})")
    if not scans["train"]:
        raise DataError("no scan to train on", where=", ".join(map(str, data)), remedy="give a larger index")
    count = len(attack_names(generators))
    batches = BlockBatches(scans["train"], recipe.batch, recipe.seed, count, float(settings.get("real_share", 0.5)))
    held_out = BlockBatches(scans["valid"] or scans["train"], recipe.batch, recipe.seed + 1, count)
    judged = [held_out(step) for step in range(int(settings.get("valid_batches", 8)))]

    def validate(model: nn.Module) -> dict[str, float]:
        return judge_protector(model, judged)

    return Material(batches, validate, against, "; ".join(lines))


def _cached_blocks(folder: Path, index: Path, cases: Sequence[Case], recipe: Recipe) -> list[ScanBlocks]:
    """Blocks of every case; each scan is read once and kept in the run folder."""
    settings = recipe.data_settings
    side, extra = int(settings.get("side", 64)), int(settings.get("extra_slices", 0))
    found = []
    for number, case in enumerate(progress(cases, "cutting blocks", len(cases))):
        path = folder / f"{number:05d}.npz"
        real = case.collection != PHANTOM
        if not path.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            rng = np.random.default_rng([recipe.seed, number])
            count = int(settings.get("sites_real", 100) if real else settings.get("sites", 12))
            blocks = scan_blocks(read_case(index, case), case, count, side, rng, extra)
            partial = path.with_name(f".{path.name}")  # a kill leaves no half file
            if blocks is None:
                np.savez_compressed(partial, hu=np.empty(0, np.int16))
            else:
                np.savez_compressed(partial, hu=blocks.hu, site=blocks.site_zyx, mm=blocks.spacing_zyx_mm)
            partial.replace(path)
        with np.load(path) as kept:
            if "site" in kept:
                found.append(ScanBlocks(kept["hu"], kept["site"], kept["mm"], real))
    return found


def judge_protector(model: Any, batches: Sequence[Batch]) -> dict[str, float]:
    """What protection does at places and in patients that were not trained on.

    damage_hu: RMSE in the masked core of what the attack makes of protected and of real tissue, same plan and noise;
    gain: that over the RMSE of the perturbation; noise_damage_hu: of Gaussian noise of the same RMSE, rounded;
    level_hu: the size of the perturbation's mean in the core, which its SD does not show. "score" is the damage. Means
    over blocks.
    """
    device = next(model.parameters()).device
    names = ("damage_hu", "gain", "noise_damage_hu", "sd_hu", "level_hu", "max_hu")
    rows: dict[str, list[Tensor]] = {name: [] for name in names}
    rng = torch.Generator().manual_seed(0)
    for batch in batches:
        here = {name: value.to(device) for name, value in batch.items()}
        hu = here["hu"]
        with torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(0)  # of the noise that a network may draw: the same at every validation
            added = model.rounded_batch(here)
            wanted = model.forge(hu, here)
            size = added.square().mean(dim=(1, 2, 3, 4)).sqrt()
            noise = torch.randn(hu.shape, generator=rng).to(device) * size[:, None, None, None, None]
            damage, floor = (
                masked_square(model.forge(hu + d, here) - wanted, here["core"]).sqrt() for d in (added, noise.round())
            )
        rows["damage_hu"].append(damage)
        rows["noise_damage_hu"].append(floor)
        rows["gain"].append(damage / size.clamp_min(1e-6))
        rows["sd_hu"].append(added.flatten(1).std(dim=1))
        rows["level_hu"].append(((added * here["core"]).flatten(1).sum(1) / here["core"].flatten(1).sum(1)).abs())
        rows["max_hu"].append(added.abs().flatten(1).amax(dim=1))
    metrics = {name: float(torch.cat(values).mean()) for name, values in rows.items()}
    return {"score": metrics["damage_hu"], **metrics}
