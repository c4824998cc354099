"""How good forged tissue looks, without any detector: HU, noise, seams, size (protocols.md "Forgeries").

Every figure of a forgery has the same figure of the untouched place beside it: what tissue itself shows is no fault of
a generator.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ctguard.bench.kept import NAN
from ctguard.core.geometry import FloatTriple, as_int_triple, sphere_diameter_mm
from ctguard.core.records import Edit
from ctguard.core.volume import Volume
from ctguard.image.lung import NODULE_HU
from ctguard.image.noise import median_residual

HU_EDGES = np.arange(-1024.0, 401.0, 8.0)
CUBE_MM, REACH_MM = 32.0, 24.0
_NODULE_REACH_MM = 16.0
_SEED_MM = 8.0
_LUNG_HU = (-1000.0, -500.0)
_NPS_PIXELS, _NPS_STEP = 12, 4
_LEAST_VOXELS = 200
_MOSTLY = 0.8
Mask = NDArray[np.bool_]
Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Surroundings:
    """A block of a scan around a place. offset_mm: (3, ...) distances from the place along z, y and x."""

    hu: NDArray[np.float32]
    spacing_zyx_mm: FloatTriple
    offset_mm: tuple[Floats, Floats, Floats]
    lung: Mask

    @property
    def furthest_mm(self) -> Floats:
        """The largest of the three distances at each voxel: half the side of the cube that it lies on."""
        z, y, x = (np.abs(axis) for axis in self.offset_mm)
        furthest: Floats = np.maximum(np.maximum(z[:, None, None], y[:, None]), x)
        return furthest

    def inside(self, side_mm: float) -> Mask:
        """Voxels of the cube of this side around the place."""
        return self.furthest_mm <= side_mm / 2


def cut_surroundings(volume: Volume, hu: NDArray[Any], lung: Mask, center_zyx: FloatTriple) -> Surroundings:
    """The 48 mm around a place. hu: voxels on the volume's grid, pristine or forged; lung: its mask, bool (z, y, x)."""
    spacing = volume.geometry.spacing_zyx_mm
    spans, offsets = [], []
    for n, at, mm in zip(hu.shape, center_zyx, spacing, strict=True):
        first, last = max(0, int(np.ceil(at - REACH_MM / mm))), min(n, int(np.floor(at + REACH_MM / mm)) + 1)
        spans.append(slice(first, last))
        offsets.append((np.arange(first, last) - at) * mm)
    block = tuple(spans)
    return Surroundings(hu[block].astype(np.float32), spacing, (offsets[0], offsets[1], offsets[2]), lung[block])


def nodule_diameter_mm(seen: Surroundings, changed: Mask | None = None) -> float:
    """Equivalent sphere of the connected part above -400 HU at the place, within 16 mm; 0 where there is none.

    Only what lies in the lungs counts, or was changed there: never the chest wall. The part is the one that fills most
    of the 8 mm around the place.
    """
    z, y, x = seen.offset_mm
    radius = np.sqrt(z[:, None, None] ** 2 + y[:, None] ** 2 + x**2)
    allowed = seen.lung if changed is None else seen.lung | changed
    parts, _ = ndimage.label((seen.hu > NODULE_HU) & allowed & (radius <= _NODULE_REACH_MM))
    at = parts[(parts > 0) & (radius <= _SEED_MM)]
    if len(at) == 0:
        return 0.0
    volume_mm3 = (parts == int(np.bincount(at).argmax())).sum() * float(np.prod(seen.spacing_zyx_mm))
    return sphere_diameter_mm(volume_mm3)


def hu_histogram(values: NDArray[Any]) -> NDArray[np.float64]:
    """Counts in bins of 8 HU from -1024 to 400; what lies beyond goes into the last bin of its side."""
    counts: Floats = np.histogram(np.clip(values, HU_EDGES[0], HU_EDGES[-1] - 1), HU_EDGES)[0].astype(float)
    return counts


def histogram_distance_hu(a: Floats, b: Floats) -> float:
    """First Wasserstein distance of two histograms, HU; NaN where one is empty."""
    if a.sum() == 0 or b.sum() == 0:
        return NAN
    gap = np.cumsum(a / a.sum() - b / b.sum())
    return float(np.abs(gap).sum() * (HU_EDGES[1] - HU_EDGES[0]))


