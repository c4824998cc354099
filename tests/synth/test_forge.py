"""Forging one site: guards, marks, exact ground truth."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ctguard.core.errors import GeometryError, RefusedError, WriteError
from ctguard.core.geometry import Geometry
from ctguard.core.marks import Mark
from ctguard.core.provenance import Provenance, Source
from ctguard.core.volume import Volume
from ctguard.synth.forge import Request, log_forging, tamper_scan
from tests.synth.scans import lung_site, scan


def test_ground_truth_is_what_differs_after_rounding() -> None:
    volume = scan()
    forged, edit, seconds = tamper_scan(volume, Request("remove", lung_site(volume), "copy-move", seed=3))
    truth = edit.full_mask(volume.geometry.shape_zyx)
    changed = forged.hu != volume.hu
    assert changed.any() and not (changed & ~truth).any()
    assert np.array_equal(forged.hu[~truth], volume.hu[~truth])
    assert edit.strong.sum() < edit.mask.sum() and edit.outside_cube == 0
    assert set(seconds) == {"model", "network", "chain", "truth"}


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
        path = log_forging({"seed": number}, "a" * 64, "b" * 64)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["plan"]["seed"] for row in rows] == [0, 1] and rows[0]["user"]
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    with pytest.raises(WriteError, match="log of forgings"):
        log_forging({}, "", "")


def test_a_site_in_uniform_air_that_changes_nothing_is_an_error() -> None:
    air = Volume(
        np.full((40, 60, 60), -1024, np.int16),
        Geometry((40, 60, 60), (1.0, 1.0, 1.0)),
        Provenance(Source("phantom"), (), (Mark("phantom", ""),)),
    )
    with pytest.raises(GeometryError):
        tamper_scan(air, Request("remove", (20.0, 30.0, 30.0), "identity"))
