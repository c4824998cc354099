"""Runs the command line in this process, as `ctguard …` would."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ctguard.cli.app import main


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """What it printed, which must be one JSON value and nothing else."""
        return json.loads(self.out)

    @property
    def errors(self) -> list[str]:
        """The lines on stderr."""
        return self.err.splitlines()


def run(capfd: pytest.CaptureFixture[str], *words: str | Path) -> Done:
    """Run `ctguard WORDS`; capfd also sees what C libraries write."""
    capfd.readouterr()
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    out, err = capfd.readouterr()
    code = ended.value.code
    return Done(0 if code is None else int(code), out, err)
