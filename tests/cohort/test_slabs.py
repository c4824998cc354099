"""Slabs for 3-D detectors: labels that are true, places that tell nothing, the same step the same bytes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from ctguard.cohort.slabs import SHAPES, SlabBatches
from ctguard.cohort.slices import ForgedScan, Untouched
from ctguard.core.records import Edit
from ctguard.io.forgeries import Forgery

MARK = 500.0


def stand_in(
    block: np.ndarray, donor: np.ndarray, spacing: tuple[float, float, float], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    changed = np.zeros(block.shape, bool)
    changed[tuple(slice(n // 4, -(n // 4)) for n in block.shape)] = True
    return np.where(changed, MARK, block).astype(np.float32), changed


@pytest.fixture(scope="module")
def scan() -> ForgedScan:
    rng = np.random.default_rng(0)
    hu = np.rint(-850 + 30 * rng.standard_normal((30, 120, 140))).astype(np.int16)
    mask = np.ones((8, 20, 20), bool)
    edit = Edit("inject", "pix2pix", "clean", 0, (14.0, 60.0, 60.0), (10, 50, 50), mask, mask, 0, {})
    forgery = Forgery("one", edit, np.full(mask.shape, MARK, np.int16))
    return ForgedScan(hu, (1.5, 0.8, 0.8), (forgery,), (slice(4, 26), slice(30, 90), slice(30, 110)))


def batches(scan: ForgedScan, **changed: object) -> SlabBatches:
    return SlabBatches([scan], 8, 5, stand_in, 16.0, **{"benign": 0.0, **changed})  # type: ignore[arg-type]


def test_masks_cover_what_was_forged_and_nothing_else(scan: ForgedScan) -> None:
    made = batches(scan)
    for step in range(6):
        batch = made(step)
        assert torch.equal(batch["x"] == MARK, batch["mask"] > 0)
        assert torch.equal(batch["label"] > 0, ((batch["mask"] > 0) & (batch["ignore"] == 0)).flatten(1).any(1))
        assert batch["label"][2::4].sum() == 0 and batch["label"][3::4].sum() == 0
        assert batch["label"][0::4].all()


def test_without_stand_ins_only_forgeries_of_the_data_set_are_shown(scan: ForgedScan) -> None:
    made = replace(batches(scan, shapes=((8, 64),)), stand_in=None)
    size = {float(made(step)["mask"][number].sum()) for step in range(4) for number in (0, 1, 4, 5)}
    assert size <= {float(n * 20 * 20) for n in range(1, 9)}  # of the one forgery, whole in the plane
    assert not made(0)["mask"][2::4].any() and not made(0)["mask"][3::4].any()


def test_depth_goes_down_to_a_single_slice(scan: ForgedScan) -> None:
    made = batches(scan)
    seen = {tuple(made(step)["x"].shape[2:4]) for step in range(24)}
    assert seen == set(SHAPES)


def test_what_lies_outside_of_the_scan_is_ignored(scan: ForgedScan) -> None:
    batch = batches(scan, shapes=((12, 160),))(0)
    outside = batch["ignore"] > 0
    assert outside.any() and not (batch["mask"][outside] > 0).all()
    rows = outside[:, 0].all(dim=1)  # a column outside in one row is so in all rows
    assert rows.any()


def test_outside_of_a_block_its_noise_goes_on(scan: ForgedScan) -> None:
    """A repeated border would have no noise between its pixels, and the scan's level would seem lower than it is."""
    batch = batches(scan, shapes=((4, 160),))(0)
    x, outside = batch["x"][3, 0, 0], batch["ignore"][3, 0, 0] > 0
    assert outside.any()
    assert float(x[outside].std()) == pytest.approx(30, rel=0.15)


def test_untouched_nodules_take_half_of_the_places_in_lung(scan: ForgedScan) -> None:
    ball = np.full((20, 60, 60), -850, np.int16)
    ball[10, 28:33, 28:33] = 77
    nodule = Untouched(replace(scan, hu=ball, forgeries=()), (10, 30, 30), 0)
    made = batches(scan, shapes=((4, 48),), untouched=(nodule,))
    shown = np.array([(made(step)["x"][3::4] == 77).flatten(1).any(1).numpy() for step in range(30)])
    assert 0.3 < shown.mean() < 0.7
    assert not any(made(step)["label"][3::4].any() for step in range(30))
    assert not any((made(step)["x"][0::4] == 77).any() for step in range(10))


def test_benign_changes_reach_forged_and_pristine_slabs_alike(scan: ForgedScan) -> None:
    plain, varied = batches(scan)(3), batches(scan, benign=1.0)(3)
    assert plain["x"].shape == varied["x"].shape
    assert set(torch.unique(varied["mask"]).tolist()) <= {0.0, 1.0}
    spread = varied["x"].flatten(1).std(dim=1)
    assert not torch.allclose(spread[3::4], plain["x"].flatten(1).std(dim=1)[3::4], rtol=0.02)


def test_a_stand_in_also_forges_scans_of_another_kernel_or_dose(scan: ForgedScan) -> None:
    """What it leaves alone is noisier or sharper than the scan, and what it made is untouched by that."""
    made = batches(scan, shapes=((4, 64),), benign=0.5)
    spread = []
    for step in range(16):
        batch = made(step)
        for x, mask, ignore in zip(batch["x"][1::4], batch["mask"][1::4], batch["ignore"][1::4], strict=True):
            if mask.any() and bool((x[mask > 0] == MARK).all()):
                spread.append(float(x[(mask == 0) & (ignore == 0)].std()))
    assert max(spread) > 1.15 * 30


def test_a_step_is_a_function_of_its_number(scan: ForgedScan) -> None:
    one, two = batches(scan, benign=0.5)(11), batches(scan, benign=0.5)(11)
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert not torch.equal(one["x"], batches(scan, benign=0.5)(15)["x"])


def test_a_seal_lies_over_pristine_and_forged_slabs_alike_and_over_forged_tissue_every_second_time(
    scan: ForgedScan,
) -> None:
    sealed = replace(scan, seal=np.full(scan.hu.shape, 3, np.int8))
    with_seal, without = batches(sealed, shapes=((4, 64),)), batches(scan, shapes=((4, 64),))
    kinds = {"pristine": 0, "left": 0, "covered": 0, "none": 0}
    for step in range(12):
        batch = with_seal(step)
        for x, mask, ignore in zip(batch["x"], batch["mask"], batch["ignore"], strict=True):
            forged, around = x[mask > 0], x[(mask == 0) & (ignore == 0)]
            if not len(forged):
                kinds["pristine"] += int(float(around.mean()) > -848.5)
            elif float(around.mean()) < -848.5:
                kinds["none"] += 1
            else:
                kinds["left" if (forged == MARK).all() else "covered"] += int(set(forged.tolist()) <= {MARK, MARK + 3})
    assert min(kinds.values()) >= 3
    assert not torch.equal(with_seal(1)["x"], without(1)["x"])
