"""Pristine and forged scans through detectors: one row per scan and detector, for both protocols of protocols.md."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ctguard import __version__
from ctguard.bench.judging import Judge, Look, Scan, device_of, slab_slices
from ctguard.bench.kept import NAN, read_kept, with_nan, without_nan, write_kept
from ctguard.bench.localisation import Counts, Truth, average_precision, points_at
from ctguard.bench.models import Model, detector_of
from ctguard.bench.pristine import pristine_threshold, score_pristine
from ctguard.core.console import progress
from ctguard.core.errors import DataError
from ctguard.core.records import Case, Split
from ctguard.core.threshold import Threshold
from ctguard.detect.regions import MAP_THRESHOLD
from ctguard.io.cases import read_case, read_cases
from ctguard.io.forgeries import Forgery, read_manifest
from ctguard.parallel import map_cases

PRISTINE = "pristine"
CONTROLS = ("identity", "twin")
"""Their tissue is the scan's own: out of every threshold and sensitivity, reported by themselves."""


@dataclass(frozen=True)
class Scored:
    """One scan that was judged, pristine or with one forgery. NaN where nothing was measured.

    generator: "pristine" where nothing is forged. Of the whole scan: score, and the threshold for so much lung (or
    body); at 0.5 of the map, f1 and iou against the
    changed voxels, f1_cube against the nominal cube, and the voxels behind f1 (found, truth, both); precision: the
    average precision of its voxels; pointing: the map's maximum within 16 mm; regions: called forged at the threshold.
    slab_: the 32 slices around the site (of a pristine scan: around its first forged site, or the middle).
    """

    patient: str
    generator: str
    task: str
    score: float
    f1: float = NAN
    iou: float = NAN
    pointing: float = NAN
    f1_cube: float = NAN
    precision: float = NAN
    found: float = NAN
    truth: float = NAN
    both: float = NAN
    regions: float = NAN
    slab_score: float = NAN
    slab_f1: float = NAN
    slab_iou: float = NAN
    scan_id: str = ""
    center_zyx: tuple[float, ...] = ()
    threshold: float = NAN
    searched_ml: float = NAN

    @property
    def called(self) -> bool:
        """Whether the scan is called forged."""
        return self.score >= self.threshold

    def to_json(self) -> dict[str, Any]:
        """As it is kept between runs; NaN becomes None."""
        return {**without_nan(vars(self)), "center_zyx": list(self.center_zyx)}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Scored:
        """What `to_json` made."""
        return cls(**{**with_nan(row), "center_zyx": tuple(row["center_zyx"])})


@dataclass(frozen=True)
class Protocol:
    """What is measured: whole scans (calibrated protocol), slabs of 32 slices (paper protocol), or both.

    generators: only these forgeries; empty for all.
    """

    whole: bool = True
    slabs: bool = True
    generators: tuple[str, ...] = ()

    def takes(self, forgery: Forgery) -> bool:
        """Whether a forgery is measured."""
        return not self.generators or forgery.edit.generator in self.generators


def score_scan(judge: Judge, scan: Scan, protocol: Protocol | None = None) -> list[Scored]:
    """Rows of one scan: pristine first, then every forgery of it."""
    protocol = protocol or Protocol()
    rows = [_score_pristine(judge, scan, protocol)]
    judge.detector.keep()
    for forgery in filter(protocol.takes, scan.forgeries):
        rows.append(_score_forged(judge, scan, forgery, protocol))
        judge.detector.forget()
    return rows


def _score_pristine(judge: Judge, scan: Scan, protocol: Protocol) -> Scored:
    volume = scan.volume
    row = Scored(scan.case.patient, PRISTINE, "", NAN, scan_id=scan.case.scan_id)
    area = scan.area(volume, PRISTINE, judge.detector)
    if protocol.whole:
        row = replace(row, **_whole(judge.look(volume, area)))
    if protocol.slabs:
        count = volume.hu.shape[0]
        site = scan.forgeries[0].edit.center_zyx[0] if scan.forgeries else (count - 1) / 2
        row = replace(row, slab_score=judge.slab(volume, slab_slices(count, site), area)[0])
    return row


def _score_forged(judge: Judge, scan: Scan, forgery: Forgery, protocol: Protocol) -> Scored:
    edit, case, forged = forgery.edit, scan.case, scan.forged(forgery)
    row = Scored(case.patient, edit.generator, edit.task, NAN, scan_id=case.scan_id, center_zyx=edit.center_zyx)
    truth = Truth.of(edit, forged.geometry) if judge.detector.localises else None
    area = scan.area(forged, forgery.name, judge.detector)
    if protocol.whole:
        look = judge.look(forged, area)
        row = replace(row, **_whole(look))
        if truth is not None:
            row = replace(
                row,
                **_overlap(truth.counts(look.map >= MAP_THRESHOLD)),
                f1_cube=truth.cube_counts(look.map >= MAP_THRESHOLD).f1,
                precision=average_precision(look.map, truth.mask, truth.ignored),
                pointing=float(points_at(look.map, forged.geometry, edit.center_zyx)),
            )
    if protocol.slabs:
        z = slab_slices(forged.hu.shape[0], edit.center_zyx[0])
        score, map_ = judge.slab(forged, z, area)
        row = replace(row, slab_score=score)
        if truth is not None:
            counts = truth.slab(z).counts(map_[z] >= MAP_THRESHOLD)
            row = replace(row, slab_f1=counts.f1, slab_iou=counts.iou)
    return row


