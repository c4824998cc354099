"""How a scanner sees the patient: resolution of the kernel, photon noise along each ray, metal streaks.

Noise of a filtered back-projection is the back-projected variance of the rays, filtered by ramp and kernel (Kak and
Slaney, Principles of Computerized Tomographic Imaging, 1988, ch. 5; Siewerdsen, Med Phys 29, 2002, for the noise power
spectrum). Here the variance of every ray follows from a coarse parallel projection of the attenuation map, and
white noise shaped by the spectrum is scaled by the back-projected variance.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from scipy import fft, sparse

from ctguard.phantom.fields import F32, F64

Kernel = Literal["soft", "standard", "sharp"]
KERNELS: tuple[Kernel, ...] = ("soft", "standard", "sharp")

MU_WATER_MM = 0.0195
"""Attenuation of water at the effective energy of a 120 kV beam."""
COARSE_MM = 5.0
_ANGLES = 48
_RAYS = 112
_PHOTONS = 1.3e4
"""Photons per coarse ray at 100 mAs and 1 mm in air, after the bow-tie at its centre; sets the noise in HU."""
_ELECTRONIC = 8.0
"""Variance of the electronic noise in photons."""
_RAY_TO_HU = 0.03
"""Rays and views of a real scanner per coarse ray: the one factor that is calibrated, with _PHOTONS, on real series."""
_APERTURE_MM = 0.28
"""Gaussian width of focal spot and detector together, at the isocentre."""


@dataclass(frozen=True)
class Response:
    """Transfer of a kernel: exp(-(f / cut)^slope), raised by `boost` around `boost_at` (cycles per mm)."""

    cut: float
    slope: float
    boost: float = 0.0
    boost_at: float = 0.42
    boost_width: float = 0.13

    def __call__(self, frequency: F64) -> F64:
        edge = self.boost * np.exp(-(((frequency - self.boost_at) / self.boost_width) ** 2))
        result: F64 = np.exp(-((frequency / self.cut) ** self.slope)) * (1 + edge)
        return result


RESPONSES: dict[Kernel, Response] = {
    "soft": Response(0.32, 1.40),
    "standard": Response(0.42, 1.40),
    "sharp": Response(0.70, 5.0, 0.95, 0.44, 0.15),
}
"""Fitted to noise power spectra of real series: Philips B; GE STANDARD and Siemens B45f; Philips L."""


def frequencies(shape_yx: tuple[int, int], spacing_yx_mm: tuple[float, float]) -> F64:
    """Radial frequency (cycles per mm) of the half spectrum of rfft2."""
    fy = np.fft.fftfreq(shape_yx[0], spacing_yx_mm[0])
    fx = np.fft.rfftfreq(shape_yx[1], spacing_yx_mm[1])
    result: F64 = np.hypot(fy[:, None], fx)
    return result


def blur(hu: F32, spacing_yx_mm: tuple[float, float], kernel: Kernel, edge: int = 12) -> F32:
    """Every slice as the kernel and the aperture show it."""
    padded = np.pad(hu, ((0, 0), (edge, edge), (edge, edge)), mode="reflect")
    f = frequencies((padded.shape[1], padded.shape[2]), spacing_yx_mm)
    transfer = RESPONSES[kernel](f) * np.exp(-2 * (np.pi * _APERTURE_MM * f) ** 2)
    return _filtered(padded, transfer)[:, edge:-edge, edge:-edge]


def _filtered(stack: F32, transfer: F64) -> F32:
    weights = transfer.astype(np.float32)
    out = np.empty_like(stack)
    for k, plane in enumerate(stack):
        out[k] = fft.irfft2(fft.rfft2(plane) * weights, s=plane.shape)
    return out


def noise_transfer(kernel: Kernel, f: F64) -> F64:
    """Square root of the noise power spectrum: ramp and kernel, with the little that is left at zero frequency."""
    ramp = np.sqrt(np.sqrt(f**2 + 0.012**2))
    result: F64 = ramp * RESPONSES[kernel](f)
    return result


def kernel_gain(kernel: Kernel, spacing_yx_mm: tuple[float, float]) -> float:
    """SD of the filtered noise per unit of white projection noise: the integral of the spectrum up to Nyquist."""
    f = frequencies((64, 64), spacing_yx_mm)
    power = noise_transfer(kernel, f) ** 2
    weight = np.full(f.shape[1], 2.0)
    weight[0] = weight[-1] = 1.0
    return float(np.sqrt((power * weight).sum() / (64 * 64 * spacing_yx_mm[0] * spacing_yx_mm[1])))


def shaped_noise(
    seed: int,
    shape: tuple[int, int, int],
    spacing_zyx_mm: tuple[float, float, float],
    kernel: Kernel,
    thickness_mm: float,
) -> F32:
    """Noise of unit variance with the spectrum of the kernel in plane and the overlap of slices along z."""
    rng = np.random.default_rng([seed, 3])
    f = frequencies(shape[1:], spacing_zyx_mm[1:])
    transfer = noise_transfer(kernel, f)
    weight = np.full(f.shape[1], 2.0)
    weight[0] = 1.0
    if shape[2] % 2 == 0:
        weight[-1] = 1.0
    transfer /= np.sqrt((transfer**2 * weight).sum() / (shape[1] * shape[2]))
    lag: float = min(0.30 * np.exp(1 - spacing_zyx_mm[0] / thickness_mm), 0.65)
    side = (np.sqrt(1 + np.sqrt(2) * lag) - np.sqrt(1 - np.sqrt(2) * lag)) / np.sqrt(8)
    middle = np.sqrt(1 - 2 * side**2)
    white = rng.standard_normal((shape[0] + 2, shape[1], shape[2]), dtype=np.float32)
    mixed = np.float32(middle) * white[1:-1]
    mixed += np.float32(side) * white[:-2]
    mixed += np.float32(side) * white[2:]
    return _filtered(mixed, transfer)


@lru_cache(maxsize=2)
def _projector() -> sparse.csr_matrix:
    """Coarse parallel projection, rays x pixels: each pixel shared between the two nearest rays."""
    n = _RAYS
    center = (n - 1) / 2
    y, x = np.mgrid[:n, :n] - center
    rows, cols, values = [], [], []
    pixel = np.arange(n * n)
    for k, theta in enumerate(np.arange(_ANGLES) * np.pi / _ANGLES):
        ray = (x * np.cos(theta) + y * np.sin(theta)).ravel() + center
        low = np.floor(ray).astype(int)
        for cell, share in ((low, low + 1 - ray), (low + 1, ray - low)):
            keep = (cell >= 0) & (cell < n)
            rows.append(k * n + cell[keep])
            cols.append(pixel[keep])
            values.append(share[keep])
    shape = (_ANGLES * n, n * n)
    return sparse.csr_matrix((np.concatenate(values), (np.concatenate(rows), np.concatenate(cols))), shape=shape)


def coarse_axis_mm() -> F64:
    """Pixel centres of the coarse attenuation map, symmetric about the isocentre."""
    axis: F64 = (np.arange(_RAYS, dtype=np.float64) - (_RAYS - 1) / 2) * COARSE_MM
    return axis


def bow_tie(ray_mm: F64) -> F64:
    """Transmission of the bow-tie filter: it makes up for half of what a 32 cm water cylinder lacks at its rim."""
    radius = 160.0
    chord = np.sqrt(radius**2 - np.minimum(np.abs(ray_mm), 150.0) ** 2)
    result: F64 = np.exp(-MU_WATER_MM * 0.55 * (radius - chord))
    return result


def ray_variance(line: F64, ray_mm: F64, dose_mas: float, thickness_mm: float) -> F64:
    """Variance of a measured line integral: photon statistics and electronic noise."""
    photons = _PHOTONS * dose_mas / 100.0 * thickness_mm * bow_tie(ray_mm) * np.exp(-line)
    result: F64 = 1 / photons + _ELECTRONIC / photons**2
    return result


def noise_sd(
    coarse_hu: F64, dose_mas: float, thickness_mm: float, kernel: Kernel, spacing_yx_mm: tuple[float, float]
) -> F64:
    """SD of the noise in HU on the coarse map (z, 112, 112), 5 mm pixels, from its attenuation in HU."""
    planes = len(coarse_hu)
    mu = np.clip(1 + coarse_hu / 1000, 0, None).reshape(planes, -1).T * MU_WATER_MM
    projector = _projector()
    line = (projector @ mu) * COARSE_MM
    ray_mm = np.tile(coarse_axis_mm(), _ANGLES)[:, None]
    seen = (projector.T @ ray_variance(line, ray_mm, dose_mas, thickness_mm)) / _ANGLES
    relative = np.sqrt(seen).T.reshape(planes, _RAYS, _RAYS)
    result: F64 = relative * kernel_gain(kernel, spacing_yx_mm) * 1000.0 / MU_WATER_MM * _RAY_TO_HU
    return result
