"""Take what forges out of a copy of the source tree, so that an image that stands beside a PACS holds none of it.

    python3 prune.py COPY/src COPY/pyproject.toml

Removes the packages that the import contract "Nothing that forges runs beside a PACS" names, and the weights of every
generator in the list of models. Needs nothing but Python.
"""

from __future__ import annotations

import shutil
import sys
import tomllib
from pathlib import Path

CONTRACT = "Nothing that forges runs beside a PACS"


def prune(source: Path, project: Path) -> list[Path]:
    """What was removed. Raises SystemExit for a working tree under git."""
    if (project.parent / ".git").exists():
        raise SystemExit(f"{project.parent} is a git working tree: give a copy")
    contracts = tomllib.loads(project.read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]
    forging = next(one["forbidden_modules"] for one in contracts if one["name"] == CONTRACT)
    sys.path.insert(0, str(source))
    from ctguard import zoo

    if source.resolve() not in Path(zoo.__file__).resolve().parents:
        raise SystemExit(f"{source} is not where ctguard was found: {zoo.__file__}")
    removed: list[Path] = []
    for module in forging:
        removed.append(source / Path(*module.split(".")))
        shutil.rmtree(removed[-1])
    for stem in sorted({entry.weights for entry in zoo.ENTRIES if entry.kind == "generator" and entry.weights}):
        for file in sorted(zoo.WEIGHTS.glob(f"{stem}*")):
            file.unlink()
            removed.append(file)
    return removed


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    for gone in prune(Path(sys.argv[1]), Path(sys.argv[2])):
        sys.stdout.write(f"removed {gone}\n")
