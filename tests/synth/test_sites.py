"""Where is forged: the paper's rules hold for every scan and seed, and a site list is replayed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ctguard.cohort import m3dsynth
from ctguard.core.geometry import lps_mm_to_index
from ctguard.core.records import Case, Finding
from ctguard.core.volume import Volume
from ctguard.image.lung import lung_mask
from ctguard.synth.sites import (
    Drawn,
    SiteRule,
    draw_sites,
    entry_of,
    replay_sites,
    with_donors,
)
from tests.cohort.test_index import tables
from tests.synth.scans import LEFT, LEFT_BACK, RIGHT, at, scan

WALL = (12.0, 48.0, 12.0)
"""In soft tissue, far from lung."""


def drawn(volume: Volume, *findings: Finding, rule: SiteRule | None = None, seed: int = 0, number: int = 1) -> Drawn:
    case = Case("one", "patient", "scan.mha", findings=findings)
    return draw_sites(volume, case, rule or SiteRule(), seed=seed, number=number)


def centers(volume: Volume, *findings: Finding) -> np.ndarray:
    return np.array([lps_mm_to_index(volume.geometry, one.center_lps_mm) for one in findings])


def test_malignant_nodules_that_the_core_holds_are_removed() -> None:
    volume = scan()
    nodules = at(volume, LEFT, 14.0, 5.0), at(volume, LEFT_BACK, 14.0, 3.9), at(volume, RIGHT, 7.0, 5.0)
    sites, _ = drawn(volume, *nodules)
    removals = [site for site in sites if site.task == "remove"]
    assert len(removals) == 1 and removals[0].center_zyx == pytest.approx(LEFT, abs=1e-3)
    assert removals[0].core_mm == 16.0
    sites, skipped = drawn(volume, at(volume, LEFT, 17.5, 4.0), at(volume, RIGHT, 22.0, 5.0))
    assert [site.core_mm for site in sites if site.task == "remove"] == [20.0]
    assert [one.reason for one in skipped if one.site == "remove"] == [
        "a nodule of more than 20 mm is larger than the masked core"
    ]
    case = Case("one", "patient", "scan.mha", findings=nodules)
    sites, _ = draw_sites(volume, case, SiteRule(), mode="m3dsynth")
    assert [site.core_mm for site in sites if site.task == "remove"] == [None]


def test_any_rating_is_for_training_material() -> None:
    volume = scan()
    rule = SiteRule(min_malignancy=None)
    sites, _ = drawn(volume, at(volume, LEFT, 14.0), at(volume, RIGHT, 9.0, 1.0), rule=rule)
    assert len([site for site in sites if site.task == "remove"]) == 2


@pytest.mark.parametrize("seed", range(4))
def test_injections_lie_at_a_smaller_nodule_or_in_lung_near_it(seed: int) -> None:
    volume = scan()
    small, other = at(volume, LEFT, 6.0, 1.0), at(volume, RIGHT, 14.0, 5.0)
    sites, _ = drawn(volume, small, other, seed=seed)
    spacing = np.asarray(volume.geometry.spacing_zyx_mm)
    lung = lung_mask(volume)
    injections = [np.asarray(site.center_zyx) for site in sites if site.task == "inject"]
    assert len(injections) == 3
    assert injections[0] == pytest.approx(np.asarray(LEFT), abs=1e-3)
    for center in injections[1:]:
        assert lung[tuple(center.astype(int))]
        assert np.linalg.norm((center - LEFT) * spacing) <= 40.0
        gaps = np.abs((center - centers(volume, small, other)) * spacing).max(axis=1)
        assert (gaps >= 16 + np.array([3.0, 7.0]) - 1e-6).all()  # no nodule reaches into the cube
        assert (np.minimum(center + 0.5, np.subtract(lung.shape, center + 0.5)) * spacing >= 8.0).all()


def test_what_cannot_be_a_site_is_said() -> None:
    volume = scan()
    _, skipped = drawn(volume, at(volume, WALL, 14.0, 5.0))
    assert [one.reason for one in skipped] == ["it lies outside lung"]
    beside = (LEFT[0], LEFT[1] + 4.0, LEFT[2])  # 12 mm
    sites, skipped = drawn(volume, at(volume, LEFT, 14.0, 5.0), at(volume, beside, 6.0, 1.0))
    assert not [site for site in sites if site.task == "remove"]
    assert [one.reason for one in skipped] == ["another nodule lies in the cube"] * 2
    _, skipped = drawn(volume, at(volume, (1.0, *LEFT[1:]), 14.0, 5.0), rule=SiteRule(injections=0))
    assert [one.reason for one in skipped] == ["the core leaves the scan"]
    _, skipped = drawn(volume)
    assert [one.reason for one in skipped] == ["no nodule in it is known"]


def test_a_scan_without_known_nodules_gets_plain_lung_where_asked_for() -> None:
    volume = scan()
    sites, _ = drawn(volume, rule=SiteRule(plain_sites=3))
    assert sorted(site.task for site in sites) == ["inject"] * 3 + ["remove"] * 3
    lung = lung_mask(volume)
    assert all(lung[tuple(int(v) for v in site.center_zyx)] for site in sites)
    assert len({site.center_zyx for site in sites}) == 6


def test_anywhere_in_lung_keeps_away_from_nodules() -> None:
    volume = scan()
    sites, _ = drawn(volume, at(volume, LEFT, 6.0, 1.0), rule=SiteRule(near_mm=None, injections=5))
    spacing = np.asarray(volume.geometry.spacing_zyx_mm)
    assert len(sites) == 5
    assert all(np.abs(np.subtract(site.center_zyx, LEFT) * spacing).max() >= 19.0 for site in sites)


def test_a_site_and_its_seed_depend_on_the_scan_alone() -> None:
    volume = scan()
    nodules = at(volume, LEFT, 14.0, 5.0), at(volume, RIGHT, 6.0, 1.0)
    first, again = drawn(volume, *nodules, number=1)[0], drawn(volume, *nodules, number=7)[0]
    assert [replace(site, site_id="") for site in first] == [replace(site, site_id="") for site in again]
    assert [site.site_id for site in again] == [f"{s.site_id[:3]}_700{k}" for k, s in enumerate(first, start=1)]
    other = drawn(volume, *nodules, seed=1)[0]
    assert {site.seed for site in first}.isdisjoint(site.seed for site in other)
    assert len({site.seed for site in first}) == len(first)


def test_copy_move_takes_nodules_to_inject_and_plain_lung_to_remove() -> None:
    volume = scan()
    case = Case("one", "p", "x", findings=(at(volume, LEFT, 14.0, 5.0), at(volume, RIGHT, 6.0, 1.0)))
    sites, _ = draw_sites(volume, case, SiteRule(injections=1))
    by_task = {site.task: site for site in with_donors(sites, volume, case, 0)}
    assert by_task["inject"].donor_zyx == pytest.approx(LEFT, abs=1e-3)
    donor = by_task["remove"].donor_zyx
    assert donor is not None and lung_mask(volume)[tuple(int(v) for v in donor)]
    assert np.abs(np.subtract(donor, LEFT) * volume.geometry.spacing_zyx_mm).max() >= 32.0


def test_a_site_list_is_replayed_for_its_series_and_generators(tmp_path: Path) -> None:
    folder = tables(tmp_path / "t")  # rem_1 at slice 4 from the head by cycle and pix2pix, inj_1 at 9 by diffusion
    volume = scan()
    case = Case("P1_.2.3", "P1", "x", series_uid="1.2.3")
    sites, skipped = replay_sites(folder, volume, case)
    assert skipped == []
    assert {site.site_id: (site.task, site.center_zyx) for site in sites} == {
        "rem_1": ("remove", (24.0 - 4.0, 15.0, 20.0)),
        "inj_1": ("inject", (24.0 - 9.0, 30.0, 10.0)),
    }
    (rem,) = (site for site in sites if site.site_id == "rem_1")
    names = ("pix2pix", "cyclegan", "diffusion", "identity", "copy-move")
    assert [name for name in names if rem.forged_by(name)] == ["pix2pix", "cyclegan", "identity", "copy-move"]
    assert replay_sites(folder, volume, replace(case, series_uid="1.2.4"))[1][0].reason == (
        "the site tables do not have this series"
    )
    short = scan(shape_zyx=(6, 96, 112))
    sites, skipped = replay_sites(folder, short, case)
    assert sites == [] and [one.site for one in skipped] == ["rem_1", "inj_1"]


def test_a_volume_file_without_a_known_patient_is_found_by_uid_and_pixels(tmp_path: Path) -> None:
    known = m3dsynth.read_tables(tables(tmp_path / "t"))
    volume = scan()
    case = Case("1.2.3", "1.2.3", "1.2.3.mhd", "LUNA16", "1.2.3")
    assert entry_of(known, case, volume.geometry) is None  # 3 mm pixels, the table has 0.5 mm
    fine = replace(volume.geometry, spacing_zyx_mm=(2.0, 0.5, 0.5))
    found = entry_of(known, case, fine)
    assert found is not None and found.patient == "P1"
    assert entry_of(known, replace(case, patient="P2"), fine) is None
