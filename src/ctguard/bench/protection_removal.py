"""What a forger does first, to be rid of the protection: the removal panel of protocols.md "Protection".

Damage after an operation f is RMSE(t(f(p)), t(f(x))): what f itself does to a forgery is no protection, and stands in a
column of its own, RMSE(t(f(x)), t(x)). Noise of the same SD goes the same way and is the floor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray
from skimage.restoration import denoise_nl_means

from ctguard.bench.codecs import jpeg2000
from ctguard.bench.operations import OPERATIONS, unchanged
from ctguard.bench.protection_damage import Attempt, Values, damages, rmse
from ctguard.bench.protection_scene import Forged, Forger, moved
from ctguard.core.console import log
from ctguard.core.errors import CtguardError, ModelError
from ctguard.core.geometry import as_float_triple
from ctguard.core.provenance import Step
from ctguard.core.volume import Volume
from ctguard.image.noise import lung_noise_sd, median3

RATIOS = (4, 6, 8, 10)
CLIP_HU = (-1000, 2000)
SHIFT_VOXELS = 0.5
DENOISER, RETRAINED = "denoiser", "retrained"
WORDS = {DENOISER: "a trained denoiser", RETRAINED: "an attacker who retrained on protected scans"}
"""Rows that need weights of the user's."""


@dataclass(frozen=True)
class Removal:
    """One operation. shift_voxels: of the site, along every axis. forger: another one than the panel's."""

    name: str
    words: str
    change: Callable[[Volume], Volume] = unchanged
    shift_voxels: float = 0.0
    forger: Forger | None = None


def _whole(volume: Volume, hu: NDArray[Any], name: str) -> Volume:
    return volume.changed(np.rint(hu).astype(np.int16), Step(name))


def clipped(volume: Volume) -> Volume:
    """HU cut to -1000..2000."""
    return _whole(volume, np.clip(volume.hu, *CLIP_HU), "clip")


def median_filtered(volume: Volume) -> Volume:
    """A 3 x 3 x 3 median."""
    return _whole(volume, median3(volume.hu), "median")


def non_local_means(volume: Volume) -> Volume:
    """Non-local means in 3-D (Buades et al., CVPR 2005), at the scan's own noise in lung: patches of 3, reach 2."""
    sd = lung_noise_sd(volume).median
    hu = denoise_nl_means(
        volume.hu.astype(np.float32), patch_size=3, patch_distance=2, h=0.8 * sd, sigma=sd, fast_mode=True
    )
    return _whole(volume, hu, "non-local means")


def compressed(volume: Volume, ratio: float) -> Volume:
    """Through JPEG 2000 at a ratio of 16-bit words."""
    return _whole(volume, jpeg2000(volume.hu, ratio), f"jpeg-2000 {ratio:g}:1")


def denoised(volume: Volume, program: Path) -> Volume:
    """Slice by slice through a denoiser: a torch.export program, float32 HU (1, 1, y, x) in and out.

    Raises ModelError where the file is none, or gives something else back.
    """
    network = _program(program)
    out = np.empty(volume.hu.shape, np.float32)
    for z, plane in enumerate(volume.hu.astype(np.float32)):
        try:
            with torch.inference_mode():
                out[z] = network(torch.from_numpy(plane)[None, None])[0, 0].numpy()
        except (RuntimeError, ValueError, AssertionError) as error:
            what = f"the denoiser does not take slices of {plane.shape} ({str(error).splitlines()[0]})"
            raise ModelError(what, where=program, remedy="export it with dynamic rows and columns") from error
    return _whole(volume, out, "denoised")


@lru_cache(maxsize=1)
def _program(path: Path) -> Any:
    try:
        return torch.export.load(path).module()
    except (OSError, RuntimeError, ValueError, BadZipFile) as error:
        raise ModelError("it is no exported program", where=path, remedy="make it with torch.export.save") from error


_NAMED = {one.name: one for one in OPERATIONS}
_SHARED = ("resample", "gauss-0.5", "gauss-1", "thick", "noise-0.25", "noise-0.5")

