"""The protection benchmark: what it measures follows laws that hold for every protector and forger."""

from __future__ import annotations

import csv
import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ctguard import io, zoo
from ctguard.bench.protection import ATTEMPT, SCAN, SITE, Experiment, Row, measure_setup
from ctguard.bench.protection_damage import attempt_values, attempts, known_site, other_seed, partial_values
from ctguard.bench.protection_scene import Forger, Scene, find_forger, set_scene
from ctguard.bench.protection_setups import CONTROL, Setup, find_setups, noise_like, protect
from ctguard.core.errors import DataError, ModelError, RecipeError, RefusedError
from ctguard.core.records import Case
from ctguard.core.volume import Volume
from ctguard.protect.ascent import AscentSettings
from ctguard.protect.shield import Shield
from ctguard.protect.shield_refine import Effort
from ctguard.tamper.cube import CUBE_MM
from ctguard.train.checkpoint import Card, save_checkpoint
from tests.cli.runner import run
from tests.synth.scans import LEFT, at, cohort, scan

IDENTITY = find_forger("identity")
NOISE = Setup("noise", "noise", 5.0)


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / "ctguard" / "forgings.jsonl"


def scene(sites: int = 2, volume: Volume | None = None) -> Scene:
    volume = volume or scan()
    case = Case("scan0", "patient0", "scan0.mha", findings=(at(volume, LEFT, 14.0, 5.0),))
    return set_scene(case, volume, sites=sites, block_mm=80.0, seed=0)


@pytest.fixture(scope="module")
def one() -> Scene:
    """With one site, shared: nothing mutates a volume."""
    return scene(sites=1)


def shifted(here: Scene, hu: int) -> Volume:
    return replace(here.volume, hu=(here.volume.hu + hu).astype(np.int16))


def test_sites_are_voxels_in_lung_whose_cube_lies_in_a_block_that_holds_the_nodule() -> None:
    here = scene(sites=20)
    spacing = np.asarray(here.volume.geometry.spacing_zyx_mm)
    start, size = np.asarray(here.box.start_zyx), np.asarray(here.box.shape_zyx)
    assert np.all(size * spacing <= 80.0 + spacing)
    assert np.all(start <= LEFT) and np.all(start + size > LEFT)
    centers = np.array([place.center_zyx for place in here.places])
    assert len(np.unique(centers, axis=0)) == 20
    assert all(here.lung[tuple(center.astype(int))] for center in centers)
    inside = (centers - CUBE_MM / 2 / spacing >= start - 0.5) & (centers + CUBE_MM / 2 / spacing <= start + size - 0.5)
    assert inside.all()
    again, other = scene(sites=20), set_scene(here.case, here.volume, sites=20, block_mm=80.0, seed=1)
    assert again.places == here.places and other.places != here.places


def test_a_scan_that_must_not_be_forged_is_refused_and_one_without_room_is_named() -> None:
    with pytest.raises(RefusedError, match="de-identified"):
        scene(volume=scan(marks=()))
    with pytest.raises(DataError, match="scan0"):
        scene(sites=100_000)
    with pytest.raises(RecipeError, match="holds no cube"):
        set_scene(Case("s", "p", "x"), scan(), sites=1, block_mm=20.0, seed=0)


def test_the_control_measures_nothing_but_the_forgery(one: Scene) -> None:
    here = one
    rows, seconds, tried = measure_setup(here, CONTROL, Experiment((), (IDENTITY,), ceiling_sites=0))
    assert seconds == 0.0 and len(tried) == 2
    values = {row.of: row.values for row in rows}
    assert values[ATTEMPT]["damage core"] == values[ATTEMPT]["noise core"] == values[ATTEMPT]["added cube"] == 0
    assert values[ATTEMPT]["edit core"] > 0 and values[ATTEMPT]["tampered square RMSE"] > 0
    assert values[SITE]["real slice SSIM 4095"] == 1.0 and values[SITE]["VIF"] == pytest.approx(1.0)
    assert values[SCAN]["max"] == values[SCAN]["sd"] == values[SCAN]["noise share lung"] == 0


