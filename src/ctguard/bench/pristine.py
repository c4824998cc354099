"""Scores of pristine scans, from which a detector's threshold is found: each as it is, and after one honest operation.

A threshold from scans as they are would hold for nothing else, and archives compress, resample and cut.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ctguard import __version__
from ctguard.bench.calibration import find_threshold
from ctguard.bench.judging import NO_THRESHOLD, Judge, device_of
from ctguard.bench.kept import read_kept, write_kept
from ctguard.bench.operations import OPERATIONS
from ctguard.core.console import log
from ctguard.core.errors import CtguardError
from ctguard.core.records import Case
from ctguard.core.threshold import Threshold
from ctguard.core.volume import Volume
from ctguard.io.cases import read_case
from ctguard.parallel import map_cases

PLAIN = "none"
CHANGES = tuple(one for one in OPERATIONS if one.name not in (PLAIN, "jpeg-2000") and not one.weights)
"""Of the false-alarm panel, what changes voxels and rests on no other weights: the scans take turns with them."""


@dataclass(frozen=True)
class PristineScore:
    """What a detector gave a pristine scan. operation: what was done to it before, "none" for the scan as it is."""

    scan_id: str
    operation: str
    score: float
    searched_ml: float


def score_pristine(detector: Any, index: Path, cases: Sequence[Case], kept: Path, jobs: int = 1) -> list[PristineScore]:
    """Two scores of each scan, whole: as it is, and after an operation of the false-alarm panel, which take turns.

    Where an operation cannot be done to a scan, the next that can be is. kept: a file where the scans that a killed run
    finished are found again, unless the detector, the index or the operations are others. Raises ReadError for a scan
    that cannot be read.
    """
    parts = hashlib.sha256()
    for name, values in detector.state_dict().items():
        parts.update(f"{name} {tuple(values.shape)}".encode() + values.float().cpu().numpy().tobytes())
    key = f"{__version__} {parts.hexdigest()} {index} {' '.join(one.name for one in CHANGES)}"
    rows = [PristineScore(**row) for row in read_kept(kept, key) or ()]
    done = {row.scan_id for row in rows}
    todo = [(number, case) for number, case in enumerate(cases) if case.scan_id not in done]
    for result in map_cases(partial(_scores, detector=detector, index=index), todo, jobs=jobs, label="pristine scans"):
        rows += result.unwrap()
        write_kept(kept, key, [asdict(row) for row in rows])
    order = {case.scan_id: number for number, case in enumerate(cases)}
    return sorted((row for row in rows if row.scan_id in order), key=lambda row: order[row.scan_id])


def pristine_threshold(rows: Sequence[PristineScore]) -> tuple[Threshold, str]:
    """The threshold that these scores give, and the sentence for the card."""
    threshold, note = find_threshold([(row.score, row.searched_ml) for row in rows])
    scans = len({row.scan_id for row in rows})
    return threshold, f"{note}; {scans} scans, each as it is and after one honest operation"


def _scores(item: tuple[int, Case], detector: Any, index: Path) -> list[PristineScore]:
    number, case = item
    volume = read_case(index, case)
    judge = Judge(detector, NO_THRESHOLD, device_of(detector))
    rows = []
    for operation, version in (PLAIN, volume), *_changed(case, volume, number):
        look = judge.look(version)
        judge.detector.forget()
        rows.append(PristineScore(case.scan_id, operation, look.score, look.searched_ml))
    return rows


def _changed(case: Case, volume: Volume, number: int) -> Iterator[tuple[str, Volume]]:
    """The scan after the first operation from the number-th on that can be done to it."""
    first = number % len(CHANGES)
    for operation in (*CHANGES[first:], *CHANGES[:first]):
        try:
            changed = operation(volume)
        except CtguardError as error:
            log.info("%s is not calibrated with %s: %s", case.scan_id, operation.name, error.what)
            continue
        yield operation.name, changed
        return
