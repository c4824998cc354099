"""Where the body, the aerated lung and the soft tissue of a chest CT lie.

Everything is decided on a grid of about 2 mm and brought back by linear interpolation, so that a series of
140 x 512 x 512 takes a few seconds. The rules use attenuation, size and surroundings only; they hold for targeted
fields of view, in which lung touches the border, and for single slices.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ctguard.core.geometry import FloatTriple, IntTriple, as_float_triple
from ctguard.core.volume import Volume
from ctguard.image.box import mask_box

AIR_FLOOR_HU = -1024
"""Below this no CT number means anything: scanners write -2000 and less outside the field of view."""

NODULE_HU = -400.0
"""What lies above this in lung is dense: nodules, vessels. A nodule's size is that of its part above it."""

_PADDING_HU = -1500  # noise in air stays above, padding lies below: -2000, -2048, -3024
_GRID_MM = 2.0
_AERATED_HU = -500.0
_TISSUE_HU = -300.0
_GAS_MEDIAN_HU = -940.0  # lung, emphysema included, holds vessels and partial volume; a gas-filled lumen does not
_GAS_TOP_HU = -900.0
_SMALL_AREA_MM2 = 1500.0  # trachea, bronchi and bowel loops are below this, lung cross-sections mostly above
_LEAST_AREA_MM2 = 60.0
_CLOSING_MM = 6.0
# median in the middle of a part, real series: foam of tables -904 (where thin) to -957, lung -818 to -882
_FOAM_HU = -920.0
_STRIP_MM = 13.0
_HOLE_MM2 = 1200.0  # a nodule of 39 mm; larger holes are mediastinum between two touching lungs
_IN_PLANE = np.array([[[0, 0, 0]] * 3, [[0, 1, 0], [1, 1, 1], [0, 1, 0]], [[0, 0, 0]] * 3], dtype=bool)
_IN_PLANE[0] = _IN_PLANE[2] = False

Mask = NDArray[np.bool_]
Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class _Coarse:
    """The volume on about 2 mm: means of blocks of `factor_zyx` voxels; `empty` blocks hold padding."""

    hu: Floats
    empty: Mask
    factor_zyx: IntTriple
    spacing_zyx_mm: FloatTriple


def lung_mask(volume: Volume) -> Mask:
    """Aerated lung with the vessels and nodules inside it: bool (z, y, x) on the volume's grid.

    Left out: air around the patient, padding, the trachea and other lumina where a slice shows them apart from
    the lung, and bowel gas. All False where the volume shows no lung.
    """
    coarse = _decimate(volume)
    return _refine(_coarse_lung(coarse, _trunk(coarse)), coarse, volume.geometry.shape_zyx)


def body_mask(volume: Volume) -> Mask:
    """The patient without air around them and without the table: bool (z, y, x) on the volume's grid."""
    coarse = _decimate(volume)
    trunk = _trunk(coarse)
    return _refine(_coarse_body(coarse, trunk, _coarse_lung(coarse, trunk)), coarse, volume.geometry.shape_zyx)


def parenchyma_mask(volume: Volume) -> Mask:
    """Voxels of the lung between -950 and -500 HU, that is without vessels, walls and bullae: bool (z, y, x)."""
    inside: Mask = lung_mask(volume) & (volume.hu > -950) & (volume.hu < -500)
    return inside


def soft_tissue_mask(volume: Volume) -> Mask:
    """Voxels of the body between 0 and 150 HU, at the level of the lungs: bool (z, y, x).

    The level of the lungs is every slice with at least a fifth of the largest lung section; above and below,
    shoulders and abdomen are noisier. All slices count where there is no lung.
    """
    coarse = _decimate(volume)
    trunk = _trunk(coarse)
    lung = _coarse_lung(coarse, trunk)
    body = _refine(_coarse_body(coarse, trunk, lung), coarse, volume.geometry.shape_zyx)
    section = _refine(lung, coarse, volume.geometry.shape_zyx).sum(axis=(1, 2))
    level = section >= 0.2 * section.max()
    soft: Mask = body & (volume.hu > 0) & (volume.hu < 150) & level[:, None, None]
    return soft


def soft_tissue_region(volume: Volume) -> Mask:
    """Where the mean over 10 mm is that of soft tissue (0..100 HU), without holes that noise makes: bool (z, y, x).

    For spectra, which need whole patches; `soft_tissue_mask` is the one that local noise is defined on.
    """
    coarse = _decimate(volume)
    side = [1, *(max(1, round(10.0 / mm)) for mm in coarse.spacing_zyx_mm[1:])]
    mean = ndimage.uniform_filter(coarse.hu, side)
    return _refine((mean > 0) & (mean < 100) & ~coarse.empty, coarse, volume.geometry.shape_zyx)


