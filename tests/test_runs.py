"""The pipeline scripts go the whole way, with networks too small to be of use."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def tiny_recipes(folder: Path) -> Path:
    """The repository's recipes with two steps of two examples and the narrowest networks."""
    folder.mkdir()
    for recipe in (ROOT / "recipes").glob("*.toml"):
        text = recipe.read_text()
        for pattern, value in (
            (r"^steps = \d+", "steps = 2"),
            (r"^batch = \d+", "batch = 2"),
            (r"width = \d+", "width = 4"),
        ):
            text = re.sub(pattern, value, text, flags=re.MULTILINE)
        (folder / recipe.name).write_text(
            re.sub(r"^validate_every = \d+", "validate_every = 1", text, flags=re.MULTILINE)
        )
    return folder


@pytest.mark.skipif(sys.platform == "win32", reason="a bash script")
def test_the_phantom_pipeline_runs_from_patients_to_verdicts(tmp_path: Path) -> None:
    out = tmp_path / "run"
    environment = {
        **os.environ,
        "XDG_STATE_HOME": str(tmp_path / "state"),
        "CTGUARD_BIN": str(Path(sys.executable).parent),
    }
    command = [
        "bash",
        str(ROOT / "runs/phantom_cpu.sh"),
        str(out),
        "10",
        "small",
        str(tiny_recipes(tmp_path / "recipes")),
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "| pristine |" in (out / "detection.md").read_text()
    for name in ("pristine", "removed", "protected"):
        verdict = json.loads((out / f"verdict-{name}" / "verdict.json").read_text())
        assert verdict["detector"] == "unet"
    card = json.loads((out / "weights" / "unet.json").read_text())
    generators = {
        name: json.loads((out / "weights" / f"pix2pix_{name}.json").read_text())["sha256"]
        for name in ("inject", "remove")
    }
    assert card["trained_against"] == {f"pix2pix_{name}": sha for name, sha in generators.items()}
