"""Writes cli.md beside this file from the command line's own help. tests/test_docs.py demands that both agree."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).with_name("cli.md")
HEAD = """# Command line

Made by `docs/reference/make_cli.py` from `--help`. Every verb is a few lines over the Python call of the same name.

- **stdout** is for results: a few words, or with `--json` exactly one JSON value. **stderr** is for log lines.
- **Exit codes**: 0 done; 1 failed, with one line on stderr that says what, where and what to do; 2 wrong use; 3 only
  for `detect --fail-if-tampered`; 130 stopped by Ctrl-C.
- `--debug`, anywhere on the line, shows the traceback of an error. `--quiet` leaves errors only.
- `--seed` and the same input give the same bytes. Wall-clock values stand in `run.json` alone.
- Outputs appear whole or not at all: a verb that fails leaves nothing behind. (`train` keeps what `--resume` needs,
  `phantom` the scans that are done.)

`detect --json` prints one object:
`{"scan","detector","score","threshold","tampered","regions":[{"center_zyx","center_lps_mm","extent_mm","score"}],"seconds","peak_mb"}`.
`models --json` prints a list of `{"name","kind","task","weights","sha256","source"}`.
"""


def _help(*words: str) -> str:
    """What `ctguard WORDS --help` prints, 80 columns wide."""
    code = "import sys; from ctguard.cli.app import main; main(sys.argv[1:])"
    environment = {**os.environ, "COLUMNS": "80"}
    command = [sys.executable, "-c", code, *words, "--help"]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout.rstrip()


def _verbs(text: str) -> list[str]:
    return [line.split()[0] for line in text.split("Commands:\n")[1].splitlines() if line.strip()]


def page() -> str:
    """The text of cli.md."""
    root = _help()
    parts = [HEAD, f"```text\n{root}\n```\n"]
    parts += [f"## {verb}\n\n```text\n{_help(verb)}\n```\n" for verb in _verbs(root)]
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
