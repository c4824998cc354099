"""The fuzz command in small, and what it found in the node and the page."""

from __future__ import annotations

import json
import logging
import socket
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pydicom.uid import ExplicitVRLittleEndian

from tests.fuzz.mutate import PLAIN, dicom, mutated, words, zipped
from tests.fuzz.port import associate, store
from tests.fuzz.report import Report
from tests.serve.parts import config_for, logged
from tests.serve.test_node import serving

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("part", "count"), [("readers", 45), ("port", 5), ("web", 12)])
def test_a_small_run_finds_nothing_and_says_what_it_did(tmp_path: Path, part: str, count: int) -> None:
    command = [sys.executable, "-W", "ignore", str(ROOT / "runs" / "fuzz.py"), "--out", str(tmp_path / "out")]
    done = subprocess.run(
        [*command, "--part", part, "--count", str(count)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((tmp_path / "out" / "fuzz.json").read_text())
    assert result[part]["count"] == count and result[part]["findings"] == []
    assert f"{count} inputs" in done.stdout and "0 findings" in done.stdout
    assert len(result[part]["outcomes"]) > 1


def test_damage_follows_from_its_seed(tmp_path: Path) -> None:
    data = bytes(range(256)) * 8
    for mutation in (*PLAIN, dicom, words, zipped):
        one, again = (mutated(np.random.default_rng(5), data, (mutation,)) for _ in range(2))
        assert one == again
        assert any(mutation(np.random.default_rng(seed), data) != data for seed in range(5))


def test_a_finding_is_kept_with_its_input(tmp_path: Path) -> None:
    report = Report("readers", tmp_path / "findings")
    report.found(7, "Traceback\nValueError: what", b"input")
    assert report.findings == ["readers 7: ValueError: what"]
    assert (tmp_path / "findings" / "00007" / "input.bin").read_bytes() == b"input"


@pytest.mark.parametrize("damage", ["at once", "command"])
def test_a_peer_that_breaks_the_protocol_is_aborted(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], damage: str
) -> None:
    """Data before the association is accepted, and a command that is none: each ended the connection's thread."""
    config, data = config_for(tmp_path / "data"), store(b"", "1.2.3")
    with serving(config), socket.create_connection(("127.0.0.1", config.node.port), timeout=60) as client:
        opening = associate(ExplicitVRLittleEndian)
        if damage == "command":
            client.sendall(opening)
            assert client.recv(1 << 16)[0] == 2  # accepted
            right = struct.pack("<HHIH", 0, 0x0100, 2, 1)
            assert right in data
            client.sendall(data.replace(right, struct.pack("<HHIH", 0, 0x0100, 2, 0x7777)))
        else:
            client.sendall(opening + data)
        assert client.recv(1 << 16)[0] == 7  # aborted
    assert "internal-error" not in capfd.readouterr().err


def test_a_library_that_quotes_a_form_is_not_heard(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with logged(config_for(tmp_path)):
        logging.getLogger("python_multipart").warning("Expected boundary character %r", "name")
    assert capfd.readouterr().err == ""
