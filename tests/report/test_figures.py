"""Pictures: oriented by the patient, stamped where synthetic, the same bytes for the same input."""

from __future__ import annotations

import io
import itertools
from dataclasses import replace

import matplotlib.image
import numpy as np
import pytest
from scipy import ndimage

from ctguard.core.errors import GeometryError
from ctguard.core.geometry import Geometry, as_float_triple, index_to_lps_mm, lps_mm_to_index
from ctguard.core.marks import Mark
from ctguard.core.provenance import Provenance, Source, Step
from ctguard.core.records import Region, Verdict
from ctguard.core.volume import Volume
from ctguard.report import figures
from ctguard.report.planes import PLANES, Field, View, cut

SHAPE = (20, 40, 44)
GRID = Geometry(SHAPE, (2.5, 1.5, 1.5), (-30.0, -30.0, -25.0))
SITE = (10.0, 20.0, 22.0)


def a_scan(source: str = "mha", seed: int = 0) -> Volume:
    hu = np.random.default_rng(seed).normal(-700, 100, SHAPE).round().astype(np.int16)
    return Volume(hu, GRID, Provenance(Source(source)))


def forged(scan: Volume) -> Volume:
    hu = scan.hu.copy()
    hu[8:12, 16:24, 18:26] = 40
    return scan.changed(hu, Step("inject"), Mark("forged", "for a test"))


def pixels(png: bytes) -> np.ndarray:
    return matplotlib.image.imread(io.BytesIO(png), format="png")[..., :3]


def stamps(png: bytes) -> int:
    """How many panels carry a stamp: patches of solid amber, much larger than ticks and boxes."""
    image = pixels(png)
    amber = np.all(np.abs(image - (1.0, 0.82, 0.25)) < 0.12, axis=-1)
    labels, _ = ndimage.label(ndimage.binary_closing(amber, np.ones((3, 15))))
    return sum(
        1 for box in ndimage.find_objects(labels) if box[0].stop - box[0].start > 8 and box[1].stop - box[1].start > 40
    )


def grids() -> list[Geometry]:
    """The same 60 x 48 x 54 mm of a patient, stored in all 24 right-handed orders of its axes."""
    found = []
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1, -1), repeat=3):
            axes = np.zeros((3, 3))
            axes[range(3), order] = signs
            if np.dot(axes[0], np.cross(axes[2], axes[1])) > 0:
                shape = tuple((27, 24, 30)[lps] for lps in order)
                origin = -axes.T @ (np.asarray(shape) - 1.0)  # the centre of the grid lies at (0, 0, 0)
                rows = tuple(as_float_triple(row) for row in axes)
                found.append(Geometry(shape, (2.0, 2.0, 2.0), as_float_triple(origin), rows))
    return found


@pytest.mark.parametrize("grid", grids(), ids=lambda grid: str(np.asarray(grid.axes_lps).astype(int).tolist()))
def test_left_is_right_and_the_head_is_up_however_the_array_is_stored(grid: Geometry) -> None:
    index = np.stack(np.meshgrid(*map(np.arange, grid.shape_zyx), indexing="ij"), axis=-1)
    left, back, head = np.moveaxis(index_to_lps_mm(grid, index), -1, 0)
    view = View.of(grid)
    field = Field(view, as_float_triple(lps_mm_to_index(grid, (0.0, 0.0, 0.0))), 30.0)
    for plane, to_right, downwards in zip(PLANES, (left, left, back), ((back, 1), (head, -1), (head, -1)), strict=True):
        across, extent = cut(to_right, field, plane, 0.0)
        along, _ = cut(downwards[0], field, plane, 0.0)
        assert (np.diff(across, axis=1) > 0).all() and (np.diff(across, axis=0) == 0).all()
        assert (np.diff(along, axis=0) * downwards[1] > 0).all()
        right_edge, left_edge = extent[1] - 1.0, extent[0] + 1.0
        np.testing.assert_allclose((across[0, 0], across[0, -1]), (left_edge, right_edge), atol=1e-6)
        sign = downwards[1]
        np.testing.assert_allclose((along[0, 0] * sign, along[-1, 0] * sign), (extent[3] + 1, extent[2] - 1), atol=1e-6)