def noise_spectrum(seen: Surroundings, low_mm: float, high_mm: float) -> Floats | None:
    """Radial spectrum of the noise in slices, HU^2 (rings of one frequency step), between two cubes around the place.

    The noise is the residual of a 3 x 3 x 3 median. Squares of 12 voxels that lie between the cubes and in lung are
    averaged, those of the smallest half of variances alone, for vessels leave a rest. None where no square fits.
    """
    residual = median_residual(seen.hu)
    n = _NPS_PIXELS
    furthest = seen.furthest_mm
    region = (furthest >= low_mm / 2) & (furthest <= high_mm / 2)
    squares = []
    for z in range(residual.shape[0]):
        if not region[z].any():
            continue
        for y in range(0, residual.shape[1] - n + 1, _NPS_STEP):
            for x in range(0, residual.shape[2] - n + 1, _NPS_STEP):
                square = (z, slice(y, y + n), slice(x, x + n))
                if region[square].mean() > _MOSTLY and seen.lung[square].mean() > _MOSTLY:
                    squares.append(residual[square])
    if not squares:
        return None
    patches = np.stack(squares).astype(np.float64)
    patches = patches[np.argsort(patches.std(axis=(1, 2)), kind="stable")[: (len(patches) + 1) // 2]]
    patches -= patches.mean(axis=(1, 2), keepdims=True)
    power = (np.abs(np.fft.fft2(patches)) ** 2).mean(axis=0)
    f = np.fft.fftfreq(n)
    ring = np.rint(np.hypot(f[:, None], f) * n).astype(int)
    wanted = (ring > 0) & (ring <= n // 2)
    spectrum: Floats = np.bincount(ring[wanted], power[wanted])[1:] / np.bincount(ring[wanted])[1:]
    return spectrum


def spectrum_distance_db(a: Floats | None, b: Floats | None) -> float:
    """Root mean square over frequencies of the ratio of two spectra in decibels; NaN where one is missing."""
    if a is None or b is None or (a <= 0).any() or (b <= 0).any():
        return NAN
    return float(np.sqrt(np.mean((10 * np.log10(a / b)) ** 2)))


def boundary_gradient_hu_mm(seen: Surroundings, side_mm: float) -> float:
    """Mean |step| across the faces of a cube around the place, HU per mm, in lung; NaN where a face lies outside."""
    inside = seen.inside(side_mm)
    steps: list[Floats] = []
    for axis in range(3):
        change = np.abs(np.diff(seen.hu, axis=axis)) / seen.spacing_zyx_mm[axis]
        crossed = np.diff(inside.astype(np.int8), axis=axis) != 0
        low = tuple(slice(0, -1) if a == axis else slice(None) for a in range(3))
        high = tuple(slice(1, None) if a == axis else slice(None) for a in range(3))
        steps.append(change[crossed & seen.lung[low] & seen.lung[high]].astype(np.float64))
    every = np.concatenate(steps)
    return float(every.mean()) if len(every) else NAN


def noise_ratio(seen: Surroundings, core_mm: float) -> float:
    """SD of the median residual in the core over that of the lung around the cube, parenchyma alone; NaN without it."""
    residual = median_residual(seen.hu).astype(np.float64)
    tissue = seen.lung & (seen.hu > _LUNG_HU[0]) & (seen.hu < _LUNG_HU[1])
    core, around = tissue & seen.inside(core_mm), tissue & ~seen.inside(CUBE_MM)
    if core.sum() < _LEAST_VOXELS or around.sum() < _LEAST_VOXELS:
        return NAN
    return float(residual[core].std() / residual[around].std())


@dataclass(frozen=True, eq=False)
class Quality:
    """Figures of one forgery; those that end in `_before` are of the untouched place. Histograms are counts of HU.

    core: of the masked core; reference: of what it should look like (lung around the cube; for an injection the
    caller's pristine nodules, so empty).
    """

    diameter_mm: float
    diameter_mm_before: float
    spectrum_db: float
    spectrum_db_before: float
    boundary_core: float
    boundary_cube: float
    noise_ratio: float
    noise_ratio_before: float
    core: Floats
    reference: Floats

    def to_json(self) -> dict[str, Any]:
        """Plain numbers and lists; NaN becomes None."""
        return {key: _plain(value) for key, value in vars(self).items()}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Quality:
        """What `to_json` made."""
        fields: dict[str, Any] = {}
        for key, value in row.items():
            fields[key] = np.asarray(value, float) if isinstance(value, list) else NAN if value is None else value
        return cls(**fields)


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return [int(v) for v in value]
    return None if np.isnan(value) else float(value)


def forgery_quality(volume: Volume, forged_hu: NDArray[Any], edit: Edit, lung: Mask) -> Quality:
    """Measure one forgery. volume: the pristine scan; forged_hu: all voxels after forging; lung: mask before."""
    before = cut_surroundings(volume, volume.hu, lung, edit.center_zyx)
    after = cut_surroundings(volume, forged_hu, lung, edit.center_zyx)
    core_mm = float(edit.plan.get("core_mm") or 16.0)  # type: ignore[arg-type]
    changed = after.hu != before.hu
    if edit.task == "inject":  # a core that reaches into the chest wall changes that, too, and it is no nodule
        changed &= before.hu <= NODULE_HU
    around = noise_spectrum(before, CUBE_MM, 2 * REACH_MM)
    tissue = before.lung & ~before.inside(CUBE_MM) & (before.hu < NODULE_HU)
    return Quality(
        diameter_mm=nodule_diameter_mm(after, changed),
        diameter_mm_before=nodule_diameter_mm(before),
        spectrum_db=spectrum_distance_db(noise_spectrum(after, 0, core_mm), around),
        spectrum_db_before=spectrum_distance_db(noise_spectrum(before, 0, core_mm), around),
        boundary_core=_ratio(boundary_gradient_hu_mm(after, core_mm), boundary_gradient_hu_mm(before, core_mm)),
        boundary_cube=_ratio(boundary_gradient_hu_mm(after, CUBE_MM), boundary_gradient_hu_mm(before, CUBE_MM)),
        noise_ratio=noise_ratio(after, core_mm),
        noise_ratio_before=noise_ratio(before, core_mm),
        core=hu_histogram(after.hu[after.inside(core_mm)]),
        reference=hu_histogram(before.hu[tissue]) if edit.task == "remove" else np.zeros(len(HU_EDGES) - 1),
    )


def nodule_histogram(volume: Volume, lung: Mask, center_zyx: FloatTriple, core_mm: float = 16.0) -> Floats:
    """HU in the core around a pristine nodule: what an injection should look like."""
    seen = cut_surroundings(volume, volume.hu, lung, as_int_triple(center_zyx))
    return hu_histogram(seen.hu[seen.inside(core_mm)])


def _ratio(a: float, b: float) -> float:
    return a / b if b > 0 else NAN
