"""The malignancy check and forgery quality: rows, tables and figures on forgeries made by hand."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ctguard import io
from ctguard.bench.flips import forged_table, is_flipped, pristine_table, quality_table, site_lines
from ctguard.bench.malignancy import NoduleScores, Site, judge_scorer, measure_folder, youden
from ctguard.bench.quality import (
    HU_EDGES,
    boundary_gradient_hu_mm,
    cut_surroundings,
    forgery_quality,
    histogram_distance_hu,
    hu_histogram,
    nodule_diameter_mm,
    noise_ratio,
    noise_spectrum,
    spectrum_distance_db,
)
from ctguard.bench.table import write_csv
from ctguard.cad.network import NoisyOr3d
from ctguard.core.errors import DataError
from ctguard.core.geometry import FloatTriple, Geometry, as_float_triple, index_to_lps_mm
from ctguard.core.provenance import Provenance, Source
from ctguard.core.records import Case, Edit, Finding, Task
from ctguard.core.volume import Volume
from ctguard.io.cases import write_cases
from ctguard.io.forgeries import Forgery, write_forgery, write_manifest
from ctguard.report.bench_page import write_bench
from ctguard.report.malignancy import histograms_figure
from ctguard.train.checkpoint import Card, save_checkpoint
from tests.detect.scans import thorax

SITE: FloatTriple = (16.0, 48.0, 48.0)
CARD = Card("cad", "noisy-or", "malignancy", "cpu", {}, "made for a test", 0, 0, "", "", threshold=0.5)


def lung(noise: float = 20.0, seed: int = 0) -> Volume:
    """Parenchyma alone, 32 x 96 x 96 voxels of 1.5 x 1 x 1 mm."""
    hu = np.random.default_rng(seed).normal(-850, noise, (32, 96, 96)).round().astype(np.int16)
    return Volume(hu, Geometry(hu.shape, (1.5, 1.0, 1.0)), Provenance(Source("phantom")))


def distance(volume: Volume, site: FloatTriple = SITE) -> np.ndarray:
    grid = np.moveaxis(np.indices(volume.hu.shape), 0, -1)
    offset: np.ndarray = (grid - np.asarray(site)) * volume.geometry.spacing_zyx_mm
    return offset


def ball(volume: Volume, radius_mm: float, hu: float = 30.0, site: FloatTriple = SITE) -> np.ndarray:
    inside = np.linalg.norm(distance(volume, site), axis=-1) <= radius_mm
    return np.where(inside, np.int16(hu), volume.hu)


def edit(volume: Volume, forged: np.ndarray, task: Task, site: FloatTriple = SITE, generator: str = "pix2pix") -> Edit:
    at = np.argwhere(forged != volume.hu)
    low, high = at.min(0), at.max(0) + 1
    mask = (forged != volume.hu)[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    start = tuple(int(v) for v in low)
    return Edit(task, generator, "clean", 0, site, start, mask, mask, 0, {"core_mm": 16.0})  # type: ignore[arg-type]


@pytest.mark.parametrize("diameter", [6.0, 10.0, 16.0])
def test_the_diameter_is_that_of_the_sphere_above_minus_400(diameter: float) -> None:
    volume = lung()
    forged = ball(volume, diameter / 2)
    everywhere = np.ones(forged.shape, bool)
    seen = cut_surroundings(volume, forged, everywhere, SITE)
    assert nodule_diameter_mm(seen) == pytest.approx(diameter, rel=0.06)
    assert nodule_diameter_mm(cut_surroundings(volume, volume.hu, everywhere, SITE)) == 0.0


def test_the_chest_wall_is_no_nodule_but_a_nodule_forged_onto_it_is() -> None:
    plain = lung()
    hu = plain.hu.copy()
    hu[:, :, 54:] = 40
    walled = Volume(hu, plain.geometry, plain.provenance)
    mask = np.ones(hu.shape, bool)
    mask[:, :, 54:] = False
    forged = ball(walled, 6.0)
    after, before = (cut_surroundings(walled, values, mask, SITE) for values in (forged, hu))
    assert nodule_diameter_mm(before) == 0.0
    assert nodule_diameter_mm(after, after.hu != before.hu) == pytest.approx(12.0, rel=0.08)
    core = np.abs(distance(walled)).max(-1) <= 8
    regrown = np.where(core & ~mask, np.int16(55), ball(walled, 5.0))  # all of the core was made anew, wall and nodule
    quality = forgery_quality(walled, regrown, edit(walled, regrown, "inject"), mask)
    assert quality.diameter_mm < 10.0  # what is seen of 10 mm, of which a part lies in the wall


def test_histogram_distance_is_the_shift_between_two_tissues() -> None:
    rng = np.random.default_rng(0)
    a = hu_histogram(rng.normal(-800, 30, 20000))
    assert histogram_distance_hu(a, hu_histogram(rng.normal(-700, 30, 20000))) == pytest.approx(100, abs=2)
    assert histogram_distance_hu(a, 3 * a) == 0.0
    assert np.isnan(histogram_distance_hu(a, np.zeros(len(HU_EDGES) - 1)))
    assert hu_histogram(np.array([-3024.0, 3000.0])).sum() == 2


def test_smooth_tissue_shows_in_spectrum_and_noise_ratio() -> None:
    volume = lung()
    everywhere = np.ones(volume.hu.shape, bool)
    core = np.abs(distance(volume)).max(-1) <= 8
    quiet = np.where(core, np.int16(-850) + (volume.hu + 850) // 4, volume.hu).astype(np.int16)
    honest = forgery_quality(
        volume, np.where(core, lung(seed=1).hu, volume.hu), edit(volume, quiet, "remove"), everywhere
    )
    smooth = forgery_quality(volume, quiet, edit(volume, quiet, "remove"), everywhere)
    assert honest.spectrum_db < 2 and smooth.spectrum_db > 8
    assert honest.noise_ratio == pytest.approx(1.0, abs=0.15)
    assert smooth.noise_ratio < 0.4 and smooth.noise_ratio_before == pytest.approx(1.0, abs=0.15)


def test_a_seam_shows_where_it_is() -> None:
    volume = lung()
    everywhere = np.ones(volume.hu.shape, bool)
    core = np.abs(distance(volume)).max(-1) <= 8
    lifted = np.where(core, volume.hu + 150, volume.hu).astype(np.int16)
    quality = forgery_quality(volume, lifted, edit(volume, lifted, "remove"), everywhere)
    assert quality.boundary_core > 2 and quality.boundary_cube == pytest.approx(1.0)
    seen = cut_surroundings(volume, volume.hu, np.zeros(volume.hu.shape, bool), SITE)
    assert np.isnan(boundary_gradient_hu_mm(seen, 16.0)) and np.isnan(noise_ratio(seen, 16.0))
    assert noise_spectrum(seen, 0, 16) is None and np.isnan(spectrum_distance_db(None, None))


def test_youden_takes_the_best_cut_and_states_it() -> None:
    score = np.array([0.1, 0.2, 0.3, 0.6, 0.7, 0.9])
    malignant = np.array([False, False, False, True, False, True])
    threshold, note = youden(NoduleScores(score, malignant, np.full(6, 10.0)))
    assert threshold == pytest.approx(0.45)
    assert "2 malignant and 4 benign" in note and "specificity 0.750" in note
    with pytest.raises(DataError, match="no threshold"):
        youden(NoduleScores(score, np.ones(6, bool), np.full(6, 10.0)))


def test_the_auc_within_8_to_15_mm_leaves_the_others_out() -> None:
    scores = NoduleScores(
        np.array([0.9, 0.1, 0.2, 0.8]), np.array([True, False, True, False]), np.array([20.0, 5.0, 10.0, 11.0])
    )
    figures = judge_scorer(scores)
    assert figures["auc"] == 0.75 and figures["auc_8_15_mm"] == 0.0
    assert figures["auc_of_diameter"] == 0.75
    assert figures["score"] == pytest.approx(0.375)


def site(patient: int, kind: str, task: str, score: float, **more: object) -> Site:
    quality = None
    if kind != "pristine":
        volume = lung()
        forged = ball(volume, 6.0)
        quality = forgery_quality(volume, forged, edit(volume, forged, task), np.ones(forged.shape, bool))  # type: ignore[arg-type]
    values = {"before": 0.1, "found": task != "remove", "found_before": task == "remove", "quality": quality, **more}
    row = (f"s{patient}", f"p{patient}", kind, task, SITE, 12.0, score)
    return Site(*row, **values)  # type: ignore[arg-type]


def test_flips_are_counted_by_task_and_generator() -> None:
    rows = [site(k, "pix2pix", "inject", 0.9 if k else 0.2) for k in range(4)]
    rows += [site(k, "diffusion", "remove", 0.2, before=0.8, found=k == 0) for k in range(4)]
    table = {(row["task"], row["generator"]): row for row in forged_table(rows, "run", CARD).rows}
    injected, removed = table["inject", "pix2pix"], table["remove", "diffusion"]
    assert injected["n"] == 4 and injected["flipped"].value == 0.75 and injected["before"].value == 0.0
    assert injected["detection"].value == 1.0
    assert removed["flipped"].value == 1.0 and removed["detection"].value == 0.75 and removed["n found before"] == 4
    assert is_flipped(0.5, "inject", 0.5) and not is_flipped(0.5, "remove", 0.5)


def test_quality_says_whether_the_size_is_as_wanted() -> None:
    rows = [site(k, "pix2pix", task, 0.9) for k in range(3) for task in ("inject", "remove")]
    rows += [site(9, "pristine", "", 0.9, malignant=True, nodule=tuple([0] * (len(HU_EDGES) - 2) + [5]))]
    table = {row["task"]: row for row in quality_table(rows, "run").rows}
    rows = [replace(row, diameter_mm=12.0) for row in rows]
    assert table["inject"]["size as wanted"].value == 1.0 and table["remove"]["size as wanted"].value == 0.0
    assert table["inject"]["HU distance"].value > 100  # the cores hold lung, the reference here is bone


def test_tables_and_rows_are_written_whole(tmp_path: Path) -> None:
    rows = [site(k, "pristine", "", 0.2 + 0.6 * (k % 2), malignant=bool(k % 2)) for k in range(6)]
    rows += [site(k, "pix2pix", "inject", 0.9) for k in range(3)]
    tables = [pristine_table(rows, "run", CARD), forged_table(rows, "run", CARD), quality_table(rows, "run")]
    stored = list(csv.DictReader(write_csv(site_lines(rows), tmp_path / "rows.csv").open()))
    assert len(stored) == 9 and stored[0]["malignant"] == "0" and stored[-1]["score_before"] == "0.100000"
    paths = write_bench(tmp_path, "malignancy", "Malignancy check", tables, ["a note"], {})
    read = json.loads(paths[0].read_text())
    assert read["tables"][0]["rows"][0]["auc"]["value"] == 1.0 and read["notes"] == ["a note"]
    assert "| pix2pix | 3 |" in paths[1].read_text() and "a note" in paths[1].read_text()
    assert "pix2pix" in paths[2].read_text() and "a note" in paths[2].read_text()
    png = histograms_figure(rows, 0.5)
    assert png.startswith(b"\x89PNG") and png == histograms_figure(rows, 0.5)


def test_a_row_survives_json() -> None:
    row = site(1, "pix2pix", "remove", 0.3)
    back = Site.from_json(json.loads(json.dumps(row.to_json())))
    assert {**vars(back), "quality": 0} == {**vars(row), "quality": 0}
    assert back.quality is not None and row.quality is not None
    assert np.array_equal(back.quality.core, row.quality.core)
    plain = site(1, "pristine", "", 0.3, before=float("nan"))
    assert np.isnan(Site.from_json(json.loads(json.dumps(plain.to_json()))).before)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two test patients with a nodule each, one injection and one removal; and an untrained scorer's weights."""
    cases, names = [], []
    for number in range(2):
        plain = thorax((20, 96, 112), (2.5, 2.0, 2.0), seed=number)
        nodule, empty = (10.0, 48.0, 77.0), (10.0, 48.0, 35.0)
        volume = Volume(ball(plain, 5.0, site=nodule), plain.geometry, plain.provenance)
        io.write(volume, tmp_path / f"s{number}.mha")
        where = as_float_triple(index_to_lps_mm(volume.geometry, nodule))
        finding = Finding(where, 10.0, 5.0 if number else 1.0)
        cases.append(Case(f"s{number}", f"p{number}", f"s{number}.mha", "", "", "test", (finding,)))
        for task, forged, place in (("inject", ball(volume, 6.0, site=empty), empty), ("remove", plain.hu, nodule)):
            truth = edit(volume, forged, task, place)  # type: ignore[arg-type]
            box = tuple(slice(a, a + n) for a, n in zip(truth.box_start_zyx, truth.mask.shape, strict=True))
            forgery = Forgery(f"s{number}", truth, forged[box])
            write_forgery(forgery, tmp_path)
            names.append({"forgery": forgery.name})
    write_cases(cases, tmp_path / "index.csv")
    write_manifest(names, "index.csv", tmp_path)
    torch.manual_seed(0)
    scorer = NoisyOr3d(width=3, block_mm=16)
    save_checkpoint(scorer, replace(CARD, settings={"width": 3, "block_mm": 16}), tmp_path / "weights")
    return tmp_path


def test_a_folder_is_measured_and_a_killed_run_goes_on(data: Path) -> None:
    weights = data / "weights" / "cad.safetensors"
    rows, card = measure_folder(data, data / "work", weights=weights)
    assert [(row.kind, row.task) for row in rows] == 2 * [
        ("pristine", ""),
        ("pix2pix", "inject"),
        ("pix2pix", "remove"),
    ]
    assert rows[1].diameter_mm == pytest.approx(12.0, rel=0.15) and rows[2].diameter_mm == 0.0
    assert all(0 <= row.score <= 1 for row in rows) and card.threshold == 0.5
    assert rows[2].before == pytest.approx(rows[0].score, abs=1e-5)  # the same place, untouched
    kept = sorted((data / "work").iterdir())
    kept[0].unlink()
    old = kept[1].stat().st_mtime_ns
    again, _ = measure_folder(data, data / "work", weights=weights)
    assert [row.score for row in again] == [row.score for row in rows]
    assert kept[0].is_file() and kept[1].stat().st_mtime_ns == old
    with pytest.raises(DataError, match="train scan"):
        measure_folder(data, data / "work", split="train", weights=weights)
