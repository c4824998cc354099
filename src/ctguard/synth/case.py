"""One scan of a data set: read it, choose its sites, forge them, log, put the files in place, write its record."""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ctguard import zoo
from ctguard.cohort.public import as_public
from ctguard.core.errors import GeometryError
from ctguard.core.records import Case, Split
from ctguard.core.volume import Volume
from ctguard.io.cases import read_case
from ctguard.io.forgeries import Forgery
from ctguard.io.manifest import sha256_array, sha256_file
from ctguard.synth.forge import Request, check_source, load_generator, log_forging, tamper_scan
from ctguard.synth.layouts import Sample, write_samples
from ctguard.synth.rule import DatasetRule
from ctguard.synth.sites import (
    Drawn,
    Site,
    Skipped,
    draw_sites,
    entry_of,
    replay_sites,
    tables_of,
    with_donors,
)
from ctguard.synth.twin import TWIN
from ctguard.tamper.pipeline import Sampled

CASES = "cases"
STAGE = ".stage.part"


@dataclass(frozen=True)
class Item:
    """A case on its way to a worker. number: in the index, from 1; series_number: among the scans of its patient."""

    number: int
    case: Case
    series_number: int


@dataclass(frozen=True)
class Target:
    """The data set that is being made."""

    index: Path
    out: Path
    rule: DatasetRule
    seed: int


def forge_case(item: Item, *, target: Target) -> tuple[dict[str, Any], dict[str, float]]:
    """Forge one scan, log it, put its files in place: its record, and seconds per stage of forging."""
    case, rule, out = item.case, target.rule, target.out
    volume = _read(target.index, case, rule)
    sites, skipped = _sites(volume, item, rule, target.seed)
    samples: list[Sample] = []
    seconds: dict[str, float] = {}
    source = sha256_array(volume.hu)
    for sample, spent, digest in _samples(volume, case, sites, rule, skipped):
        samples.append(sample)
        for name, value in spent.items():
            seconds[name] = seconds.get(name, 0.0) + value
        log_forging(sample.forgery.edit.plan, source, digest)
    stage = out / STAGE / f"{case.scan_id}.{secrets.token_hex(4)}"
    try:
        stage.mkdir(parents=True)
        files = write_samples(rule.format, stage, volume, samples)
        rows = [
            _row(case, sample, {path.relative_to(stage).as_posix(): sha256_file(path) for path in made})
            for sample, made in zip(samples, files, strict=True)
        ]
        record = {**_facts(volume, item, rule), "forgeries": rows, "skipped": [asdict(one) for one in skipped]}
        _place(stage, out)
        (out / CASES).mkdir(exist_ok=True)
        (stage / "record").write_text(json.dumps(record) + "\n", encoding="utf-8")
        (stage / "record").replace(out / CASES / f"{case.scan_id}.json")
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    return record, seconds


def _read(index: Path, case: Case, rule: DatasetRule) -> Volume:
    return as_public(case, read_case(index, case, allow_gaps=rule.allow_gaps))


def _sites(volume: Volume, item: Item, rule: DatasetRule, seed: int) -> Drawn:
    """Where to forge a scan; nowhere in one that is forged already. Raises RefusedError for a source not allowed."""
    case = item.case
    if volume.provenance.has_mark("forged"):
        return [], [Skipped(case.scan_id, "", "", "it is itself forged")]
    check_source(volume)
    if rule.tables is not None:
        sites, skipped = replay_sites(rule.tables, volume, case, mode=rule.mode, seed=seed)
    else:
        sites, skipped = draw_sites(volume, case, rule.sites, mode=rule.mode, seed=seed, number=item.number)
    return (with_donors(sites, volume, case, seed) if "copy-move" in rule.generators else sites), skipped


