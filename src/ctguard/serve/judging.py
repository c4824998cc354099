"""Judge one series: detector, seal and signature; and write its case folder.

The folder holds verdict.json, map.nii.gz, report.html, the DICOM results, and sealed/ where a sealed copy leaves the
house. It is written under another name, fsynced, then renamed: it is there whole or not at all.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from pydicom import dcmread

from ctguard import io, zoo
from ctguard.core.errors import WriteError
from ctguard.core.marks import is_synthetic
from ctguard.core.records import Verdict
from ctguard.core.threshold import Threshold
from ctguard.core.volume import Volume
from ctguard.detect.infer import detect_volume
from ctguard.export.results import KEY, MAP, SEG, SR, write_results
from ctguard.export.sign import SignatureVerdict, check_files
from ctguard.io.derived import stored_range_hu
from ctguard.io.private import read_blocks, write_blocks
from ctguard.protect.keys import SealKey, read_key
from ctguard.protect.record import append_ledger, block_of, from_blocks, read_ledger
from ctguard.protect.seal import SealSettings, seal_volume
from ctguard.protect.verdict import ALARMS, SealVerdict
from ctguard.protect.verify import verify_volume
from ctguard.report.html import verdict_sections, write_report
from ctguard.serve.config import Config
from ctguard.serve.ledger import NodeKey, open_key
from ctguard.serve.objects import sync
from ctguard.serve.store import queue
from ctguard.serve.store.models import Series, now
from ctguard.serve.web.volumes import prepare

Facts = tuple[str, dict[str, Any]]
"""Kind and details of an alert."""
VERDICT, HEAT, TITLE = "verdict.json", "map.nii.gz", "Has this scan been tampered with?"
KINDS = {SEG: "seg", MAP: "map", SR: "sr", KEY: "key"}
IMAGE = "image"


@dataclass(frozen=True)
class Judge:
    """What is loaded once: the detector, what its card says, and the keys."""

    config: Config
    detector: Any
    model_id: str
    threshold: Threshold
    node_key: NodeKey
    seal_key: SealKey | None
    forward_key: SealKey | None


def load_judge(config: Config) -> Judge:
    """Detector, card and keys. Raises ModelError and what reading a key raises."""
    torch.set_num_threads(1)
    settings = config.analysis
    detector, card = zoo.load(zoo.find(settings.detector, "detector"), settings.weights)
    threshold = card.scan_threshold
    seal_key = None if settings.seal_key is None else read_key(settings.seal_key)
    forward_key = None if config.forward.seal_key is None else read_key(config.forward.seal_key)
    return Judge(config, detector, card.sha256, threshold, open_key(config.store.key_path), seal_key, forward_key)


def judge_series(judge: Judge, series: Series, files: Sequence[Path]) -> queue.Outcome:
    """Read, judge, and write the case folder; what `queue.finish` is to record.

    files: the images that the database names. Raises CtguardError where the series cannot be judged.
    """
    settings = judge.config.analysis
    root = Path(series.folder or "").absolute()
    for left in root.glob("case-*"):
        if series.verdict_path is None or left != Path(series.verdict_path).parent:
            shutil.rmtree(left)
    case = root / f"case-{series.claim}"
    stage = case.with_suffix(".part")
    images = stage / "images"
    images.mkdir(parents=True, mode=0o700)
    for file in files:
        # Links to exactly the images that the database names: one that arrives now does not get in between.
        os.link(file, images / file.name)
    volume = io.read(images, allow_gaps=settings.allow_gaps)
    verdict = detect_volume(
        volume,
        judge.detector,
        name=settings.detector,
        model_id=judge.model_id,
        threshold=judge.threshold,
        fast=settings.fast,
        device=settings.device,
    )
    seal = _seal(judge, volume)
    signature = check_files(volume.provenance.source.files, settings.signature_certificate)
    synthetic = series.synthetic or is_synthetic(volume.provenance.marks)
    made, lacking = _write_case(stage, series, volume, verdict, (seal, signature))
    copies = [] if synthetic else _copies(judge, volume, stage, files)
    shutil.rmtree(images)
    for path in stage.rglob("*"):
        sync(path)
    sync(stage)
    stage.rename(case)
    sync(root)
    hold = timedelta(hours=judge.config.forward.quarantine_hours if verdict.tampered else 0)
    until = now() + hold
    values = {
        "score": verdict.score,
        "threshold": verdict.threshold,
        "tampered": verdict.tampered,
        "verdict_path": str(case / VERDICT),
        "seal_state": seal.state,
        "signature_state": signature.state,
        "synthetic": synthetic,
        "quarantined_until": until if copies and hold else None,
    }
    to = judge.config.forward.destination
    parcels = _results(judge.config, [case / path.name for path in made])
    moved = [case / path.relative_to(stage) if path.is_relative_to(stage) else path for path in copies]
    parcels += [queue.Parcel(to, IMAGE, str(path), _uid(path), until) for path in moved]
    return queue.Outcome(values, parcels, [*_alerts(verdict, seal, signature, synthetic), *lacking])


def _seal(judge: Judge, volume: Volume) -> SealVerdict:
    ledger = judge.config.analysis.seal_ledger
    known = [] if ledger is None or judge.seal_key is None else read_ledger(ledger, judge.seal_key.key_id)
    return verify_volume(volume, judge.seal_key, from_blocks(read_blocks(volume), "series"), known)


def _copies(judge: Judge, volume: Volume, stage: Path, files: Sequence[Path]) -> list[Path]:
    """The images that leave the house: as they came, or sealed. A series that is sealed already goes as it came."""
    forward = judge.config.forward
    if not forward.destination:
        return []
    if judge.forward_key is None or volume.provenance.has_mark("sealed"):
        return list(files)
    settings = SealSettings(max_hu=forward.seal_budget_hu)
    sealed, seal, _ = seal_volume(volume, judge.forward_key, settings, stored_range_hu=stored_range_hu(volume))
    folder = io.write(sealed, stage / "sealed")
    made = sorted(folder.glob("*.dcm"))
    write_blocks(made, [block_of(seal.header, seal.slices[z]) for z in sorted(seal.slices)])
    append_ledger(judge.config.store.folder / "seal.jsonl", seal)
    return made


def _write_case(
    stage: Path, series: Series, volume: Volume, verdict: Verdict, checks: tuple[SealVerdict, SignatureVerdict]
) -> tuple[list[Path], list[Facts]]:
    """verdict.json, map.nii.gz, report.html, what the viewer needs, and the DICOM results; the latter's paths.

    A series whose attributes allow no DICOM results keeps its verdict, with an alert that says why.
    """
    facts = {
        "series": series.id,
        "detector": verdict.detector,
        "model_id": verdict.model_id,
        "score": verdict.score,
        "threshold": verdict.threshold,
        "tampered": verdict.tampered,
        "words": verdict.words,
        "regions": [region.to_json() for region in verdict.regions],
        "marks": [mark.kind for mark in volume.provenance.marks],
        "seal": checks[0].to_json(),
        "signature": {"state": checks[1].state, "words": checks[1].words},
    }
    (stage / VERDICT).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    io.write(Volume(verdict.map, verdict.geometry, volume.provenance), stage / HEAT)
    write_report(stage, TITLE, verdict_sections(volume, verdict))
    prepare(volume, verdict, stage)
    alerts: list[Facts] = []
    made: list[Path] = []
    try:
        made = write_results(volume, verdict, stage)
    except WriteError as error:
        alerts.append(("results-not-written", {"reason": error.what}))
    return made, alerts


def _results(config: Config, results: Sequence[Path]) -> list[queue.Parcel]:
    parcels = []
    for path in results:
        for destination in config.destination:
            if destination.takes_results and KINDS[path.name] in destination.kinds:
                parcels.append(queue.Parcel(destination.name, KINDS[path.name], str(path), _uid(path), now()))
    return parcels


def _uid(path: Path) -> str:
    return str(dcmread(path, stop_before_pixels=True, specific_tags=["SOPInstanceUID"]).SOPInstanceUID)


def _alerts(verdict: Verdict, seal: SealVerdict, signature: SignatureVerdict, synthetic: bool) -> list[Facts]:
    alerts: list[Facts] = []
    if verdict.tampered:
        alerts.append(("tampered", {"score": verdict.score, "regions": len(verdict.regions)}))
    if seal.state in ALARMS:
        alerts.append(("seal", {"state": seal.state}))
    if signature.state == "invalid":
        alerts.append(("signature", {"state": signature.state}))
    if synthetic:
        alerts.append(("synthetic", {}))
    return alerts
