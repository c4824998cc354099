"""What every verb keeps: exit codes, one line per error, quiet pipes, Ctrl-C."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ctguard import RESEARCH_USE_ONLY, __version__
from ctguard.cli.common import error_line
from ctguard.core.errors import ReadError
from tests.cli.runner import run

COMMAND = [sys.executable, "-c", "from ctguard.cli.app import main; main()"]
VERBS = [
    "demo",
    "info",
    "convert",
    "phantom",
    "index",
    "tamper",
    "synth",
    "detect",
    "protect",
    "keygen",
    "verify",
    "restore",
    "cad",
    "train",
    "report",
    "models",
    "serve",
    "audit",
    "bench",
]


def test_version_says_research_use_only(capfd: pytest.CaptureFixture[str]) -> None:
    done = run(capfd, "--version")
    assert (done.code, done.out.strip()) == (0, f"ctguard {__version__}. {RESEARCH_USE_ONLY}")


def test_help_lists_every_verb_and_the_exit_codes(capfd: pytest.CaptureFixture[str]) -> None:
    done = run(capfd, "--help")
    listed = [line.split()[0] for line in done.out.split("Commands:")[1].splitlines() if line.strip()]
    assert listed == VERBS
    assert "0 done, 1 failed, 2 wrong use, 3" in " ".join(done.out.split())
    assert "..." not in done.out.split("Commands:")[1], "a one-line help is too long for 80 columns"


@pytest.mark.parametrize("verb", VERBS)
def test_each_option_of_each_verb_is_explained(verb: str, capfd: pytest.CaptureFixture[str]) -> None:
    done = run(capfd, verb, "--help")
    assert done.code == 0
    options = [line for line in done.out.splitlines() if line.startswith("  --")]
    assert all(len(line.split("  ")) > 2 or line.endswith(">") for line in options), options


@pytest.mark.parametrize(
    "words",
    [
        ["nonsense"],
        ["info"],
        ["info", "a", "b"],
        ["detect", "x", "--device", "tpu"],
        ["phantom", "x", "--patients", "0"],
        ["phantom", "x", "--patients", "1", "--size", "huge"],
        ["tamper", "x", "y", "--task", "inject"],
        ["tamper", "x", "y", "--task", "inject", "--at", "1,2,3", "--at-mm", "1,2,3"],
        ["tamper", "x", "y", "--task", "inject", "--at", "1,2"],
        ["tamper", "x", "y", "--task", "swap", "--at", "1,2,3"],
        ["protect", "x", "y", "--protector", "noise", "--budget-hu", "-3"],
    ],
)
def test_wrong_use_exits_2_and_prints_no_result(words: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    done = run(capfd, *words)
    assert (done.code, done.out) == (2, "")
    assert "Usage: ctguard" in done.err


def test_an_error_is_one_line_and_a_traceback_only_on_request(tmp_path: Path) -> None:
    missing = str(tmp_path / "nothing.mha")
    plain = subprocess.run([*COMMAND, "info", missing], capture_output=True, text=True, check=False)
    assert (plain.returncode, plain.stdout) == (1, "")
    assert plain.stderr.startswith(f"ctguard: error: {missing}: ")
    assert len(plain.stderr.splitlines()) == 1
    debug = subprocess.run([*COMMAND, "info", missing, "--debug"], capture_output=True, text=True, check=False)
    assert debug.returncode == 1
    assert "Traceback" in debug.stderr


def test_a_fault_of_ours_is_one_line_too() -> None:
    code = "import ctguard.io as io; io.read = lambda *a, **k: 1 / 0; from ctguard.cli.app import main; main()"
    done = subprocess.run([sys.executable, "-c", code, "info", "x"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("ctguard: error: internal error: ZeroDivisionError: division by zero; run it with")


def test_errors_of_the_system_name_the_file() -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "out/map.nii.gz")
    assert error_line(full) == "out/map.nii.gz: No space left on device"
    assert "smaller scan" in error_line(MemoryError())
    assert error_line(ReadError("two\nlines", where="a", remedy="mend it")) == "a: two lines; mend it"


def test_a_closed_pipe_is_quiet() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([*COMMAND, "models"], stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert done.stderr == ""


def test_ctrl_c_is_one_line_and_130() -> None:
    code = (
        "import os, signal, ctguard.io as io\n"
        "io.read = lambda *a, **k: os.kill(os.getpid(), signal.SIGINT) or __import__('time').sleep(5)\n"
        "from ctguard.cli.app import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code, "info", "x"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "ctguard: stopped\n")
