"""What is made of each scan of a data set, and whether everything for it is there."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ctguard import zoo
from ctguard.core.errors import DataError, ModelError, RecipeError
from ctguard.core.records import Case, Mode, Task
from ctguard.io.manifest import sha256_file
from ctguard.synth.layouts import FORMATS, Format
from ctguard.synth.sites import RELEASED_NAMES, SiteRule, tables_of
from ctguard.synth.twin import TWIN
from ctguard.tamper.pipeline import Sampler

GENERATORS = tuple(RELEASED_NAMES)
"""The three of the paper."""

_TASKS: tuple[Task, ...] = ("inject", "remove")
_NAME = re.compile(r"[\w+=@ -][\w.+=@ -]*")


@dataclass(frozen=True)
class DatasetRule:
    """What is made of each scan.

    tables: a folder with a site list to replay (M3Dsynth's four tables); None: sites are drawn by `sites`.
    weights: a folder with other weights than the shipped ones. sampler: of diffusion models; None: their own.
    allow_gaps: interpolate missing slices instead of reporting the scan.
    """

    generators: tuple[str, ...] = GENERATORS
    mode: Mode = "clean"
    format: Format = "plan"
    sites: SiteRule = field(default_factory=SiteRule)
    tables: Path | None = None
    weights: Path | None = None
    sampler: Sampler | None = None
    allow_gaps: bool = False


def check_rule(rule: DatasetRule, cases: Sequence[Case]) -> None:
    """Raise RecipeError for an option that does not exist, DataError for a scan_id or tables that cannot be used."""
    if rule.format not in FORMATS:
        raise RecipeError(f"there is no format {rule.format!r}", remedy=f"give one of {', '.join(FORMATS)}")
    known = tuple(dict.fromkeys((*GENERATORS, *zoo.names("generator"), TWIN)))
    if not rule.generators or len(set(rule.generators)) < len(rule.generators):
        raise RecipeError("no generator, or one twice", remedy=f"give some of {', '.join(known)}")
    strange = [name for name in rule.generators if name not in known]
    if strange:
        raise RecipeError(f"no generator is called {strange[0]!r}", remedy=f"give some of {', '.join(known)}")
    bad = next((case.scan_id for case in cases if not _NAME.fullmatch(case.scan_id)), None)
    if bad is not None:
        raise DataError(f"the scan_id {bad!r} cannot name a file", remedy="use letters, digits and _ . + = @ -")
    if rule.tables is not None:
        tables_of(rule.tables)


def model_hashes(rule: DatasetRule) -> dict[str, str]:
    """SHA-256 of the weights of each generator and task. Raises ModelError, in one line, for all that is missing."""
    found: dict[str, str] = {}
    missing = []
    for name in (one for one in rule.generators if one != TWIN):
        for task in _TASKS:
            if name not in zoo.names("generator"):
                missing.append(f"{name} ({task})")
                continue
            path = zoo.find(name, "generator", task).weights_in(rule.weights)
            if path is None:
                found[f"{name} {task}"] = ""
            elif path.is_file():
                found[f"{name} {task}"] = sha256_file(path)
            else:
                missing.append(f"{name} ({task}: {path.name})")
    if missing:
        where = rule.weights or zoo.WEIGHTS
        raise ModelError(
            f"there are no weights for {', '.join(missing)}", where=where, remedy="train them, or leave them out"
        )
    return found
