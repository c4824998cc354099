"""info, convert, phantom, index."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from ctguard import io
from ctguard.phantom.patients import CohortPlan, write_cohort
from tests.cli.runner import run
from tests.cli.scans import small_volume

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return io.write(small_volume(), tmp_path_factory.mktemp("series") / "series")


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cohort(tmp_path_factory.mktemp("cohort"), 1, CohortPlan("small"), first_seed=13).parent


def test_info_tells_grid_marks_and_signature(series: Path, capfd: Capture) -> None:
    facts = run(capfd, "info", series, "--json").json
    assert facts["scan"] == str(series)
    assert facts["format"] == "dicom"
    assert facts["shape_zyx"] == [8, 32, 32]
    assert facts["spacing_zyx_mm"] == [2.0, 1.5, 1.5]
    assert facts["origin_lps_mm"] == [0.0, 0.0, 0.0]
    assert facts["kernel"] == "soft"
    assert facts["signature"] == "absent"
    assert [mark.split(":")[0] for mark in facts["marks"]] == ["phantom"]
    assert set(facts["noise_hu"]) == {"lung", "soft tissue"}


def test_info_in_words_holds_what_the_json_holds(series: Path, capfd: Capture) -> None:
    done = run(capfd, "info", series)
    names = [line.split("  ")[0] for line in done.out.splitlines()[:-1]]
    assert names == [key.replace("_", " ") for key in run(capfd, "info", series, "--json").json]
    assert "8, 32, 32" in done.out
    assert "not a medical device" in done.out.splitlines()[-1].lower()


def test_info_measures_the_noise_of_a_phantom(cohort: Path, capfd: Capture) -> None:
    noise = run(capfd, "info", cohort / "phantom-000013.mha", "--json").json["noise_hu"]
    measured = [value for value in noise.values() if value is not None]  # small scans show little of either tissue
    assert measured
    assert all(3 < value < 150 for value in measured)


@pytest.mark.parametrize("name", ["a.mha", "a.mhd", "a.nii.gz", "a.nrrd", "a.tiff", "a"])
def test_convert_keeps_voxels_place_and_marks(series: Path, name: str, tmp_path: Path, capfd: Capture) -> None:
    done = run(capfd, "convert", series, tmp_path / name, "--json")
    assert done.json == {"scan": str(series), "out": str(tmp_path / name)}
    before, after = io.read(series), io.read(tmp_path / name)
    assert np.array_equal(before.hu, after.hu)
    assert before.geometry.agrees(after.geometry)
    assert after.provenance.has_mark("phantom")


def test_convert_refuses_to_write_onto_its_input(tmp_path: Path, capfd: Capture) -> None:
    scan = io.write(small_volume(), tmp_path / "scan.mha")
    bytes_before = scan.read_bytes()
    done = run(capfd, "convert", scan, scan)
    assert (done.code, len(done.errors)) == (1, 1)
    assert scan.read_bytes() == bytes_before


@pytest.mark.parametrize("name", ["scan.png", "scan.npy", "scan.xyz"])
def test_convert_refuses_a_format_without_marks(series: Path, name: str, tmp_path: Path, capfd: Capture) -> None:
    done = run(capfd, "convert", series, tmp_path / name)
    assert (done.code, len(done.errors)) == (1, 1)
    assert list(tmp_path.iterdir()) == []


def test_convert_takes_one_of_several_series(tmp_path: Path, capfd: Capture) -> None:
    for seed in (1, 2):
        io.write(small_volume(seed), tmp_path / "both" / str(seed))
    wanted = io.read(tmp_path / "both" / "2")
    uid = wanted.provenance.source.series_uid or ""
    assert run(capfd, "convert", tmp_path / "both", tmp_path / "one.nrrd", "--series", uid).code == 0
    assert np.array_equal(io.read(tmp_path / "one.nrrd").hu, wanted.hu)


def test_convert_fills_gaps_only_when_asked(series: Path, tmp_path: Path, capfd: Capture) -> None:
    folder = io.write(small_volume(4), tmp_path / "gap")
    sorted(folder.glob("*.dcm"))[4].unlink()
    assert run(capfd, "convert", folder, tmp_path / "no.mha").code == 1
    assert run(capfd, "convert", folder, tmp_path / "yes.mha", "--allow-gaps").code == 0
    assert io.read(tmp_path / "yes.mha").hu.shape == (8, 32, 32)


def test_phantom_gives_the_same_bytes_and_an_index(cohort: Path, tmp_path: Path, capfd: Capture) -> None:
    facts = run(capfd, "phantom", tmp_path / "b", "--patients", "1", "--size", "small", "--seed", "13", "--json").json
    assert facts == {"index": str(tmp_path / "b" / "index.csv"), "patients": 1, "size": "small", "first_seed": 13}
    for name in ("phantom-000013.mha", "index.csv"):
        assert (cohort / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    with (cohort / "index.csv").open(newline="") as stream:
        (row,) = csv.DictReader(stream)
    assert row["path"] == "phantom-000013.mha"
    assert json.loads(row["findings"])[0]["diameter_mm"] > 3


def test_index_lists_scans_by_patient_and_can_be_repeated(tmp_path: Path, capfd: Capture) -> None:
    for seed in range(3):
        io.write(small_volume(seed), tmp_path / "scans" / f"p{seed}.nrrd")
    out = tmp_path / "lists" / "index.csv"
    out.parent.mkdir()
    facts = run(capfd, "index", tmp_path / "scans", out, "--kind", "folder", "--json", "--quiet").json
    assert (facts["scans"], facts["patients"]) == (3, 3)
    with out.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(out.parent / row["path"]).resolve() for row in rows] == sorted((tmp_path / "scans").iterdir())
    assert all(row["split"] in ("train", "valid", "test") for row in rows)
    first = out.read_bytes()
    run(capfd, "index", tmp_path / "scans", out, "--kind", "folder")
    assert out.read_bytes() == first


def test_index_of_an_empty_folder_is_one_line(tmp_path: Path, capfd: Capture) -> None:
    done = run(capfd, "index", tmp_path, tmp_path / "out.csv", "--kind", "folder", "--quiet")
    assert (done.code, len(done.errors)) == (1, 1)
    assert list(tmp_path.iterdir()) == []


def test_index_options_of_another_kind_are_refused(tmp_path: Path, capfd: Capture) -> None:
    io.write(small_volume(), tmp_path / "scan.mha")
    done = run(capfd, "index", tmp_path, tmp_path / "o.csv", "--kind", "folder", "--tables", tmp_path)
    assert done.code == 1
    assert "--tables" in done.err
