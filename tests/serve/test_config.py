"""One TOML with every default; what does not fit is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ctguard.core.errors import ReadError, RecipeError
from ctguard.serve.config import DEFAULTS, load_config, make_config
from tests.cli.runner import run


def test_the_defaults_are_closed_to_the_outside() -> None:
    config = load_config()
    assert (config.node.host, config.web.host) == ("127.0.0.1", "127.0.0.1")
    assert config.destination == [] and config.forward.destination == "" and config.pull.url == ""
    assert config.log.uids is False


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"node": {"prot": 1}}, "node.prot"),
        ({"nodes": {}}, "nodes"),
        ({"node": {"port": 70000}}, "node.port"),
        ({"node": {"host": "0.0.0.0"}}, "list the calling_ae_titles"),
        ({"node": {"addresses": ["10.0.0.0/40"]}}, "node.addresses"),
        ({"tls": {"certificate": "a.pem"}}, "certificate, key and client_ca"),
        ({"destination": [{"name": "a"}]}, "either url, or ae_title, host and port"),
        ({"destination": [{"name": "a", "url": "http://x"}] * 2}, "one name"),
        ({"forward": {"destination": "nobody"}}, "no destination is called 'nobody'"),
        ({"analysis": {"device": "tpu"}}, "analysis.device"),
    ],
)
def test_what_does_not_fit_is_named(given: dict[str, Any], says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        make_config(given)


def test_only_the_security_archive_gets_results_unasked() -> None:
    named = [{"name": name, "url": "http://x"} for name in ("security", "clinical")]
    opted = {"name": "asked", "url": "http://x", "results": True}
    refused = {"name": "other", "url": "http://x", "results": False}
    config = make_config({"destination": [*named, opted, refused]})
    assert [one.name for one in config.destination if one.takes_results] == ["security", "asked"]


def test_a_file_that_is_absent_or_no_toml_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ReadError, match="cannot be read"):
        load_config(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("[node\n")
    with pytest.raises(RecipeError, match="is no TOML"):
        load_config(tmp_path / "bad.toml")


def test_the_verb_prints_the_commented_defaults(capfd: pytest.CaptureFixture[str]) -> None:
    done = run(capfd, "serve", "--show-config")
    assert (done.code, done.out) == (0, DEFAULTS.read_text())
    assert run(capfd, "serve", "--config", "none.toml").errors == [
        "ctguard: error: none.toml: cannot be read (No such file or directory); check the path"
    ]
