"""The demo verb: the whole story on a synthetic patient."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ctguard.cli.common import DETECTOR, AsJson, Device, Quiet, Seed, command_line, show, torch_device, verb
from ctguard.cli.runs import verdict_facts, write_forgery, write_protected, write_verdict
from ctguard.core.console import log

if TYPE_CHECKING:
    from ctguard.core.geometry import FloatTriple
    from ctguard.core.records import Task, Verdict
    from ctguard.core.volume import Volume
    from ctguard.report.html import Section
    from ctguard.synth.forge import Request

BUDGET_HU = 8.0
STEPS = 120
"""Attacks that the protection works against: about a minute on one core."""


@dataclass(frozen=True, eq=False)
class _Forged:
    """One forgery of the story: what was asked, what came out, and what the detector says of it."""

    request: Request
    volume: Volume
    verdict: Verdict


@verb
def demo(
    out: Annotated[Path, typer.Option(help="A new folder for the results.")] = Path("demo-out"),
    seed: Seed = 7,
    device: Device = "auto",
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Forge, judge and protect a phantom patient: OUT/index.html."""
    from ctguard import io, zoo
    from ctguard.defence import protect_scan
    from ctguard.detect.infer import detect_volume
    from ctguard.io.atomic import atomic_folder
    from ctguard.io.manifest import RunManifest
    from ctguard.report.html import write_report
    from ctguard.synth.forge import tamper_scan

    place = torch_device(device)
    network, card = zoo.load(zoo.find(DETECTOR, "detector"))

    def judge(name: str, volume: Volume) -> Verdict:
        log.info("judging: %s", name)
        found = detect_volume(
            volume, network, name=DETECTOR, model_id=card.sha256, threshold=card.scan_threshold, device=place
        )
        write_verdict(run.folder / f"verdict-{name}", Path(name), volume, found)
        return found

    def forge(name: str, volume: Volume, request: Request) -> _Forged:
        log.info("forging: %s", name)
        forged, edit, _ = tamper_scan(volume, request)
        write_forgery(run.folder / name, volume, forged, edit)
        return _Forged(request, forged, judge(name, forged))

    with atomic_folder(out) as stage, RunManifest(stage, command_line.get(), {"demo": seed}) as run:
        log.info("rendering a synthetic patient")
        volume, requests = _patient(seed)
        io.write(volume, stage / "patient")
        pristine = judge("patient", volume)
        forged = {request.task: forge(request.task, volume, request) for request in requests}
        log.info("protecting the scan")
        protected, added = protect_scan(volume, "ascent", budget_hu=BUDGET_HU, seed=seed, steps=STEPS, quiet=quiet)
        write_protected(stage / "protected", volume, protected, {"budget_hu": BUDGET_HU, **added.to_json()})
        shielded = judge("protected", protected)
        again = {r.task: forge(f"{r.task}-after-protection", protected, r) for r in requests}
        verdicts = {"patient": pristine, "protected": shielded}
        verdicts |= {name: made.verdict for name, made in forged.items()}
        verdicts |= {f"{name}-after-protection": made.verdict for name, made in again.items()}
        sections = [_overview(verdicts), *(_forgery(volume, made) for made in forged.values())]
        sections += [_protection(volume, protected, forged[name], again[name]) for name in forged]
        write_report(stage, "ctguard demo: a synthetic patient, forged, judged and protected", sections, "index.html")
        run.add_output(stage / "index.html")
    facts: dict[str, Any] = {name: verdict_facts(out / name, verdict) for name, verdict in verdicts.items()}
    lines = [f"{name}: {verdict.words} (score {verdict.score:.3f})" for name, verdict in verdicts.items()]
    show(
        {"index": str(out / "index.html"), "verdicts": facts}, "\n".join([*lines, f"look at {out}/index.html"]), as_json
    )


def _patient(seed: int) -> tuple[Volume, list[Request]]:
    """A patient, and where to forge: a nodule into healthy lung, and the largest nodule out of it."""
    import numpy as np

    from ctguard.core.geometry import as_float_triple, lps_mm_to_index
    from ctguard.phantom.patients import draw_acquisition, draw_lung_site, draw_patient, findings, render
    from ctguard.synth.forge import Request

    patient = draw_patient(seed)
    acquisition = draw_acquisition(patient, "bench", seed)
    nodule = max(findings(patient, acquisition.geometry), key=lambda one: one.diameter_mm)
    healthy = draw_lung_site(patient, acquisition, np.random.default_rng(seed), 14.0)
    sites: tuple[tuple[Task, FloatTriple], ...] = (("inject", healthy), ("remove", nodule.center_lps_mm))
    index = [(task, as_float_triple(lps_mm_to_index(acquisition.geometry, point).round())) for task, point in sites]
    return render(patient, acquisition), [Request(task, center, seed=seed) for task, center in index]


def _overview(verdicts: dict[str, Verdict]) -> Section:
    from ctguard.report.html import Grid, Paragraph, Section

    rows = [(name, verdict.words, f"{verdict.score:.3f}", verdict.threshold) for name, verdict in verdicts.items()]
    story = Paragraph(
        "A synthetic chest CT (no person). A generator puts a nodule into healthy lung, and takes the patient's own "
        "nodule out; the detector judges the scan before and after. Then the scan is protected by an imperceptible "
        "perturbation, and the same forgeries are tried on the protected copy. Each row is a folder beside this page, "
        "with the series as DICOM and its ground truth, and a folder verdict-… with the detector's map and report."
    )
    return Section("Verdicts", (story, Grid(rows, ("scan", "verdict", "score", "threshold"))))


def _forgery(volume: Volume, made: _Forged) -> Section:
    from ctguard.report.figures import site_figure
    from ctguard.report.html import Paragraph, Picture, Section

    title = {"inject": "A nodule put in", "remove": "A nodule taken out"}[made.request.task]
    tone = Paragraph(f"The detector finds {made.verdict.words.removesuffix(' found')}.", "note")
    picture = Picture(
        site_figure(volume, made.volume, made.verdict.map, center_zyx=made.request.center_zyx),
        f"{title}: original, forged, difference and detector map in three planes",
        "Original, forged, their difference in HU, and the detector's map over the forged scan.",
    )
    return Section(title, (tone, picture))


def _protection(volume: Volume, protected: Volume, before: _Forged, after: _Forged) -> Section:
    """What the forger gets before and after protection, and how far apart both are in the masked core."""
    import numpy as np

    from ctguard.report.figures import protection_figure
    from ctguard.report.html import Grid, Picture, Section
    from ctguard.tamper.cube import exact_cube

    request = before.request
    core = exact_cube(volume.geometry, request.center_zyx, 16.0)
    near = np.ix_(*(np.abs(offset) <= 8.0 for offset in core.offsets_mm()))
    box = core.paste.slices()

    def rmse(one: Volume, other: Volume) -> float:
        difference = one.hu[box].astype(float)[near] - other.hu[box][near]
        return float(np.sqrt(np.mean(difference**2)))

    damage, price = rmse(after.volume, before.volume), rmse(protected, volume)
    rows = [("damage to the forgery, RMSE", f"{damage:.1f} HU"), ("price in the scan, RMSE", f"{price:.1f} HU")]
    title = {"inject": "Putting a nodule into the protected scan", "remove": "Taking the nodule out of it"}[
        request.task
    ]
    picture = Picture(
        protection_figure(volume, protected, before.volume, after.volume, request.center_zyx),
        f"{title}: real, protected, forged, and forged after protection",
        "The same site, generator and noise; in the masked core of 16 mm the numbers above.",
    )
    return Section(title, (Grid(rows), picture))
