"""Spline resampling as separable matrices: exactly SciPy's values, and differentiable in torch."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from ctguard.core.geometry import FloatTriple, IntTriple

Matrices = tuple[Tensor, Tensor, Tensor]
"""One matrix per axis (z, y, x), each (samples out, samples in), float32."""


def spline_matrix(n_in: int, positions: NDArray[np.float64], order: int = 3) -> NDArray[np.float64]:
    """Interpolation at fractional `positions` (within 0 .. n_in - 1) of n_in samples, as a matrix (positions, n_in).

    The values are those of scipy.ndimage.map_coordinates and of zoom, whose default mode prefilters by mirroring.
    """
    if n_in == 1:
        return np.ones((len(positions), 1))
    basis = ndimage.spline_filter1d(np.eye(n_in), order=order, axis=0, mode="mirror") if order > 1 else np.eye(n_in)
    columns = [
        ndimage.map_coordinates(basis[:, j], positions[None], order=order, mode="mirror", prefilter=False)
        for j in range(n_in)
    ]
    return np.stack(columns, axis=1)


@lru_cache(maxsize=256)
def _cached(n_in: int, positions: tuple[float, ...], order: int) -> Tensor:
    return torch.from_numpy(spline_matrix(n_in, np.asarray(positions), order)).float()


def grid_matrices(
    shape_zyx: IntTriple, start_zyx: FloatTriple, step_zyx: FloatTriple, out_zyx: IntTriple, order: int = 3
) -> Matrices:
    """Matrices that sample a block of `shape_zyx` at start + i * step (voxels); beyond the ends the border repeats."""
    z, y, x = (
        _cached(n, tuple(float(p) for p in np.clip(start + step * np.arange(out), 0, n - 1)), order)
        for n, start, step, out in zip(shape_zyx, start_zyx, step_zyx, out_zyx, strict=True)
    )
    return z, y, x


def zoom_matrices(shape_zyx: IntTriple, out_zyx: IntTriple, order: int = 3) -> Matrices:
    """Matrices of scipy.ndimage.zoom: first and last samples of both grids coincide."""
    step = tuple((n - 1) / max(out - 1, 1) for n, out in zip(shape_zyx, out_zyx, strict=True))
    return grid_matrices(shape_zyx, (0.0, 0.0, 0.0), (step[0], step[1], step[2]), out_zyx, order)


def apply_matrices(block: Tensor, matrices: Matrices) -> Tensor:
    """Resample the last three axes (z, y, x) of a float32 tensor."""
    z, y, x = (matrix.to(block.device) for matrix in matrices)
    block = torch.einsum("ai,...ijk->...ajk", z, block)
    block = torch.einsum("bj,...ajk->...abk", y, block)
    return torch.einsum("ck,...abk->...abc", x, block)
