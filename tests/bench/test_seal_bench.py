"""The seal's benchmark: what it changes, what it counts, and what a killed run leaves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ctguard import io
from ctguard.bench.metrics import exact_share
from ctguard.bench.protection_scene import find_forger
from ctguard.bench.seal import forgers
from ctguard.bench.seal.forgers import WAYS, contents, foreign_contents, generated, put
from ctguard.bench.seal.measure import Measured
from ctguard.bench.seal.scene import GAP_MM, JUDGES, SealScene, set_seal_scene
from ctguard.bench.seal.tables import SealResults, seal_tables
from ctguard.bench.seal.trials import Row, benign_rows, digest_rows, null_rows, oracle_rows, price_rows, size_rows
from ctguard.core.marks import Mark
from ctguard.core.provenance import Step
from ctguard.core.records import Case
from ctguard.io.cases import write_cases
from tests.cli.runner import run
from tests.protect import seals


@pytest.fixture(scope="module")
def scene() -> SealScene:
    """Shared: nothing mutates a volume."""
    return set_seal_scene(seals.scan(shape=(16, 190, 206)), seed=3)


def test_places_lie_in_lung_apart_from_each_other_and_are_drawn_by_the_seed(scene: SealScene) -> None:
    boxes = scene.boxes(16, 6)
    assert 2 <= len(boxes) <= 6 and boxes == scene.boxes(16, 6)
    marked = np.zeros(scene.original.hu.shape, int)
    gap = [round(GAP_MM / mm) for mm in scene.spacing_zyx_mm]
    for box in boxes:
        assert scene.lung[box].mean() > 0.7
        assert not marked[tuple(slice(max(0, s.start - g), s.stop + g) for s, g in zip(box, gap, strict=True))].any()
        marked[box] = 1
    other = set_seal_scene(scene.original, seed=4)
    assert other.boxes(16, 6) != boxes and other.key.key_id != scene.key.key_id


@pytest.mark.parametrize("judge", JUDGES)
def test_an_untouched_scan_is_intact_and_replaced_places_are_found(scene: SealScene, judge: str) -> None:
    boxes = scene.boxes(32, 2)
    clean = scene.found(scene.sealed.hu, boxes, judge)  # type: ignore[arg-type]
    assert (clean.found, clean.outside, clean.state) == (0, 0, "intact")
    hu = put(scene, boxes, contents(scene)["replaced by other tissue"])
    forged = scene.found(hu, boxes, judge)  # type: ignore[arg-type]
    assert (forged.found, forged.outside, forged.state) == (len(boxes), 0, "broken")


def test_forgers_change_their_sites_alone(scene: SealScene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forgers, "AVERAGED", (1, 3))
    boxes = scene.boxes(32, 2)
    away = np.ones(scene.sealed.hu.shape, bool)
    for box in boxes:
        away[tuple(slice(max(0, s.start - 1), s.stop + 1) for s in box)] = False
    made = dict(generated(scene, boxes, [find_forger("identity")]))
    assert list(made) == [f"{who}; {way}" for way in WAYS for who in ("identity", "copy-move")]
    made |= {name: put(scene, boxes, content) for name, content in contents(scene).items()}
    made |= {name: put(scene, boxes[:1], content) for name, content in foreign_contents(scene, boxes[0])}
    for name, hu in made.items():
        assert np.array_equal(hu[away], scene.sealed.hu[away]), name
        assert not np.array_equal(hu[boxes[0]], scene.sealed.hu[boxes[0]]), name
    assert sum("averaged" in name for name in made) == 2


def test_the_whole_cube_of_identity_loses_the_pattern(scene: SealScene) -> None:
    boxes = scene.boxes(32, 2)
    made = dict(generated(scene, boxes, [find_forger("identity")]))
    before = scene.evidence(scene.sealed.hu)[0].gain
    assert scene.evidence(made["identity; whole cube"])[0].gain < before


def test_what_a_forger_gets_past_verify_is_far_less_than_he_wanted(scene: SealScene) -> None:
    rows = {row.judge: row.values for row in oracle_rows(scene, 2)}
    ledger = rows["with the ledger"]
    assert float(ledger["passed"]) <= float(ledger["most"]) < 0.1 * float(ledger["wanted"])
    assert float(ledger["passed"]) < float(rows["key alone"]["wanted"])


def test_rows_say_what_was_found(scene: SealScene) -> None:
    for row in digest_rows(scene, 5):
        assert row.values["found"] == row.values["sites"] > 0 and row.values["outside"] == 0
    states = {(row.name, row.judge): row.values["state"] for row in benign_rows(scene)}
    for name in ("none", "one voxel of air changed by 1 HU", "16-bit resave", "JPEG 2000, lossless"):
        assert {states[name, judge] for judge in JUDGES} == {"intact"}, name
    assert states["JPEG 2000, 5:1", JUDGES[0]] == "intact"
    sizes = {(row.name, row.judge): row.values for row in size_rows(scene, 2)}
    assert sizes["32 mm", "at its place"]["found"] == sizes["32 mm", "at its place"]["sites"]
    assert float(sizes["8 mm", "at its place"]["sigmas"]) < float(sizes["32 mm", "at its place"]["sigmas"])
    (price,) = (row.values for row in price_rows(scene))
    assert price["restored"] == 1 and float(price["max"]) <= 3 and 0 < float(price["lung"]) <= 0.2
    null = list(null_rows(scene, 2))
    assert [row.values["outside"] for row in null if row.name == "sealed again"] == [0] * 4
    assert all(abs(float(row.values["sigmas"])) < 6 for row in null if row.name == "by another key")


def test_tables_pool_scans_with_exact_intervals() -> None:
    def scan(name: str, found: int, outside: int, state: str) -> Measured:
        cells = {"sites": 10, "found": found, "outside": outside, "state": state}
        rows = (
            Row("generators", "pix2pix, inject; whole cube", "key alone", cells),
            Row("benign", "none", "key alone", {"state": state, "outside": outside, "gain": 0.9}),
        )
        return Measured(name, name, rows, {})

    results = SealResults([scan("a", 10, 0, "intact"), scan("b", 9, 1, "broken")], "run", ("diffusion",))
    benign, generators = seal_tables(results)
    line, missing = generators.rows
    assert (line["sites"], line["missed"], line["miss rate"]) == (20, 1, exact_share(1, 20))
    assert line["false regions per 100 scans"] == 50 and line["verdict"] == "intact 1, broken 1"
    assert missing == {"what": "diffusion", "judged": "no weights: not forged"}
    assert benign.rows[0]["alarms"] == exact_share(1, 2) and benign.n == {"patients": 2, "scans": 2}


def cohort(folder: Path) -> Path:
    for number in range(2):
        made = seals.scan(number, shape=(8, 120, 132))
        io.write(made.changed(made.hu, Step("phantom", {}), Mark("phantom", "test")), folder / f"scan{number}.mha")
    cases = [Case(f"scan{n}", f"patient{n}", f"scan{n}.mha", split="test") for n in range(2)]
    write_cases(cases, folder / "index.csv")
    return folder / "index.csv"


def test_the_command_writes_its_tables_and_goes_on_where_it_was_killed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    index, out = cohort(tmp_path), tmp_path / "out"
    given: tuple[str | Path, ...] = ("--data", index, "--out", out, "--tables", "price,digest,size", "--sites", "2")
    first = run(capfd, "bench", "seal", *given, "--json").json
    assert [table["n"]["scans"] for table in first["tables"]] == [2, 2, 2]
    made = {path.name: path.read_bytes() for path in out.iterdir() if path.suffix in (".csv", ".png")}
    assert set(made) == {"seal.csv", "sizes.png"} and (out / "seal.html").is_file()
    kept = out / "scans" / "scan1.digest.json"
    times = {path: path.stat().st_mtime_ns for path in (out / "scans").iterdir()}
    kept.unlink()
    again = run(capfd, "bench", "seal", *given, "--json").json
    assert again["tables"][0]["rows"] == first["tables"][0]["rows"]
    assert all((out / name).read_bytes() == data for name, data in made.items())
    assert {path for path, time in times.items() if path.stat().st_mtime_ns != time} == {kept}


def test_wrong_use_is_told(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    index = cohort(tmp_path)
    where: tuple[str | Path, ...] = ("--data", index, "--out", tmp_path / "out")
    done = run(capfd, "bench", "seal", *where, "--tables", "prize")
    assert done.code == 1 and "no table is called prize" in done.err and "price" in done.err
    done = run(capfd, "bench", "seal", *where, "--split", "valid")
    assert done.code == 1 and "it has no valid scan" in done.err
    assert not (tmp_path / "out").exists()