def test_a_forger_without_a_generator_hands_a_constant_on(one: Scene) -> None:
    """The identity copies the core: what was added everywhere is the damage, and its gain is 1."""
    here = one
    for attempt in attempts(here, (IDENTITY,), shifted(here, 7)):
        values = attempt_values(attempt, here.volume)
        assert values["damage core"] == pytest.approx(7, abs=0.6)
        assert values["added cube"] == 7
        partial = partial_values(attempt)
        assert partial["100 % protected core"] == values["damage core"]
        assert partial["100 % edited cube"] == values["damage cube"]
        assert partial["25 % protected cube"] < values["damage cube"]


def test_noise_of_the_same_sd_has_it(one: Scene) -> None:
    here = one
    p = protect(NOISE, here).volume
    noise = noise_like(here, p)
    block, cubes = here.box.slices(), here.cubes()
    added, floor = (one.hu[block].astype(float) - here.volume.hu[block] for one in (p, noise))
    assert floor[cubes].std() == pytest.approx(added[cubes].std(), rel=0.03)
    assert not floor[~here.body[block]].any() and not np.array_equal(added, floor)
    assert noise.hu.dtype == np.int16 and p.hu.dtype == np.int16


def test_what_is_measured_was_written_and_read_back(one: Scene) -> None:
    here = one
    protected = protect(NOISE, here)
    assert protected.volume.provenance.source.format == "mha"
    assert protected.volume.provenance.has_mark("protected")
    assert protected.volume.geometry.agrees(here.volume.geometry) and protected.seconds > 0


def test_ascent_works_on_the_block_alone_and_seal_on_the_scan(one: Scene) -> None:
    here = one
    ascent = protect(Setup("ascent", "ascent", 5.0, 1), here).volume
    outside = np.ones(here.volume.hu.shape, dtype=bool)
    outside[here.box.slices()] = False
    change = ascent.hu.astype(int) - here.volume.hu
    assert 0 < np.abs(change).max() <= 5 and not change[outside].any()
    sealed = protect(Setup("seal", "seal", 3.0), here).volume
    assert sealed.provenance.has_mark("sealed") and (sealed.hu != here.volume.hu)[outside].any()


def test_networks_see_the_scan_and_a_refined_shield_the_block(one: Scene, tmp_path: Path) -> None:
    card = Card("shield", "shield", "", "cpu", {"waves": 2, "width": 2}, "", 0, 0, "", "")
    torch.manual_seed(0)
    save_checkpoint(Shield(waves=2, width=2), card, tmp_path)
    files = [("shield", tmp_path / "shield.safetensors")]
    plain, refined = find_setups(["shield:budget=12", "shield:budget=12:steps=1"], files, budget_hu=5, steps=1)
    wide = tuple(slice(max(0, side.start - 20), side.stop + 20) for side in one.box.slices())
    outside = np.ones(one.volume.hu.shape, dtype=bool)
    outside[wide] = False
    block = one.box.slices()
    changes = [protect(setup, one).volume.hu.astype(int) - one.volume.hu for setup in (plain, refined)]
    assert all(0 < np.abs(change[block]).max() <= 12 for change in changes)
    assert changes[0][outside].any() and not changes[1][outside].any()
    assert plain.effort is None and refined.effort == ("steps", 1.0)
    (sealed,) = find_setups(["shield+seal:budget=12"], [("shield+seal", files[0][1])], budget_hu=5, steps=1)
    both = protect(sealed, one).volume
    assert both.provenance.has_mark("sealed") and 0 < np.abs(both.hu.astype(int) - one.volume.hu)[block].max() <= 12


