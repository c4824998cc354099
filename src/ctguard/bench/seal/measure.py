"""Every table of the seal on every scan, one scan at a time. What is done is kept, so that a killed run goes on."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ctguard import __version__
from ctguard.bench.kept import read_kept, with_nan, without_nan, write_kept
from ctguard.bench.protection_scene import Forger
from ctguard.bench.seal import trials
from ctguard.bench.seal.scene import SealScene, set_seal_scene
from ctguard.bench.seal.trials import Row
from ctguard.cohort.public import as_public
from ctguard.core.records import Case
from ctguard.io.cases import read_case
from ctguard.parallel import map_cases
from ctguard.protect.seal import SealSettings
from ctguard.synth.forge import check_source


@dataclass(frozen=True)
class SealExperiment:
    """What is measured on every scan. tables: names of MAKERS. sites: the most per scan and size. keys: of the null."""

    tables: tuple[str, ...]
    forgers: tuple[Forger, ...]
    settings: SealSettings
    sites: int = 20
    keys: int = 100
    seed: int = 0


MAKERS: dict[str, Callable[[SealScene, SealExperiment], Iterator[Row]]] = {
    "digest": lambda scene, wanted: trials.digest_rows(scene, wanted.sites),
    "benign": lambda scene, wanted: trials.benign_rows(scene),
    "size": lambda scene, wanted: trials.size_rows(scene, wanted.sites),
    "generators": lambda scene, wanted: trials.generator_rows(scene, wanted.sites, wanted.forgers),
    "informed": lambda scene, wanted: trials.informed_rows(scene, wanted.sites),
    "oracle": lambda scene, wanted: trials.oracle_rows(scene, wanted.sites),
    "whole": lambda scene, wanted: trials.whole_rows(scene),
    "null": lambda scene, wanted: trials.null_rows(scene, wanted.keys),
    "price": lambda scene, wanted: trials.price_rows(scene),
}
"""Tables by name, in the order of the page."""


@dataclass(frozen=True)
class Measured:
    """Rows of one scan, and the processor seconds that sealing and each table took."""

    patient: str
    scan_id: str
    rows: tuple[Row, ...]
    seconds: dict[str, float]


def measure(
    experiment: SealExperiment, index: Path, cases: Sequence[Case], work: Path, *, jobs: int = 1, quiet: bool = False
) -> list[Measured]:
    """Every scan's rows. work: keeps them by table. Raises as reading and sealing do."""
    work.mkdir(parents=True, exist_ok=True)
    function = partial(_measure_scan, experiment=experiment, index=index, work=work)
    return [result.unwrap() for result in map_cases(function, cases, jobs=jobs, label="scans", quiet=quiet)]


def _measure_scan(case: Case, experiment: SealExperiment, index: Path, work: Path) -> Measured:
    torch.set_num_threads(1)
    scene: SealScene | None = None
    rows: list[Row] = []
    seconds: dict[str, float] = {}
    for table in experiment.tables:
        kept = work / f"{case.scan_id}.{table}.json"
        forgers = experiment.forgers if table == "generators" else ()
        own = (experiment.settings, experiment.sites, experiment.keys, experiment.seed, forgers)
        key = hashlib.sha256(repr((__version__, case.path, table, own)).encode()).hexdigest()
        stored = read_kept(kept, key)
        if stored is None:
            scene = scene or _scene(case, experiment, index)
            started = time.process_time()
            made = list(MAKERS[table](scene, experiment))
            stored = [{"seconds": time.process_time() - started}, *(_kept(row) for row in made)]
            write_kept(kept, key, stored)
        seconds[table] = float(stored[0]["seconds"])
        rows += [Row(**{**row, "values": with_nan(row["values"])}) for row in stored[1:]]
    return Measured(case.patient, case.scan_id, tuple(rows), seconds)


def _kept(row: Row) -> dict[str, Any]:
    return {**vars(row), "values": without_nan(row.values)}


def _scene(case: Case, experiment: SealExperiment, index: Path) -> SealScene:
    volume = as_public(case, read_case(index, case))
    check_source(volume)
    return set_seal_scene(volume, experiment.settings, experiment.seed)