def _samples(
    volume: Volume, case: Case, sites: Sequence[Site], rule: DatasetRule, skipped: list[Skipped]
) -> Iterator[tuple[Sample, dict[str, float], str]]:
    """Each forgery, seconds per stage, and the SHA-256 of the forged voxels. What does not fit goes to `skipped`."""
    for site in sites:
        for name in (one for one in rule.generators if site.forged_by(one)):
            if name == "copy-move" and site.donor_zyx is None:
                what = "nodule" if site.task == "inject" else "plain lung"
                skipped.append(Skipped(case.scan_id, site.site_id, name, f"no other {what} to copy"))
                continue
            weights = None if name == TWIN else zoo.find(name, "generator", site.task).weights_in(rule.weights)
            samples = rule.sampler is not None and name != TWIN
            sampled = samples and isinstance(load_generator(name, site.task, weights)[0], Sampled)
            request = Request(site.task, site.center_zyx, name, rule.mode, site.core_mm, site.seed)
            request = replace(request, sampler=rule.sampler) if sampled else request
            donor = site.donor_zyx if name == "copy-move" else None
            try:
                forged, edit, seconds = tamper_scan(volume, request, weights=weights, donor_zyx=donor)
            except GeometryError as error:
                skipped.append(Skipped(case.scan_id, site.site_id, name, error.what))
                continue
            window = tuple(slice(a, a + n) for a, n in zip(edit.box_start_zyx, edit.mask.shape, strict=True))
            forgery = Forgery(case.scan_id, edit, forged.hu[window].copy())
            yield Sample(site, forgery, forged.provenance), seconds, sha256_array(forged.hu)


def draw_case(item: Item, *, target: Target) -> dict[str, Any]:
    """The record that a case would have, with its sites and nothing else."""
    rule = target.rule
    sites, skipped = _sites(_read(target.index, item.case, rule), item, rule, target.seed)
    rows = [
        plan_row(site, name, item.case.split)
        for site in sites
        for name in rule.generators
        if site.forged_by(name) and (name != "copy-move" or site.donor_zyx is not None)
    ]
    return {"forgeries": rows, "skipped": [asdict(one) for one in skipped]}


def plan_row(site: Site, generator: str, split: Split | None) -> dict[str, Any]:
    """The part of a manifest's line that is known before forging."""
    return {"site": site.site_id, "split": split, "plan": {"generator": generator, "task": site.task}}


def _row(case: Case, sample: Sample, files: dict[str, str]) -> dict[str, Any]:
    """The manifest's line of one forgery."""
    return {
        "forgery": sample.forgery.name,
        "site": sample.site.site_id,
        "scan_id": case.scan_id,
        "patient": case.patient,
        "split": case.split,
        "plan": sample.forgery.edit.plan,
        "files": files,
    }


def _facts(volume: Volume, item: Item, rule: DatasetRule) -> dict[str, Any]:
    """What the tables of the released layout say of a series."""
    case = item.case
    number, dicom = str(item.series_number), case.path
    uid = case.series_uid.partition("#")[0]
    if uid:  # as The Cancer Imaging Archive names its folders; readers know the series by the end
        dicom = f"{case.patient}/{number}.000000-NA-{uid[-5:]}"
    entry = None if rule.tables is None else entry_of(tables_of(rule.tables), case, volume.geometry)
    if entry is not None:
        number, dicom = entry.series_number, entry.folder
    return {
        "scan_id": case.scan_id,
        "patient": case.patient if entry is None else entry.patient,
        "split": case.split,
        "series_number": number,
        "dicom": dicom,
        "shape_zyx": list(volume.geometry.shape_zyx),
        "spacing_zyx_mm": list(volume.geometry.spacing_zyx_mm),
    }


def _place(stage: Path, out: Path) -> None:
    """Move what was made into the data set, file by file."""
    for path in sorted(stage.rglob("*")):
        if path.is_symlink() or not path.is_dir():
            target = out / path.relative_to(stage)
            target.parent.mkdir(parents=True, exist_ok=True)
            path.replace(target)
