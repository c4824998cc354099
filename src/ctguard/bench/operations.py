"""What happens to honest scans, and to forged ones afterwards: the operations of the panels, Volume to Volume.

protocols.md "Detection and localisation": the false-alarm panel and the robustness panel. None of them forges anything.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from ctguard import zoo
from ctguard.bench.codecs import jpeg2000, jpeg_ls
from ctguard.core.errors import DataError
from ctguard.core.geometry import Geometry, IntTriple, as_float_triple
from ctguard.core.provenance import Json, Step
from ctguard.core.volume import Volume
from ctguard.defence.protect import protect_scan
from ctguard.image.noise import lung_noise_sd
from ctguard.image.resample import apply_matrices, grid_matrices
from ctguard.io.manifest import sha256_file
from ctguard.phantom.patients import Acquisition, draw_patient, render
from ctguard.phantom.physics import KERNELS
from ctguard.protect.keys import SealKey
from ctguard.protect.seal import seal_volume

NEAR_HU = 3
RATIO = 5.0
THICK_MM = 5.0
NOISE_SEED = 20
SHIELD_HU = 12.0
PANEL_KEY = SealKey(hashlib.sha256(b"panels").digest())

Change = Callable[[Volume], Volume]


@dataclass(frozen=True)
class Operation:
    """One operation. words: what it is, for a table. after_forging: whether it can follow a forgery, so that it belongs
    to the robustness panel; another acquisition cannot, and forged scans are not protected. weights: that it uses."""

    name: str
    words: str
    change: Change
    after_forging: bool = True
    weights: str = ""

    def __call__(self, volume: Volume) -> Volume:
        """The volume after it. Raises CtguardError where it cannot be done to this one."""
        return self.change(volume)

    @property
    def key(self) -> str:
        """Its name, with the hash of the shipped weights where it uses some: what others gave is measured anew."""
        path = zoo.WEIGHTS / f"{self.weights}.safetensors"
        return f"{self.name} {sha256_file(path)}" if self.weights and path.is_file() else self.name


def _voxels(volume: Volume, hu: NDArray[Any], name: str, **params: Json) -> Volume:
    """Other voxels on the same grid, rounded to whole HU where the scan's are."""
    low, high = (np.iinfo(np.int16).min, np.iinfo(np.int16).max)
    whole = volume.hu.dtype == np.int16
    out = np.clip(np.rint(hu), low, high).astype(np.int16) if whole else hu.astype(np.float32)
    return volume.changed(out, Step(name, params))


def unchanged(volume: Volume) -> Volume:
    """The scan itself: the row that the others are compared with."""
    return volume


