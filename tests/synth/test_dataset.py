"""From an index to a data set: resuming, failures case by case, manifest, split, refusals."""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ctguard import io
from ctguard.core.errors import DataError, ModelError, RecipeError, WriteError
from ctguard.core.marks import Mark
from ctguard.io.cases import case_path, read_cases, write_cases
from ctguard.io.forgeries import read_forgery, read_manifest
from ctguard.synth import case as case_module
from ctguard.synth.dataset import synth, with_split
from ctguard.synth.forge import apply_plan, load_generator
from ctguard.synth.rule import DatasetRule
from ctguard.synth.sites import SiteRule
from ctguard.tamper.pipeline import Plan
from tests.cohort.test_index import tables
from tests.synth.scans import cohort, contents, scan

RULE = DatasetRule(generators=("identity", "copy-move"), sites=SiteRule(injections=1))


@pytest.fixture(autouse=True)
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The log of forgings, apart from the user's own."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / "ctguard" / "forgings.jsonl"


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_forgery_is_one_edit_of_its_pristine_scan(tmp_path: Path, log: Path) -> None:
    index = cohort(tmp_path / "cohort")
    summary = synth(index, tmp_path / "set", RULE, seed=3)
    kept, forgeries = read_manifest(tmp_path / "set")
    assert summary.forgeries == len(forgeries) == len(lines(log)) == 8
    pristine = {case.scan_id: io.read(case_path(kept, case)) for case in read_cases(kept)}
    for forgery in forgeries:
        source = pristine[forgery.scan_id].hu
        changed = forgery.paste(source) != source
        assert changed.any() and not (changed & ~forgery.edit.full_mask(source.shape)).any()
    by_site: dict[Any, set[str]] = {}
    for forgery in forgeries:
        plan = forgery.edit.plan
        by_site.setdefault((forgery.scan_id, str(plan["center_zyx"]), plan["seed"]), set()).add(forgery.edit.generator)
    assert list(by_site.values()) == [{"identity", "copy-move"}] * 4


def test_the_manifest_has_a_plan_that_replays_and_a_hash_for_every_file(tmp_path: Path) -> None:
    index = cohort(tmp_path / "cohort", 1)
    synth(index, tmp_path / "set", RULE)
    _, *rows = lines(tmp_path / "set" / "forgeries.jsonl")
    for row in rows:
        for name, sha in row["files"].items():
            assert hashlib.sha256((tmp_path / "set" / name).read_bytes()).hexdigest() == sha
    row = next(row for row in rows if row["plan"]["generator"] == "identity")
    volume = io.read(tmp_path / "cohort" / "scan0.mha")
    generator = load_generator("identity", row["plan"]["task"])[0]
    box, hu = apply_plan(volume.hu, volume.geometry, Plan.from_json(row["plan"]), generator)
    forged = volume.hu.copy()
    forged[box.slices()] = hu
    stored = read_forgery(tmp_path / "set" / next(iter(row["files"])))
    assert np.array_equal(stored.paste(volume.hu), forged)


@pytest.mark.parametrize("format", ["plan", "dicom", "tiff"])
def test_killed_at_any_moment_it_goes_on_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: Any
) -> None:
    index = cohort(tmp_path / "cohort")
    rule = replace(RULE, format=format, generators=("identity",))
    synth(index, tmp_path / "whole", rule)
    kinds: list[Callable[[], None]] = [lambda: _die_after(monkeypatch, "_place", 1), lambda: _die_in_place(monkeypatch)]
    for number, die in enumerate(kinds):
        with monkeypatch.context():
            die()
            with pytest.raises(KeyboardInterrupt):
                synth(index, tmp_path / f"killed{number}", rule)
        monkeypatch.undo()
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
        (tmp_path / f"killed{number}" / ".summary.json.12ab.part").mkdir()  # what SIGKILL leaves of an atomic write
        summary = synth(index, tmp_path / f"killed{number}", rule)
        assert summary.kept == 1 - number
        assert contents(tmp_path / f"killed{number}") == contents(tmp_path / "whole")


