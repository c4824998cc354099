"""The house: sizes, no prints, light imports, documented models, small weights."""

from __future__ import annotations

import ast
import json
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "ctguard"
FILES = sorted(SOURCE.rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("test_*.py"))
HEAVY = ("torch", "monai", "pandas", "SimpleITK", "matplotlib", "scipy", "lightning", "skimage", "pydicom")
MAX_LINES, MAX_FUNCTION, MAX_PARAMETERS = 400, 80, 8
MAX_WEIGHTS_MB, MAX_ALL_WEIGHTS_MB = 5, 60

Function = ast.FunctionDef | ast.AsyncFunctionDef


def _trees(files: list[Path] = FILES) -> Iterator[tuple[str, ast.Module]]:
    for file in files:
        yield str(file.relative_to(ROOT)), ast.parse(file.read_text(encoding="utf-8"))


def _functions() -> Iterator[tuple[str, Function]]:
    for name, tree in _trees():
        for node in ast.walk(tree):
            if isinstance(node, Function):
                yield f"{name}:{node.lineno} {node.name}", node


def _called(node: ast.AST) -> str:
    return ast.unparse(node.func) if isinstance(node, ast.Call) else ""


def test_files_are_at_most_400_lines() -> None:
    lengths = {str(f.relative_to(ROOT)): len(f.read_text(encoding="utf-8").splitlines()) for f in (*FILES, *TESTS)}
    assert {name: n for name, n in lengths.items() if n > MAX_LINES} == {}


def test_functions_are_at_most_80_lines() -> None:
    lengths = {where: (node.end_lineno or node.lineno) - node.lineno + 1 for where, node in _functions()}
    assert {where: n for where, n in lengths.items() if n > MAX_FUNCTION} == {}


def test_functions_take_at_most_8_parameters() -> None:
    """`self` does not count. Verbs of the command line are exempt: there, one parameter is one documented option."""
    counts = {}
    for where, node in _functions():
        if any(ast.unparse(decorator) == "verb" for decorator in node.decorator_list):
            continue
        names = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
        counts[where] = len([name for name in names if name not in ("self", "cls")])
    assert {where: n for where, n in counts.items() if n > MAX_PARAMETERS} == {}


def test_the_library_never_prints_exits_or_swallows() -> None:
    found = []
    for name, tree in _trees():
        for node in ast.walk(tree):
            if _called(node) in ("print", "exit", "quit", "sys.exit", "os._exit"):
                found.append(f"{name}:{node.lineno} {_called(node)}")
            if isinstance(node, ast.ExceptHandler) and (
                node.type is None or ast.unparse(node.type) in ("Exception", "BaseException")
            ):
                found.append(f"{name}:{node.lineno} catches everything")
    assert found == []


def test_everything_public_says_what_it_is() -> None:
    silent = []
    for name, tree in _trees():
        nodes = [tree, *(n for n in tree.body if isinstance(n, Function | ast.ClassDef))]
        classes = [n for n in tree.body if isinstance(n, ast.ClassDef) and not n.name.startswith("_")]
        nodes += [method for one in classes for method in one.body if isinstance(method, Function)]
        for node in nodes:
            public = not getattr(node, "name", "").startswith("_")
            if public and len(ast.get_docstring(node) or "") < 12:
                silent.append(f"{name} {getattr(node, 'name', 'module')}")
    assert silent == []


def test_no_file_holds_a_place_of_somebodys_machine() -> None:
    pages = [
        *FILES,
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/**/*"),
        *ROOT.glob("r*/*"),
        ROOT / "Makefile",
        ROOT / ".ci/run",
    ]
    texts = [page for page in pages if page.suffix not in (".png", ".svg", ".safetensors") and page.is_file()]
    pattern = re.compile(r"(?<![\w.~])/(home|Users|root|work|mnt|media)/\w")
    assert [str(p.relative_to(ROOT)) for p in texts if pattern.search(p.read_text(encoding="utf-8"))] == []


def test_no_open_ends_in_the_source() -> None:
    pattern = re.compile(r"\b(TODO|FIXME|XXX)\b|raise NotImplementedError")
    assert [str(f.relative_to(ROOT)) for f in FILES if pattern.search(f.read_text(encoding="utf-8"))] == []


def test_every_test_can_fail() -> None:
    """Each test asserts something, expects an error, or calls a helper whose name says that it checks."""
    idle = []
    for name, tree in _trees(TESTS):
        for node in ast.walk(tree):
            if isinstance(node, Function) and node.name.startswith("test_"):
                inner = list(ast.walk(node))
                asserts = any(isinstance(n, ast.Assert) for n in inner)
                checks = any(re.search(r"raises|assert|check|expect|fail", _called(n)) for n in inner)
                if not (asserts or checks):
                    idle.append(f"{name} {node.name}")
    assert idle == []


@pytest.mark.parametrize("code", ["import ctguard", "from ctguard.cli.app import main; main(['--help'])"])
def test_start_is_light(code: str) -> None:
    """`ctguard --help` needs none of the heavy libraries and at most half a second of processor time."""
    probe = f"import sys, atexit; atexit.register(lambda: print(sorted(sys.modules), file=sys.stderr)); {code}"
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    loaded = ast.literal_eval(done.stderr.strip().splitlines()[-1])
    assert [name for name in HEAVY if name in loaded] == []
    assert min(seconds) < 0.5


def test_every_model_is_documented() -> None:
    from ctguard.zoo import ENTRIES

    page = (ROOT / "docs" / "reference" / "models.md").read_text(encoding="utf-8")
    assert [entry.name for entry in ENTRIES if f"`{entry.name}`" not in page] == []


def test_the_list_of_models_needs_no_torch() -> None:
    code = "import sys, ctguard.zoo; print([m for m in ('torch', 'monai', 'pandas') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_weights_are_small_and_have_cards() -> None:
    weights = sorted((SOURCE / "weights").glob("*.safetensors"))
    sizes = {file.name: file.stat().st_size / 1e6 for file in weights}
    assert {name: size for name, size in sizes.items() if size > MAX_WEIGHTS_MB} == {}
    assert sum(sizes.values()) <= MAX_ALL_WEIGHTS_MB
    cards = [file.with_suffix(".json") for file in weights]
    assert [card.name for card in cards if not card.is_file()] == []
    assert all(json.loads(card.read_text(encoding="utf-8")) for card in cards)