def half_the_slices(volume: Volume) -> Volume:
    """The middle half of the slices, at least one."""
    count = volume.hu.shape[0]
    keep = max(count // 2, 1)
    return crop_slices(volume, (count - keep) // 2, keep)


def sealed(volume: Volume) -> Volume:
    """Digest and pattern, as `ctguard protect --protector seal`, with one key for all scans of a panel."""
    return seal_volume(volume, PANEL_KEY)[0]


def shielded(volume: Volume) -> Volume:
    """The shipped shield, feed-forward. Raises ModelError where there is none."""
    return protect_scan(volume, "shield", budget_hu=SHIELD_HU, quiet=True)[0]


def crop_slices(volume: Volume, first: int, count: int) -> Volume:
    """`count` slices from `first` on; the voxels stay where they are in the patient."""
    shape = (count, *volume.hu.shape[1:])
    cropped = Volume(volume.hu[first : first + count], volume.geometry.crop((first, 0, 0), shape), volume.provenance)
    return cropped.changed(cropped.hu, Step("crop", {"first": first, "slices": count}))


def jpeg2000_lossless(volume: Volume) -> Volume:
    """Through reversible JPEG 2000: not a voxel changes."""
    return _voxels(volume, jpeg2000(volume.hu), "jpeg-2000")


def jpeg2000_lossy(volume: Volume) -> Volume:
    """Through JPEG 2000 at 5:1 of 16-bit words."""
    return _voxels(volume, jpeg2000(volume.hu, RATIO), "jpeg-2000", ratio=RATIO)


def jpeg_ls_near(volume: Volume) -> Volume:
    """Through near-lossless JPEG-LS: no voxel moves by more than 3 HU."""
    return _voxels(volume, jpeg_ls(volume.hu, NEAR_HU), "jpeg-ls", near_hu=NEAR_HU)


def sixteen_bits(volume: Volume) -> Volume:
    """Stretched to the full range of unsigned 16-bit words, saved, and rescaled: what picture tools do to a stack."""
    low, high = float(volume.hu.min()), float(volume.hu.max())
    step = max(high - low, 1.0) / 65535
    words = np.rint((volume.hu.astype(np.float64) - low) / step).astype(np.uint16)
    return _voxels(volume, words * step + low, "16-bit resave")


def resampled(volume: Volume) -> Volume:
    """The whole volume to 1 mm isotropic voxels and back to its grid, cubic splines both ways."""
    shape = volume.hu.shape
    spacing = np.asarray(volume.geometry.spacing_zyx_mm)
    between = _triple(np.floor((np.asarray(shape) - 1) * spacing).astype(int) + 1)
    there = grid_matrices(_triple(shape), (0.0, 0.0, 0.0), as_float_triple(1 / spacing), between)
    back = grid_matrices(between, (0.0, 0.0, 0.0), as_float_triple(spacing), _triple(shape))
    block = torch.from_numpy(volume.hu.astype(np.float32))
    return _voxels(volume, apply_matrices(apply_matrices(block, there), back).numpy(), "resample", spacing_mm=1.0)


def thick_slices(volume: Volume) -> Volume:
    """Means of neighbouring slices, as many as come nearest to 5 mm; the grid gets their spacing.

    Raises DataError where the slices are that thick already.
    """
    spacing = volume.geometry.spacing_zyx_mm
    count = round(THICK_MM / spacing[0])
    slabs = volume.hu.shape[0] // max(count, 1)
    if count < 2 or slabs < 1:
        raise DataError(f"its slices are {spacing[0]:g} mm apart already", remedy="take a scan of thinner slices")
    used = volume.hu[: slabs * count].astype(np.float32).reshape(slabs, count, *volume.hu.shape[1:])
    middle = np.array([(count - 1) / 2, 0, 0])
    origin = (volume.geometry.affine @ [*middle, 1.0])[:3]
    shape = (slabs, *volume.hu.shape[1:])
    geometry = Geometry(shape, (spacing[0] * count, *spacing[1:]), as_float_triple(origin), volume.geometry.axes_lps)
    mean = used.mean(axis=1)
    whole = volume.hu.dtype == np.int16
    plain = Volume(np.rint(mean).astype(np.int16) if whole else mean, geometry, volume.provenance)
    return plain.changed(plain.hu, Step("thick slices", {"slices": count}))


def blurred(volume: Volume, sigma: float) -> Volume:
    """A Gaussian of this SD in voxels, along all three axes."""
    hu = ndimage.gaussian_filter(volume.hu.astype(np.float32), sigma, mode="nearest")
    return _voxels(volume, hu, "gaussian", sigma_voxels=sigma)


def noisy(volume: Volume, share: float, seed: int = NOISE_SEED) -> Volume:
    """White Gaussian noise added, of `share` times the scan's own local noise SD in lung.

    Raises DataError where no lung is found, whose noise the scale would be.
    """
    sd = lung_noise_sd(volume).median
    if not np.isfinite(sd):
        raise DataError("no lung was found to measure its noise in", remedy="take a chest CT")
    noise = np.random.default_rng(seed).standard_normal(volume.hu.shape, dtype=np.float32)
    return _voxels(volume, volume.hu + share * sd * noise, "noise", sd_hu=round(float(share * sd), 3), seed=seed)


def reacquired(volume: Volume, change: Callable[[Acquisition], Acquisition]) -> Volume:
    """The same phantom patient, scanned again otherwise, with noise of its own.

    Raises DataError for a scan that is no phantom: real patients are not scanned again.
    """
    step = next((step for step in volume.provenance.steps if step.name == "phantom"), None)
    if step is None:
        raise DataError("it is no phantom, and cannot be scanned again", remedy="take a phantom cohort")
    row: Mapping[str, Any] = step.params
    if len(volume.provenance.steps) > 1:
        raise DataError("this phantom was changed since it was rendered", remedy="take the phantom itself")
    patient = draw_patient(int(row["patient"]), int(row["style"]))
    nodules = row["nodules"] if isinstance(row["nodules"], bool) else tuple(row["nodules"])
    taken = Acquisition.from_json(row["acquisition"])
    return render(patient, change(replace(taken, seed=taken.seed + 1)), nodules=nodules)


def another_kernel(taken: Acquisition) -> Acquisition:
    """The next kernel: soft, standard, sharp, soft."""
    return replace(taken, kernel=KERNELS[(KERNELS.index(taken.kernel) + 1) % len(KERNELS)])


def longer(taken: Acquisition) -> Acquisition:
    """Twice the slices, as many more at either end."""
    count, *rest = taken.geometry.shape_zyx
    geometry = taken.geometry.crop((-(count // 2), 0, 0), (2 * count, rest[0], rest[1]))
    return replace(taken, geometry=geometry)


def _triple(values: Any) -> IntTriple:
    z, y, x = (int(v) for v in values)
    return z, y, x


def _again(change: Callable[[Acquisition], Acquisition]) -> Change:
    return lambda volume: reacquired(volume, change)


OPERATIONS: tuple[Operation, ...] = (
    Operation("none", "as it is", unchanged),
    Operation("kernel", "another kernel", _again(another_kernel), False),
    Operation("half-dose", "half the dose", _again(lambda a: replace(a, dose_mas=a.dose_mas / 2)), False),
    Operation("double-dose", "twice the dose", _again(lambda a: replace(a, dose_mas=a.dose_mas * 2)), False),
    Operation(
        "thickness",
        "twice the slice thickness, same spacing",
        _again(lambda a: replace(a, slice_thickness_mm=2 * a.slice_thickness_mm)),
        False,
    ),
    Operation("metal", "metal in the patient", _again(lambda a: replace(a, metal=True)), False),
    Operation("longer", "twice the slices", _again(longer), False),
    Operation("shorter", "the middle half of the slices", half_the_slices, False),
    Operation("jpeg-2000", "JPEG 2000, lossless", jpeg2000_lossless),
    Operation("jpeg-2000-5", "JPEG 2000, 5:1", jpeg2000_lossy),
    Operation("jpeg-ls-3", "JPEG-LS, near-lossless, 3 HU", jpeg_ls_near),
    Operation("16-bit", "16-bit resave", sixteen_bits),
    Operation("resample", "resampled to 1 mm and back", resampled),
    Operation("thick", "5 mm slices", thick_slices),
    Operation("gauss-0.5", "Gaussian, 0.5 voxel", lambda volume: blurred(volume, 0.5)),
    Operation("gauss-1", "Gaussian, 1 voxel", lambda volume: blurred(volume, 1.0)),
    Operation("sealed", "sealed", sealed, False),
    Operation("shielded", f"shielded, {SHIELD_HU:.0f} HU", shielded, False, weights="shield"),
    Operation("noise-0.25", "noise, 0.25 x the scan's own SD", lambda volume: noisy(volume, 0.25)),
    Operation("noise-0.5", "noise, 0.5 x the scan's own SD", lambda volume: noisy(volume, 0.5)),
)
"""In the order of the tables."""


def operations(after_forging: bool) -> tuple[Operation, ...]:
    """All of them, or those that can follow a forgery."""
    return tuple(one for one in OPERATIONS if one.after_forging or not after_forging)
