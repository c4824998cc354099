"""What a user sees of a verdict: where the map lies, what the score is, which regions carry it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ctguard.core.errors import ModelError
from ctguard.core.geometry import as_int_triple, index_to_lps_mm
from ctguard.core.provenance import Step
from ctguard.core.threshold import Threshold
from ctguard.core.volume import Volume
from ctguard.detect.infer import BLOCK, OVERLAP, detect_volume
from tests.detect.scans import BrightSpot, thorax

NAMES = {"name": "bright", "model_id": "none", "threshold": Threshold(0.6)}


def with_spot(
    volume: Volume, center_zyx: tuple[int, int, int], hu: int = 900, half: int = 2, half_z: int = 2
) -> Volume:
    voxels = volume.hu.copy()
    z, y, x = center_zyx
    voxels[max(z - half_z, 0) : z + half_z + 1, y - half : y + half + 1, x - half : x + half + 1] = hu
    return volume.changed(voxels, Step("test"))


def test_a_spot_is_found_where_it_lies() -> None:
    volume = with_spot(thorax((8, 96, 112)), (3, 50, 34))
    verdict = detect_volume(volume, BrightSpot(), **NAMES)
    assert verdict.tampered and verdict.words == "evidence of tampering in 1 region"
    (region,) = verdict.regions
    assert as_int_triple(region.center_zyx) == (3, 50, 34)
    np.testing.assert_allclose(region.center_lps_mm, index_to_lps_mm(volume.geometry, (3, 50, 34)), atol=1e-6)
    np.testing.assert_allclose(region.extent_mm, (12.5, 15.0, 15.0))
    assert region.score == verdict.score
    assert verdict.geometry == volume.geometry and verdict.map.shape == volume.hu.shape
    assert verdict.map.dtype == np.float32 and verdict.map.min() >= 0 and verdict.map.max() <= 1


def test_a_clean_scan_has_no_regions_and_is_not_called_authentic() -> None:
    verdict = detect_volume(thorax(), BrightSpot(), **NAMES)
    assert not verdict.tampered and verdict.regions == ()
    assert verdict.words == "no evidence of tampering found"


def test_the_score_is_the_mean_logit_of_a_cube_of_12_mm() -> None:
    volume = with_spot(with_spot(thorax((12, 96, 112)), (2, 50, 34), hu=520), (9, 50, 34), hu=540)
    verdict = detect_volume(volume, BrightSpot(), **NAMES, batch=2)
    assert verdict.score == pytest.approx(1 / (1 + np.exp(-40 / 50)), abs=1e-4)


def test_what_is_smaller_than_any_forgery_carries_no_verdict() -> None:
    """A single hot slice, or a speck, weighs little beside the cold voxels of the cube around it."""
    for small in ({"half_z": 0}, {"half": 0}):
        volume = with_spot(thorax(), (2, 50, 34), **small)
        verdict = detect_volume(volume, BrightSpot(), **NAMES)
        assert not verdict.tampered and verdict.regions == () and verdict.map.max() < 0.01


def test_the_batch_size_changes_nothing() -> None:
    volume = with_spot(thorax(), (2, 40, 40))
    one, many = (detect_volume(volume, BrightSpot(), **NAMES, batch=b) for b in (1, 8))
    assert one.score == many.score and np.array_equal(one.map, many.map)


def test_air_around_the_patient_is_not_looked_at() -> None:
    detector = BrightSpot()
    volume = thorax((3, 160, 192), (2.5, 2.0, 2.0))
    wide = np.full((3, 260, 300), -1000, np.int16)
    wide[:, 40:200, 60:252] = volume.hu
    scan = Volume(wide, volume.geometry.crop((0, -40, -60), wide.shape), volume.provenance)
    detect_volume(scan, detector, **NAMES)
    assert detector.shapes[0][-2] < 200 and detector.shapes[0][-1] < 220


def test_a_detector_of_lungs_does_not_look_elsewhere() -> None:
    scan = with_spot(with_spot(thorax(), (2, 50, 34)), (2, 50, 12))
    assert len(detect_volume(scan, BrightSpot(), **NAMES).regions) == 2
    detector = BrightSpot()
    detector.area = "lungs"
    neck = np.concatenate((scan.hu, np.where(scan.hu < -500, 40, scan.hu)))
    longer = Volume(neck, scan.geometry.crop((0, 0, 0), neck.shape), scan.provenance)
    verdict = detect_volume(longer, detector, **NAMES)
    assert sum(shape[0] for shape in detector.shapes) <= 6, "slices beyond the lungs are not looked at"
    assert (verdict.map[6:] == 0).all() and verdict.regions


def test_fast_looks_at_fewer_slices_and_fills_the_map() -> None:
    scan = with_spot(thorax((12, 96, 112), (1.25, 3.0, 3.0)), (6, 50, 34), half_z=5)
    whole, fast = BrightSpot(), BrightSpot()
    slow_verdict = detect_volume(scan, whole, **NAMES)
    verdict = detect_volume(scan, fast, **NAMES, fast=True)
    assert sum(shape[0] for shape in fast.shapes) == 4 and sum(shape[0] for shape in whole.shapes) == 12
    assert verdict.tampered and slow_verdict.tampered
    assert (verdict.map[:, 50, 34] > 0).all(), "slices that were left out take their neighbour's map"
    assert len(verdict.regions) == 1 and abs(verdict.regions[0].center_zyx[0] - 6) <= 1


@pytest.mark.parametrize("thickness_mm", [2.5, 5.0])
def test_fast_never_leaves_a_gap_of_more_than_5_mm(thickness_mm: float) -> None:
    detector = BrightSpot()
    detect_volume(thorax((8, 96, 112), (thickness_mm, 3.0, 3.0)), detector, **NAMES, fast=True)
    assert sum(shape[0] for shape in detector.shapes) == {2.5: 4, 5.0: 8}[thickness_mm]


def test_a_block_without_body_is_looked_at_whole_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    scan = thorax((2, 24, 20))
    air = Volume(np.full((2, 24, 20), -1000, np.int16), scan.geometry, scan.provenance)
    detector = BrightSpot()
    detector.area = "lungs"
    verdict = detect_volume(air, detector, **NAMES, fast=True)
    assert detector.shapes[0][-2:] == (24, 20) and verdict.map.shape == (2, 24, 20)
    assert "no body found" in caplog.text and "no lungs found" in caplog.text


def test_a_single_slice_is_a_scan() -> None:
    verdict = detect_volume(with_spot(thorax((1, 96, 112)), (0, 50, 34)), BrightSpot(), **NAMES)
    assert verdict.tampered and verdict.map.shape == (1, 96, 112)


def test_a_verdict_points_somewhere_even_where_the_region_is_small() -> None:
    """The mean of the cube may reach a low threshold where hardly a voxel is above it."""
    volume = with_spot(thorax(spacing_zyx_mm=(2.5, 1.0, 1.0)), (2, 50, 34), half=0)
    verdict = detect_volume(volume, BrightSpot(), **{**NAMES, "threshold": Threshold(1e-6)})
    assert verdict.tampered and len(verdict.regions) == 1


def test_damaged_weights_are_an_error_not_a_clean_verdict() -> None:
    class Broken(BrightSpot):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            score, logit = super().forward(x)
            return score * torch.nan, logit

    with pytest.raises(ModelError, match="gave no number for slices 0 to 3"):
        detect_volume(thorax(), Broken(), **NAMES)


class Depth(BrightSpot):
    """A detector of blocks that marks every voxel with the number of slices that it saw at once."""

    def __init__(self) -> None:
        super().__init__()
        self.dims = 3

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x.flatten(1).amax(dim=1), torch.full_like(x, (x.shape[2] / 100.0)).logit()


def test_a_detector_of_blocks_sees_slices_beyond_its_block_and_marks_each_slice_once() -> None:
    verdict = detect_volume(thorax((BLOCK + 10, 96, 112)), Depth(), **NAMES)
    seen = np.round(100 * verdict.map.max(axis=(1, 2))).astype(int)
    seen = seen[seen > 0]
    assert set(seen[:BLOCK]) == {BLOCK + OVERLAP} and set(seen[BLOCK:]) == {len(seen) - BLOCK + OVERLAP}


def test_the_detector_is_left_as_it_was() -> None:
    detector = torch.nn.Module.train(BrightSpot())
    detect_volume(thorax((1, 96, 112)), detector, **NAMES)
    assert detector.training