def _die_after(monkeypatch: pytest.MonkeyPatch, name: str, calls: int) -> None:
    """The process ends before the second scan's files are moved into place."""
    real = getattr(case_module, name)
    left = [calls]

    def dies(*arguments: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        real(*arguments)

    monkeypatch.setattr(case_module, name, dies)


def _die_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process ends when some of the first scan's files are in place and its record is not."""
    real = case_module._place

    def dies(stage: Path, out: Path) -> None:
        victim = sorted(path for path in stage.rglob("*") if path.is_file())[-1]
        victim.unlink()
        real(stage, out)
        raise KeyboardInterrupt

    monkeypatch.setattr(case_module, "_place", dies)


def test_a_file_that_is_gone_is_made_again(tmp_path: Path) -> None:
    index = cohort(tmp_path / "cohort")
    synth(index, tmp_path / "set", RULE)
    before = contents(tmp_path / "set")
    next((tmp_path / "set").glob("scan1*.npz")).unlink()
    assert synth(index, tmp_path / "set", RULE).kept == 1
    assert contents(tmp_path / "set") == before


def test_workers_and_generators_change_nobody_elses_bytes(tmp_path: Path) -> None:
    index = cohort(tmp_path / "cohort")
    synth(index, tmp_path / "one", RULE)
    synth(index, tmp_path / "two", RULE, jobs=2, cluster="local")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    synth(index, tmp_path / "fewer", replace(RULE, generators=("identity",)))
    fewer = {name: data for name, data in contents(tmp_path / "fewer").items() if name.endswith(".npz")}
    assert fewer and fewer.items() <= contents(tmp_path / "one").items()


def test_a_broken_scan_and_a_full_disk_are_told_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = cohort(tmp_path / "cohort", 3)
    synth(index, tmp_path / "whole", RULE)
    good = (tmp_path / "cohort" / "scan1.mha").read_bytes()
    (tmp_path / "cohort" / "scan1.mha").write_bytes(good[:5000])
    real = case_module.write_samples

    def full(format: Any, folder: Path, pristine: Any, samples: Any) -> Any:
        made = real(format, folder, pristine, samples)
        if any(sample.forgery.scan_id == "scan2" for sample in samples):
            raise OSError(errno.ENOSPC, "No space left on device", "x.npz")
        return made

    monkeypatch.setattr(case_module, "write_samples", full)
    summary = synth(index, tmp_path / "set", RULE)
    assert [scan for scan, _ in summary.failed] == ["scan1", "scan2"]
    assert "scan1.mha" in summary.failed[0][1] and "No space left" in summary.failed[1][1]
    assert {row["scan_id"] for row in lines(tmp_path / "set" / "forgeries.jsonl")[1:]} == {"scan0"}
    assert not list((tmp_path / "set").glob("scan[12]*")) and not list((tmp_path / "set").glob(".*"))
    stored = json.loads((tmp_path / "set" / "summary.json").read_text())
    assert [one["scan_id"] for one in stored["failed"]] == ["scan1", "scan2"]
    monkeypatch.undo()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    (tmp_path / "cohort" / "scan1.mha").write_bytes(good)
    assert synth(index, tmp_path / "set", RULE).failed == ()
    assert contents(tmp_path / "set") == contents(tmp_path / "whole")


def test_a_disk_too_full_for_the_manifest_loses_no_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = cohort(tmp_path / "cohort", 1)

    def full(*_: Any) -> None:
        raise WriteError("cannot be written (No space left on device)", where="forgeries.jsonl")

    with monkeypatch.context() as patch:
        patch.setattr("ctguard.synth.dataset.write_manifest", full)
        summary = synth(index, tmp_path / "set", replace(RULE, generators=("identity",)))
    assert summary.forgeries == 2
    assert summary.failed == (("forgeries.jsonl", "forgeries.jsonl: cannot be written (No space left on device)"),)
    again = synth(index, tmp_path / "set", replace(RULE, generators=("identity",)))
    assert (again.failed, again.kept) == ((), 1) and len(read_manifest(tmp_path / "set")[1]) == 2


def test_sources_that_must_not_be_forged_are_left_out(tmp_path: Path) -> None:
    index = cohort(tmp_path / "cohort", 3)
    io.write(scan(marks=()), tmp_path / "cohort" / "scan0.mha")
    marks = (Mark("phantom", "test"), Mark("forged", "test"))
    io.write(scan(marks=marks), tmp_path / "cohort" / "scan1.mha")
    summary = synth(index, tmp_path / "set", RULE)
    assert [scan for scan, _ in summary.failed] == ["scan0"] and "de-identified" in summary.failed[0][1]
    assert summary.reasons()["it is itself forged"] == 1
    assert {row["scan_id"] for row in lines(tmp_path / "set" / "forgeries.jsonl")[1:]} == {"scan2"}


def test_without_a_split_the_published_one_is_drawn_by_patient(tmp_path: Path) -> None:
    index = cohort(tmp_path / "cohort", 1, (None,))
    (case,) = read_cases(index)
    rows = [replace(case, scan_id=f"s{k}", patient=f"p{k // 2}", path=f"{k}.mha") for k in range(1200)]
    split = {one.patient: one.split for one in with_split(rows, 0)}
    shares = [sum(value == name for value in split.values()) / len(split) for name in ("train", "valid", "test")]
    assert shares == pytest.approx([0.66, 0.14, 0.20], abs=0.04)
    write_cases([rows[0], replace(rows[2], split="test")], index)
    with pytest.raises(DataError, match="1 of 2 rows have no split, among them s0"):
        synth(index, tmp_path / "set", RULE)


def test_a_replayed_site_list_brings_its_split(tmp_path: Path) -> None:
    (case,) = read_cases(cohort(tmp_path / "cohort", 1, ("train",)))
    folder = tables(tmp_path / "tables")  # knows patient P1, valid
    cases = [replace(case, patient="P1"), replace(case, scan_id="other", patient="P2")]
    assert [one.split for one in with_split(cases, 0, folder)] == ["valid", "train"]


def test_the_indexs_own_split_is_kept(tmp_path: Path) -> None:
    index = cohort(tmp_path / "cohort", 2, ("valid", "test"))
    synth(index, tmp_path / "set", RULE)
    assert [case.split for case in read_cases(tmp_path / "set" / "index.csv")] == ["valid", "test"]
    rows = lines(tmp_path / "set" / "forgeries.jsonl")[1:]
    assert {(row["scan_id"], row["split"]) for row in rows} == {("scan0", "valid"), ("scan1", "test")}


def test_a_folder_of_something_else_and_another_request_are_refused(tmp_path: Path) -> None:
    index = cohort(tmp_path / "cohort", 1)
    with pytest.raises(WriteError, match="holds no data set"):
        synth(index, tmp_path / "cohort", RULE)
    assert not (tmp_path / "cohort" / "synth.json").exists()
    synth(index, tmp_path / "set", RULE)
    with pytest.raises(WriteError, match="another seed, sites"):
        synth(index, tmp_path / "set", replace(RULE, sites=SiteRule(injections=2)), seed=5)


def test_missing_weights_are_one_error_before_anything_is_made(tmp_path: Path) -> None:
    index = cohort(tmp_path / "cohort", 1)
    rule = replace(RULE, generators=("pix2pix", "identity"), weights=tmp_path / "nowhere")
    with pytest.raises(ModelError, match=r"no weights for pix2pix \(inject: .*\), pix2pix \(remove"):
        synth(index, tmp_path / "set", rule)
    with pytest.raises(RecipeError, match="no generator is called 'stylegan'"):
        synth(index, tmp_path / "set", replace(RULE, generators=("stylegan",)))
    assert not (tmp_path / "set").exists()


def test_a_scan_id_that_is_no_file_name_is_refused(tmp_path: Path) -> None:
    index = cohort(tmp_path / "cohort", 1)
    write_cases([replace(read_cases(index)[0], scan_id="../elsewhere")], index)
    with pytest.raises(DataError, match="cannot name a file"):
        synth(index, tmp_path / "set", RULE)
