"""Training material: cubes and slices show what they claim, and depend on the step alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ctguard import io
from ctguard.cohort.patches import CubeBatches, CubeRule, case_cubes, cut_cube, draw_lung_sites
from ctguard.cohort.slices import SliceBatches, read_slices, read_untouched
from ctguard.core.errors import DataError
from ctguard.core.geometry import Geometry, as_float_triple, index_to_lps_mm
from ctguard.core.marks import Mark
from ctguard.core.provenance import Provenance, Source
from ctguard.core.records import Case, Edit, Finding
from ctguard.core.volume import Volume
from ctguard.image.lung import lung_mask
from ctguard.io.cases import write_cases
from ctguard.io.forgeries import Forgery, write_forgery, write_manifest
from tests.detect.scans import thorax


def ball(spacing: tuple[float, float, float] = (2.0, 0.8, 0.8)) -> tuple[Volume, Case]:
    """A 12 mm ball of 40 HU in -850, and its finding."""
    shape = (40, 90, 90)
    geometry = Geometry(shape, spacing, (10.0, -20.0, 30.0))
    center = (20.0, 44.0, 46.0)
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), -1)
    distance = np.linalg.norm((grid - center) * np.asarray(spacing), axis=-1)
    hu = np.where(distance <= 6, 40, -850).astype(np.int16)
    finding = Finding(as_float_triple(index_to_lps_mm(geometry, center)), 12.0, 5.0)
    marks = (Mark("phantom", "test"),)
    return Volume(hu, geometry, Provenance(Source("phantom"), (), marks)), Case("a", "p", "a.mha", findings=(finding,))


def test_a_cube_is_centred_on_its_nodule_at_1_mm() -> None:
    volume, case = ball()
    (cube,) = case_cubes(volume, case, CubeRule(10, 20), np.random.default_rng(0))
    assert cube.shape == (40, 40, 40)
    dense = np.argwhere(cube > -400)
    assert np.abs(dense.mean(axis=0) - 19.5).max() < 0.6
    assert (6 * len(dense) / np.pi) ** (1 / 3) == pytest.approx(12.0, abs=0.8)


@pytest.mark.parametrize(
    ("rule", "count"),
    [
        (CubeRule(13, 20), 0),
        (CubeRule(10, 20, malignant=True), 1),
        (CubeRule(10, 20, malignant=False), 0),
        (CubeRule(), 0),
    ],
)
def test_rules_choose_by_size_and_label(rule: CubeRule, count: int) -> None:
    volume, case = ball()
    assert len(case_cubes(volume, case, rule, np.random.default_rng(0))) == count


def test_nodules_of_ground_glass_can_be_left_out() -> None:
    volume, case = ball()
    glassy = replace(volume, hu=np.where(volume.hu > -400, -600, volume.hu).astype(np.int16))
    rule = CubeRule(10, 20, dense_mm=11)
    assert [len(case_cubes(one, case, rule, np.random.default_rng(0))) for one in (volume, glassy)] == [1, 0]
    assert len(case_cubes(volume, case, replace(rule, dense_mm=13), np.random.default_rng(0))) == 0


def test_cubes_at_the_border_repeat_it_instead_of_inventing_air() -> None:
    volume, _ = ball()
    cube = cut_cube(volume, (1.0, 2.0, 2.0))
    assert cube.min() == pytest.approx(-850, abs=1) and cube.max() == pytest.approx(-850, abs=1)


def test_lung_sites_lie_in_lung_and_keep_their_distance() -> None:
    volume = thorax()
    mask = lung_mask(volume)
    away = Finding(as_float_triple(index_to_lps_mm(volume.geometry, np.argwhere(mask).mean(axis=0))), 10.0)
    sites = draw_lung_sites(volume, [away], 30, 20.0, np.random.default_rng(0))
    assert sites
    for site in sites:
        assert mask[tuple(int(v) for v in site)]
        gap = index_to_lps_mm(volume.geometry, site) - np.asarray(away.center_lps_mm)
        assert np.linalg.norm(gap) >= 20.0


def test_cube_batches_depend_on_the_step_alone_and_mask_16_to_20() -> None:
    cubes = np.random.default_rng(0).normal(-800, 50, (4, 40, 40, 40)).astype(np.float32)
    batches = CubeBatches(((cubes, 1.0),), batch=6, seed=3)
    first, again, other = batches(5), batches(5), batches(6)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["hu"], other["hu"])
    sides = {round(float(mask.sum()) ** (1 / 3)) for step in range(12) for mask in batches(step)["mask"]}
    assert sides == {16, 18, 20}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One phantom scan with one forgery: 30 x 30 voxels of +500 HU on slices 10 to 13."""
    whole = thorax((24, 96, 112))
    volume = Volume(
        whole.hu.astype(np.int16), whole.geometry, Provenance(Source("phantom"), (), (Mark("phantom", ""),))
    )
    io.write(volume, tmp_path / "scan.mha")
    write_cases([Case("scan", "p", "scan.mha", "x", "", "train")], tmp_path / "index.csv")
    box = (slice(10, 14), slice(30, 60), slice(40, 70))
    mask = np.ones((4, 30, 30), dtype=bool)
    block = (volume.hu[box] + 500).astype(np.int16)
    edit = Edit("inject", "pix2pix", "clean", 0, (12.0, 45.0, 55.0), (10, 30, 40), mask, mask, 0, {})
    write_forgery(Forgery("scan", edit, block), tmp_path / "set")
    write_manifest([{"forgery": Forgery("scan", edit, block).name}], "../index.csv", tmp_path / "set")
    return tmp_path / "set"


