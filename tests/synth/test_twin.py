"""Twins: honest tissue of a second acquisition, pasted; nothing but the cube changes, and no trace of the chain."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ctguard import io
from ctguard.core.errors import GeometryError
from ctguard.core.geometry import FloatTriple, as_float_triple, index_to_lps_mm, lps_mm_to_index
from ctguard.core.records import Finding
from ctguard.core.volume import Volume
from ctguard.io.cases import read_cases, write_cases
from ctguard.io.forgeries import read_manifest
from ctguard.phantom.patients import CohortPlan, draw_acquisition, draw_patient, findings, render, write_cohort
from ctguard.synth.dataset import synth
from ctguard.synth.forge import Request, tamper_scan
from ctguard.synth.rule import DatasetRule
from ctguard.synth.sites import SiteRule
from ctguard.tamper.cube import exact_cube
from tests.synth.scans import scan


def phantom(seed: int, tmp_path: Path) -> tuple[Volume, Finding, FloatTriple]:
    """A small phantom as it is read again, and the nodule in the middle of it."""
    patient = draw_patient(seed)
    acquisition = draw_acquisition(patient, "small", seed)
    volume = io.read(io.write(render(patient, acquisition), tmp_path / "phantom.mha"))
    for finding in findings(patient, volume.geometry):
        center = as_float_triple(lps_mm_to_index(volume.geometry, finding.center_lps_mm))
        try:
            exact_cube(volume.geometry, center, 16.0)
        except GeometryError:
            continue
        return volume, finding, center
    raise AssertionError("no nodule of this phantom has room around it")


def forged(volume: Volume, task: str, center: FloatTriple, seed: int = 0) -> tuple[Volume, np.ndarray]:
    made, edit, _ = tamper_scan(volume, Request(task, center, "twin", seed=seed))  # type: ignore[arg-type]
    assert made.provenance.has_mark("forged") and edit.outside_cube == 0
    return made, edit.full_mask(volume.hu.shape)


def test_a_removal_shows_the_patient_without_the_nodule_and_changes_the_cube_alone(tmp_path: Path) -> None:
    volume, _, center = phantom(3, tmp_path)
    made, mask = forged(volume, "remove", center)
    assert (made.hu == volume.hu)[~mask].all() and mask.any()
    z, y, x = (round(c) for c in center)
    around = (slice(z - 1, z + 2), slice(y - 2, y + 3), slice(x - 2, x + 3))
    assert np.median(volume.hu[around]) > -350 > -550 > np.median(made.hu[around])


def test_an_injection_shows_a_nodule_of_10_to_20_mm(tmp_path: Path) -> None:
    volume, _, center = phantom(3, tmp_path)
    bare, _ = forged(volume, "remove", center)
    again = replace(bare, provenance=volume.provenance)
    for seed in range(2):
        made, _ = forged(again, "inject", center, seed)
        dense = (made.hu > -400) & (bare.hu < -400)
        diameter = 2 * (3 * dense.sum() * volume.geometry.voxel_mm3 / 4 / np.pi) ** (1 / 3)
        assert 7.0 <= diameter <= 22.0


def test_the_same_plan_gives_the_same_voxels_and_another_seed_other_noise(tmp_path: Path) -> None:
    volume, _, center = phantom(3, tmp_path)
    one, two, other = (forged(volume, "remove", center, seed)[0].hu for seed in (1, 1, 2))
    assert (one == two).all() and (one != other).any()


def test_a_scan_that_was_not_rendered_here_has_no_twin() -> None:
    volume = scan()
    with pytest.raises(GeometryError, match="no phantom of ours"):
        forged(volume, "remove", (12.0, 48.0, 77.0))


def test_nothing_can_be_removed_where_no_nodule_is(tmp_path: Path) -> None:
    volume, finding, center = phantom(3, tmp_path)
    elsewhere = as_float_triple(np.add(center, (0.0, 0.0, 9.0)))
    with pytest.raises(GeometryError, match="no nodule"):
        forged(volume, "remove", elsewhere)
    assert np.linalg.norm(np.subtract(index_to_lps_mm(volume.geometry, elsewhere), finding.center_lps_mm)) > 4


def test_a_data_set_takes_twins_of_phantoms_and_reports_other_scans(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    index = write_cohort(tmp_path / "cohort", 1, CohortPlan("bench"), first_seed=5)
    io.write(scan(), tmp_path / "cohort" / "other.mha")
    (case,) = read_cases(index)
    other = replace(case, scan_id="other", patient="other", path="other.mha", collection="ctguard-phantom")
    write_cases([replace(case, split="train"), replace(other, split="test")], index)
    rule = DatasetRule(generators=("twin",), sites=SiteRule(injections=1, near_mm=None, min_malignancy=None))
    summary = synth(index, tmp_path / "set", rule, seed=1)
    _, made = read_manifest(tmp_path / "set")
    assert {one.scan_id for one in made} == {case.scan_id} and {one.edit.generator for one in made} == {"twin"}
    assert summary.forgeries == len(made)
