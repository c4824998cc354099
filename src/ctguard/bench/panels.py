"""False-alarm and robustness panels: honest scans and forged ones after what happens to scans (protocols.md)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from ctguard.bench.calibrated import NOT_TRAINED, OURS
from ctguard.bench.detection import CONTROLS, Measuring, scan_key
from ctguard.bench.judging import Judge, Scan, slab_slices
from ctguard.bench.kept import NAN, read_kept, with_nan, without_nan, write_kept
from ctguard.bench.localisation import points_at
from ctguard.bench.metrics import exact_share
from ctguard.bench.models import Model, detector_of, hashes_of
from ctguard.bench.operations import OPERATIONS, Operation, operations
from ctguard.cohort.nodules import label_of
from ctguard.core.errors import CtguardError
from ctguard.core.geometry import FloatTriple, as_float_triple, index_to_lps_mm, lps_mm_to_index
from ctguard.core.records import Case, Table
from ctguard.core.volume import Volume
from ctguard.io.cases import read_case
from ctguard.io.forgeries import Forgery
from ctguard.parallel import map_cases

SCANS, SCANS_OF_OURS = 30, 100
NODULE_MM = (8.0, 20.0)
"""Diameters of forged nodules: removals from 8 mm, injections up to 20 mm."""
NODULES = {"benign nodules": False, "malignant nodules": True}
Items = Sequence[tuple[Case, list[Forgery]]]


@dataclass(frozen=True)
class Probe:
    """One scan after one operation. forged: whether a forgery was in it before. score NaN and left_out, a reason, where
    the operation cannot be done to this scan. threshold: of this scan. pointing: the map's maximum within 16 mm of the
    site."""

    patient: str
    scan_id: str
    operation: str
    forged: bool
    score: float = NAN
    threshold: float = NAN
    pointing: float = NAN
    left_out: str = ""

    def to_json(self) -> dict[str, Any]:
        """As it is kept between runs; NaN becomes None."""
        return without_nan(vars(self))

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Probe:
        """What `to_json` made."""
        return cls(**with_nan(row))


@dataclass(frozen=True, eq=False)
class Version:
    """A scan after an operation, as all detectors see it. slab: only these slices are looked at."""

    probe: Probe
    volume: Volume | None
    slab: slice | None = None
    site_zyx: FloatTriple | None = None


def panel_items(items: Items, models: Sequence[Model], scans: int | None) -> list[tuple[Case, Forgery | None, int]]:
    """The first scans, each with one forgery in turn: generators, then tasks and sites, so that all are met alike.

    scans: for every detector; None: 30, and 100 for `volumetric`.
    """
    ours = any(model.detector == OURS and model.card is not None for model in models)
    most = scans or (SCANS_OF_OURS if ours else SCANS)
    chosen = []
    for number, (case, forgeries) in enumerate(items[:most]):
        networks = [forgery for forgery in forgeries if forgery.edit.generator not in CONTROLS]
        generators = sorted({forgery.edit.generator for forgery in networks})
        forgery = None
        if generators:
            name = generators[number % len(generators)]
            own = [forgery for forgery in networks if forgery.edit.generator == name]
            forgery = own[number // len(generators) % len(own)]
        chosen.append((case, forgery, number))
    return chosen


def measure_panels(
    models: Sequence[Model], index: Path, items: Items, how: Measuring, scans: int | None = None
) -> dict[str, list[Probe]]:
    """Probes by model name; finished scans are kept in the work folder. Models that are not trained have none."""
    trained = [model for model in models if model.card is not None]
    for model in trained:
        (how.work / model.name).mkdir(parents=True, exist_ok=True)
    measure = partial(_measure_scan, models=trained, index=index, how=how, scans=scans)
    found: dict[str, list[Probe]] = {model.name: [] for model in models}
    chosen = panel_items(items, models, scans)
    for result in map_cases(measure, chosen, jobs=how.jobs, label="panels", quiet=how.quiet):
        for name, probes in result.unwrap().items():
            found[name] += probes
    return found


def _measure_scan(
    item: tuple[Case, Forgery | None, int], models: Sequence[Model], index: Path, how: Measuring, scans: int | None
) -> dict[str, list[Probe]]:
    case, forgery, number = item
    found: dict[str, list[Probe]] = {}
    keys = {}
    for model in models:
        if scans is None and model.detector != OURS and number >= SCANS:
            continue
        keys[model.name] = scan_key(model, case, [forgery] if forgery else [], [one.key for one in OPERATIONS])
        kept = read_kept(how.work / model.name / f"{case.scan_id}.json", keys[model.name])
        if kept is not None:
            found[model.name] = [Probe.from_json(row) for row in kept]
    todo = [model for model in models if model.name in keys and model.name not in found]
    if todo:
        probes: dict[str, list[Probe]] = {model.name: [] for model in todo}
        scan = Scan(case, read_case(index, case))
        judges = {model.name: Judge(detector_of(model), model.threshold, how.device) for model in todo}
        for version in versions(scan, forgery):
            for name, judge in judges.items():
                probes[name].append(_judged(judge, scan, version))
        for model in todo:
            path = how.work / model.name / f"{case.scan_id}.json"
            write_kept(path, keys[model.name], [probe.to_json() for probe in probes[model.name]])
        found |= probes
    return found


def versions(scan: Scan, forgery: Forgery | None) -> Iterator[Version]:
    """The pristine scan and its nodules, then every operation on the pristine and on the forged scan."""
    blank = Probe(scan.case.patient, scan.case.scan_id, "", False)
    yield from _nodules(scan, blank)
    for operation in operations(after_forging=False):
        yield _after(operation, scan.volume, replace(blank, operation=operation.name))
    if forgery is not None:
        forged, site = scan.forged(forgery), forgery.edit.center_zyx
        for operation in operations(after_forging=True):
            probe = replace(blank, operation=operation.name, forged=True)
            yield _after(operation, forged, probe, site)


def _after(operation: Operation, volume: Volume, probe: Probe, site_zyx: FloatTriple | None = None) -> Version:
    try:
        changed = operation(volume)
    except CtguardError as error:
        return Version(replace(probe, left_out=error.what), None)
    if site_zyx is not None and changed.geometry != volume.geometry:
        point = index_to_lps_mm(volume.geometry, site_zyx)
        site_zyx = as_float_triple(lps_mm_to_index(changed.geometry, point))
    return Version(probe, changed, site_zyx=site_zyx)


def _nodules(scan: Scan, blank: Probe) -> Iterator[Version]:
    """The 32 slices around every untouched nodule of a size that is forged."""
    geometry = scan.volume.geometry
    for finding in scan.case.findings:
        label = label_of(finding.malignancy)
        center = as_float_triple(lps_mm_to_index(geometry, finding.center_lps_mm))
        if label is None or not NODULE_MM[0] <= finding.diameter_mm <= NODULE_MM[1] or not geometry.contains(center):
            continue
        name = next(name for name, malignant in NODULES.items() if malignant == bool(label))
        slab = slab_slices(geometry.shape_zyx[0], center[0])
        yield Version(replace(blank, operation=name), scan.volume, slab)


def _judged(judge: Judge, scan: Scan, version: Version) -> Probe:
    if version.volume is None:
        return version.probe
    plain = version.volume is scan.volume
    name = "none" if plain else f"{version.probe.forged} {version.probe.operation}"
    area = scan.area(version.volume, name, judge.detector)
    look = judge.look(version.volume, area if version.slab is None else area.slab(version.slab))
    if version.probe.operation == "none":
        judge.detector.keep()  # slices of the scan itself come again after whatever is lossless
    else:
        judge.detector.forget()
    pointing = NAN
    if version.site_zyx is not None and judge.detector.localises:
        pointing = float(points_at(look.map, version.volume.geometry, version.site_zyx))
    return replace(version.probe, score=look.score, threshold=look.threshold, pointing=pointing)


def panel_tables(models: Sequence[Model], probes: Mapping[str, Sequence[Probe]], run_id: str) -> list[Table]:
    """The two panels: share of scans called forged, by operation and detector, with Clopper-Pearson intervals."""
    rates = [*((name, f"untouched {name}, 8-20 mm") for name in NODULES), *((o.name, o.words) for o in OPERATIONS)]
    robust = [(one.name, one.words) for one in operations(after_forging=True)]
    return [
        _table(
            "False-alarm panel: pristine scans called forged, exact intervals", models, probes, False, rates, run_id
        ),
        _table("Robustness panel: forged scans called forged, exact intervals", models, probes, True, robust, run_id),
    ]


def _table(
    title: str,
    models: Sequence[Model],
    probes: Mapping[str, Sequence[Probe]],
    forged: bool,
    names: Sequence[tuple[str, str]],
    run_id: str,
) -> Table:
    out = []
    found = {model.name: [probe for probe in probes[model.name] if probe.forged == forged] for model in models}
    for name, words in names:
        row: dict[str, Any] = {"operation": words}
        for model in models:
            chosen = [probe for probe in found[model.name] if probe.operation == name]
            scored = [probe for probe in chosen if not probe.left_out]
            reasons = sorted({probe.left_out for probe in chosen if probe.left_out})
            row["n"] = max(int(row.get("n", 0)), len(scored))
            if reasons:
                row["left out"] = f"{len(chosen) - len(scored)}: {'; '.join(reasons)}"
            if model.card is None:
                row[model.label] = NOT_TRAINED
            elif scored:
                row[model.label] = exact_share(sum(probe.score >= probe.threshold for probe in scored), len(scored))
                if forged and any(math.isfinite(probe.pointing) for probe in scored):
                    row[f"{model.label} points"] = exact_share(
                        sum(probe.pointing == 1 for probe in scored), len(scored)
                    )
        out.append(row)
    told = {key for row in out for key in row}
    columns = ["operation", "n", *(key for model in models for key in (model.label, f"{model.label} points"))]
    columns = [key for key in (*columns, "left out") if key in told]
    every = [probe for rows in found.values() for probe in rows]
    n = {"patients": len({probe.patient for probe in every}), "scans": len({probe.scan_id for probe in every})}
    hashes = hashes_of(models)
    return Table(title, tuple(columns), tuple(out), n, run_id, hashes)
