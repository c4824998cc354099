"""Parts of the protection benchmark: pictures, price, judges, removal panel, and what the tables say."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ctguard.bench import protection_paper
from ctguard.bench.judging import Judge
from ctguard.bench.operations import blurred
from ctguard.bench.protection import ATTEMPT, SCAN, SITE, Experiment, Row
from ctguard.bench.protection_damage import Attempt, attempts
from ctguard.bench.protection_layout import paper_layout
from ctguard.bench.protection_notes import notes_of
from ctguard.bench.protection_paper import picture_figures, psnr, vif
from ctguard.bench.protection_price import detector_values, malignancy_values, nodule_values, price_values
from ctguard.bench.protection_removal import REMOVALS, Removal, denoised, removal_values, removals
from ctguard.bench.protection_scene import Forger, Scene, find_forger, set_scene
from ctguard.bench.protection_setups import NONE, Setup, noise_like
from ctguard.bench.protection_tables import (
    MAKERS,
    Results,
    damage_table,
    judges_table,
    ratio_table,
    removal_table,
    success_table,
)
from ctguard.bench.table import as_texts, markdown
from ctguard.cad.network import NoisyOr3d
from ctguard.core.errors import DataError, ModelError
from ctguard.core.records import Case
from ctguard.core.threshold import Threshold
from ctguard.core.volume import Volume
from ctguard.report.protection import effort_figure, removal_figure
from ctguard.report.protection_bench import damage_bars, effort_curves
from ctguard.train.checkpoint import Card
from tests.bench.make import BRIGHT_HU, Stub
from tests.synth.scans import LEFT, at, scan

IDENTITY = find_forger("identity")
CARD = Card("m", "m", "", "cpu", {"alpha": 0.4}, "made for a test", 3, 0, "", "", sha256="abc")


@pytest.fixture(scope="module")
def here() -> Scene:
    volume = scan()
    hu = volume.hu.copy()
    hu[9:16, 37:44, 32:39] = 30  # 17.5 x 21 x 21 mm: a sphere of 24.5 mm has that volume
    volume = replace(volume, hu=hu)
    case = Case("scan0", "patient0", "scan0.mha", findings=(at(volume, LEFT, 20.0, 5.0),))
    return set_scene(case, volume, sites=1, block_mm=80.0, seed=0)


def with_noise(here: Scene, sd: float) -> Volume:
    noise = np.random.default_rng(0).normal(0, sd, here.volume.hu.shape)
    return replace(here.volume, hu=np.rint(here.volume.hu + noise * here.body).astype(np.int16))


def first(here: Scene, p: Volume) -> list[Attempt]:
    return list(attempts(here, (IDENTITY,), p))[:1]


def test_one_hu_is_72_decibels_of_4095_and_63_of_1500() -> None:
    a = np.full((48, 48), -800.0)
    assert psnr(a, a + 1, 4095.0) == pytest.approx(72.2, abs=0.05)
    found = picture_figures(a, a + 1)
    assert found["PSNR 1500"] == pytest.approx(63.5, abs=0.05) and found["RMSE"] == 1.0
    assert picture_figures(a, a)["PSNR 4095"] == float("inf")
    bone = picture_figures(a + 1500, a + 1600)  # above the window: the same white
    assert bone["RMSE"] == 100.0 and bone["SSIM 1500"] == 1.0


def test_fidelity_falls_with_noise_and_small_pictures_have_none() -> None:
    rng = np.random.default_rng(0)
    a = rng.normal(-800, 60, (64, 64))
    worse = [vif(a, a + rng.normal(0, sd, a.shape)) for sd in (0.01, 10, 50)]
    assert worse[0] == pytest.approx(1.0, abs=0.01) and worse == sorted(worse, reverse=True)
    assert np.isnan(vif(a[:20], a[:20])) and np.isnan(picture_figures(a[:5], a[:5])["SSIM 4095"])


class FakeLpips(nn.Module):
    """Mean absolute difference; weights that cannot be fetched."""

    def __init__(self, net: str, verbose: bool) -> None:
        super().__init__()
        assert net == "squeeze" and not verbose
        if OFFLINE:
            raise OSError("no network")

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        assert a.shape[1] == 3 and a.min() >= -1 and a.max() <= 1
        return (a - b).abs().mean()


OFFLINE: list[bool] = []


def test_lpips_is_used_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    a = np.full((40, 40), -1350.0)
    monkeypatch.setitem(sys.modules, "lpips", SimpleNamespace(LPIPS=FakeLpips))
    protection_paper.lpips_network.cache_clear()
    assert protection_paper.lpips_distance(a, a + 1500) == pytest.approx(2.0)
    monkeypatch.setattr(sys.modules[__name__], "OFFLINE", [True])
    protection_paper.lpips_network.cache_clear()
    with pytest.raises(ModelError, match="cannot be fetched"):
        protection_paper.lpips_network()
    monkeypatch.setitem(sys.modules, "lpips", None)
    protection_paper.lpips_network.cache_clear()
    assert np.isnan(protection_paper.lpips_distance(a, a))


def test_the_price_is_what_was_added(here: Scene) -> None:
    values = price_values(here, with_noise(here, 6.0))
    assert values["sd"] == pytest.approx(6, rel=0.03) and values["sd in cubes"] == pytest.approx(6, rel=0.05)
    assert 20 <= values["max"] <= 45
    stronger = price_values(here, with_noise(here, 30.0))
    for tissue in ("lung", "soft tissue"):
        assert 6 / 80 < values[f"noise share {tissue}"] < 0.6
        assert stronger[f"noise share {tissue}"] == pytest.approx(5 * values[f"noise share {tissue}"], rel=0.1)
    assert 0 < values["nps lung db"] < 1.5
    assert stronger["nps lung db"] > 2 * values["nps lung db"]


def test_nodules_keep_their_diameter_until_their_rim_is_moved(here: Scene) -> None:
    (kept,) = nodule_values(here, with_noise(here, 2.0), None)
    assert kept["diameter"] == pytest.approx(24.5, abs=0.2) and kept["diameter change"] < 0.01
    shaved = here.volume.hu.copy()
    shaved[9:16, 37, 32:39] = -830
    (changed,) = nodule_values(here, replace(here.volume, hu=shaved), None)
    assert 0.02 < changed["diameter change"] < 0.2 and "malignancy change" not in changed


def test_the_scorer_sees_x_and_both_forgeries(here: Scene) -> None:
    torch.manual_seed(0)
    scorer = NoisyOr3d(width=3, block_mm=16).eval()
    p = with_noise(here, 40.0)
    (attempt,) = first(here, p)
    values = malignancy_values(attempt, scorer)
    assert set(values) == {"malignancy x", "malignancy t(x)", "malignancy t(p)"}
    assert values["malignancy t(x)"] != values["malignancy t(p)"] and malignancy_values(attempt, None) == {}
    (nodule,) = nodule_values(here, p, scorer)
    assert nodule["malignancy change"] > 0


def test_detectors_judge_the_protected_scan_and_its_forgeries(here: Scene) -> None:
    hu = here.volume.hu.copy()
    hu[8:17, 40:57, 48:65] = BRIGHT_HU  # more than the cube that carries a verdict
    bright = replace(here.volume, hu=hu)
    for p, alarm in ((here.volume, 0.0), (bright, 1.0)):
        judges = {"stub": Judge(Stub(), Threshold(0.5))}
        of_scan, (of_forged,) = detector_values(judges, here, p, first(here, p))
        assert of_scan["stub alarm"] == alarm == of_forged["stub found"]
        assert of_forged["stub score"] == pytest.approx(of_scan["stub score"])


def test_smoothing_removes_white_noise_and_what_f_does_alone_is_told_apart(here: Scene) -> None:
    p = with_noise(here, 20.0)
    noise = noise_like(here, p)
    panel = [one for one in REMOVALS if one.name in ("int16", "gauss-1", "thick", "shift")]
    (values,) = removal_values(first(here, p), noise, panel)
    (attempt,) = first(here, p)
    whole = values["removal int16 core"]
    assert whole == pytest.approx(np.sqrt(np.mean((attempt.tp.hu - attempt.tx.hu)[attempt.tx.core].astype(float) ** 2)))
    assert values["removal gauss-1 core"] < 0.4 * whole
    assert 0.5 < values["removal gauss-1 noise core"] / values["removal gauss-1 core"] < 2
    assert values["removal gauss-1 alone core"] > whole and values["removal int16 alone core"] == 0
    assert values["removal thick core"] > 0 and "removal thick alone core" not in values  # on another grid
    assert values["removal shift core"] == pytest.approx(whole, rel=0.2)


def test_an_operation_that_cannot_be_done_is_left_out(here: Scene) -> None:
    def refuse(volume: Volume) -> Volume:
        raise DataError("not this one")

    p = with_noise(here, 5.0)
    (values,) = removal_values(first(here, p), p, [Removal("x", "x", refuse), Removal("int16", "int16")])
    assert set(values) == {
        f"removal int16 {part}" for part in ("core", "cube", "noise core", "noise cube", "alone core")
    }


@pytest.mark.parametrize("removal", REMOVALS, ids=lambda one: one.name)
def test_every_operation_gives_whole_hu_and_the_same_again(here: Scene, removal: Removal) -> None:
    small = Volume(here.volume.hu[8:16], here.volume.geometry.crop((8, 0, 0), (8, 96, 112)), here.volume.provenance)
    made = removal.change(small)
    assert made.hu.dtype == np.int16 and np.array_equal(made.hu, removal.change(small).hu)
    if removal.name in ("median", "nlm"):
        lung = here.lung[8:16] & (small.hu < -600)
        assert made.hu[lung].std() < small.hu[lung].std()


class Zero(nn.Module):
    """A denoiser that knows only one value."""

    def forward(self, hu: Tensor) -> Tensor:
        return 0 * hu - 7


def test_a_denoiser_is_an_exported_program(here: Scene, tmp_path: Path) -> None:
    rows, columns = torch.export.Dim("rows", min=8), torch.export.Dim("columns", min=8)
    program = torch.export.export(Zero(), (torch.zeros(1, 1, 32, 48),), dynamic_shapes=({2: rows, 3: columns},))
    path = tmp_path / "denoiser.pt2"
    torch.export.save(program, path)
    assert (denoised(here.volume, path).hu == -7).all()
    assert [one.name for one in removals(path, IDENTITY)][-2:] == ["denoiser", "retrained"]
    (tmp_path / "bad.pt2").write_bytes(b"no program")
    with pytest.raises(ModelError, match="no exported program"):
        denoised(here.volume, tmp_path / "bad.pt2")


def results(*setups: Setup, **more: object) -> Results:
    """Three patients with one site each, forged by both tasks; damage of the k-th setup is 10 (k + 1)."""
    experiment = Experiment(setups, (IDENTITY, Forger("cyclegan", "cyclegan")), removal=("mitsgan",), **more)  # type: ignore[arg-type]
    rows = []
    for patient in "abc":
        for k, setup in enumerate((Setup(NONE), *setups)):
            if setup.missing:
                continue
            name = setup.label
            pictures = {f"{what} {part} RMSE": 3.0 for what in ("real", "tampered") for part in ("slice", "square")}
            rows.append(Row(name, patient, patient, SCAN, {"max": 5.0, "sd": 3.0}))
            rows.append(Row(name, patient, patient, SITE, pictures, 0))
            for task in ("inject", "remove"):
                values = {"damage core": 10.0 * k, "added cube": 2.0, "noise core": 4.0, **pictures}
                values |= {
                    "malignancy x": 0.1,
                    "malignancy t(x)": 0.9,
                    "malignancy t(p)": 0.9 if patient == "a" else 0.1,
                }
                rows.append(Row(name, patient, patient, ATTEMPT, values, 0, task, "identity"))
    return Results.of(experiment, rows, "run")


ONE, TWO = Setup("one", "noise", 5.0), Setup("two", "ascent", 5.0)
MISSING = Setup("tafim", "tafim", missing="no weights")


def test_damage_gain_and_ratios_are_of_means() -> None:
    found = results(ONE, TWO, MISSING)
    rows = {row["protector"]: row for row in damage_table(found).rows}
    assert rows["one"]["gain"].value == 5.0 and rows["one"]["times noise"].value == 2.5 and rows["two"]["n"] == 6
    assert rows["tafim"] == {"protector": "tafim", "n": "no weights"}
    assert rows["floor: x itself, another seed"]["n"] == "not measured"
    ratios = ratio_table(found)
    assert ratios is not None and ratios.rows[1]["over one"].value == 2.0
    assert ratio_table(results(ONE)) is None


def test_success_counts_only_what_could_flip() -> None:
    rows = success_table(results(ONE, scorer=Path("cad"), scorer_threshold=0.5)).rows
    injected = {row["protector"]: row for row in rows if row.get("task") == "inject"}
    assert injected["one"]["n"] == 3
    assert injected["one"]["before"].value == 1.0 and injected["one"]["after"].value == pytest.approx(1 / 3)
    removed = next(row for row in rows if row.get("task") == "remove")
    assert removed["n"] == 0 and removed["before"] is None  # nothing there that could be removed
    assert success_table(results(ONE)).rows == ({"protector": "all", "n": "malignancy scorer: no weights"},)


def test_every_table_can_be_shown_and_names_what_is_missing() -> None:
    found = results(ONE, MISSING, Setup("m", "mitsgan", 5.0, card=CARD))
    for table in (*(make(found) for make in MAKERS), *paper_layout(found)):
        assert table is not None and as_texts(table).rows
        assert len({line.count("|") for line in markdown(table).splitlines() if line.startswith("|")}) == 1
        assert table.n == {"patients": 3, "scans": 3, "sites": 3} and "identity inject" in table.checkpoints
    panel = {row["operation"]: row["n"] for row in removal_table(found).rows}
    assert panel["a trained denoiser"] == panel["JPEG 2000, 6:1"] == "not measured"
    assert judges_table(found).rows == ({"detector": "not measured"},)
    text = " ".join(notes_of(found, "test"))
    assert "tafim: no weights." in text and "cyclegan has no weights" in text and "m: seed 3" in text


def test_the_papers_tables_stand_beside_ours() -> None:
    found = results(ONE, MISSING, Setup("m", "mitsgan", 5.0, card=CARD))
    slices, square, ablation = paper_layout(found)
    ours, paper = slices.rows[0], slices.rows[1]
    assert paper["real : MITS-GAN"] == "169.481" and paper["real : TAFIM forged"] == "233.78"
    assert square.rows[1]["real : MITS-GAN forged"] == "84.349"
    assert ours["real : MITS-GAN"].value == ours["real : forged"].value == 3.0
    assert ours["real : TAFIM"] == "no weights" and ours["real : one"].value == 3.0
    assert "real : m" not in slices.columns  # it stands in the paper's column
    assert list(slices.columns)[-1] == "real : forged"  # the control that the paper lacks
    lpips = next(row for row in slices.rows if row["metric"] == "LPIPS")
    assert lpips["real : one"] == "lpips is not installed"
    by_alpha = {row["by"]: row for row in ablation.rows if row["metric"] == "RMSE" or row["by"] == "paper"}
    assert by_alpha["ours, mitsgan, HU"]["alpha 0.4"].value == 3.0
    assert by_alpha["ours, mitsgan, HU"]["alpha 1"] == "not measured"
    assert ablation.rows[1]["alpha 1"] == "84.349"


def test_effort_is_shown_where_a_protector_has_two_rows() -> None:
    rows = [Setup(f"ascent:steps={n}", "ascent", 5.0, n) for n in (5, 50)]
    found = results(*rows, ONE)
    bars, lines = damage_bars(found)
    assert effort_curves(found, bars) == {"steps": {"ascent, 5 HU": [(5.0, bars[0].damage), (50.0, bars[1].damage)]}}
    assert effort_figure(effort_curves(found, bars), lines).startswith(b"\x89PNG")
    assert effort_curves(results(ONE, rows[0]), bars) == {}


def test_what_is_left_is_drawn_where_it_was_measured() -> None:
    one, both = {"blur": (0.5, 2.0)}, {"blur": (0.4, 1.0), "median": (1.2, 1.0)}
    assert removal_figure({"a": one, "b": both}) != removal_figure({"a": both, "b": one})


def test_blur_is_the_same_operation_as_in_the_detection_panels(here: Scene) -> None:
    gauss = next(one for one in REMOVALS if one.name == "gauss-0.5")
    assert np.array_equal(gauss.change(here.volume).hu, blurred(here.volume, 0.5).hu)