def test_a_known_site_is_damaged_more_than_by_noise_and_another_seed_is_another_forgery(one: Scene) -> None:
    here = one
    forger = find_forger("pix2pix")
    noise = protect(NOISE, here).volume
    attempt, removal = attempts(here, (forger,), noise)
    best = known_site(attempt, AscentSettings(5.0, 1))
    floor = attempt_values(attempt, noise)
    assert best["ceiling core"] > 3 * floor["damage core"]
    assert best["ceiling added cube"] <= 5
    assert other_seed(removal)["seed core"] > 0  # the injector's core is empty: one place gets one nodule


def test_rows_are_named_by_protector_settings_and_weights(tmp_path: Path) -> None:
    rows = find_setups(["noise", "ascent:steps=50:budget=3"], [], budget_hu=5, steps=200)
    assert [(row.budget_hu, row.steps) for row in rows] == [(5, 200), (3, 50)]
    assert rows[1].label == "ascent:steps=50:budget=3"
    for folder in ("s0", "s1"):
        save_checkpoint(
            torch.nn.Linear(1, 1), Card("tafim", "tafim", "", "cpu", {}, "", 0, 0, "", ""), tmp_path / folder
        )
    files = [("tafim", tmp_path / folder / "tafim.safetensors") for folder in ("s0", "s1")]
    (tmp_path / "s1" / "run.json").write_text('{"seconds": 5400}')
    two = find_setups(["tafim:budget=3"], files, budget_hu=5, steps=1)
    assert [row.label for row in two] == ["tafim:budget=3 s0/tafim", "tafim:budget=3 s1/tafim"]
    assert [row.training_hours for row in two] == [None, 1.5] and two[0].budget_hu == 3
    assert find_setups([], files[:1], budget_hu=5, steps=1)[0].label == "tafim tafim"
    with pytest.raises(RecipeError, match="speed"):
        find_setups(["ascent:speed=2"], [], budget_hu=5, steps=1)
    with pytest.raises(ModelError, match="no protector is called"):
        find_setups(["magic"], [], budget_hu=5, steps=1)
    with pytest.raises(ModelError, match="missing"):
        find_setups([], [("tafim", tmp_path / "none.safetensors")], budget_hu=5, steps=1)


@pytest.fixture
def no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installation without any network's weights, as one that trains its own begins."""
    monkeypatch.setattr(zoo, "WEIGHTS", tmp_path / "none")


@pytest.mark.usefixtures("no_weights")
def test_effort_per_scan_is_part_of_a_rows_name() -> None:
    ascent, shield = find_setups(["ascent:steps=50", "shield:refine=30"], [], budget_hu=5, steps=200)
    assert ascent.effort == ("steps", 50.0) and shield.missing == "no weights"
    assert replace(shield, refine=Effort(minutes=30.0)).effort == ("minutes", 30.0) and NOISE.effort is None
    with pytest.raises(RecipeError, match="how long"):
        find_setups(["shield:refine=30:steps=5"], [], budget_hu=5, steps=1)
    with pytest.raises(RecipeError, match="setting 'steps'"):
        find_setups(["noise:steps=5"], [], budget_hu=5, steps=1)


def test_forgers_without_weights_are_named_and_others_are_told_apart(tmp_path: Path) -> None:
    assert IDENTITY.known and find_forger("pix2pix").known
    other = Forger("cyclegan", "cyclegan")
    assert not other.known
    with pytest.raises(ModelError, match="weights of a forger"):
        find_forger(f"mine=pix2pix:{tmp_path}")
    with pytest.raises(RecipeError, match="copy-move"):
        find_forger("copy-move")
    ascent = Setup("ascent", "ascent", 5.0, 1)
    assert ascent.knows(find_forger("pix2pix")) == "seen" and ascent.knows(IDENTITY) == "unseen"
    assert NOISE.knows(IDENTITY) == ""


def test_rows_survive_their_file() -> None:
    row = Row("noise", "p", "s", ATTEMPT, {"damage core": 1.5, "score": float("nan")}, 3, "inject", "pix2pix")
    kept = Row.from_json(json.loads(json.dumps(row.to_json())))
    assert repr(kept) == repr(row)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cohort(tmp_path_factory.mktemp("cohort"), count=1, splits=("test",))


