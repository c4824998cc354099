"""How real the phantom's lungs look: its renders beside real series, number by number, and a classifier.

Acquisition is free in the phantom, so each real series is compared with phantoms rendered on its spacing, slice
thickness and kernel class, at the one dose that gives its soft-tissue noise. What is compared then: HU of lung, local
noise in lung, the noise power spectrum in soft tissue and in lung, and 2-D lung patches of 32 mm, which a logistic
regression on hand-made features tells apart, real against phantom, with one real patient left out at a time.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, optimize, stats

from ctguard.bench.metrics import auc
from ctguard.core.errors import DataError, GeometryError
from ctguard.core.geometry import FloatTriple, Geometry, IntTriple, as_float_triple
from ctguard.core.volume import Volume
from ctguard.image.lung import AIR_FLOOR_HU, lung_mask, soft_tissue_region
from ctguard.image.noise import (
    NoiseStatistics,
    local_noise_sd,
    lung_noise_sd,
    mean_frequency,
    median3,
    noise_power_spectrum,
)
from ctguard.phantom.patients import Acquisition, Patient, draw_acquisition, draw_patient, render
from ctguard.phantom.physics import Kernel

Floats = NDArray[np.float64]

PATCH_MM = 32.0
HU_EDGES = np.arange(-1024, -399, 8)
LUNG_HU_TOLERANCE, SD_TOLERANCE, FREQUENCY_TOLERANCE = 30.0, 0.25, 0.15

_FIELD_MM = (40.0, 200.0, 200.0)  # the phantom's field of view: both noise levels, one lung, a few seconds
_EVEN = 0.25
_START_MAS = 100.0
_DOSE_MAS = (2.0, 3000.0)
_BANDS_MM = (0.5, 1.0, 2.0, 4.0, 8.0)
_VESSEL_HU = -700.0


@dataclass(frozen=True, eq=False)
class Scan:
    """A real series, or a phantom made like one. `group` names the patient that is left out together."""

    name: str
    group: str
    volume: Volume
    kernel: Kernel
    thickness_mm: float


@dataclass(frozen=True, eq=False)
class Description:
    """What is compared of a volume. Spectra are (frequencies in 1/mm, NPS in HU^2 mm^2)."""

    lung_hu: float
    lung_hu_quartiles: tuple[float, float]
    histogram: Floats
    lung_noise: NoiseStatistics
    soft_noise: NoiseStatistics
    lung_spectrum: tuple[Floats, Floats]
    soft_spectrum: tuple[Floats, Floats]
    vessel_share: float

    @property
    def lung_frequency(self) -> float:
        """Mean frequency in lung, anatomy included, in 1/mm."""
        return mean_frequency(*self.lung_spectrum)

    @property
    def soft_frequency(self) -> float:
        """Mean frequency in soft tissue, in 1/mm."""
        return mean_frequency(*self.soft_spectrum)


@dataclass(frozen=True)
class Separation:
    """Real against phantom patches of a left-out patient: AUC (0.5 is alike, 1 is apart) and the counts."""

    name: str
    auc: float
    n_real: int
    n_phantom: int


def describe(volume: Volume, mask: NDArray[np.bool_] | None = None) -> Description:
    """Measure a volume. mask: its lung, where it is known already. Raises GeometryError where there is no lung."""
    lung = lung_mask(volume) if mask is None else mask
    if not lung.any():
        raise GeometryError("the volume shows no lung", remedy="give a chest CT, or another field of view")
    hu = np.maximum(volume.hu, np.asarray(AIR_FLOOR_HU, dtype=volume.hu.dtype))
    inside = hu[lung]
    low, middle, high = np.percentile(inside, (25, 50, 75))
    histogram = np.histogram(inside, HU_EDGES, density=True)[0]
    spacing_yx_mm = volume.geometry.spacing_zyx_mm[1:]
    return Description(
        float(middle),
        (float(low), float(high)),
        histogram,
        lung_noise_sd(volume),
        local_noise_sd(volume, soft_tissue_region(volume)),
        noise_power_spectrum(hu, spacing_yx_mm, lung),
        noise_power_spectrum(hu, spacing_yx_mm, soft_tissue_region(volume), even=_EVEN),
        float((median3(hu)[lung].astype(np.float32) > _VESSEL_HU).mean()),
    )


def phantoms_like(real: Scan, seeds: Sequence[int]) -> tuple[list[Scan], float]:
    """Phantom patients scanned as a real series was, and the dose in mAs that gives its soft-tissue noise.

    One dose for all: their mean noise power agrees with the series'. Raises DataError without seeds.
    """
    if not seeds:
        raise DataError("no phantom seeds were given", remedy="give at least one")
    target = _even_soft_noise(real.volume)
    dose = _START_MAS
    for chosen in (seeds[:1], seeds):
        power = float(np.mean([_even_soft_noise(_render_like(real, seed, dose)) ** 2 for seed in chosen]))
        dose = float(np.clip(dose * power / target**2, *_DOSE_MAS))
    scans = [
        Scan(
            f"phantom {seed} as {real.name}", real.group, _render_like(real, seed, dose), real.kernel, real.thickness_mm
        )
        for seed in seeds
    ]
    return scans, dose


def _even_soft_noise(volume: Volume) -> float:
    """Noise of the even parts of soft tissue: the lower quartile over blocks.

    Not the house's figure: its mask, 0 to 150 HU, cuts the tails of strong noise off. And the median over the whole
    region counts edges of organs, of which real patients have more.
    """
    return local_noise_sd(volume, soft_tissue_region(volume)).quartiles[0]


def _render_like(real: Scan, seed: int, dose_mas: float) -> Volume:
    patient = draw_patient(seed)
    return render(patient, _acquisition_like(patient, real, seed, dose_mas))


def _acquisition_like(patient: Patient, real: Scan, seed: int, dose_mas: float) -> Acquisition:
    drawn = draw_acquisition(patient, "bench", seed)
    spacing = real.volume.geometry.spacing_zyx_mm
    shape = _shape(spacing)
    # the drawn field of view's centre stays: it looks at one lung, with heart and chest wall beside it
    size = np.asarray(drawn.geometry.shape_zyx) - 1
    centre = np.asarray(drawn.geometry.origin_lps_mm) + (size * drawn.geometry.spacing_zyx_mm)[::-1] / 2
    origin = centre - ((np.asarray(shape) - 1) * spacing)[::-1] / 2
    geometry = Geometry(shape, spacing, as_float_triple(origin))
    return replace(
        drawn, geometry=geometry, kernel=real.kernel, dose_mas=dose_mas, slice_thickness_mm=real.thickness_mm
    )


def _shape(spacing_zyx_mm: FloatTriple) -> IntTriple:
    z, y, x = (max(8, round(mm / step)) for mm, step in zip(_FIELD_MM, spacing_zyx_mm, strict=True))
    return z, y, x


FEATURES = (
    *(f"HU, {p} %" for p in (5, 25, 50, 75, 95, 99)),
    "skewness",
    *(f"SD, {a:g}-{b:g} mm" for a, b in itertools.pairwise((0.0, *_BANDS_MM))),
    *(f"kurtosis, {a:g}-{b:g} mm" for a, b in itertools.pairwise((0.0, *_BANDS_MM))),
    "vessels, share",
    "vessels, size",
    "correlation along x",
    "correlation along y",
)


def lung_patches(volume: Volume, mask: NDArray[np.bool_] | None = None, every_mm: float = 7.5) -> Floats:
    """Features (n, len(FEATURES)) of 32 mm squares that lie to 80 % in lung, in slices at least `every_mm` apart.

    HU are clipped to [-1024, 400].
    """
    lung = lung_mask(volume) if mask is None else mask
    dz, dy, dx = volume.geometry.spacing_zyx_mm
    height, width = round(PATCH_MM / dy), round(PATCH_MM / dx)
    rows = []
    for z in range(0, volume.hu.shape[0], max(1, round(every_mm / dz))):
        plane = np.clip(volume.hu[z].astype(np.float64), AIR_FLOOR_HU, 400)
        for top in range(0, plane.shape[0] - height + 1, height):
            for left in range(0, plane.shape[1] - width + 1, width):
                window = np.s_[top : top + height, left : left + width]
                if lung[z][window].mean() >= 0.8:
                    rows.append(_features(plane[window], lung[z][window], (dy, dx)))
    return np.array(rows).reshape(-1, len(FEATURES))


def _features(patch: Floats, inside: NDArray[np.bool_], spacing_yx_mm: tuple[float, float]) -> Floats:
    values = patch[inside]
    smooth = [patch, *(ndimage.gaussian_filter(patch, [s / mm for mm in spacing_yx_mm]) for s in _BANDS_MM)]
    bands = [(fine - rough)[inside] for fine, rough in itertools.pairwise(smooth)]
    vessels = (smooth[2] > _VESSEL_HU) & inside
    count = ndimage.label(vessels)[1]
    detail = patch - smooth[4]
    both_x, both_y = inside[:, 1:] & inside[:, :-1], inside[1:] & inside[:-1]
    return np.array(
        [
            *np.percentile(values, (5, 25, 50, 75, 95, 99)),
            stats.skew(values),
            *(np.log(band.std() + 1e-3) for band in bands),
            *(np.log(stats.kurtosis(band, fisher=False)) for band in bands),
            vessels.mean(),
            np.log1p(vessels.sum() * np.prod(spacing_yx_mm) / max(count, 1)),
            np.corrcoef(detail[:, 1:][both_x], detail[:, :-1][both_x])[0, 1],
            np.corrcoef(detail[1:][both_y], detail[:-1][both_y])[0, 1],
        ]
    )


def separate(
    real: dict[str, tuple[str, Floats]], phantom: dict[str, Floats], ridge: float = 1.0
) -> tuple[list[Separation], dict[str, float]]:
    """Train real against phantom without a patient, test on that patient's series; each patient once.

    real: series name to (patient, features); phantom: the same names to the features of the phantoms made like
    them. Returns the AUC for each series and the weights, per SD of a feature, of a model trained on all (positive:
    more of it looks real). Raises DataError where fewer than two patients are given.
    """
    groups = sorted({group for group, _ in real.values()})
    if len(groups) < 2:
        raise DataError("real against phantom needs two patients or more", remedy="give series of another patient")
    results = []
    for group in groups:
        kept = [name for name, (other, _) in real.items() if other != group]
        model = _fit([real[name][1] for name in kept], [phantom[name] for name in kept], ridge)
        for name in (name for name, (other, _) in real.items() if other == group):
            positive, negative = _score(model, real[name][1]), _score(model, phantom[name])
            results.append(Separation(name, auc(positive, negative), len(positive), len(negative)))
    weights = _fit([features for _, features in real.values()], list(phantom.values()), ridge)[2]
    return results, dict(zip(FEATURES, (float(w) for w in weights[:-1]), strict=True))


_Model = tuple[Floats, Floats, Floats]


def _fit(real: list[Floats], phantom: list[Floats], ridge: float) -> _Model:
    """Logistic regression: mean and SD of the features, and the weights, the intercept last.

    Each series weighs the same, and real as much as phantom, whatever the number of patches.
    """
    parts = [*real, *phantom]
    x = np.concatenate(parts)
    y = np.concatenate([np.full(len(p), 1.0 if k < len(real) else 0.0) for k, p in enumerate(parts)])
    weight = np.concatenate([np.full(len(p), 1 / max(len(p), 1)) for p in parts])
    weight *= len(x) / weight.sum()
    mean, sd = x.mean(axis=0), x.std(axis=0) + 1e-9
    z = np.column_stack([(x - mean) / sd, np.ones(len(x))])
    sign = 2 * y - 1

    def loss(w: Floats) -> tuple[float, Floats]:
        margin = sign * (z @ w)
        value = float((weight * np.logaddexp(0, -margin)).sum() + ridge * (w[:-1] ** 2).sum() / 2)
        slope = -z.T @ (weight * sign / (1 + np.exp(np.clip(margin, -500, 500))))
        slope[:-1] += ridge * w[:-1]
        return value, slope

    found = optimize.minimize(loss, np.zeros(z.shape[1]), jac=True, method="L-BFGS-B", options={"maxiter": 500})
    return mean, sd, np.asarray(found.x)


def _score(model: _Model, features: Floats) -> Floats:
    mean, sd, w = model
    return np.asarray((features - mean) / sd @ w[:-1] + w[-1])