def _whole(look: Look) -> dict[str, Any]:
    return {
        "score": look.score,
        "regions": look.regions,
        "threshold": look.threshold,
        "searched_ml": look.searched_ml,
    }


def _overlap(counts: Counts) -> dict[str, Any]:
    return {
        "f1": counts.f1,
        "iou": counts.iou,
        "found": float(counts.found),
        "truth": float(counts.truth),
        "both": float(counts.both),
    }


def score_folder(detector: Any, threshold: Threshold, folder: Path, split: str) -> list[Scored]:
    """Rows of a split of a folder of forgeries, whole scans: each pristine scan once, and every forgery of it."""
    index, wanted = forged_cases(folder, split)
    rows = []
    for case, forgeries in progress(wanted, f"{split} scans", len(wanted)):
        judge = Judge(detector, threshold, device_of(detector))
        rows += score_scan(judge, Scan(case, read_case(index, case), forgeries), Protocol(slabs=False))
    return rows


def forged_cases(
    folder: Path, split: str, patients: int | None = None
) -> tuple[Path, list[tuple[Case, list[Forgery]]]]:
    """The index of a data set, and the cases of a split with their forgeries, of its first patients where a number
    is given. Raises ReadError where the folder holds no forgeries.
    """
    index, forgeries = read_manifest(folder)
    by_scan: dict[str, list[Forgery]] = {}
    for forgery in forgeries:
        by_scan.setdefault(forgery.scan_id, []).append(forgery)
    cases = [case for case in read_cases(index) if case.split == split]
    chosen = list(dict.fromkeys(case.patient for case in cases))[:patients]
    return index, [(case, by_scan.get(case.scan_id, [])) for case in cases if case.patient in chosen]


@dataclass(frozen=True)
class Measuring:
    """How a data set is measured. work: keeps the rows of finished scans, so that a killed run goes on."""

    work: Path
    device: str = "cpu"
    jobs: int = 1
    quiet: bool = False


def measure_models(
    models: Sequence[tuple[Model, Protocol]], index: Path, items: Sequence[tuple[Case, list[Forgery]]], how: Measuring
) -> dict[str, list[Scored]]:
    """Rows of every scan, for each model by name. Models that are not trained have none.

    Rows of other weights, thresholds or forgeries than the kept ones are measured anew.
    """
    trained = [(model, protocol) for model, protocol in models if model.card is not None]
    for model, _ in trained:
        (how.work / model.name).mkdir(parents=True, exist_ok=True)
    measure = partial(_measure_scan, models=trained, index=index, how=how)
    rows: dict[str, list[Scored]] = {model.name: [] for model, _ in models}
    for result in map_cases(measure, items, jobs=how.jobs, label="scans", quiet=how.quiet):
        for name, found in result.unwrap().items():
            rows[name] += found
    return rows


def _measure_scan(
    item: tuple[Case, list[Forgery]], models: Sequence[tuple[Model, Protocol]], index: Path, how: Measuring
) -> dict[str, list[Scored]]:
    """Rows of one scan for every model, from the work folder where they are there already."""
    case, forgeries = item
    scan: Scan | None = None
    rows = {}
    for model, protocol in models:
        key = scan_key(model, case, forgeries, protocol)
        kept = how.work / model.name / f"{case.scan_id}.json"
        stored = read_kept(kept, key)
        if stored is None:
            scan = scan or Scan(case, read_case(index, case), forgeries)
            judge = Judge(detector_of(model), model.threshold, how.device)
            rows[model.name] = score_scan(judge, scan, protocol)
            write_kept(kept, key, [row.to_json() for row in rows[model.name]])
        else:
            rows[model.name] = [Scored.from_json(row) for row in stored]
    return rows


def scan_key(model: Model, case: Case, forgeries: Sequence[Forgery], *what: object) -> str:
    """What the rows of a scan depend on, as a hash."""
    head = f"{__version__} {model.sha256} {model.threshold!r} {case.path} {what!r}"
    digest = hashlib.sha256(head.encode())
    for forgery in forgeries:
        digest.update(forgery.name.encode())
        digest.update(np.ascontiguousarray(forgery.block).tobytes())
    return digest.hexdigest()


def calibrate(models: Sequence[Model], folder: Path, how: Measuring, patients: int | None, anew: bool) -> list[Model]:
    """The models with their thresholds: the card's, or where it has none (or `anew`) that of the valid split.

    Raises DataError where a threshold is needed and the data set has no pristine validation scan.
    """
    wanted = [model for model in models if model.card is not None and (anew or model.card.threshold is None)]
    if not wanted:
        return list(models)
    index, items = forged_cases(folder, _VALID, patients)
    if not items:
        raise DataError(
            f"{wanted[0].name} has no threshold, and there is no {_VALID} scan to find one on",
            where=folder,
            remedy="give a data set with validation cases",
        )
    (how.work / _VALID).mkdir(parents=True, exist_ok=True)
    cases = [case for case, _ in items]
    found = {}
    for model in wanted:
        detector = detector_of(model).to(how.device)
        kept = how.work / _VALID / f"{model.name}.json"
        found[model.name] = pristine_threshold(score_pristine(detector, index, cases, kept, how.jobs))
    return [model.at(*found[model.name]) if model.name in found else model for model in models]


_VALID: Split = "valid"
