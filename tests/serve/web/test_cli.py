"""The first user is made on the command line."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from ctguard.serve.store.database import open_database
from ctguard.serve.web.users import check_password
from tests.cli.runner import run


def test_add_user_reads_the_password_from_standard_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "node.toml"
    config.write_text(f'[store]\nfolder = "{tmp_path / "data"}"\n')
    for password, code in (("correct horse battery", 0), ("correct horse battery", 1), ("short", 1)):
        monkeypatch.setattr("sys.stdin", io.StringIO(password + "\n"))
        done = run(capfd, "serve", "--config", config, "--add-user", "ada", "--role", "admin")
        assert done.code == code, done.err
        assert password not in done.out + done.err
    user = check_password(open_database(f"sqlite:///{tmp_path / 'data' / 'node.db'}"), "ada", "correct horse battery")
    assert user is not None and user.role == "admin"
