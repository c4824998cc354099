"""Nodule proposals: the detector head slid over the lungs, tile by tile, and the overlapping ones suppressed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from ctguard.cad.network import NoisyOr3d, cell_centers
from ctguard.cohort.nodules import location_of
from ctguard.core.console import log, progress
from ctguard.core.errors import ModelError
from ctguard.core.geometry import FloatTriple, as_float_triple, index_to_lps_mm
from ctguard.core.volume import Volume
from ctguard.image.box import mask_box
from ctguard.image.resample import apply_matrices, grid_matrices

LIMIT = 20
"""Proposals of one scan at most."""
APART_MM = 8.0
_MARGIN_MM = 6.0
_NEAR_LUNG_MM = 4.0
_AIR_HU = -1024.0
_SPLINE_MARGIN = 4
Box = tuple[FloatTriple, FloatTriple]


@dataclass(frozen=True)
class Candidate:
    """A proposal: where (index z, y, x), how large, and how sure the detector is (0..1)."""

    center_zyx: FloatTriple
    diameter_mm: float
    confidence: float


def propose(
    volume: Volume,
    scorer: NoisyOr3d,
    mask: NDArray[np.bool_],
    box: Box | None,
    *,
    device: str = "cpu",
    batch: int = 8,
    quiet: bool = False,
) -> list[Candidate]:
    """Proposals in and at the lungs from `find_above` on, the most confident first, at most 20.

    mask, box: of the lungs, on the volume's grid and in patient space. Tiles have the size of the blocks that the
    network was trained on, and overlap, so that what is near the edge of one lies inside another. Memory beyond the
    volume and its mask is that of one layer of tiles.
    Raises ModelError where the network gives no numbers.
    """
    lungs = mask_box(mask)
    if box is None or lungs is None:
        log.warning("no lungs found in the scan: no nodule is proposed")
        return []
    scorer.eval().to(device)
    near = _near_lung(mask, volume)
    found: list[Candidate] = []
    layers = list(_layers(volume, lungs, scorer.block_mm))
    for layer in progress(layers, "nodule proposals", len(layers), quiet):
        tiles = list(_tiles(volume, near, layer))
        for first in range(0, len(tiles), batch):
            found += _look(volume, scorer, tiles[first : first + batch], box, device)
    inside = [one for one in found if _holds(near, one.center_zyx)]
    return suppress(inside, volume.geometry.spacing_zyx_mm)


def suppress(found: list[Candidate], spacing_zyx_mm: FloatTriple, limit: int = LIMIT) -> list[Candidate]:
    """The most confident candidates, at most `limit`, without those that lie in or near a more confident one."""
    kept: list[Candidate] = []
    places, reach = np.empty((limit, 3)), np.empty(limit)
    for one in sorted(found, key=lambda c: (-c.confidence, c.center_zyx)):
        if len(kept) == limit:
            break
        place = np.multiply(one.center_zyx, spacing_zyx_mm)
        n = len(kept)
        if (np.linalg.norm(places[:n] - place, axis=1) > reach[:n]).all():
            places[n], reach[n] = place, max(APART_MM, 0.6 * one.diameter_mm)
            kept.append(one)
    return kept


@dataclass(frozen=True, eq=False)
class _Layer:
    """A layer of tiles at 1 mm. start: index of its first voxel, steps: voxels of the volume per millimetre."""

    start: NDArray[np.float64]
    steps: NDArray[np.float64]
    shape: tuple[int, int, int]
    side: int


@dataclass(frozen=True, eq=False)
class _Tile:
    """A block at 1 mm (side^3), and the volume's index of its first voxel."""

    hu: NDArray[np.float32]
    start: NDArray[np.float64]
    steps: NDArray[np.float64]


def _layers(volume: Volume, lungs: tuple[slice, slice, slice], side: int) -> Iterator[_Layer]:
    """Layers over the box of the lungs; neighbours share a rim at either side."""
    spacing = np.asarray(volume.geometry.spacing_zyx_mm)
    first = np.array([span.start for span in lungs]) - _MARGIN_MM / spacing
    length = np.array([span.stop - 1 - span.start for span in lungs]) * spacing + 2 * _MARGIN_MM
    counts = [_count(mm, side) for mm in length]
    stride = _stride(side)
    plane = tuple(stride * (n - 1) + side for n in counts[1:])
    # tiles are centred on the box, so that what is beyond it is shared by both ends
    extent = np.array([stride * (n - 1) + side for n in counts])
    start = first - (extent - length) / 2 / spacing
    for k in range(counts[0]):
        shift = np.array([k * stride / spacing[0], 0.0, 0.0])
        yield _Layer(start + shift, 1 / spacing, (side, plane[0], plane[1]), side)


