"""Blending a generated block into its scan.

clean: ours. Content is replaced inside the core, fades out within the cube, and carries noise of the scan's own
spectrum where the original's noise was taken away.
ctgan: CT-GAN's released touch-up (facts: CT-GAN 2.4), its leaks included: the work box is a cube of 1.3 x the widest
side in voxels on every axis, its weights depend on y and x only, its noise is copied from a fixed place.
m3dsynth: the same merge weights, kept inside the cube and without added noise.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ctguard.core.records import Task
from ctguard.image.lung import NODULE_HU
from ctguard.image.noise import median_residual, sample_noise_like
from ctguard.tamper.cube import CUBE_MM, Box, Cube, cut_box

FADE_MM = 5.0
SPECK_HU = 150.0
AERATED_HU = -700.0
_FEWEST_VOXELS = 200
_RIM_MM = 1.0
WORK_BOX_FACTOR = 1.3
MERGE_HU = -700.0
MERGE_WIDTH_HU = 70.0
AIR_HU = -800.0

RADII_MM = (0.0, 5.0, 8.0, 10.0, 16.0)
RELEASED_WEIGHTS: dict[Task, tuple[float, ...]] = {
    "inject": (1.00, 0.88, 0.72, 0.59, 0.23),
    "remove": (1.00, 0.97, 0.93, 0.88, 0.69),
}
"""The released kernels at five in-plane radii; between and beyond them a Gaussian is interpolated."""


def limit_range(cube: Tensor) -> Tensor:
    """CT-GAN's clean-up of a generated cube: above 2,000 HU a 5^3 mean, below -1,000 HU set to -1,000."""
    mean = torch.nn.functional.avg_pool3d(cube[None, None], 5, stride=1, padding=2, count_include_pad=False)[0, 0]
    return torch.where(cube > 2000, mean, cube).clamp_min(-1000.0)


def remove_specks(made: Tensor) -> Tensor:
    """Voxels of a generated cube (32, 32, 32) SPECK_HU off the median of their 27 neighbours take it (clean mode).

    Equalisation squeezes all dense tissue into a small share of a generator's range, so that small errors there come
    out as single bright or dark voxels, which no scanner makes. Made vessels of less than 3 mm may go with them.
    """
    wide = torch.nn.functional.pad(made[None, None], (1,) * 6, mode="replicate")[0, 0]
    median = wide.unfold(0, 3, 1).unfold(1, 3, 1).unfold(2, 3, 1).flatten(3).median(dim=-1).values
    return torch.where((made - median).abs() > SPECK_HU, median, made)


def match_level(made: Tensor, cube: Tensor, core: Tensor) -> Tensor:
    """Shift aerated voxels of a generated cube to the level of the aerated lung around it (clean mode).

    made, cube: HU (32, 32, 32) as generated and as cut; core: 1 in the masked core. A generator's mean grey drifts
    with what it was trained on; core and shell are shifted apart, each to the shell's own lung, and denser tissue
    (above -400 HU) is left as it was made.
    """
    inside = core > 0
    aerated = made.detach() < AERATED_HU
    around = (cube.detach() < AERATED_HU) & ~inside
    share = ((NODULE_HU - made.detach()) / (NODULE_HU - AERATED_HU)).clamp(0, 1)
    shift = torch.zeros_like(made)
    for part, own in ((inside, aerated & inside), (~inside, aerated & around)):
        if min(int(own.sum()), int(around.sum())) >= _FEWEST_VOXELS:
            shift = torch.where(part, cube[around].mean() - made[own].mean(), shift)
    return made + share * shift


def replace(hu: Tensor, box: Box, block: Tensor) -> Tensor:
    """A copy of the volume with a box (inside it) replaced; gradients reach both."""
    result = hu.clone()
    result[box.slices()] = block
    return result


def blend_clean(hu: Tensor, cube: Cube, native: Tensor, core_mm: float, seed: int | None) -> Tensor:
    """Replace the core, fade out within the cube, restore the noise that replacing took away.

    Where two contents are mixed with weights w and 1 - w, noise power falls to w^2 + (1 - w)^2 + 2 w (1 - w) rho, rho
    being how alike their noise is there; the seeded noise adds what is missing against the scan's own level. seed None:
    without that noise.
    """
    original = hu[cube.paste.slices()]
    weight_np = fade_weight(cube, core_mm)
    weight = torch.from_numpy(weight_np).to(hu.device)
    mixed = original + weight * (native - original)
    if seed is not None:
        noise = _matched_noise(hu, cube, native, weight_np, core_mm, seed)
        mixed = mixed + torch.from_numpy(noise).to(hu.device)
    return replace(hu, cube.paste, torch.where(weight > 0, mixed, original))


def fade_weight(cube: Cube, core_mm: float) -> NDArray[np.float32]:
    """1 in the core, a squared cosine to 0 within FADE_MM beyond it; exactly 0 on the cube's rim."""
    reach = min(core_mm / 2 + FADE_MM, CUBE_MM / 2 - _RIM_MM)
    axes = []
    for offset in cube.offsets_mm():
        part = np.clip((np.abs(offset) - core_mm / 2) / (reach - core_mm / 2), 0, 1)
        axes.append(np.where(part < 1, np.cos(part * np.pi / 2) ** 2, 0.0))
    weight: NDArray[np.float32] = np.einsum("i,j,k->ijk", *axes).astype(np.float32)
    return weight


