"""The container image holds nothing that forges, and works all the same. No container is built here."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ctguard import zoo
from tests.serve.parts import make_patient

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
PRUNE = DEPLOY / "container" / "prune.py"
WORKS = """
import importlib, pkgutil, sys
import ctguard, ctguard.serve, ctguard.export
assert ctguard.__file__.startswith(sys.argv[1]), ctguard.__file__
for package in (ctguard.serve, ctguard.export):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if "migrations" not in module.name:
            importlib.import_module(module.name)
forging = [name for name in sys.modules if name.startswith(("ctguard.tamper", "ctguard.synth", "ctguard.defence"))]
assert forging == [], forging
from ctguard.cli.app import main
main(["detect", sys.argv[2], "--out", sys.argv[3]])
"""


def stages(containerfile: Path) -> list[list[str]]:
    """Instructions of each stage, lines joined."""
    text = re.sub(r"^#.*\n", "", containerfile.read_text(encoding="utf-8"), flags=re.MULTILINE).replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    starts = [number for number, line in enumerate(lines) if line.startswith("FROM ")]
    return [lines[a:b] for a, b in zip(starts, [*starts[1:], None], strict=True)]


def copied(folder: Path) -> Path:
    """A copy of what the image is built from."""
    shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def prune(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-I", str(PRUNE), str(folder / "src"), str(folder / "pyproject.toml")]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_pruned_tree_holds_nothing_that_forges_and_works(tmp_path: Path) -> None:
    source = copied(tmp_path) / "src"
    done = prune(tmp_path)
    assert done.returncode == 0, done.stderr
    assert [name for name in ("tamper", "synth", "defence") if (source / "ctguard" / name).exists()] == []
    generators = {entry.weights for entry in zoo.ENTRIES if entry.kind == "generator" and entry.weights}
    left = {file.stem for file in (source / "ctguard" / "weights").glob("*.safetensors")}
    assert left and not left & generators
    assert not any(file.name.startswith(tuple(generators)) for file in source.rglob("*"))
    scan = make_patient(tmp_path / "series")
    arguments = ["-c", WORKS, str(source), str(scan), str(tmp_path / "verdict")]
    ran = subprocess.run(
        [sys.executable, *arguments], env={"PYTHONPATH": str(source)}, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "verdict" / "sr.dcm").is_file()


def test_a_working_tree_is_not_pruned(tmp_path: Path) -> None:
    (copied(tmp_path) / ".git").mkdir()
    done = prune(tmp_path)
    assert done.returncode != 0 and "git working tree" in done.stderr
    assert (tmp_path / "src" / "ctguard" / "tamper").is_dir()


def test_the_image_is_installed_from_the_pruned_tree_alone() -> None:
    build, final = stages(DEPLOY / "container" / "Containerfile")
    (pruned,) = [
        number for number, line in enumerate(build) if "prune.py /build/src" in line and line.startswith("RUN")
    ]
    installed = [number for number, line in enumerate(build) if "pip install" in line and "/build[" in line]
    assert len(installed) == 1 and pruned < installed[0]
    assert [line for line in build[pruned:] if line.startswith(("COPY", "ADD"))] == []
    assert [line for line in final if line.startswith(("COPY", "ADD"))] == [
        "COPY --from=build /opt/ctguard /opt/ctguard"
    ]
    assert [line for line in final if "pip install" in line] == []
    assert "USER ctguard" in final


@pytest.mark.parametrize("name", ["mercure", "grand-challenge"])
def test_wrappers_add_one_file_to_that_image(name: str) -> None:
    (lines,) = stages(DEPLOY / name / "Containerfile")
    assert lines[0] == "FROM ${CTGUARD}"
    (copy,) = [line.split() for line in lines if line.startswith(("COPY", "ADD", "RUN"))]
    assert (ROOT / copy[1]).is_file() and f'"{copy[2]}"' in next(
        line for line in lines if line.startswith("ENTRYPOINT")
    )


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_understands_the_unit(tmp_path: Path) -> None:
    text = (DEPLOY / "systemd" / "ctguard.service").read_text(encoding="utf-8")
    unit = tmp_path / "ctguard.service"
    unit.write_text(text.replace("/opt/ctguard/bin/ctguard", "/bin/true"), encoding="utf-8")
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "ctguard.service" not in done.stderr, done.stderr
