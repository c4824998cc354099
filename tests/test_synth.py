"""Forging one site and a data set: guards, marks, exact ground truth, resuming."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ctguard import io, synth
from ctguard.core.errors import GeometryError, RefusedError, WriteError
from ctguard.core.geometry import Geometry
from ctguard.core.marks import Mark
from ctguard.core.provenance import Provenance, Source
from ctguard.core.records import Case, Finding
from ctguard.core.volume import Volume
from ctguard.io.cases import write_cases
from ctguard.io.forgeries import read_manifest
from ctguard.synth import DatasetRule, Request, tamper_scan, write_dataset
from tests.detect.scans import thorax


def scan(marks: tuple[Mark, ...] = (Mark("phantom", "test"),), deidentified: bool = False) -> Volume:
    whole = thorax((24, 96, 112))
    source = Source("phantom", series_uid="1.2.3", patient_id="secret", deidentified=deidentified)
    return Volume(whole.hu.astype(np.int16), whole.geometry, Provenance(source, (), marks))


def lung_site(volume: Volume) -> tuple[float, float, float]:
    from ctguard.cohort.patches import draw_lung_sites

    for site in draw_lung_sites(volume, [], 200, 0.0, np.random.default_rng(0)):
        try:
            synth.exact_cube(volume.geometry, site, 16.0)
        except GeometryError:
            continue
        return site
    raise AssertionError("the test scan has no site")


def test_ground_truth_is_what_differs_after_rounding() -> None:
    volume = scan()
    forged, edit, seconds = tamper_scan(volume, Request("remove", lung_site(volume), "copy-move", seed=3))
    truth = edit.full_mask(volume.geometry.shape_zyx)
    changed = forged.hu != volume.hu
    assert changed.any() and not (changed & ~truth).any()
    assert np.array_equal(forged.hu[~truth], volume.hu[~truth])
    assert edit.strong.sum() < edit.mask.sum() and edit.outside_cube == 0
    assert set(seconds) == {"model", "forge", "truth"}


def test_the_forged_volume_is_marked_and_its_step_names_no_person() -> None:
    volume = scan()
    forged, _, _ = tamper_scan(volume, Request("remove", lung_site(volume), "identity"))
    assert forged.provenance.has_mark("forged") and forged.provenance.has_mark("phantom")
    assert "secret" not in json.dumps(dict(forged.provenance.steps[-1].params))


def test_only_phantoms_and_deidentified_scans_are_forged() -> None:
    request = Request("remove", lung_site(scan()), "identity")
    with pytest.raises(RefusedError, match="de-identified"):
        tamper_scan(scan(marks=()), request)
    tamper_scan(scan(marks=(), deidentified=True), request)


def test_the_same_plan_gives_the_same_bytes_and_a_seed_matters() -> None:
    volume = scan()
    request = Request("remove", lung_site(volume), "copy-move", seed=3)
    first, again = tamper_scan(volume, request)[0], tamper_scan(volume, request)[0]
    other = tamper_scan(volume, replace(request, seed=4))[0]
    assert np.array_equal(first.hu, again.hu)
    assert not np.array_equal(first.hu, other.hu)


def test_the_log_of_forgings_grows_and_is_not_optional(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    for number in range(2):
        path = synth.log_forging({"seed": number}, "a" * 64, "b" * 64)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["plan"]["seed"] for row in rows] == [0, 1] and rows[0]["user"]
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    with pytest.raises(WriteError, match="log of forgings"):
        synth.log_forging({}, "", "")


def test_a_data_set_composes_and_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    volume = scan()
    io.write(volume, tmp_path / "scan.mha")
    nodule = Finding(tuple(float(v) for v in center_lps(volume)), 12.0, 5.0)  # type: ignore[arg-type]
    case = Case("one", "patient", "scan.mha", "phantom", "", "train", (nodule,))
    write_cases([case], tmp_path / "index.csv")
    rule = DatasetRule(generators=("copy-move", "identity"), sites=1, clear_mm=10.0)
    count = write_dataset(tmp_path / "index.csv", tmp_path / "set", rule, 0, [case])
    index, forgeries = read_manifest(tmp_path / "set")
    assert index == (tmp_path / "index.csv").resolve() and len(forgeries) == count > 0
    for forgery in forgeries:
        forged = forgery.paste(volume.hu)
        assert np.array_equal(forged != volume.hu, (forged != volume.hu) & forgery.edit.full_mask(volume.hu.shape))
        assert (forged != volume.hu).any()
    before = {path.name: path.read_bytes() for path in (tmp_path / "set").iterdir()}
    (tmp_path / "set" / "one.done").unlink()
    assert write_dataset(tmp_path / "index.csv", tmp_path / "set", rule, 0, [case]) == count
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "set").iterdir()}


def center_lps(volume: Volume) -> np.ndarray:
    from ctguard.core.geometry import index_to_lps_mm

    return index_to_lps_mm(volume.geometry, lung_site(volume))


def test_a_site_in_uniform_air_that_changes_nothing_is_an_error() -> None:
    air = Volume(
        np.full((40, 60, 60), -1024, np.int16),
        Geometry((40, 60, 60), (1.0, 1.0, 1.0)),
        Provenance(Source("phantom"), (), (Mark("phantom", ""),)),
    )
    with pytest.raises(GeometryError):
        tamper_scan(air, Request("remove", (20.0, 30.0, 30.0), "identity"))