def _matched_noise(
    hu: Tensor, cube: Cube, native: Tensor, weight: NDArray[np.float32], core_mm: float, seed: int
) -> NDArray[np.float32]:
    """Noise for the paste box, of the surroundings' spectrum; a constant for gradients."""
    around = cut_box(hu.detach(), cube.support.inside(_shape(hu))).cpu().numpy()
    shell = np.ones(around.shape, dtype=bool)
    inner = cube.paste.slices(cube.support.inside(_shape(hu)).start_zyx)
    shell[inner] = fade_weight(cube, core_mm) < 1
    noise = sample_noise_like(around, cube.paste.shape_zyx, np.random.default_rng(seed), shell)
    core, fading = weight == 1, (weight > 0) & (weight < 1)
    made = median_residual(native.detach().cpu().numpy())
    own = made[core] if core.any() else np.zeros(1)
    made_share = min(float(own.std()) / max(float(median_residual(noise).std()), 1e-6), 1.0)
    rho = _correlation(made[fading], median_residual(around[inner])[fading])
    missing = 1 - (1 - weight) ** 2 - (weight * made_share) ** 2 - 2 * weight * (1 - weight) * made_share * rho
    scaled: NDArray[np.float32] = (noise * np.sqrt(np.clip(missing, 0, None))).astype(np.float32)
    return scaled


def _correlation(one: NDArray[Any], other: NDArray[Any]) -> float:
    """Pearson's, at least 0; 0 where either is constant."""
    spread = float(one.std()) * float(other.std()) if one.size else 0.0
    return max(float(np.mean((one - one.mean()) * (other - other.mean()))) / spread, 0.0) if spread > 0 else 0.0


def released_weight(box: Box, cube: Cube, task: Task) -> Tensor:
    """CT-GAN's in-plane kernel on a box, broadcast along z: float32 (1, y, x)."""
    y, x = (
        (start + np.arange(n) - center) * spacing
        for start, n, center, spacing in zip(
            box.start_zyx[1:], box.shape_zyx[1:], cube.center_zyx[1:], cube.spacing_zyx_mm[1:], strict=True
        )
    )
    squared = (y[:, None] ** 2 + x[None, :] ** 2).ravel()
    known = np.square(RADII_MM)
    logs = np.log(RELEASED_WEIGHTS[task])
    slope = (logs[-1] - logs[-2]) / (known[-1] - known[-2])
    log_weight = np.where(
        squared <= known[-1], np.interp(squared, known, logs), logs[-1] + slope * (squared - known[-1])
    )
    return torch.from_numpy(np.exp(log_weight).reshape(1, len(y), len(x))).float()


def merge(original: Tensor, made: Tensor, kernel: Tensor, task: Task) -> Tensor:
    """CT-GAN's merge: an injection is weighted by its own brightness and can only brighten."""
    if task == "remove":
        return kernel * made + (1 - kernel) * original
    weight = torch.sigmoid((made - MERGE_HU) / MERGE_WIDTH_HU) * kernel
    return torch.maximum(weight * made + (1 - weight) * original, original)


def blend_m3dsynth(hu: Tensor, cube: Cube, native: Tensor, task: Task) -> Tensor:
    """The merge weights of the release inside the cube, no noise added."""
    kernel = released_weight(cube.paste, cube, task).to(hu.device)
    return replace(hu, cube.paste, merge(hu[cube.paste.slices()], native, kernel, task))


def blend_ctgan(hu: Tensor, cube: Cube, native: Tensor, task: Task, seed: int) -> Tensor:
    """Paste the whole cube, then CT-GAN's touch-up over its work box."""
    pasted = replace(hu, cube.paste, native)
    side = int(np.ceil(WORK_BOX_FACTOR * max(cube.support.shape_zyx)))
    z, y, x = (round(c) - side // 2 for c in cube.center_zyx)
    box = Box((z, y, x), (side, side, side)).inside(_shape(hu))
    noise = torch.from_numpy(_released_noise(hu, box, task, seed)).to(hu.device)
    kernel = released_weight(box, cube, task).to(hu.device)
    return replace(hu, box, merge(hu[box.slices()], pasted[box.slices()] + noise, kernel, task))


def _released_noise(hu: Tensor, box: Box, task: Task, seed: int) -> NDArray[np.float32]:
    """CT-GAN's copied noise; its white-noise branch where the fixed place holds no air (there it pasted NaN)."""
    depth, height, width = _shape(hu)
    n_z, n_y, n_x = box.shape_zyx
    center = (depth // 2, int(height * 0.43), int(width * 0.27))
    start = [min(max(c - n // 2, 0), total - n) for c, n, total in zip(center, box.shape_zyx, _shape(hu), strict=True)]
    patch = hu.detach()[start[0] : start[0] + n_z, start[1] : start[1] + n_y, start[2] : start[2] + n_x]
    copied = patch.cpu().numpy().astype(np.float64)
    air = copied < AIR_HU
    if air.any():
        copied = np.where(copied > AIR_HU, copied[air].mean(), copied)
        return np.asarray(copied - copied.mean(), dtype=np.float32)
    local = hu.detach()[box.slices()].cpu().numpy()
    sd = 30.0 if task == "remove" else 0.6 * float(np.std(local[local < -600])) if np.any(local < -600) else 30.0
    return np.random.default_rng(seed).normal(0.0, sd, box.shape_zyx).astype(np.float32)


def _shape(hu: Tensor) -> tuple[int, int, int]:
    return hu.shape[0], hu.shape[1], hu.shape[2]
