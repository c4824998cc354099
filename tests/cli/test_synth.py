"""The synth verb: exit codes, what it prints, SIGKILL."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli.runner import run
from tests.cohort.test_index import tables
from tests.synth.scans import cohort, contents

CONTROLS = ("--generators", "identity", "--injections", "1")


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def test_a_data_set_and_its_summary(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    index, out = cohort(tmp_path / "cohort", 1), tmp_path / "set"
    planned = run(capfd, "synth", index, out, *CONTROLS, "--dry-run", "--json", "--quiet")
    assert planned.code == 0 and not out.exists()
    done = run(capfd, "synth", index, out, *CONTROLS, "--json", "--quiet")
    assert (done.code, done.err) == (0, "")
    assert done.json["counts"] == planned.json["counts"]
    assert done.json["counts"]["identity"]["remove"] == {"train": 1, "valid": 0, "test": 0}
    assert set(done.json["seconds"]) == {"model", "network", "chain", "truth"}
    again = run(capfd, "synth", index, out, *CONTROLS)
    assert again.code == 0 and "2 forged scans of 1 pristine ones" in again.out
    other = run(capfd, "synth", index, out, *CONTROLS, "--seed", "3")
    assert (other.code, len(other.errors)) == (1, 1) and "another seed" in other.err


def test_a_broken_scan_is_exit_1_with_the_rest_done(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    index, out = cohort(tmp_path / "cohort"), tmp_path / "set"
    (tmp_path / "cohort" / "scan0.mha").write_bytes(b"no header")
    done = run(capfd, "synth", index, out, *CONTROLS, "--quiet")
    assert done.code == 1 and "failed scan0: " in done.out and "scan0.mha" in done.out
    assert sorted(path.stem[:5] for path in out.glob("*.npz")) == ["scan1", "scan1"]
    assert (out / "run.json").is_file()


def test_a_site_list_is_counted_without_any_scan(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = tables(tmp_path / "t")  # rem_1 by cycle and pix2pix, inj_1 by diffusion
    done = run(capfd, "synth", "--sites", folder, "--dry-run", "--json")
    assert done.code == 0, done.err
    totals = {name: sum(sum(part.values()) for part in row.values()) for name, row in done.json["counts"].items()}
    assert totals == {"pix2pix": 1, "cyclegan": 1, "diffusion": 1, "sites": 2}


@pytest.mark.real
def test_the_released_tables_give_the_released_counts(real_dir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = real_dir.parent / "tables" / "m3dsynth"
    if not folder.is_dir():
        pytest.skip("needs the published tables beside the real series")
    done = run(capfd, "synth", "--sites", folder, "--dry-run")
    rows = [line.split() for line in done.out.splitlines()]
    assert rows[0][:2] == ["planned:", "8577"]
    assert rows[2:] == [
        ["pix2pix", "2009", "509", "2518", "1221/316", "362/54", "426/139"],
        ["cyclegan", "2220", "1016", "3236", "1247/534", "474/188", "499/294"],
        ["diffusion", "2009", "814", "2823", "1221/486", "362/82", "426/246"],
        ["sites", "2235", "1016", "3251", "1253/534", "483/188", "499/294"],
    ]


@pytest.mark.parametrize(
    "words", [(), ("--dry-run",), ("INDEX",), ("--sites", "x"), ("INDEX", "OUT", "--format", "png")]
)
def test_wrong_use_is_exit_2(words: tuple[str, ...], capfd: pytest.CaptureFixture[str]) -> None:
    assert run(capfd, "synth", *words, "--quiet").code == 2


def test_missing_weights_are_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    index = cohort(tmp_path / "cohort", 1)
    done = run(capfd, "synth", index, tmp_path / "set", "--weights", tmp_path, "--generators", "pix2pix")
    assert (done.code, len(done.errors)) == (1, 1) and "no weights for pix2pix (inject" in done.err
    assert not (tmp_path / "set").exists()


def test_tamper_prints_seconds_per_stage(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    cohort(tmp_path / "cohort", 1)
    words = ("--task", "remove", "--at", "12,40,35", "--generator", "identity", "--json", "--quiet")
    done = run(capfd, "tamper", tmp_path / "cohort" / "scan0.mha", tmp_path / "out", *words)
    stages = ("read", "hash", "model", "network", "chain", "truth", "write", "masks", "report", "log")
    assert sorted(done.json["seconds"]) == sorted(stages)
    assert all(value >= 0 for value in done.json["seconds"].values())
    assert sum(done.json["seconds"].values()) > 0


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_sigkill_and_again(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    index = cohort(tmp_path / "cohort", 3)
    assert run(capfd, "synth", index, tmp_path / "whole", *CONTROLS, "--quiet").code == 0
    code = "import sys; from ctguard.cli.app import main; main(sys.argv[1:])"
    words = [sys.executable, "-c", code, "synth", str(index), str(tmp_path / "killed"), *CONTROLS]
    process = subprocess.Popen(words, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "killed" / "cases").glob("*.json")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = run(capfd, "synth", index, tmp_path / "killed", *CONTROLS, "--quiet", "--json")
    assert done.code == 0 and done.json["kept"] >= 1
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