OPTIONS = ("--protectors", "noise", "--generators", "identity,cyclegan", "--sites", 1, "--detectors", "none")


@pytest.mark.usefixtures("no_weights")
def test_a_run_writes_tables_figures_and_marked_examples(
    index: Path, tmp_path: Path, state: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ("bench", "protection", "--data", index, "--out", out, *OPTIONS, "--ceiling-sites", 0, "--device", "cpu")
    done = run(capfd, *words, "--protectors", "noise,tafim", "--removal", "none", "--json")
    assert done.code == 0, done.err
    tables = {table["title"]: table["rows"] for table in done.json["tables"]}
    damage = {row["protector"]: row for row in tables["Damage and gain: identity, both tasks, HU"]}
    assert damage["noise"]["n"] == 2 and damage["tafim"]["n"] == "no weights"
    assert damage["noise"]["times noise"]["value"] == pytest.approx(1.0, abs=0.3)
    transfer = {(row["protector"], row["forger"]): row for row in tables["Transfer: every forger, by task, HU"]}
    assert transfer["noise", "cyclegan"]["task"] == "no weights"
    for name in ("protection.csv", "protection.md", "protection.html", "damage.png", "protected.png", "heat.png"):
        assert (out / name).stat().st_size > 0
    for name in ("inject", "remove"):
        example = io.read(out / "scans" / "noise" / "scan0" / f"{name}.mha")
        assert example.provenance.has_mark("forged") and example.hu.shape[0] == 1
        assert (out / f"{name}.png").stat().st_size > 0
    assert len(state.read_text().splitlines()) == 2 * 2  # rows with the control, tasks
    with (out / "protection.csv").open() as stream:
        lines = list(csv.DictReader(stream))
    assert {line["setup"] for line in lines} == {"no protection", "noise"}
    seconds = json.loads((out / "run.json").read_text())["notes"]["seconds of protecting"]
    assert seconds["noise"]["scan0"] > 0


def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(
    index: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ctguard.report.protection_bench.make_figures", lambda *_: {})
    out = tmp_path / "out"
    words = ("bench", "protection", "--data", index, "--out", out, *OPTIONS, "--ceiling-sites", 0, "--device", "cpu")
    assert run(capfd, *words).code == 0
    made = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file() and path.name != "run.json"}
    for name in made:
        (out / name).unlink()
    (out / "scans" / "noise" / "scan0.json").unlink()  # what was at work when it was killed
    seen: list[str] = []

    def watched(*given: Any) -> Any:
        seen.append(given[1].label)
        return measure_setup(*given)

    monkeypatch.setattr("ctguard.bench.protection.measure_setup", watched)
    assert run(capfd, *words).code == 0
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.name in made} == made
    assert seen == ["noise"]


def test_rows_of_other_sites_seeds_or_weights_are_measured_anew() -> None:
    experiment = Experiment((NOISE,), (IDENTITY,))
    assert replace(experiment, sites=2).of(NOISE) != experiment.of(NOISE)
    assert replace(experiment, forgers=(find_forger("pix2pix"),)).of(NOISE) != experiment.of(NOISE)
    assert experiment.of(replace(NOISE, budget_hu=4.0)) != experiment.of(NOISE)
    assert replace(experiment, ceiling_steps=3).of(NOISE) == experiment.of(NOISE)  # of the control alone
    assert replace(experiment, ceiling_steps=3).of(CONTROL) != experiment.of(CONTROL)
    assert pickle.loads(pickle.dumps(experiment)).of(NOISE) == experiment.of(NOISE)  # in another process alike


def test_an_empty_split_is_refused(index: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    done = run(capfd, "bench", "protection", "--data", index, "--out", tmp_path / "o", "--split", "valid", *OPTIONS)
    assert done.code == 1 and "no valid scan" in done.err
    wrong = run(capfd, "bench", "protection", "--data", index, "--out", tmp_path / "o", "--weights", "tafim")
    assert wrong.code == 2 and "tafim" in wrong.err
