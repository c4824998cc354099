"""Noise as an image shows it: local SD, noise power spectrum, and new noise with the same spectrum.

Local noise is measured on the residual after a 3 x 3 x 3 median, which takes anatomy away and leaves the finest
part of the noise; CT numbers below -1024 HU are clipped first, because padding is not noise. NPS after ICRU report
87, section 4: squared Fourier magnitudes of detrended patches, averaged.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from ctguard.core.errors import GeometryError
from ctguard.core.geometry import FloatTriple, IntTriple
from ctguard.core.volume import Volume
from ctguard.image.box import mask_box
from ctguard.image.lung import AIR_FLOOR_HU, parenchyma_mask, soft_tissue_mask

Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]

_MOSTLY = 0.9  # a block counts when this share of it lies in the mask
_SLOW_VOXELS = 5.0
_OUTLIER = 3.5
_STRIP_ROWS = 32  # the median network works on strips that stay in the processor's cache

# Selection of the 14th of 27 values from a 3 x 3 x 3 cube that is sorted along its three axes: the 19 places that can
# hold it, in lexicographic order, and comparators (low, high) on them. Checked with the 0-1 principle in the tests.
_PLACES = tuple(
    (i, j, k)
    for i in range(3)
    for j in range(3)
    for k in range(3)
    if (i + 1) * (j + 1) * (k + 1) <= 14 and (3 - i) * (3 - j) * (3 - k) <= 14
)
# fmt: off
_COMPARATORS = (
    (1, 8), (10, 17), (0, 13), (15, 18), (3, 6), (5, 10), (10, 12), (4, 6), (4, 8), (6, 9), (6, 8), (11, 16), (5, 16),
    (10, 16), (13, 14), (5, 13), (5, 6), (11, 14), (14, 15), (9, 15), (6, 14), (6, 11), (4, 6), (7, 8), (7, 11),
    (10, 14), (9, 11), (10, 11), (11, 14), (2, 8), (9, 13), (11, 13), (6, 9), (2, 9), (8, 9), (9, 11), (9, 10),
    (8, 10), (8, 9),
)
# fmt: on
_MEDIAN_PLACE = 9


@dataclass(frozen=True)
class NoiseStatistics:
    """Local SD over blocks, in HU: its median, its quartiles (25 %, 75 %), and how many blocks there were."""

    median: float
    quartiles: tuple[float, float]
    n_blocks: int


def median_residual(hu: NDArray[np.generic]) -> NDArray[np.generic]:
    """What a 3 x 3 x 3 median removes, in HU, (z, y, x): the input, clipped at -1024, minus its median.

    int16 in, int16 out; float32 in, float32 out. Edges are replicated, so a single slice gets a 3 x 3 median.
    """
    clipped = np.maximum(hu, np.asarray(AIR_FLOOR_HU, dtype=hu.dtype))
    return np.asarray(clipped - median3(clipped))


def median3(values: NDArray[np.generic]) -> NDArray[np.generic]:
    """The 3 x 3 x 3 median of (z, y, x), edges replicated; equal to scipy.ndimage.median_filter and much faster.

    Columns, rows and pillars of each neighbourhood are sorted with shared comparators, then the median is selected
    from the sorted cube.
    """
    if values.ndim != 3:
        raise GeometryError(f"values of shape {values.shape} are no volume", remedy="give (z, y, x)")
    out = np.empty_like(values)
    nz, ny, _ = values.shape
    for z in range(nz):
        planes = np.pad(values[[max(z - 1, 0), z, min(z + 1, nz - 1)]], ((0, 0), (1, 1), (1, 1)), mode="edge")
        for top in range(0, ny, _STRIP_ROWS):
            rows = min(_STRIP_ROWS, ny - top)
            out[z, top : top + rows] = _median_of_strip(planes[:, top : top + rows + 2])
    return out


def _sort3(a: NDArray[np.generic], b: NDArray[np.generic], c: NDArray[np.generic]) -> list[NDArray[np.generic]]:
    low, high = np.minimum(a, b), np.maximum(a, b)
    middle, high = np.minimum(high, c), np.maximum(high, c)
    return [np.minimum(low, middle), np.maximum(low, middle), high]


def _median_of_strip(planes: NDArray[np.generic]) -> NDArray[np.generic]:
    """(3, rows + 2, columns + 2) to the medians (rows, columns)."""
    by_z = _sort3(*planes)
    by_y = [_sort3(p[:-2], p[1:-1], p[2:]) for p in by_z]
    cube = [[_sort3(p[:, :-2], p[:, 1:-1], p[:, 2:]) for p in row] for row in by_y]
    lane = [cube[i][j][k] for i, j, k in _PLACES]
    spare = np.empty_like(lane[0])
    for low, high in _COMPARATORS:
        np.minimum(lane[low], lane[high], out=spare)
        np.maximum(lane[low], lane[high], out=lane[high])
        lane[low], spare = spare, lane[low]
    return lane[_MEDIAN_PLACE]


def local_noise_sd(volume: Volume, mask: Mask, block_mm: float = 10.0) -> NoiseStatistics:
    """Local noise of a volume inside a mask, by the house definition.

    SD, within squares of `block_mm` in each slice, of the residual after a 3 x 3 x 3 median; then median and
    quartiles over the squares that lie to 90 % in the mask. mask: bool (z, y, x), usually `parenchyma_mask` or
    `soft_tissue_mask` of image/lung.py.
    Raises GeometryError where the mask has another shape or no block lies in it.
    """
    if mask.shape != volume.hu.shape:
        raise GeometryError(f"a mask of shape {mask.shape} does not fit a volume of shape {volume.hu.shape}")
    box = mask_box(mask)
    if box is None:
        raise GeometryError("the mask is empty", remedy="this volume may show no lung or no body")
    residual = median_residual(volume.hu[_wider(box)])[_inner(box)]
    _, dy, dx = volume.geometry.spacing_zyx_mm
    sides = (max(2, round(block_mm / dy)), max(2, round(block_mm / dx)))
    filled = _blocks(mask[box], sides).mean(axis=(-2, -1), dtype=np.float32) >= _MOSTLY
    if not filled.any():
        raise GeometryError(f"no block of {block_mm:g} mm lies in the mask", remedy="give a larger mask or block_mm")
    blocks = _blocks(residual, sides)[filled]
    low, middle, high = np.percentile(blocks.std(axis=(-2, -1), dtype=np.float64), (25, 50, 75))
    return NoiseStatistics(float(middle), (float(low), float(high)), len(blocks))


def lung_noise_sd(volume: Volume, block_mm: float = 10.0) -> NoiseStatistics:
    """Local noise in aerated parenchyma. Raises GeometryError where the volume shows none."""
    return local_noise_sd(volume, parenchyma_mask(volume), block_mm)


def soft_tissue_noise_sd(volume: Volume, block_mm: float = 10.0) -> NoiseStatistics:
    """Local noise in the soft tissue at the level of the lungs. Raises GeometryError where the volume shows none."""
    return local_noise_sd(volume, soft_tissue_mask(volume), block_mm)


def local_sd_map(hu: NDArray[np.generic], spacing_zyx_mm: FloatTriple, window_mm: float = 10.0) -> Floats:
    """SD of the median residual around each voxel, in a square of `window_mm` in its slice: float32 (z, y, x), HU."""
    residual = median_residual(hu).astype(np.float32)
    size = (1, *(max(3, round(window_mm / mm)) for mm in spacing_zyx_mm[1:]))
    mean = ndimage.uniform_filter(residual, size)
    square = ndimage.uniform_filter(residual * residual, size)
    return np.asarray(np.sqrt(np.maximum(square - mean * mean, 0)), dtype=np.float32)


def noise_power_spectrum(
    hu: NDArray[np.generic],
    spacing_yx_mm: tuple[float, float],
    mask: Mask | None = None,
    patch: int = 24,
    even: float = 1.0,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Radial 2-D noise power spectrum: frequencies in 1/mm and NPS in HU^2 mm^2, both (n,), frequency 0 left out.

    hu: (z, y, x) or (y, x). Non-overlapping squares of `patch` voxels that lie to 90 % in the mask (all of them
    without one) are detrended by a plane and averaged. even: the share of them to keep, those of the smallest SD;
    in a patient a quarter of the patches in soft tissue is free of edges. Raises GeometryError where no patch fits.
    """
    slices = np.maximum(hu, np.asarray(AIR_FLOOR_HU, dtype=hu.dtype)).reshape(-1, *hu.shape[-2:])
    patches = _blocks(slices, (patch, patch))
    if mask is None:
        chosen = patches.reshape(-1, patch, patch)
    else:
        inside = _blocks(mask.reshape(slices.shape), (patch, patch))
        chosen = patches[inside.mean(axis=(-2, -1)) >= _MOSTLY]
    if len(chosen) == 0:
        raise GeometryError(f"no patch of {patch} x {patch} voxels fits", remedy="give a larger block or mask")
    if even < 1:
        spread = np.concatenate([_without_plane(some.astype(np.float64)).std(axis=(1, 2)) for some in _bunches(chosen)])
        chosen = chosen[np.argsort(spread, kind="stable")[: max(1, round(even * len(chosen)))]]
    dy, dx = spacing_yx_mm
    power = np.zeros((patch, patch))
    for some in _bunches(chosen):
        power += (np.abs(np.fft.fft2(_without_plane(some.astype(np.float64)))) ** 2).sum(axis=0)
    power *= dy * dx / (patch * patch * len(chosen))
    radius = np.hypot(np.fft.fftfreq(patch, dy)[:, None], np.fft.fftfreq(patch, dx)[None, :])
    step = 1 / (patch * max(dy, dx))
    ring = np.rint(radius / step).astype(int)
    usable = (ring > 0) & (ring <= patch // 2)
    count = np.bincount(ring[usable])[1:]
    spectrum = np.bincount(ring[usable], power[usable])[1:] / count
    return np.bincount(ring[usable], radius[usable])[1:] / count, spectrum


def mean_frequency(frequencies_per_mm: ArrayLike, spectrum: ArrayLike) -> float:
    """Mean of the frequency weighted by the radial NPS, in 1/mm."""
    f, s = np.asarray(frequencies_per_mm, dtype=float), np.asarray(spectrum, dtype=float)
    return float((f * s).sum() / s.sum())


def noise_covariance(hu: NDArray[np.generic], mask: Mask | None = None, reach: int = 8) -> Floats:
    """Autocovariance of the noise in a block, HU^2, for lags up to `reach` voxels: (2 r + 1) on each axis.

    hu: (z, y, x). The slow part of each slice (Gaussian, 5 voxels) and what stands out of the noise (vessels,
    edges) are left out, besides what lies outside the mask. Lags beyond the block are zero; the last lags are
    tapered. Raises GeometryError where fewer than 512 voxels remain.
    """
    clipped = np.maximum(hu.astype(np.float32), AIR_FLOOR_HU)
    usable = np.ones(hu.shape, dtype=bool) if mask is None else mask & (clipped > AIR_FLOOR_HU)
    residual, usable = _noise_only(clipped, usable)
    if usable.sum() < 512:
        raise GeometryError(
            f"only {int(usable.sum())} voxels of the block show noise alone", remedy="give a larger block or mask"
        )
    weight = usable.astype(np.float32)
    padded = tuple(n + min(reach, n - 1) for n in hu.shape)
    axes = (0, 1, 2)
    spectrum = np.fft.rfftn((residual - residual[usable].mean()) * weight, padded, axes)
    support = np.fft.rfftn(weight, padded, axes)
    product = np.fft.irfftn(np.abs(spectrum) ** 2, padded, axes)
    pairs = np.fft.irfftn(np.abs(support) ** 2, padded, axes)
    covariance = np.where(pairs > 0.02 * usable.sum(), product / np.maximum(pairs, 1), 0)
    out = np.zeros((2 * reach + 1,) * 3, dtype=np.float32)
    lags = [np.arange(-min(reach, n - 1), min(reach, n - 1) + 1) for n in hu.shape]
    out[np.ix_(*(lag + reach for lag in lags))] = covariance[np.ix_(*lags)]
    taper = np.cos(np.arange(-reach, reach + 1) * np.pi / (2 * reach + 2)) ** 2
    flat = np.minimum(1, 2 * taper)
    out *= flat[:, None, None] * flat[None, :, None] * flat[None, None, :]
    return out


def sample_noise_like(
    hu: NDArray[np.generic], shape_zyx: IntTriple, rng: np.random.Generator, mask: Mask | None = None
) -> Floats:
    """Gaussian noise of the spectrum and SD that a block shows: float32 HU, `shape_zyx`, mean near zero.

    hu: (z, y, x), the surroundings; mask: the voxels of it to learn from. Same block and generator state, same
    noise. Raises GeometryError as `noise_covariance`.
    """
    covariance = noise_covariance(hu, mask)
    reach = covariance.shape[0] // 2
    # a grid wider than the lags, so that opposite faces of the result are independent
    wide = tuple(n + 2 * reach + 1 for n in shape_zyx)
    kernel = np.zeros(wide, dtype=np.float64)
    lag = np.arange(-reach, reach + 1)
    kernel[np.ix_(lag, lag, lag)] = covariance
    power = np.maximum(np.fft.rfftn(kernel).real, 0)
    # clipping negative power adds variance: give back the SD that was measured
    power *= kernel[0, 0, 0] / np.fft.irfftn(power, wide, (0, 1, 2))[0, 0, 0]
    white = rng.standard_normal(wide)
    noise = np.fft.irfftn(np.fft.rfftn(white) * np.sqrt(power), wide, (0, 1, 2))
    return noise[tuple(slice(n) for n in shape_zyx)].astype(np.float32)


def _noise_only(hu: Floats, usable: Mask) -> tuple[Floats, Mask]:
    """The block less its slow part, and the usable voxels without vessels and edges."""
    residual = hu
    for _ in range(2):  # the second pass smooths without the structures that the first one found
        weight = usable.astype(np.float32)
        near = ndimage.gaussian_filter(weight, (0, _SLOW_VOXELS, _SLOW_VOXELS))
        slow = ndimage.gaussian_filter(hu * weight, (0, _SLOW_VOXELS, _SLOW_VOXELS)) / np.maximum(near, 1e-3)
        residual = hu - slow
        blurred = ndimage.gaussian_filter(residual, (0, 1, 1))
        if not usable.any():
            break
        middle = float(np.median(blurred[usable]))
        spread = 1.4826 * float(np.median(np.abs(blurred[usable] - middle)))
        usable = usable & (np.abs(blurred - middle) <= _OUTLIER * spread + 1e-3)
    return residual, usable


def _blocks(values: NDArray[np.generic], sides: tuple[int, int]) -> NDArray[np.generic]:
    """(z, y, x) as (z, rows, columns, side, side); what does not fill a block is left out."""
    nz, ny, nx = values.shape
    a, b = sides
    cut = values[:, : ny // a * a, : nx // b * b]
    return cut.reshape(nz, ny // a, a, nx // b, b).swapaxes(2, 3)


def _bunches(patches: NDArray[np.generic]) -> list[NDArray[np.generic]]:
    return np.array_split(patches, max(1, len(patches) // 512))


def _without_plane(patches: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n, y, x) less the plane of least squares of each patch."""
    ny, nx = patches.shape[1:]
    y = np.linspace(-1, 1, ny)[:, None] * np.ones(nx)
    x = np.ones(ny)[:, None] * np.linspace(-1, 1, nx)
    basis = np.stack([np.ones((ny, nx)), y, x]).reshape(3, -1)
    basis /= np.linalg.norm(basis, axis=1, keepdims=True)
    flat = patches.reshape(len(patches), -1)
    return (flat - (flat @ basis.T) @ basis).reshape(patches.shape)


def _wider(box: tuple[slice, slice, slice]) -> tuple[slice, ...]:
    """One voxel more on each side, which the median needs; the end of the image stays the end."""
    return tuple(slice(max(0, s.start - 1), s.stop + 1) for s in box)


def _inner(box: tuple[slice, slice, slice]) -> tuple[slice, ...]:
    """Takes `box` out of what `_wider(box)` cut."""
    return tuple(slice(min(1, s.start), min(1, s.start) + s.stop - s.start) for s in box)
