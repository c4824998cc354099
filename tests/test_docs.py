"""README and docs: every `$ ctguard` line and every Python block runs, in order, in an empty folder per page.

In a ```console block, lines that begin with `$ ` are commands. `ctguard` is run in this process; `echo $?` and the
line below it state the exit code of the command before (0 otherwise); `ls` lists what must exist. Other commands
(make, pip, python) are set-up and are not run. All pages render the same patients, and `phantom` keeps what is there,
so the first page's cohort is handed to the next.
"""

from __future__ import annotations

import os
import re
import runpy
import shlex
import shutil
from pathlib import Path

import pytest

from tests.cli.runner import run

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(console|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NOT_RUN = ("make", "python", "python3", ".venv/bin/pip", ".venv/bin/python", "pip", "bash", "git", "cd", "pytest")
LINK = re.compile(r"!?\[[^\]]*\]\((?!https?:|mailto:|#)([^)#]+)[^)]*\)")


def _name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the cohort of the pages that ran before is kept."""
    return tmp_path_factory.mktemp("rendered") / "cohort"


RUNNABLE = [page for page in PAGES if BLOCK.search(page.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("page", RUNNABLE, ids=_name)
def test_commands_run(
    page: Path, rendered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    if rendered.is_dir():
        shutil.copytree(rendered, "cohort")
    names: dict[str, object] = {}
    for kind, text in BLOCK.findall(page.read_text(encoding="utf-8")):
        if kind == "python":
            exec(compile(text, _name(page), "exec"), names)
        else:
            _check_console(_name(page), text, capfd)
    if Path("cohort").is_dir():
        shutil.copytree("cohort", rendered, dirs_exist_ok=True)


def _check_console(page: str, text: str, capfd: pytest.CaptureFixture[str]) -> None:
    lines = text.replace("\\\n", " ").splitlines()
    for number, line in enumerate(lines):
        if not line.startswith("$ "):
            continue
        words = shlex.split(line[2:], comments=True)
        if words[0] == "ctguard":
            done = run(capfd, *words[1:])
            assert done.code == _expected_code(lines[number + 1 :]), f"{page}: {line}\n{done.err}"
        elif words[0] == "ls":
            assert all(os.path.lexists(word) for word in words[1:] if not word.startswith("-")), f"{page}: {line}"
        else:
            assert words[0] in (*NOT_RUN, "echo"), f"{page}: {line}: not a command that docs may show"


def _expected_code(after: list[str]) -> int:
    """The number below the next command, where that one is `echo $?`; else 0."""
    rest = [line for line in after if line.startswith("$ ")][:1]
    if rest == ["$ echo $?"]:
        return int(after[after.index("$ echo $?") + 1])
    return 0


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_links_lead_somewhere(page: Path) -> None:
    targets = LINK.findall(page.read_text(encoding="utf-8"))
    assert [target for target in targets if not (page.parent / target.strip()).exists()] == []


def test_cli_reference_is_what_help_says() -> None:
    made = runpy.run_path(str(ROOT / "docs" / "reference" / "make_cli.py"))
    page = (ROOT / "docs" / "reference" / "cli.md").read_text(encoding="utf-8")
    assert page == made["page"](), "run docs/reference/make_cli.py"


def test_readme_shows_the_two_commands_first() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text.index("esearch use only") < text.index("make demo") < text.index("make test")
    assert "MISUSE.md" in text
    assert "pytest --real DIR" in text