def _decimate(volume: Volume) -> _Coarse:
    factor = tuple(max(1, round(_GRID_MM / mm)) for mm in volume.geometry.spacing_zyx_mm)
    fz, fy, fx = (min(f, n) for f, n in zip(factor, volume.geometry.shape_zyx, strict=True))
    nz, ny, nx = volume.geometry.shape_zyx
    out = (-(-nz // fz), -(-ny // fy), -(-nx // fx))
    total = np.zeros(out, dtype=np.float32)
    empty = np.zeros(out, dtype=bool)
    rows, columns = (np.minimum(np.arange(n_out * f), n - 1) for n_out, f, n in ((out[1], fy, ny), (out[2], fx, nx)))
    for z in range(out[0]):
        # the last block of an axis repeats its last voxels where the factor does not divide the size
        layers = volume.hu[np.minimum(np.arange(z * fz, (z + 1) * fz), nz - 1)]
        if (out[1] * fy, out[2] * fx) != (ny, nx):
            layers = layers[:, rows][:, :, columns]
        blocks = layers.reshape(fz, out[1], fy, out[2], fx)
        low = blocks.min(axis=0).min(axis=1).min(axis=2)
        high = blocks.max(axis=0).max(axis=1).max(axis=2)
        # a wide plain area at the floor is padding too; single voxels there are noise in air
        floor = high <= AIR_FLOOR_HU
        empty[z] = low < _PADDING_HU
        if floor.any():
            empty[z] |= ndimage.binary_opening(floor, iterations=3)
        clipped = np.maximum(layers, np.asarray(AIR_FLOOR_HU, dtype=layers.dtype))
        total[z] = clipped.sum(axis=0, dtype=np.float32).reshape(out[1], fy, out[2], fx).sum(axis=1).sum(axis=2)
    spacing = np.asarray(volume.geometry.spacing_zyx_mm) * (fz, fy, fx)
    return _Coarse(total / np.float32(fz * fy * fx), empty, (fz, fy, fx), as_float_triple(spacing))


def _trunk(coarse: _Coarse) -> Mask:
    """Thick tissue: an opening takes the table, tubes and clothes away."""
    opened = ndimage.binary_opening(coarse.hu > _TISSUE_HU, _IN_PLANE, iterations=2)
    return _large(opened, 0.05)


def _large(mask: Mask, share: float) -> Mask:
    """The connected parts that have at least `share` of the largest one's voxels."""
    labels, count = ndimage.label(mask)
    if count == 0:
        return mask
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    keep = sizes >= share * sizes.max()
    keep[0] = False
    kept: Mask = keep[labels]
    return kept


def _coarse_lung(coarse: _Coarse, trunk: Mask) -> Mask:
    aerated = (coarse.hu < _AERATED_HU) & ~coarse.empty
    pixel_mm2 = coarse.spacing_zyx_mm[1] * coarse.spacing_zyx_mm[2]
    near_trunk = ndimage.binary_dilation(trunk, _IN_PLANE, iterations=3)
    labels, count = ndimage.label(aerated, _IN_PLANE)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    keep = np.zeros(count + 1, dtype=bool)
    for label, box in enumerate(ndimage.find_objects(labels), start=1):
        if sizes[label] * pixel_mm2 < _LEAST_AREA_MM2:
            continue
        part = labels[box] == label
        keep[label] = not _is_gas(coarse.hu[box][part], pixel_mm2) and _is_enclosed(labels, label, box, near_trunk)
    lung = _large(keep[labels], 0.1 if labels.shape[0] > 1 else 0.05)
    lung &= ~_strips_at_border(lung, coarse)
    box = mask_box(lung)
    return lung if box is None else _close(lung, box, coarse)


def _is_gas(hu: Floats, pixel_mm2: float) -> bool:
    """A lumen full of gas, or the air around the patient: near -1000 HU and without vessels."""
    if hu.mean() < _GAS_MEDIAN_HU - 40:
        return True
    low, middle, high = np.percentile(hu, (10, 50, 90))
    if hu.size * pixel_mm2 < _SMALL_AREA_MM2:
        return bool(low < _GAS_MEDIAN_HU or middle < _GAS_TOP_HU)
    return bool(middle < _GAS_MEDIAN_HU and high < _GAS_TOP_HU) or bool(middle < _GAS_MEDIAN_HU - 25)


def _is_enclosed(labels: NDArray[np.int32], label: int, box: tuple[slice, ...], near_trunk: Mask) -> bool:
    """Whether most of the rim of a part of a slice lies against the trunk; the border of the image does not count."""
    wide = tuple(
        slice(max(0, s.start - 1), min(n, s.stop + 1)) if axis else s
        for axis, (s, n) in enumerate(zip(box, labels.shape, strict=True))
    )
    filled = ndimage.binary_fill_holes(labels[wide][0] == label)
    rim = ndimage.binary_dilation(filled) & ~filled
    return bool(rim.any()) and float(near_trunk[wide][0][rim].mean()) > 0.5


def _strips_at_border(lung: Mask, coarse: _Coarse) -> Mask:
    """Parts that lean on the border or on padding and are thin, or foam inside: the mattress, not lung."""
    labels, count = ndimage.label(lung)
    side = [1, *(2 * round(_STRIP_MM / mm) + 1 for mm in coarse.spacing_zyx_mm[1:])]
    core = ndimage.minimum_filter(lung, side, mode="constant", cval=False)
    thick = np.zeros(count + 1, dtype=bool)
    thick[np.unique(labels[core])] = True
    deep = ndimage.binary_erosion(lung, _IN_PLANE, iterations=2)
    # parts without a deep voxel get NaN, which compares False
    foam = np.append(False, ndimage.median(coarse.hu, np.where(deep, labels, 0), range(1, count + 1)) < _FOAM_HU)
    edge = ndimage.binary_dilation(coarse.empty, _IN_PLANE, iterations=2)
    edge[:, :2] = edge[:, -2:] = edge[:, :, :2] = edge[:, :, -2:] = True
    leans = np.zeros(count + 1, dtype=bool)
    leans[np.unique(labels[edge])] = True
    strip = leans & (~thick | foam)
    strip[0] = False
    found: Mask = strip[labels]
    return found


def _close(lung: Mask, lung_box: tuple[slice, slice, slice], coarse: _Coarse) -> Mask:
    """Closing by a box, then small holes of each slice: vessels, nodules and bronchial walls join the lung."""
    reach = [int(_CLOSING_MM // mm) for mm in coarse.spacing_zyx_mm]
    box = tuple(slice(max(0, s.start - r), s.stop + r) for s, r in zip(lung_box, reach, strict=True))
    # edge values beyond the border: lung that leaves the field of view is not eroded there
    block = np.pad(lung[box], [(r, r) for r in reach], mode="edge")
    side = [2 * r + 1 for r in reach]
    closed = ndimage.minimum_filter(ndimage.maximum_filter(block, side), side)
    out = lung.copy()
    out[box] |= closed[tuple(slice(r, n - r) for r, n in zip(reach, block.shape, strict=True))]
    closed_lung: Mask = _fill_small_holes(out, coarse) & ~coarse.empty
    return closed_lung


def _fill_small_holes(lung: Mask, coarse: _Coarse) -> Mask:
    labels, count = ndimage.label(~lung, _IN_PLANE)
    pixel_mm2 = coarse.spacing_zyx_mm[1] * coarse.spacing_zyx_mm[2]
    small = np.bincount(labels.ravel(), minlength=count + 1) * pixel_mm2 < _HOLE_MM2
    for rim in (labels[:, 0], labels[:, -1], labels[:, :, 0], labels[:, :, -1]):
        small[np.unique(rim)] = False
    small[0] = False
    filled: Mask = lung | small[labels]
    return filled


def _coarse_body(coarse: _Coarse, trunk: Mask, lung: Mask) -> Mask:
    body = ndimage.binary_dilation(trunk, _IN_PLANE) & (coarse.hu > _TISSUE_HU) | trunk | lung
    for plane in body:
        plane[:] = ndimage.binary_fill_holes(ndimage.binary_closing(plane, iterations=2) | plane)
    inside: Mask = body & ~coarse.empty
    return inside


def _refine(mask: Mask, coarse: _Coarse, shape_zyx: IntTriple) -> Mask:
    """The coarse mask on the volume's grid, by linear interpolation at one half."""
    out = np.zeros(shape_zyx, dtype=bool)
    if not mask.any():
        return out
    below, above, weight = zip(*map(_taps, shape_zyx, mask.shape, coarse.factor_zyx), strict=True)
    soft = mask.astype(np.float32)
    for z in range(shape_zyx[0]):
        plane = soft[below[0][z]] * (1 - weight[0][z]) + soft[above[0][z]] * weight[0][z]
        if not plane.any():
            continue
        plane = plane[below[1]] * (1 - weight[1])[:, None] + plane[above[1]] * weight[1][:, None]
        out[z] = plane[:, below[2]] * (1 - weight[2]) + plane[:, above[2]] * weight[2] >= 0.5
    return out


def _taps(fine: int, rough: int, factor: int) -> tuple[NDArray[np.intp], NDArray[np.intp], Floats]:
    """For each fine index: the two coarse indices around it and the weight of the second."""
    position = np.clip((np.arange(fine) + 0.5) / factor - 0.5, 0, rough - 1)
    below = np.floor(position).astype(np.intp)
    return below, np.minimum(below + 1, rough - 1), (position - below).astype(np.float32)