def test_what_lies_beyond_the_grid_is_air_and_what_lies_within_keeps_its_place() -> None:
    field = Field(View.of(GRID), (0.0, 0.0, 0.0), 30.0)
    values = np.arange(np.prod(SHAPE)).reshape(SHAPE)
    image, extent = cut(values, field, PLANES[0], -1.0)
    rows = 10  # 15 mm at 1.5 mm
    assert (image[:rows] == -1).all() and (image[:, :rows] == -1).all()
    assert np.array_equal(image[rows:, rows:], values[0, : rows + 1, : rows + 1])
    assert extent == pytest.approx((-15.75, 15.75, 15.75, -15.75))


def test_the_same_input_gives_the_same_bytes_and_no_software_name() -> None:
    scan = a_scan()
    one, two = (figures.site_figure(scan, forged(scan), center_zyx=SITE) for _ in range(2))
    assert one == two and one.startswith(b"\x89PNG") and b"atplotlib" not in one


def test_every_panel_with_forged_voxels_is_stamped() -> None:
    scan = a_scan()
    map_ = np.zeros(SHAPE, np.float32)
    assert stamps(figures.site_figure(scan, center_zyx=SITE)) == 0
    assert stamps(figures.site_figure(forged(scan), center_zyx=SITE)) == 3
    assert stamps(figures.site_figure(scan, forged(scan), map_, center_zyx=SITE)) == 9, "all but the original"


def test_a_phantom_is_stamped_by_its_mark_and_by_its_source() -> None:
    by_source = a_scan("phantom")
    by_mark = replace(by_source, provenance=Provenance(Source("mha"), (), (Mark("phantom", "made"),)))
    for scan in (by_source, by_mark):
        assert stamps(figures.site_figure(scan, center_zyx=SITE)) == 3


def test_protection_pictures_stamp_the_two_forgeries_and_their_differences() -> None:
    scan = a_scan()
    protected = scan.changed(scan.hu + np.int16(3), Step("noise"), Mark("protected", "for a test"))
    png = figures.protection_figure(scan, protected, forged(scan), forged(protected), SITE)
    assert stamps(png) == 4
    wider = figures.protection_figure(scan, protected, forged(scan), forged(protected), SITE, ("median", protected))
    assert stamps(wider) == 4 and pixels(wider).shape[1] > pixels(png).shape[1]


def test_the_map_is_drawn_where_it_is_hot() -> None:
    scan = a_scan()
    map_ = np.zeros(SHAPE, np.float32)
    cold = pixels(figures.site_figure(scan, map_=map_, center_zyx=SITE))
    map_[8:12, 16:24, 18:26] = 1.0
    hot = pixels(figures.site_figure(scan, map_=map_, center_zyx=SITE))
    changed = np.abs(hot - cold).max(axis=-1) > 0.2
    assert changed.any() and not changed[:, : changed.shape[1] // 2].any(), "the scan's own column stays bare"
    red = hot[..., 0] - hot[..., 2] > 0.5
    assert (red & changed).sum() > 0.5 * changed.sum()


def test_an_overview_shows_the_regions_slice_first() -> None:
    map_ = np.zeros(SHAPE, np.float32)
    map_[4] = 0.7
    map_[15, 10:14, 10:14] = 0.95
    center = (15.0, 11.5, 11.5)
    region = Region(center, as_float_triple(index_to_lps_mm(GRID, center)), (2.5, 6.0, 6.0), 0.95)
    verdict = Verdict("unet", "m", 0.9, 0.8, map_, GRID, (region,))
    assert figures._worst_slices(View.of(GRID), verdict, 3)[:2] == [15, 4]
    boxed = figures.overview_figure(a_scan(), verdict)
    bare = figures.overview_figure(a_scan(), replace(verdict, regions=()))
    assert pixels(boxed).shape == pixels(bare).shape and boxed != bare


def test_pictures_of_different_grids_are_refused() -> None:
    scan = a_scan()
    moved = replace(scan, geometry=GRID.crop((0, 0, 5), SHAPE))
    with pytest.raises(GeometryError, match="different grids"):
        figures.site_figure(scan, moved, center_zyx=SITE)
    with pytest.raises(GeometryError, match="outside the grid"):
        figures.site_figure(scan, center_zyx=(30.0, 0.0, 0.0))
    with pytest.raises(GeometryError, match="map of shape"):
        figures.site_figure(scan, map_=np.zeros((2, 2, 2), np.float32), center_zyx=SITE)
    verdict = Verdict("unet", "m", 0.9, 0.8, np.zeros(SHAPE, np.float32), moved.geometry)
    with pytest.raises(GeometryError, match="another grid"):
        figures.overview_figure(scan, verdict)
