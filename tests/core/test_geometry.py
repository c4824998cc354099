"""Laws of the grid: index to LPS and back, all 48 orientations, through geometry and through every grid format."""

from __future__ import annotations

from itertools import permutations, product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ctguard import io
from ctguard.core.errors import GeometryError
from ctguard.core.geometry import Geometry, as_float_triple, index_to_lps_mm, lps_mm_to_index

SHAPE = (3, 4, 5)
SPACING = (2.5, 0.7, 0.8)
ORIGIN = (-12.5, 30.25, 101.0)
ORIENTATIONS = [
    np.eye(3)[list(order)] * np.array(signs)[:, None]
    for order in permutations(range(3))
    for signs in product((1.0, -1.0), repeat=3)
]
"""Rows are the z, y and x axis in LPS: 24 right-handed frames and their 24 mirror images."""


def _geometry(axes: NDArray[np.float64]) -> Geometry:
    z, y, x = (as_float_triple(axis) for axis in axes)
    return Geometry(SHAPE, SPACING, ORIGIN, (z, y, x))


def _handed(axes: NDArray[np.float64]) -> float:
    return float(np.dot(axes[0], np.cross(axes[2], axes[1])))


def test_there_are_48_orientations() -> None:
    assert len({axes.tobytes() for axes in ORIENTATIONS}) == 48
    assert sum(_handed(axes) > 0 for axes in ORIENTATIONS) == 24


@pytest.mark.parametrize("axes", ORIENTATIONS, ids=lambda axes: "".join(f"{int(v):d}" for v in axes.ravel()))
def test_index_to_lps_and_back_in_every_orientation(axes: NDArray[np.float64]) -> None:
    if _handed(axes) < 0:
        with pytest.raises(GeometryError, match="against the slice normal"):
            _geometry(axes)
        return
    geometry = _geometry(axes)
    index = np.array(list(np.ndindex(SHAPE)), dtype=float)
    points = index_to_lps_mm(geometry, index)
    np.testing.assert_allclose(lps_mm_to_index(geometry, points), index, atol=1e-9)
    # One step along an index moves by that spacing along that axis, and by nothing else.
    for axis in range(3):
        step = index_to_lps_mm(geometry, np.eye(3)[axis]) - np.asarray(ORIGIN)
        np.testing.assert_allclose(step, axes[axis] * SPACING[axis], atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(
    angles=st.tuples(*[st.floats(-3, 3)] * 3),
    spacing=st.tuples(*[st.floats(0.1, 10)] * 3),
    point=st.tuples(*[st.floats(-500, 500)] * 3),
)
def test_lps_to_index_and_back_in_oblique_frames(
    angles: tuple[float, ...], spacing: tuple[float, float, float], point: tuple[float, ...]
) -> None:
    frame = np.eye(3)
    for n, angle in enumerate(angles):
        turn = np.eye(3)
        a, b = n, (n + 1) % 3
        turn[[a, a, b, b], [a, b, a, b]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
        frame = frame @ turn
    y, x = frame[0], frame[1]
    z, y, x = (as_float_triple(axis) for axis in (np.cross(x, y), y, x))
    geometry = Geometry(SHAPE, spacing, ORIGIN, (z, y, x))
    np.testing.assert_allclose(index_to_lps_mm(geometry, lps_mm_to_index(geometry, point)), point, atol=1e-6)


@pytest.mark.parametrize("ending", [".mha", ".mhd", ".nrrd", ".nii", ".nii.gz"])
def test_files_of_all_48_orientations_keep_every_voxel_in_place(ending: str, tmp_path: Path) -> None:
    """Written by other software's means, left-handed ones too: each voxel's value stays at its point in space."""
    values = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE)
    index = np.array(list(np.ndindex(SHAPE)), dtype=float)
    for number, axes in enumerate(ORIENTATIONS):
        path = tmp_path / f"{number}{ending}"
        _write_foreign(path, values, axes)
        volume = io.read(path)
        points = index * SPACING @ axes + ORIGIN
        found = lps_mm_to_index(volume.geometry, points)
        nearest = np.rint(found).astype(int)
        np.testing.assert_allclose(found, nearest, atol=1e-4)
        np.testing.assert_array_equal(volume.hu[tuple(nearest.T)], values.ravel())
        expected = values if _handed(axes) > 0 else values[::-1]
        np.testing.assert_array_equal(volume.hu, expected)


@pytest.mark.parametrize("ending", [".mha", ".mhd", ".nrrd", ".nii", ".nii.gz", ".tiff"])
def test_our_files_of_all_right_handed_orientations_come_back_the_same(ending: str, tmp_path: Path) -> None:
    from ctguard.core.provenance import Provenance, Source
    from ctguard.core.volume import Volume

    values = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE) - 900
    for number, axes in enumerate(axes for axes in ORIENTATIONS if _handed(axes) > 0):
        volume = Volume(values, _geometry(axes), Provenance(Source("phantom")))
        back = io.read(io.write(volume, tmp_path / f"{number}{ending}"))
        assert back.geometry.agrees(volume.geometry, tolerance_mm=1e-4)
        np.testing.assert_array_equal(back.hu, values)


def _write_foreign(path: Path, values: NDArray[np.int16], axes: NDArray[np.float64]) -> None:
    if ".nii" in path.suffixes:
        affine = np.eye(4)
        affine[:3, :3] = axes[::-1].T * np.array(SPACING[::-1])
        affine[:3, 3] = ORIGIN
        nib.save(nib.Nifti1Image(values.transpose(2, 1, 0), np.diag([-1, -1, 1, 1]) @ affine), path)
        return
    image = sitk.GetImageFromArray(values)
    image.SetSpacing(SPACING[::-1])
    image.SetOrigin(ORIGIN)
    image.SetDirection(axes[::-1].T.ravel().tolist())
    sitk.WriteImage(image, str(path))
