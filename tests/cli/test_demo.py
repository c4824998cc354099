"""The demo, on a small scan with small untrained networks: what it writes, not how well it does."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ctguard import io, zoo
from ctguard.cli import demo
from ctguard.core.volume import Volume
from ctguard.synth.forge import Request, load_generator
from ctguard.train.checkpoint import Card, save_checkpoint
from tests.cli.runner import run
from tests.cli.scans import small_volume


def _story(seed: int) -> tuple[Volume, list[Request]]:
    volume = small_volume(seed, (24, 64, 64))
    return volume, [Request("inject", (12.0, 32.0, 26.0), seed=seed), Request("remove", (12.0, 32.0, 36.0), seed=seed)]


@pytest.fixture
def small_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Untrained networks of width 1 and 2 as shipped weights, a small scan, one step of protection."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    torch.manual_seed(0)
    for entry in zoo.ENTRIES:
        if entry.name in ("pix2pix", "unet"):
            settings = {"width": 2}
            module = zoo.build(entry, settings)
            card = Card(entry.weights, entry.name, entry.task, "cpu", settings, "", 0, 0, "", "", threshold=0.5)
            save_checkpoint(module, card, tmp_path / "weights")
    monkeypatch.setattr(zoo, "WEIGHTS", tmp_path / "weights")
    monkeypatch.setattr(demo, "_patient", _story)
    monkeypatch.setattr(demo, "STEPS", 1)
    load_generator.cache_clear()
    yield
    load_generator.cache_clear()


@pytest.mark.usefixtures("small_world")
def test_demo_tells_the_whole_story(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "demo"
    done = run(capfd, "demo", "--out", out, "--device", "cpu", "--json", "--quiet")
    assert done.code == 0, done.err
    scans = ["patient", "protected", "inject", "remove", "inject-after-protection", "remove-after-protection"]
    assert sorted(done.json["verdicts"]) == sorted(scans)
    assert done.json["index"] == str(out / "index.html")
    assert sorted(p.name for p in out.iterdir()) == sorted(
        [*scans, *(f"verdict-{name}" for name in scans), "index.html", "run.json"]
    )
    page = (out / "index.html").read_text()
    assert page.count("data:image/png") == 4
    assert "esearch use only" in page
    words = re.sub(r'data:image/png;base64,[^"]+', "", page)  # four letters of a picture may be these
    assert "http" not in words.replace("http-equiv", "") and len(words) < len(page)
    for name in ("inject", "remove", "inject-after-protection", "remove-after-protection"):
        assert io.read(out / name / "series").provenance.has_mark("forged")
    assert io.read(out / "protected" / "series").provenance.has_mark("protected")
    again = run(capfd, "demo", "--out", out)
    assert (again.code, len(again.errors)) == (1, 1)
