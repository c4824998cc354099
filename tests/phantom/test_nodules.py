"""Nodules are what they are said to be: size, density, margin, place, and labels that size alone does not give."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ctguard.core.volume import Volume
from ctguard.phantom.anatomy import lobe, lungs
from ctguard.phantom.nodules import Nodule
from ctguard.phantom.patients import Patient, draw_acquisition, draw_patient, render_block


@pytest.fixture(scope="module")
def cohort() -> list[Patient]:
    return [draw_patient(seed) for seed in range(40)]


def _made(patient: Patient, **change: object) -> Patient:
    plain: dict[str, object] = {
        "diameter_mm": 12.0,
        "texture": "solid",
        "margin": "smooth",
        "attachment": "none",
        "content": "plain",
        "malignant": False,
    }
    nodule = replace(patient.nodules[0], **{**plain, **change})  # type: ignore[arg-type]
    return replace(patient, nodules=(nodule,))


def _block(patient: Patient, nodules: bool) -> Volume:
    scan = replace(draw_acquisition(patient, "small", 0), kernel="standard", dose_mas=4000.0, slice_thickness_mm=1.0)
    center = patient.nodules[0].center_lps_mm
    return render_block(patient, scan, center, (44, 64, 64), (1.0, 0.7, 0.7), nodules=nodules)


def _lone(cohort: list[Patient]) -> Patient:
    """A patient whose first nodule lies deep in the lung, so that it may grow there."""
    for patient in cohort:
        x, y, z = (np.array([v]) for v in patient.nodules[0].center_lps_mm)
        if lungs(patient.anatomy, x, y, z)[0] < -22:
            return patient
    raise AssertionError("no patient with a deep nodule")


@pytest.mark.parametrize("diameter_mm", [6.0, 10.0, 16.0])
@pytest.mark.parametrize("margin", ["smooth", "lobulated"])
def test_diameter_above_minus_400_hu_is_the_stated_one(cohort: list[Patient], diameter_mm: float, margin: str) -> None:
    patient = _made(_lone(cohort), diameter_mm=diameter_mm, margin=margin)
    with_it, without = _block(patient, True), _block(patient, False)
    grown = (with_it.hu > -400) & (without.hu <= -400)
    grown |= (with_it.hu > -400) & (np.abs(with_it.hu.astype(int) - without.hu) > 60)
    measured = (6 * grown.sum() * with_it.geometry.voxel_mm3 / np.pi) ** (1 / 3)
    assert measured == pytest.approx(diameter_mm, rel=0.12)


def _core_hu(patient: Patient) -> float:
    hu = _block(patient, True).hu[20:24, 29:35, 29:35]
    return float(np.median(hu))


def test_density_follows_the_texture(cohort: list[Patient]) -> None:
    lone = _lone(cohort)
    solid = _core_hu(_made(lone))
    glass = _core_hu(_made(lone, texture="ground-glass"))
    calcified = _core_hu(_made(lone, content="central calcification"))
    assert -20 < solid < 110
    assert -760 < glass < -350
    assert calcified > 180


def test_part_solid_has_glass_around_a_core(cohort: list[Patient]) -> None:
    patient = _made(_lone(cohort), texture="part-solid", diameter_mm=18.0)
    with_it, without = _block(patient, True).hu.astype(int), _block(patient, False).hu.astype(int)
    gain = with_it - without
    assert (with_it[gain > 400] > -300).sum() > 100
    assert ((gain > 120) & (with_it < -400)).sum() > 300


def test_spiculated_reaches_beyond_smooth(cohort: list[Patient]) -> None:
    lone = _lone(cohort)
    reach = {}
    for margin in ("smooth", "spiculated"):
        patient = _made(lone, margin=margin, diameter_mm=14.0)
        gain = _block(patient, True).hu.astype(int) - _block(patient, False).hu
        z, y, x = np.indices(gain.shape)
        distance = np.sqrt((z - 21.5) ** 2 + ((y - 31.5) * 0.7) ** 2 + ((x - 31.5) * 0.7) ** 2)
        reach[margin] = int(((gain > 80) & (distance > 9.5)).sum())
    assert reach["spiculated"] > 2 * reach["smooth"] + 50


def _every(cohort: list[Patient]) -> list[tuple[Patient, Nodule]]:
    return [(patient, nodule) for patient in cohort for nodule in patient.nodules]


def test_size_tells_something_of_the_label_but_not_all(cohort: list[Patient]) -> None:
    nodules = [nodule for _, nodule in _every(cohort)]
    sizes = np.array([nodule.diameter_mm for nodule in nodules])
    bad = np.array([nodule.malignant for nodule in nodules])
    auc = float((sizes[bad][:, None] > sizes[~bad]).mean())
    assert 0.70 < auc < 0.90
    assert sizes.min() >= 4.0 and sizes.max() <= 25.0
    large = [any(one.malignant and one.diameter_mm >= 10 for one in patient.nodules) for patient in cohort]
    assert 0.3 < np.mean(large) < 0.7


def test_appearance_follows_the_label(cohort: list[Patient]) -> None:
    def share(malignant: bool, margin: str) -> float:
        chosen = [nodule.margin == margin for _, nodule in _every(cohort) if nodule.malignant == malignant]
        return float(np.mean(chosen))

    assert share(True, "spiculated") > share(False, "spiculated") + 0.2
    assert share(False, "smooth") > share(True, "smooth") + 0.2
    assert not any(nodule.malignant and "calc" in nodule.content for _, nodule in _every(cohort))


def test_every_nodule_lies_in_a_lung_and_apart_from_the_others(cohort: list[Patient]) -> None:
    for patient, nodule in _every(cohort):
        x, y, z = (np.array([v]) for v in nodule.center_lps_mm)
        depth = -lungs(patient.anatomy, x, y, z)[0]
        assert depth > 0.1 * nodule.diameter_mm, (patient.seed, nodule)
        if nodule.attachment == "pleura":
            assert depth < nodule.diameter_mm / 2 + 2
        assert int(lobe(patient.anatomy, x, y, z)[0]) in range(5)
        others = [one.center_lps_mm for one in patient.nodules if one is not nodule]
        assert all(np.linalg.norm(np.subtract(other, nodule.center_lps_mm)) > 45 for other in others)
