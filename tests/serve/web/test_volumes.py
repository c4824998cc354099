"""The viewer's volumes: readable by others, any slice at once, and turned as readers expect."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from imagecodecs import png_decode

from ctguard.core.geometry import Geometry
from ctguard.core.records import Verdict
from ctguard.core.volume import Volume
from ctguard.detect.regions import find_regions
from ctguard.io.nifti import write_nifti
from ctguard.serve.web.volumes import SMALL, Slices, map_png, open_slices, prepare, scan_png, volume_of
from tests.serve.web.node import hot_map, phantom

AXES = {
    "axial": (((0, 0, 1), (0, 1, 0), (1, 0, 0)), "axial"),
    "axial, prone": (((0, 0, 1), (0, -1, 0), (-1, 0, 0)), "axial"),
    "coronal": (((0, 1, 0), (0, 0, -1), (1, 0, 0)), "coronal"),
    "sagittal": (((-1, 0, 0), (0, 0, -1), (0, 1, 0)), "sagittal"),
}


def made(folder: Path, volume: Volume) -> Slices:
    """A case with one hot place."""
    center = tuple(n // 3 for n in volume.hu.shape)
    map_ = hot_map(volume, center)  # type: ignore[arg-type]
    regions = find_regions(map_, volume.geometry, 0.5)
    return prepare(volume, Verdict("unet", "0" * 64, 0.97, 0.5, map_, volume.geometry, regions), folder)


def test_the_volume_is_the_scan_for_any_nifti_reader(tmp_path: Path) -> None:
    volume = phantom((7, 40, 30))
    slices = made(tmp_path, volume)
    write_nifti(volume, tmp_path / "by_io.nii.gz")
    ours, theirs = nib.load(slices.file("ct")), nib.load(tmp_path / "by_io.nii.gz")
    assert np.array_equal(ours.get_fdata(), theirs.get_fdata())
    assert np.allclose(ours.affine, theirs.affine, atol=1e-4)
    heat = nib.load(slices.file("map")).get_fdata()
    assert heat.max() == pytest.approx(0.97, abs=0.003)
    assert np.array_equal(volume_of(slices, "1.2").hu, volume.hu)
    assert volume_of(slices, "1.2").provenance.has_mark("phantom")


def test_any_slice_is_there_without_the_others(tmp_path: Path) -> None:
    volume = phantom((7, 40, 30))
    slices = open_slices(tmp_path) or made(tmp_path, volume)
    assert all(np.array_equal(slices["ct", k], volume.hu[k]) for k in (6, 0, 3))
    for k in (-1, 7):
        with pytest.raises(IndexError):
            slices["ct", k]
    again = open_slices(tmp_path)
    assert again is not None and np.array_equal(again["map", 2], slices["map", 2])
    assert again.facts["worst"] == 2 and len(again.facts["region_mm3"]) == 1


def test_small_volumes_lie_at_the_same_place(tmp_path: Path) -> None:
    volume = phantom((3, SMALL + 40, 20))
    slices = made(tmp_path, volume)
    small = nib.load(slices.file("ct-small"))
    assert small.shape == (20, 148, 3)
    whole = nib.load(slices.file("ct"))
    corner = np.array([5, 7, 1, 1])
    assert np.allclose(small.affine @ corner, whole.affine @ (corner * [1, 2, 1, 1]), atol=1e-3)
    assert small.dataobj[5, 7, 1] == whole.dataobj[5, 14, 1]


@pytest.mark.parametrize("name", AXES)
def test_pictures_have_the_head_up_and_the_right_on_the_left(tmp_path: Path, name: str) -> None:
    """In LPS: the largest x (left) lies right, the largest y (back) low, the largest z (head) high."""
    axes, plane = AXES[name]
    geometry = Geometry((4, 12, 10), (2.0, 1.0, 1.0), (0.0, 0.0, 0.0), axes)  # type: ignore[arg-type]
    hu = np.full((4, 12, 10), -1350, np.int16)
    hu[1, 2, 7] = 150
    slices = made(tmp_path, replace(phantom((4, 12, 10)), hu=hu, geometry=geometry))
    assert slices.facts["plane"] == plane
    picture = png_decode(scan_png(slices, 1, "lung"))
    row, column = np.unravel_index(np.argmax(picture), picture.shape)
    point = (np.array([2.0, 1.0, 1.0]) * (1, 2, 7)) @ np.array(axes, dtype=float)
    far = (np.array([2.0, 1.0, 1.0]) * (1, 11, 9)) @ np.array(axes, dtype=float)
    low, high = np.minimum(far, point * 0), np.maximum(far, point * 0)
    place = (point - low) / np.maximum(high - low, 1e-9)  # 0..1 along x (to the left), y (to the back), z (to the head)
    across = {"axial": place[0], "coronal": place[0], "sagittal": place[1]}[plane]
    down = {"axial": place[1], "coronal": 1 - place[2], "sagittal": 1 - place[2]}[plane]
    assert column / (picture.shape[1] - 1) == pytest.approx(across)
    assert row / (picture.shape[0] - 1) == pytest.approx(down)


@pytest.mark.parametrize("name", AXES)
def test_the_box_of_a_region_lies_on_the_hot_part_of_the_picture(tmp_path: Path, name: str) -> None:
    axes, _ = AXES[name]
    volume = phantom((6, 60, 50))
    turned = Geometry((6, 60, 50), (2.0, 1.0, 1.0), (0.0, 0.0, 0.0), axes)  # type: ignore[arg-type]
    volume = replace(volume, geometry=turned)
    map_ = np.zeros((6, 60, 50), np.float32)
    map_[2:4, 10:22, 33:41] = 0.9
    regions = find_regions(map_, turned, 0.5)
    slices = prepare(volume, Verdict("unet", "0" * 64, 0.9, 0.5, map_, turned, regions), tmp_path)
    heat = png_decode(map_png(slices, 2))[..., 3] > 0
    rows, columns = np.flatnonzero(heat.any(axis=1)), np.flatnonzero(heat.any(axis=0))
    tall, wide = heat.shape
    left, top, width, height = slices.box(regions[0].to_json())
    assert (left, top) == pytest.approx((100 * columns[0] / wide, 100 * rows[0] / tall))
    assert (width, height) == pytest.approx((100 * len(columns) / wide, 100 * len(rows) / tall))
