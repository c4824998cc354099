"""What a user of the phantom relies on: repeatable patients, twins, acquisitions that behave like a scanner's."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ctguard import io
from ctguard.core.errors import GeometryError, RecipeError, WriteError
from ctguard.core.geometry import Geometry, index_to_lps_mm, lps_mm_to_index
from ctguard.core.marks import is_synthetic
from ctguard.core.volume import Volume
from ctguard.io.cases import case_path, read_cases
from ctguard.phantom.anatomy import lungs
from ctguard.phantom.patients import (
    Acquisition,
    CohortPlan,
    Patient,
    draw_acquisition,
    draw_lung_site,
    draw_patient,
    findings,
    render,
    render_block,
    split_of,
    write_cohort,
)

SEED = 3


@pytest.fixture(scope="module")
def patient() -> Patient:
    return draw_patient(SEED)


@pytest.fixture(scope="module")
def acquisition(patient: Patient) -> Acquisition:
    drawn = draw_acquisition(patient, "small", SEED)
    return replace(drawn, dose_mas=100.0, kernel="standard", slice_thickness_mm=1.25)


@pytest.fixture(scope="module")
def volume(patient: Patient, acquisition: Acquisition) -> Volume:
    return render(patient, acquisition)


def _noise(patient: Patient, acquisition: Acquisition) -> np.ndarray:
    """Noise of a scan, in the ten slices and 64 columns in its middle."""
    shape = acquisition.geometry.shape_zyx
    if shape[0] > 10:
        geometry = acquisition.geometry.crop((shape[0] // 2 - 5, 16, 16), (10, 64, 64))
        acquisition = replace(acquisition, geometry=geometry)
    noisy = render(patient, acquisition).hu.astype(float)
    return noisy - render(patient, acquisition, noise=False).hu


def test_same_seed_gives_the_same_patient_and_the_same_voxels(patient: Patient, volume: Volume) -> None:
    again = draw_patient(SEED)
    drawn = replace(draw_acquisition(again, "small", SEED), dose_mas=100.0, kernel="standard", slice_thickness_mm=1.25)
    assert again == patient
    assert render(again, drawn).hu.tobytes() == volume.hu.tobytes()


def test_other_seeds_and_styles_are_other_patients(patient: Patient) -> None:
    assert draw_patient(SEED + 1).anatomy != patient.anatomy
    assert draw_patient(SEED, style=1).anatomy != patient.anatomy
    assert draw_patient(SEED, style=1).name != patient.name


def test_volume_is_marked_deidentified_and_carries_what_replays_it(patient: Patient, volume: Volume) -> None:
    assert volume.hu.dtype == np.int16
    assert volume.hu.min() >= -1024 and volume.hu.max() <= 3071
    assert is_synthetic(volume.provenance.marks)
    assert volume.provenance.source.deidentified
    step = volume.provenance.steps[0]
    params = json.loads(json.dumps(dict(step.params)))
    assert params["patient"] == SEED
    grid = params["acquisition"]["geometry"]
    geometry = Geometry(tuple(grid["shape_zyx"]), tuple(grid["spacing_zyx_mm"]), tuple(grid["origin_lps_mm"]))
    acquisition = Acquisition(**{**params["acquisition"], "geometry": geometry})
    replayed = render(draw_patient(params["patient"], params["style"]), acquisition, nodules=params["nodules"])
    assert np.array_equal(replayed.hu, volume.hu)


def test_patient_goes_to_json(patient: Patient) -> None:
    rows = json.loads(json.dumps(patient.to_json()))["nodules"]
    assert [row["diameter_mm"] for row in rows] == [one.diameter_mm for one in patient.nodules]


def test_twins_differ_near_the_nodules_only(patient: Patient, acquisition: Acquisition, volume: Volume) -> None:
    twin = render(patient, acquisition, nodules=False)
    assert (twin.hu == volume.hu).mean() > 0.2
    changed = np.argwhere(twin.hu != volume.hu)
    assert len(changed) > 50
    points = index_to_lps_mm(volume.geometry, changed)
    gaps = [
        np.abs(points - np.asarray(one.center_lps_mm)).max(1) - 1.2 * one.diameter_mm - 36 for one in patient.nodules
    ]
    assert np.min(gaps, axis=0).max() <= 0


def test_indices_choose_which_nodules_are_rendered(patient: Patient, acquisition: Acquisition, volume: Volume) -> None:
    every = tuple(range(len(patient.nodules)))
    assert np.array_equal(render(patient, acquisition, nodules=every).hu, volume.hu)
    assert np.array_equal(render(patient, acquisition, nodules=()).hu, render(patient, acquisition, nodules=False).hu)


def test_noise_falls_with_the_root_of_the_dose(patient: Patient, acquisition: Acquisition) -> None:
    low = _noise(patient, replace(acquisition, dose_mas=60.0)).std()
    high = _noise(patient, replace(acquisition, dose_mas=240.0)).std()
    assert low / high == pytest.approx(2.0, rel=0.1)


def test_thicker_slices_have_less_noise(patient: Patient, acquisition: Acquisition) -> None:
    thin = _noise(patient, acquisition).std()
    thick = _noise(patient, replace(acquisition, slice_thickness_mm=2.5)).std()
    assert thin / thick == pytest.approx(np.sqrt(2), rel=0.12)


def test_sharper_kernels_raise_noise_and_its_mean_frequency(patient: Patient, acquisition: Acquisition) -> None:
    spreads, means = [], []
    for kernel in ("soft", "standard", "sharp"):
        noise = _noise(patient, replace(acquisition, kernel=kernel))
        power = (np.abs(np.fft.fft2(noise)) ** 2).mean(0)
        n = power.shape[0]
        f = np.hypot(np.fft.fftfreq(n, 0.7)[:, None], np.fft.fftfreq(n, 0.7))
        inside = f < 0.5 / 0.7
        means.append(float((f * power)[inside].sum() / power[inside].sum()))
        spreads.append(float(noise.std()))
    assert spreads[0] < spreads[1] < spreads[2]
    assert means[0] + 0.03 < means[1] and means[1] + 0.03 < means[2]


def test_noise_is_stronger_where_more_is_in_the_way(patient: Patient) -> None:
    full = draw_acquisition(patient, "full", SEED)
    a = patient.anatomy

    def spread(z: float) -> float:
        geometry = Geometry((3, 96, 96), (1.25, 0.7, 0.7), (-34.0, -34.0, z))
        return float(_noise(patient, replace(full, geometry=geometry, kernel="standard")).std())

    assert spread(a.apex_z - 4.0) > 1.3 * spread(30.0)


def test_metal_throws_streaks_and_leaves_the_rest_of_the_seed_alone(patient: Patient, acquisition: Acquisition) -> None:
    a = patient.anatomy
    geometry = Geometry((3, 64, 128), (1.25, 1.4, 1.4), (-90.0, a.spine_y - 20.0, 20.0))
    plain = replace(acquisition, geometry=geometry)
    clean, metal = render(patient, plain).hu.astype(int), render(patient, replace(plain, metal=True)).hu.astype(int)
    change = metal - clean
    assert metal.max() > 2500
    assert np.abs(change[..., :30]).max() > 20
    assert change.min() < -100


def test_block_shows_what_the_volume_shows(patient: Patient, acquisition: Acquisition, volume: Volume) -> None:
    geometry = volume.geometry.crop((6, 20, 20), (20, 56, 56))
    center = tuple(float(v) for v in index_to_lps_mm(geometry, (9.5, 27.5, 27.5)))
    block = render_block(patient, acquisition, center, geometry.shape_zyx, geometry.spacing_zyx_mm)
    assert block.geometry.agrees(geometry)
    part = volume.hu[6:26, 20:76, 20:76].astype(float)
    inner = (slice(2, -2), slice(4, -4), slice(4, -4))
    difference = (block.hu - part)[inner]
    both = np.hypot(*(_noise(patient, replace(acquisition, geometry=geometry, seed=seed)).std() for seed in (1, 2)))
    assert difference.std() < 1.25 * both
    assert np.corrcoef(block.hu[inner].ravel(), part[inner].ravel())[0, 1] > 0.95


def test_each_drawn_scan_holds_a_nodule_inside(patient: Patient) -> None:
    for seed in range(6):
        one = draw_patient(seed)
        for size in ("small", "bench", "full"):
            scan = draw_acquisition(one, size, seed)
            inside = findings(one, scan.geometry)
            assert inside, (seed, size)
            index = lps_mm_to_index(scan.geometry, inside[0].center_lps_mm)
            edge = np.minimum(index, np.asarray(scan.geometry.shape_zyx) - 1 - index)
            if size == "bench":
                assert (edge * scan.geometry.spacing_zyx_mm >= 16).all()


def test_thick_slices_show_the_same_place_with_less_noise(patient: Patient) -> None:
    thin, thick = draw_acquisition(patient, "small", SEED), draw_acquisition(patient, "small", SEED, 5.0)
    assert (thick.dose_mas, thick.kernel) == (thin.dose_mas, thin.kernel)
    assert thick.geometry.spacing_zyx_mm == (5.0, *thin.geometry.spacing_zyx_mm[1:])
    extents = [scan.geometry.shape_zyx[0] * scan.geometry.spacing_zyx_mm[0] for scan in (thin, thick)]
    assert extents[1] == pytest.approx(extents[0], rel=0.1)
    seen = [render(patient, replace(scan, seed=1)).hu for scan in (thin, thick)]
    clean = [render(patient, scan, noise=False).hu for scan in (thin, thick)]
    noise = [np.std(hu - bare) for hu, bare in zip(seen, clean, strict=True)]
    assert noise[1] < 0.8 * noise[0]
    with pytest.raises(RecipeError, match="no volume of this size"):
        draw_acquisition(patient, "small", SEED, 40.0)


def test_lung_sites_lie_in_lung_away_from_nodules(patient: Patient) -> None:
    scan = draw_acquisition(patient, "bench", SEED)
    rng = np.random.default_rng(0)
    sites = np.array([draw_lung_site(patient, scan, rng, 12.0) for _ in range(20)])
    assert (lungs(patient.anatomy, sites[:, 0], sites[:, 1], sites[:, 2]) < -12).all()
    for one in patient.nodules:
        assert (np.abs(sites - np.asarray(one.center_lps_mm)).max(1) > 16 + one.diameter_mm / 2).all()
    with pytest.raises(GeometryError, match="no healthy lung"):
        draw_lung_site(patient, scan, rng, 200.0)


def test_wrong_names_say_what_there_is(patient: Patient, acquisition: Acquisition) -> None:
    with pytest.raises(RecipeError, match="small, bench, full"):
        draw_acquisition(patient, "huge", 0)
    with pytest.raises(RecipeError, match="soft, standard, sharp"):
        replace(acquisition, kernel="B99")
    with pytest.raises(RecipeError, match="positive"):
        replace(acquisition, dose_mas=0.0)
    with pytest.raises(RecipeError, match="style"):
        draw_patient(0, style=7)


def test_oblique_grids_are_refused(patient: Patient, acquisition: Acquisition) -> None:
    tilted = ((0.0, 1.0, 0.0), (0.0, 0.0, -1.0), (1.0, 0.0, 0.0))
    geometry = Geometry((4, 16, 16), (1.0, 1.0, 1.0), axes_lps=tilted)
    with pytest.raises(GeometryError, match="axial"):
        render(patient, replace(acquisition, geometry=geometry))


def test_a_cohort_of_thick_slices_refuses_the_folder_of_another(tmp_path: Path) -> None:
    index = write_cohort(tmp_path, 1, CohortPlan("small", slice_mm=5.0), first_seed=SEED)
    volume = io.read(tmp_path / read_cases(index)[0].path)
    assert volume.geometry.spacing_zyx_mm[0] == 5.0
    with pytest.raises(WriteError, match="other settings"):
        write_cohort(tmp_path, 1, CohortPlan("small"), first_seed=SEED)


def test_cohort_is_indexed_split_and_resumed(tmp_path: Path) -> None:
    index = write_cohort(tmp_path / "cohort", 3, CohortPlan("small"), first_seed=SEED)
    cases = read_cases(index)
    assert [case.patient for case in cases] == ["phantom-000003", "phantom-000004", "phantom-000005"]
    assert [case.split for case in cases] == ["train", "valid", "test"]
    assert all(finding.malignancy in (1.0, 5.0) for case in cases for finding in case.findings)
    first = case_path(index, cases[0])
    scan = io.read(first)
    assert is_synthetic(scan.provenance.marks)
    center = cases[0].findings[0].center_lps_mm
    assert scan.geometry.contains(lps_mm_to_index(scan.geometry, center))
    kept, table = first.read_bytes(), index.read_bytes()
    stamp = case_path(index, cases[1]).stat().st_mtime_ns
    first.unlink()
    index.unlink()
    write_cohort(tmp_path / "cohort", 3, CohortPlan("small"), first_seed=SEED)
    assert first.read_bytes() == kept and index.read_bytes() == table
    assert case_path(index, cases[1]).stat().st_mtime_ns == stamp
    with pytest.raises(WriteError, match="other settings"):
        write_cohort(tmp_path / "cohort", 3, CohortPlan("bench"), first_seed=SEED)


def test_splits_follow_the_bench_tier() -> None:
    splits = [split_of(order, 760) for order in range(760)]
    assert splits[:160] == ["train"] * 160
    assert splits[160:460] == ["valid"] * 300
    assert splits[460:] == ["test"] * 300
