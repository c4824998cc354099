"""Shared options and fixtures: `pytest --real DIR` runs the tests that need the real CT series."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

DEFAULT_REAL = Path(__file__).resolve().parents[2] / "shared" / "ct"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--real", default=None, help="folder with the real CT series (README.md there names them)")


def pytest_configure(config: pytest.Config) -> None:
    """Background jobs of a shell ignore Ctrl-C, and their children inherit that; the tests of Ctrl-C need it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def real_dir(request: pytest.FixtureRequest) -> Path:
    """The folder of real series; the test skips, visibly, without it."""
    given = request.config.getoption("--real")
    folder = Path(given) if given else DEFAULT_REAL
    if not folder.is_dir():
        pytest.skip("needs real CT series: pytest --real DIR")
    return folder