def test_slice_batches_show_half_forged_and_the_same_place_pristine(folder: Path) -> None:
    scans = read_slices(folder, "train", ["pix2pix"])
    batch = SliceBatches(scans, batch=8, seed=0, patch=48, augment=False)(0)
    assert batch["x"].shape == batch["mask"].shape == (8, 1, 48, 48)
    assert batch["label"][[2, 3, 6, 7]].sum() == 0 and batch["label"][[0, 1, 4, 5]].sum() >= 3
    assert torch.equal(batch["label"], (batch["mask"].amax(dim=(1, 2, 3)) > 0).float())
    assert not (batch["mask"] * batch["ignore"]).any()


def test_untouched_nodules_are_read_from_findings_and_shown_as_pristine(folder: Path) -> None:
    index = folder.parent / "index.csv"
    volume = io.read(folder.parent / "scan.mha")
    center = as_float_triple(index_to_lps_mm(volume.geometry, (5, 40, 44)))
    write_cases([Case("scan", "p", "scan.mha", "x", "", "train", (Finding(center, 9.0),))], index)
    nodules = read_untouched(index, "train")
    assert [nodule.center_zyx for nodule in nodules] == [(5, 40, 44)]
    places = {nodules[0].place(np.random.default_rng(seed)) for seed in range(40)}
    reach = nodules[0].reach_z
    assert {place[0] for place in places} == set(range(5 - reach, 5 + reach + 1)) and reach > 0
    batch = SliceBatches(read_slices(folder, "train", ["pix2pix"]), 8, 0, 48, untouched=nodules)(0)
    assert not batch["label"][3::4].any() and not batch["mask"][3::4].any()
    with pytest.raises(DataError, match="valid"):
        read_untouched(index, "valid")


def test_slices_are_shown_sealed_and_plain(folder: Path) -> None:
    plain = read_slices(folder, "train", ["pix2pix"])
    sealed = read_slices(folder, "train", ["pix2pix"], lambda volume, number: np.full(volume.hu.shape, 3, np.int8))
    assert plain[0].seal is None and sealed[0].seal is not None
    made = SliceBatches(sealed, batch=8, seed=0, patch=48)
    pristine = torch.cat([batch["x"][batch["label"] == 0] for batch in map(made, range(4))])
    shown = {float(x) for x in np.unique(plain[0].hu)}
    higher = [bool(set((x[x > -1024] - 3).unique().tolist()) <= shown) for x in pristine]
    as_it_is = [bool(set(x[x > -1024].unique().tolist()) <= shown) for x in pristine]
    assert any(higher) and any(as_it_is)


def test_a_split_or_generator_without_forgeries_is_an_error(folder: Path) -> None:
    with pytest.raises(DataError, match="valid"):
        read_slices(folder, "valid", ["pix2pix"])
    with pytest.raises(DataError, match="cyclegan"):
        read_slices(folder, "train", ["cyclegan"])