REMOVALS: tuple[Removal, ...] = (
    Removal("int16", "int16, written and read back"),
    Removal("clip", "clip to [-1000, 2000] HU", clipped),
    *(Removal(name, _NAMED[name].words, _NAMED[name].change) for name in _SHARED[:3]),
    Removal("median", "3 x 3 x 3 median", median_filtered),
    Removal("nlm", "non-local means", non_local_means),
    *(Removal(name, _NAMED[name].words, _NAMED[name].change) for name in _SHARED[4:]),
    *(Removal(f"jpeg-2000-{r}", f"JPEG 2000, {r}:1", partial(compressed, ratio=float(r))) for r in RATIOS),
    Removal("thick", _NAMED["thick"].words, _NAMED["thick"].change),
    Removal("shift", "site moved by half a voxel on each axis", shift_voxels=SHIFT_VOXELS),
)
"""In the order of the table."""


def removals(denoiser: Path | None, retrained: Forger | None) -> tuple[Removal, ...]:
    """The panel, with the rows that need weights where these were given."""
    more = []
    if denoiser is not None:
        more.append(Removal(DENOISER, WORDS[DENOISER], partial(denoised, program=denoiser)))
    if retrained is not None:
        more.append(Removal(RETRAINED, WORDS[RETRAINED], forger=retrained))
    return (*REMOVALS, *more)


def removal_values(tried: Sequence[Attempt], noise: Volume, panel: Sequence[Removal]) -> list[Values]:
    """For each attempt, damage after each operation, that of noise, and what the operation alone does to t(x).

    An operation that cannot be done to this scan is left out, with a line in the log.
    """
    out: list[Values] = [{} for _ in tried]
    for removal in panel if tried else ():
        scene, p = tried[0].scene, tried[0].p
        todo = [attempt for attempt in tried if _key(attempt, removal) not in scene.made]
        try:
            p_after, noise_after = removal.change(p), removal.change(noise)
            x_after = removal.change(scene.volume) if todo else scene.volume
        except CtguardError as error:
            log.warning("%s: %s is left out: %s", scene.case.scan_id, removal.words, error)
            continue
        for attempt in todo:  # t(f(x)) is made once for all protectors
            scene.made[_key(attempt, removal)] = _forged(attempt, removal, x_after)
        for attempt, values in zip(tried, out, strict=True):
            tx = scene.made[_key(attempt, removal)]
            for name, volume in (("", p_after), (" noise", noise_after)):
                values |= damages(_forged(attempt, removal, volume), tx, f"removal {removal.name}{name}")
            if p_after.hu.shape == p.hu.shape:
                after = _same_box(tx, attempt.tx)
                values[f"removal {removal.name} alone core"] = rmse(after, attempt.tx.hu, attempt.tx.core)
    return out


def _key(attempt: Attempt, removal: Removal) -> tuple[object, ...]:
    return removal.name, attempt.place.number, attempt.task, attempt.forger.label


def _forged(attempt: Attempt, removal: Removal, volume: Volume) -> Forged:
    """t(volume) at the same place of the patient, whatever grid the operation left."""
    center = moved(attempt.scene.volume, volume, attempt.place.center_zyx)
    center = as_float_triple(np.add(center, removal.shift_voxels))
    plan = replace(attempt.plan, center_zyx=center)
    return attempt.scene.forge(volume, plan, removal.forger or attempt.forger)


def _same_box(made: Forged, like: Forged) -> NDArray[np.int16]:
    """The voxels of one forging in the box of another, which may be a voxel off; what it lacks is the other's."""
    out = like.hu.copy()
    start = np.maximum(made.box.start_zyx, like.box.start_zyx)
    ends = [np.add(one.box.start_zyx, one.box.shape_zyx) for one in (made, like)]
    stop = np.minimum(*ends)
    there, here = (
        tuple(slice(int(a - o), int(b - o)) for a, b, o in zip(start, stop, one.box.start_zyx, strict=True))
        for one in (made, like)
    )
    out[here] = made.hu[there]
    return out
