"""From an index to a data set of forgeries: `synth`, resumable, the same bytes whatever the number of processes.

OUT holds
    synth.json         what was asked, with the hashes of the models; another request is refused
    index.csv          the pristine scans with their split, by paths from OUT
    cases/SCAN.json    what was forged of one scan and what was left out; its presence says that the scan is done
    forgeries.jsonl    the manifest: one line a forgery, with its Plan and the SHA-256 of each of its files
    summary.json       counts, and what was left out, with the reasons
and the forgeries themselves (layouts.py). A scan's files are made aside and renamed into place before its record is.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from ctguard import __version__
from ctguard.cohort.m3dsynth import SeriesEntry
from ctguard.cohort.split import assign_split
from ctguard.core.console import log
from ctguard.core.errors import DataError, RecipeError, WriteError
from ctguard.core.records import Case
from ctguard.io.atomic import atomic_files
from ctguard.io.cases import case_path, read_cases, write_cases
from ctguard.io.forgeries import MANIFEST, write_manifest
from ctguard.io.manifest import RunManifest, sha256_file
from ctguard.parallel import map_cases
from ctguard.synth.case import CASES, STAGE, Item, Target, draw_case, forge_case, plan_row
from ctguard.synth.layouts import TABLES, write_tables
from ctguard.synth.rule import DatasetRule, check_rule, model_hashes
from ctguard.synth.sites import NOT_LISTED, Site, Skipped, entry_of, tables_of
from ctguard.synth.summary import Summary, summary_of

INDEX, SETTINGS, SUMMARY = "index.csv", "synth.json", "summary.json"


def synth(
    index: str | Path,
    out: str | Path,
    rule: DatasetRule | None = None,
    *,
    seed: int = 0,
    cases: Sequence[Case] | None = None,
    jobs: int = 1,
    cluster: str | None = None,
    command: Sequence[str] = ("ctguard.synth.dataset.synth",),
) -> Summary:
    """Forge the scans of an index into the folder `out`.

    index: a CSV of `ctguard index` or `ctguard phantom`. Cases without any split get the published one, 66/14/20 by
    patient. cases: some of its rows instead of all. jobs, cluster: see parallel.map_cases. command: for run.json.

    A run that was killed goes on when it is started again, and ends with the same bytes. A scan that fails (broken,
    refused, no space) stands in the summary and the rest goes on; starting again tries it once more.
    Raises DataError, RecipeError or ModelError before anything is done, WriteError where `out` holds something else.
    """
    index, out, rule = Path(index), Path(out), rule or DatasetRule()
    chosen = with_split(read_cases(index) if cases is None else cases, seed, rule.tables)
    check_rule(rule, chosen)
    settings = _settings(rule, chosen, seed, model_hashes(rule))
    _claim(out, settings)
    write_cases([_moved(case, index, out) for case in chosen], out / INDEX)
    summary = None
    try:
        with RunManifest(out, command, {"synth": seed}) as run:
            run.add_input(index)
            summary = _run(_items(chosen), Target(index, out, rule, seed), settings, jobs, cluster)
            run.note("seconds", {name: round(value, 3) for name, value in summary.seconds.items()})
            for name in (INDEX, SETTINGS, SUMMARY, MANIFEST):
                if (out / name).is_file():
                    run.add_output(out / name)
    except WriteError as error:
        if summary is None:
            raise
        summary = replace(summary, failed=(*summary.failed, ("run.json", str(error))))  # a full disk: told, not lost
    return summary


def _run(items: Sequence[Item], target: Target, settings: dict[str, Any], jobs: int, cluster: str | None) -> Summary:
    """Forge what is not done yet, then write manifest, tables and summary of all."""
    records = {item.number: _record(target.out, item.case) for item in items}
    kept = sum(record is not None for record in records.values())
    todo = [item for item in items if records[item.number] is None]
    config = hashlib.sha256(json.dumps([settings, str(target.out.resolve())]).encode()).hexdigest()[:12]
    key = partial(_key, config)
    failed: list[tuple[str, str]] = []
    seconds: dict[str, float] = {}
    work = partial(forge_case, target=target)
    for result in map_cases(work, todo, jobs=jobs, label="forging", cluster=cluster, key=key):
        if result.error is not None:
            failed.append((result.item.case.scan_id, " ".join(str(result.error).split())))
            continue
        records[result.item.number], spent = result.unwrap()
        for name, value in spent.items():
            seconds[name] = seconds.get(name, 0.0) + value
    done = [record for _, record in sorted(records.items()) if record is not None]
    summary = replace(summary_of(target.rule.generators, done, failed), kept=kept, seconds=seconds)
    try:
        _finish(target, done)
        _write_json(target.out / SUMMARY, summary.to_json())
    except WriteError as error:
        summary = replace(summary, failed=(*summary.failed, (MANIFEST, str(error))))
    return summary


def plan_synth(
    index: str | Path | None,
    rule: DatasetRule | None = None,
    *,
    seed: int = 0,
    jobs: int = 1,
    cluster: str | None = None,
) -> Summary:
    """What `synth` would forge, without forging (`--dry-run`).

    With site tables no scan is read, and without an index all of their sites are counted. Sites that are drawn need
    the scans, for their lungs.
    """
    rule = rule or DatasetRule()
    if index is None:
        if rule.tables is None:
            raise RecipeError("there is nothing to plan", remedy="give an index, or a site list")
        check_rule(rule, ())
        entries = tables_of(rule.tables).series
        return summary_of(rule.generators, [_planned(rule, entry, None) for entry in entries])
    chosen = with_split(read_cases(index), seed, rule.tables)
    check_rule(rule, chosen)
    if rule.tables is not None:
        named = [(entry_of(tables_of(rule.tables), case), case) for case in chosen]
        return summary_of(rule.generators, [_planned(rule, entry, case) for entry, case in named])
    work = partial(draw_case, target=Target(Path(index), Path(), rule, seed))
    results = list(map_cases(work, _items(chosen), jobs=jobs, label="sites", cluster=cluster))
    failed = [(r.item.case.scan_id, " ".join(str(r.error).split())) for r in results if r.error is not None]
    return summary_of(rule.generators, [result.unwrap() for result in results if result.ok], failed)


def with_split(cases: Sequence[Case], seed: int, tables: Path | None = None) -> list[Case]:
    """The cases with the index's own split, or by patient in the published shares where it has none.

    tables: a site list that is replayed; the patients in it have its split, whatever the index says.
    Raises DataError where only some rows have a split, and where there is no row.
    """
    if not cases:
        raise DataError("the index has no rows", remedy="give an index of scans")
    lacking = [case for case in cases if case.split is None]
    if lacking and len(lacking) < len(cases):
        what = f"{len(lacking)} of {len(cases)} rows have no split, among them {lacking[0].scan_id}"
        raise DataError(what, remedy="fill in the column split, or empty it")
    fixed = {} if tables is None else tables_of(tables).splits
    if lacking:
        return assign_split(cases, seed=seed, fixed=fixed)
    moved = [replace(case, split=fixed.get(case.patient, case.split)) for case in cases]
    changed = sum(before.split != after.split for before, after in zip(cases, moved, strict=True))
    if changed:
        log.info("%d of %d scans take the split of the site tables", changed, len(cases))
    return moved


def _settings(rule: DatasetRule, cases: Sequence[Case], seed: int, models: dict[str, str]) -> dict[str, Any]:
    """What decides the bytes of a data set, as JSON. Paths do not: data may be moved."""
    values = json.loads(json.dumps({**asdict(rule), "tables": None, "weights": None}))
    rows = [[c.scan_id, c.patient, c.collection, c.series_uid, c.split, repr(c.findings)] for c in cases]
    tables = rule.tables and {n: sha256_file(rule.tables / n) for n in ("data.csv", "LIDC.csv", "sets.csv")}
    return {
        "ctguard": __version__,
        "seed": seed,
        **values,
        "tables": tables,
        "models": models,
        "cases": hashlib.sha256(json.dumps(rows).encode()).hexdigest(),
    }


def _claim(out: Path, settings: dict[str, Any]) -> None:
    """Take the folder, or go on in it. Raises WriteError where it holds something else."""
    path = out / SETTINGS
    if path.is_file():
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise WriteError(f"it is damaged ({error})", where=path, remedy="give a new folder") from error
        other = [name for name in settings if found.get(name) != settings[name]]
        if other:
            what = f"the folder holds a data set made with another {', '.join(other)}"
            raise WriteError(what, where=out, remedy="give a new folder, or the same options")
    elif out.exists() and (not out.is_dir() or any(entry.suffix != ".part" for entry in out.iterdir())):
        raise WriteError("it exists and holds no data set", where=out, remedy="give a new folder")
    for entry in out.glob(".*.part"):  # left by a run that was killed
        shutil.rmtree(entry, ignore_errors=True)
    _write_json(path, settings)


def _moved(case: Case, index: Path, out: Path) -> Case:
    return replace(case, path=Path(os.path.relpath(case_path(index, case), out)).as_posix())


def _items(cases: Sequence[Case]) -> list[Item]:
    scans: dict[str, int] = {}
    items = []
    for number, case in enumerate(cases, start=1):
        scans[case.patient] = scans.get(case.patient, 0) + 1
        items.append(Item(number, case, scans[case.patient]))
    return items


def _key(config: str, item: Item) -> str:
    return f"ctguard-synth-{config}-{item.case.scan_id}"


def _record(out: Path, case: Case) -> dict[str, Any] | None:
    """What is known of a case that is done; None where it is not, or where one of its files is gone."""
    path = out / CASES / f"{case.scan_id}.json"
    if not path.is_file():
        return None
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return record if all((out / name).is_file() for row in record["forgeries"] for name in row["files"]) else None


def _planned(rule: DatasetRule, entry: SeriesEntry | None, case: Case | None) -> dict[str, Any]:
    """The record that a series would have, by the site tables alone; its split is the case's, where there is one."""
    tables = tables_of(rule.tables or Path())
    rows = []
    for known in () if entry is None else tables.of_entry(entry):
        site = Site(known.site_id, known.task, (0.0, 0.0, 0.0), 0, None, tuple(known.generators))
        split = known.split if case is None else case.split
        rows += [plan_row(site, name, split) for name in rule.generators if site.forged_by(name)]
    lost = [Skipped(case.scan_id, "", "", NOT_LISTED)] if case is not None and entry is None else []
    return {"forgeries": rows, "skipped": [asdict(one) for one in lost]}


def _finish(target: Target, records: Sequence[Mapping[str, Any]]) -> None:
    """Manifest and tables of all that is done."""
    shutil.rmtree(target.out / STAGE, ignore_errors=True)
    rows = (row for record in records for row in record["forgeries"])
    write_manifest(rows, INDEX, target.out, target.rule.format)
    if target.rule.format == "tiff":
        write_tables(target.out / TABLES, records, target.seed)


def _write_json(path: Path, values: dict[str, Any]) -> None:
    with atomic_files(path) as stage:
        (stage / path.name).write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
