"""run.json: what it holds, and hashes that depend on content alone."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ctguard import __version__
from ctguard.core.errors import ReadError
from ctguard.io.manifest import RunManifest, sha256_array, sha256_file, sha256_path


def test_a_run_is_recorded(tmp_path: Path) -> None:
    source = tmp_path / "in.bin"
    source.write_bytes(b"abc")
    with RunManifest(tmp_path / "run", ["ctguard", "phantom"], {"draw": 7}) as run:
        run.add_input(source)
        (run.folder).mkdir()
        (run.folder / "out.csv").write_text("x")
        run.add_output(run.folder / "out.csv")
        run.note("size", "small")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["command"] == ["ctguard", "phantom"]
    assert record["seeds"] == {"draw": 7}
    assert record["inputs"] == {str(source): hashlib.sha256(b"abc").hexdigest()}
    assert record["outputs"] == {"out.csv": hashlib.sha256(b"x").hexdigest()}
    assert record["versions"]["ctguard"] == __version__
    assert record["versions"]["numpy"] == np.__version__
    assert record["notes"] == {"size": "small"}
    assert record["failed"] is None
    assert record["seconds"] >= 0
    assert 10 < record["peak_mb"] < 100_000
    assert record["started"] <= record["finished"]


def test_a_failed_run_is_recorded_and_raises(tmp_path: Path) -> None:
    with pytest.raises(ReadError, match="missing"), RunManifest(tmp_path, ["x"]) as run:
        run.add_input(tmp_path / "missing")
    assert "missing" in json.loads((tmp_path / "run.json").read_text())["failed"]


def test_the_run_id_follows_command_seeds_and_inputs_alone(tmp_path: Path) -> None:
    def run_id(folder: str, seed: int, content: str) -> str:
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "in").write_text(content)
        with RunManifest(tmp_path / folder, ["c"], {"s": seed}) as run:
            run.add_input(tmp_path / folder / "in")
        return str(json.loads((tmp_path / folder / "run.json").read_text())["run_id"])

    assert run_id("a", 1, "x") == run_id("b", 1, "x")
    assert len({run_id("c", 1, "x"), run_id("d", 2, "x"), run_id("e", 1, "y")}) == 3


def test_hashes_follow_content(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a").write_text("1")
    (tmp_path / "d" / "b").write_text("2")
    before = sha256_path(tmp_path / "d")
    (tmp_path / "d" / "b").rename(tmp_path / "d" / "c")
    assert sha256_path(tmp_path / "d") != before
    assert sha256_path(tmp_path / "d" / "a") == sha256_file(tmp_path / "d" / "a")
    array = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    assert sha256_array(array) == sha256_array(np.asfortranarray(array)) == sha256_array(array.astype(">i2"))
    assert sha256_array(array) != sha256_array(array.astype(np.int32))
    assert sha256_array(array) != sha256_array(array.reshape(4, 3, 2))


def test_a_manifest_imports_no_torch() -> None:
    code = "import sys, ctguard.io, ctguard.io.manifest as m; m.versions(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
