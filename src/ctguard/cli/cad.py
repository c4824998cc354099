"""The verb cad: nodules of a scan with their malignancy scores, or the score of one place."""

from __future__ import annotations

import time
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ctguard.cli.common import AllowGaps, AsJson, Device, Quiet, Scan, Series, show, torch_device, triple, verb
from ctguard.cli.runs import run_folder

if TYPE_CHECKING:
    from ctguard.cad.score import Nodule, Reading
    from ctguard.core.volume import Volume
    from ctguard.report.html import Section

REPORT_TITLE = "Nodules and their malignancy scores"
READING, FIGURE = "reading.json", "nodules.png"


@verb
def cad(
    scan: Scan,
    at: Annotated[
        str | None, typer.Option("--at", metavar="Z,Y,X", help="Score this place alone, as voxel index.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="New folder for reading.json, nodules.png, report.html.")] = None,
    weights: Annotated[
        Path | None, typer.Option(help="Your own weights, a .safetensors with its card beside it.")
    ] = None,
    series: Series = None,
    allow_gaps: AllowGaps = False,
    device: Device = "auto",
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Nodules with malignancy scores, or the score of one place.

    A surrogate for research, not a diagnosis.
    """
    center = None if at is None else triple(at, "--at")
    from ctguard import io, zoo
    from ctguard.cad.score import read_volume, score_site
    from ctguard.core.errors import ModelError
    from ctguard.io.manifest import peak_mb

    started = time.perf_counter()
    place = torch_device(device)
    reading: dict[str, Any] = {"allow_gaps": allow_gaps, "series_uid": series}
    volume = io.read(scan, **reading)
    scorer, card = zoo.load(zoo.find("noisy-or", "scorer"), weights)
    if card.threshold is None:
        raise ModelError("its card has no threshold", where=card.name, remedy="train it with validation cases")
    names: dict[str, Any] = {"name": "noisy-or", "model_id": card.sha256, "threshold": card.threshold}
    with nullcontext() if out is None else run_folder(out, scan, reading, {}) as run:
        site = None
        if center is None:
            found = read_volume(volume, scorer, **names, device=place)
        else:
            found = score_site(volume, scorer, center, **names, device=place)
            site = found.nodules[0]
        facts = _facts(scan, found, site)
        if run is not None:
            for path in _write(run.folder, volume, found, site, facts):
                run.add_output(path)
    facts |= {"seconds": round(time.perf_counter() - started, 2), "peak_mb": peak_mb()}
    show(facts, _words(found, site), as_json)


def _facts(scan: Path, found: Reading, site: Nodule | None) -> dict[str, Any]:
    """As `cad --json` prints it, without seconds and memory."""
    facts: dict[str, Any] = {"scan": str(scan), "scorer": found.scorer, "threshold": found.threshold}
    rows = [{**one.to_json(), "malignant": one.malignancy >= found.threshold} for one in found.nodules]
    if site is None:
        return {**facts, "case_probability": found.case_probability, "nodules": rows}
    return {**facts, **{key: rows[0][key] for key in ("center_zyx", "center_lps_mm", "malignancy", "malignant")}}


def _words(found: Reading, site: Nodule | None) -> str:
    if site is not None:
        return f"malignancy score {site.malignancy:.3f} (threshold {found.threshold:.3f})"
    count = f"{len(found.nodules)} nodule{'s' if len(found.nodules) != 1 else ''} proposed"
    lines = [f"{count}, case probability {found.case_probability:.3f} (threshold of a score {found.threshold:.3f})"]
    for one in found.nodules:
        where = ", ".join(f"{v:.0f}" for v in one.center_zyx)
        size = f"{one.diameter_mm:.0f} mm, confidence {one.confidence:.2f}"
        lines.append(f"  score {one.malignancy:.3f} at {where} (z, y, x), {size}")
    return "\n".join(lines)


def _write(folder: Path, volume: Volume, found: Reading, site: Nodule | None, facts: dict[str, Any]) -> list[Path]:
    """reading.json, the figure and the report."""
    import json

    from ctguard.report.html import write_report
    from ctguard.report.nodules import nodules_figure, reading_sections, site_sections

    folder.mkdir(parents=True, exist_ok=True)
    made = [folder / READING]
    made[0].write_text(json.dumps({**facts, "model_id": found.model_id}, indent=1) + "\n", encoding="utf-8")
    if found.nodules:
        made.append(folder / FIGURE)
        made[-1].write_bytes(nodules_figure(volume, found.nodules, found.threshold))
    sections: list[Section] = reading_sections(volume, found) if site is None else site_sections(volume, site, found)
    return [*made, write_report(folder, REPORT_TITLE, sections)]