def _stride(side: int) -> int:
    """Tiles overlap by half: what lies in the outer quarters of one lies in the middle of another."""
    return side // 2


def _count(length_mm: float, side: int) -> int:
    """How many tiles it takes so that their middle halves cover a length."""
    return max(1, int(np.ceil(length_mm / _stride(side))))


def _tiles(volume: Volume, near: NDArray[np.bool_], layer: _Layer) -> Iterator[_Tile]:
    """Tiles of a layer whose middle half holds lung, or its rim."""
    low = np.floor(layer.start).astype(int) - _SPLINE_MARGIN
    high = np.ceil(layer.start + layer.steps * layer.shape).astype(int) + _SPLINE_MARGIN
    low, high = np.maximum(low, 0), np.minimum(np.maximum(high, low + 1), volume.hu.shape)
    window = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    block = np.maximum(volume.hu[window].astype(np.float32), _AIR_HU)
    sizes = (block.shape[0], block.shape[1], block.shape[2])
    first, steps = as_float_triple(layer.start - low), as_float_triple(layer.steps)
    hu = apply_matrices(torch.from_numpy(block), grid_matrices(sizes, first, steps, layer.shape)).numpy()
    stride = _stride(layer.side)
    for y in range(0, layer.shape[1] - layer.side + 1, stride):
        for x in range(0, layer.shape[2] - layer.side + 1, stride):
            start = layer.start + np.array([0, y, x]) * layer.steps
            middle = start + np.array([[0.25], [0.75]]) * layer.side * layer.steps
            spans = tuple(
                slice(int(np.clip(a, 0, n)), int(np.clip(np.ceil(b), 0, n)))
                for a, b, n in zip(*middle, near.shape, strict=True)
            )
            if near[spans].any():
                yield _Tile(hu[:, y : y + layer.side, x : x + layer.side], start, layer.steps)


def _look(volume: Volume, scorer: NoisyOr3d, tiles: list[_Tile], box: Box, device: str) -> list[Candidate]:
    """Candidates of a few tiles, where they are not at the rim of one."""
    side = scorer.block_mm
    middles = [tile.start + (side - 1) / 2 * tile.steps for tile in tiles]
    points = index_to_lps_mm(volume.geometry, np.stack(middles))
    location = np.stack([location_of(as_float_triple(point), box) for point in points])
    location[:, 1] *= side / 2
    hu = torch.from_numpy(np.stack([tile.hu for tile in tiles])[:, None])
    with torch.inference_mode():
        boxes = scorer.look(hu.to(device), torch.from_numpy(location).to(device)).boxes.cpu()
    if not bool(torch.isfinite(boxes).all()):
        raise ModelError("the scorer gave no number", remedy="its weights are damaged, or voxels are not numbers")
    return [one for tile, of_tile in zip(tiles, boxes, strict=True) for one in _candidates(scorer, tile, of_tile)]


def _candidates(scorer: NoisyOr3d, tile: _Tile, boxes: Tensor) -> Iterator[Candidate]:
    """boxes: (anchors, 5, z, y, x) of one tile."""
    probability = boxes[:, 0].sigmoid()
    centers = cell_centers(boxes.shape[2:])
    rim = scorer.block_mm // 4
    inner = ((centers >= rim - 1) & (centers <= scorer.block_mm - rim)).all(dim=-1)
    anchor, z, y, x = torch.nonzero((probability >= scorer.find_above) & inner, as_tuple=True)
    size = torch.tensor(scorer.anchors_mm)[anchor]
    box = boxes[anchor, :, z, y, x]  # candidates, 5
    at_mm = centers[z, y, x] + box[:, 1:4].clamp(-1, 1) * size[:, None]
    places = tile.start + at_mm.double().numpy() * tile.steps
    diameters = size * box[:, 4].clamp(-3, 3).exp()
    rows = zip(places, diameters.tolist(), probability[anchor, z, y, x].tolist(), strict=True)
    yield from (Candidate(as_float_triple(place), diameter, confidence) for place, diameter, confidence in rows)


def _near_lung(mask: NDArray[np.bool_], volume: Volume) -> NDArray[np.bool_]:
    """The lungs and a few millimetres around, where nodules at the pleura have their centre."""
    reach = [2 * int(np.ceil(_NEAR_LUNG_MM / mm)) + 1 for mm in volume.geometry.spacing_zyx_mm]
    near: NDArray[np.bool_] = ndimage.maximum_filter(mask, reach)
    return near


def _holds(near: NDArray[np.bool_], center_zyx: FloatTriple) -> bool:
    index = tuple(round(v) for v in center_zyx)
    return all(0 <= i < n for i, n in zip(index, near.shape, strict=True)) and bool(near[index])
