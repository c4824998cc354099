"""Training blocks of the scorer: labels, location, batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ctguard import io
from ctguard.cohort.nodules import (
    CASE,
    SLACK,
    NoduleBatches,
    NoduleBlocks,
    joined,
    judged_batches,
    label_of,
    location_of,
    lung_box_lps_mm,
    read_blocks,
)
from ctguard.core.errors import DataError
from ctguard.core.geometry import as_float_triple, index_to_lps_mm
from ctguard.core.records import Case, Finding
from ctguard.phantom.blocks import write_blocks
from tests.detect.scans import thorax

SIDE = 16


def bank(count: int = 12) -> NoduleBlocks:
    """Blocks whose middle voxel is bright: a third malignant, a third benign, a third without a nodule."""
    side = SIDE + SLACK + 1
    hu = np.full((count, side, side, side), -800, np.float16)
    hu[:, side // 2, side // 2, side // 2] = 2000
    kind = np.arange(count) % 3
    location = np.tile(np.array([[0.1, 0.2, 0.3], [0.01, 0.02, 0.03]], np.float32), (count, 1, 1))
    return NoduleBlocks(hu, np.where(kind < 2, 9.0, 0.0).astype(np.float32), kind == 0, location, kind.astype(str))


@pytest.mark.parametrize(
    ("rating", "label"), [(5, True), (4, True), (3.9, None), (2.1, None), (2, False), (None, None)]
)
def test_ratings_in_between_have_no_label(rating: float | None, label: bool | None) -> None:
    assert label_of(rating) is label


def test_location_is_minus_one_to_one_in_the_box_of_the_lungs() -> None:
    box = ((-100.0, -50.0, 0.0), (100.0, 50.0, 200.0))
    assert location_of((0.0, 0.0, 100.0), box)[0].tolist() == [0.0, 0.0, 0.0]
    assert location_of((100.0, -50.0, 0.0), box)[0].tolist() == [-1.0, -1.0, 1.0]  # z, y, x
    assert location_of((0.0, 0.0, 0.0), box)[1].tolist() == pytest.approx([0.01, 0.02, 0.01])
    assert not location_of((0.0, 0.0, 0.0), None).any()


def test_the_site_follows_every_shift_flip_and_turn() -> None:
    batches = NoduleBatches(bank(), 20, seed=3, side=SIDE)
    for step in range(3):
        batch = batches(step)
        for hu, site in zip(batch["hu"], batch["site_mm"], strict=True):
            z, y, x = (round(float(v)) for v in site)
            around = hu[0, max(z - 1, 0) : z + 2, max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2]
            assert float(around.max()) == float(hu.max())


def test_a_batch_is_cases_of_five_half_of_them_malignant_and_repeats_itself() -> None:
    batches = NoduleBatches(bank(), 20, seed=3, side=SIDE)
    sick = []
    for step in range(10):
        batch = batches(step)
        assert batch["hu"].shape == (20, 1, SIDE, SIDE, SIDE) and batch["location"].shape == (20, 2, 3)
        for case in range(4):
            inside = batch["case"] == case
            assert int(inside.sum()) == CASE and int((batch["diameter_mm"][inside] > 0).sum()) == 3
            sick.append(bool(batch["malignant"][inside].any()))
    assert 0.25 < np.mean(sick) < 0.75
    assert batches(4)["hu"].equal(batches(4)["hu"]) and not batches(4)["hu"].equal(batches(5)["hu"])


def test_without_augmentation_a_block_is_centred_and_untouched() -> None:
    batch = NoduleBatches(bank(), 5, seed=0, side=SIDE, augment=False)(0)
    assert set(batch["hu"].unique().tolist()) == {-800.0, 2000.0}
    assert batch["location"][0, 1].tolist() == pytest.approx([0.08, 0.16, 0.24])


def test_judged_blocks_are_all_nodules_in_order_once() -> None:
    batches = judged_batches(bank(12), SIDE, batch=3)
    assert [len(batch["hu"]) for batch in batches] == [3, 3, 2]
    assert all(batch["hu"].shape[1:] == (1, SIDE, SIDE, SIDE) for batch in batches)


def test_blocks_survive_the_disk_and_joining(tmp_path: Path) -> None:
    one = bank(6)
    one.save(tmp_path / "a.npz")
    back = joined([NoduleBlocks.load(tmp_path / "a.npz"), one])
    assert len(back.hu) == 12 and np.array_equal(back.hu[:6], one.hu)
    assert "4 malignant and 4 benign" in back.summary()


def test_whole_scans_give_labelled_nodules_and_healthy_lung(tmp_path: Path) -> None:
    volume = thorax((24, 96, 112), (2.5, 2.0, 2.0))
    io.write(volume, tmp_path / "scan.mha")
    places = [as_float_triple(index_to_lps_mm(volume.geometry, p)) for p in ((12, 48, 77), (12, 48, 35), (12, 30, 35))]
    findings = tuple(Finding(p, 9.0, m) for p, m in zip(places, (5.0, 3.0, 1.0), strict=True))
    case = Case("scan", "p", "scan.mha", findings=findings)
    blocks = read_blocks(tmp_path / "index.csv", [case], 20, lung_sites=2, seed=0)
    assert blocks.malignant.tolist() == [True, False, False, False]  # a rating of 3 is left out
    assert blocks.diameter_mm.tolist() == [9.0, 9.0, 0.0, 0.0]
    assert np.abs(blocks.location[:, 0]).max() <= 1 and (blocks.location[:, 1] > 0).all()
    unrated = Case("scan", "p", "scan.mha", findings=(Finding(places[0], 9.0),))
    with pytest.raises(DataError, match="no nodule has a label"):
        read_blocks(tmp_path / "index.csv", [unrated], 20, lung_sites=2, seed=0)


def test_phantom_blocks_name_the_lungs_that_they_come_from_and_repeat(tmp_path: Path) -> None:
    index = write_blocks(tmp_path / "a", 1, first_seed=900_001)
    again = write_blocks(tmp_path / "b", 1, first_seed=900_001)
    assert index.read_bytes() == again.read_bytes()
    from ctguard.io.cases import case_path, read_cases

    cases = read_cases(index)
    first = io.read(case_path(index, cases[0]))
    assert first.provenance.has_mark("phantom")
    assert np.array_equal(first.hu, io.read(case_path(again, cases[0])).hu)
    box = lung_box_lps_mm(first)
    assert box is not None and all(low < high for low, high in zip(*box, strict=True))
    nodules = [case for case in cases if case.findings]
    assert len(nodules) >= 4 and len(cases) > len(nodules)
    with_one = io.read(case_path(index, nodules[0]))
    middle = tuple(n // 2 for n in with_one.hu.shape)
    near = tuple(slice(m - 1, m + 2) for m in middle)
    assert float(with_one.hu[near].mean()) > -700  # a nodule, ground glass at least, lies in the middle
    blocks = read_blocks(index, cases, 24, lung_sites=4, seed=0)
    assert len(blocks.hu) == len(cases)  # no other places are drawn in a block
