"""`ctguard bench seal`: from an index of scans to tables, a figure and one page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctguard import zoo
from ctguard.bench.metrics import Interval, exact_share
from ctguard.bench.protection_scene import TASKS, find_forger
from ctguard.bench.seal.measure import MAKERS, Measured, SealExperiment, measure
from ctguard.bench.seal.scene import JUDGES
from ctguard.bench.seal.tables import SealResults, seal_tables
from ctguard.bench.seal.trials import MOVED_HU, SIZES_MM
from ctguard.bench.table import write_csv
from ctguard.core.errors import DataError, RecipeError
from ctguard.core.records import Split
from ctguard.io.cases import read_cases
from ctguard.io.manifest import RunManifest
from ctguard.protect.seal import SealSettings
from ctguard.report.bench_page import as_shown, write_bench
from ctguard.report.html import Picture
from ctguard.report.style import BENIGN, INK, MALIGNANT, MUTED, as_png, new_figure

STEM = "seal"
TITLE = "The seal, measured"
_CAPTION = (
    "Regions put back unsealed that the pattern misses, by size, with exact 95 % intervals. At its place: where and as "
    "strongly as it was sealed, as the ledger says; key alone: files without header or ledger. Predicted: by the "
    "evidence of each region."
)


@dataclass(frozen=True)
class Wanted:
    """What to measure: `ctguard bench seal`. tables: names of MAKERS; empty: all of them."""

    tables: tuple[str, ...]
    generators: tuple[str, ...]
    settings: SealSettings
    split: Split = "test"
    scans: int = 5
    sites: int = 20
    keys: int = 100
    seed: int = 0


def bench_seal(
    data: Path, out: Path, wanted: Wanted, *, command: Sequence[str], jobs: int = 1
) -> tuple[dict[str, Any], str]:
    """Measure, write OUT/seal.{csv,json,md,html} and sizes.png; the JSON and the Markdown.

    OUT/scans keeps the rows of finished scans. Processor seconds stand in run.json alone. Raises DataError where the
    split is empty, RecipeError for a table that is none, RefusedError for scans that must not be forged.
    """
    unknown = sorted(set(wanted.tables) - set(MAKERS))
    if unknown:
        raise RecipeError(f"no table is called {', '.join(unknown)}", remedy=f"choose from {', '.join(MAKERS)}")
    forgers = tuple(find_forger(text) for text in wanted.generators)
    tables = tuple(name for name in MAKERS if name in wanted.tables or not wanted.tables)
    experiment = SealExperiment(tables, forgers, wanted.settings, wanted.sites, wanted.keys, wanted.seed)
    cases = [case for case in read_cases(data) if case.split == wanted.split][: wanted.scans]
    if not cases:
        raise DataError(f"it has no {wanted.split} scan", where=data, remedy="give --split, or another index")
    with RunManifest(out, command, {"bench": wanted.seed}) as run:
        run.add_input(data)
        for forger in forgers:
            for path in (zoo.find(forger.generator, "generator", task).weights_in(forger.folder) for task in TASKS):
                if path is not None and path.is_file():
                    run.add_input(path)
        measured = measure(experiment, data, cases, out / "scans", jobs=jobs)
        run.note("processor seconds", {scan.scan_id: dict(scan.seconds) for scan in measured})
        missing = tuple(forger.label for forger in forgers if not forger.known)
        hashes = {f"{forger.label} {task}": sha for forger in forgers for task, sha in forger.sha256 if sha != "none"}
        results = SealResults(measured, run.run_id, missing, hashes)
        made, notes = seal_tables(results), notes_of(wanted)
        figures = {}
        if "size" in tables:
            figures["sizes"] = Picture(sizes_figure(results), "Smallest region", _CAPTION)
        csv = write_csv(_lines(measured), out / f"{STEM}.csv")
        for path in (csv, *write_bench(out, STEM, TITLE, made, notes, figures)):
            run.add_output(path)
    return as_shown(out, STEM, made, notes)


def notes_of(wanted: Wanted) -> list[str]:
    """What the tables mean."""
    pattern = f"at most {wanted.settings.max_hu:g} HU and {wanted.settings.share:g} of the local noise"
    return [
        f"Split {wanted.split}. Pattern: {pattern}. Up to {wanted.sites} places a scan, in lung, 16 mm apart, changed "
        "all at once. Scans are sealed with a key that was drawn, stripped of header and marks, changed, and verified.",
        f'"{JUDGES[0]}": by the digest and the pattern. "{JUDGES[1]}": by the pattern alone, which finds scan, slice '
        "and place in the voxels. A site is missed where the map marks no voxel of it; regions farther than 16 mm "
        "from every site are false. Brackets are exact 95 % intervals (Clopper and Pearson) over all sites or scans.",
        f"The digest's cubes are moved by {MOVED_HU} HU, every second one up. Generators forge the sealed scan and "
        "paste all of their cube of 32 mm, or what the weights of M3Dsynth's release let through, or (clean mode) the "
        "core of 16 mm with a fade. A forger with other sealed scans knows their originals too: more than he would.",
    ]


def sizes_figure(results: SealResults) -> bytes:
    """Miss rate of the pattern by the size of the region, by both ways to judge, beside the prediction."""
    figure = new_figure(1, 2)
    axes = figure.add_subplot(1, 1, 1)
    for judge, colour in (("at its place", BENIGN), (JUDGES[1], MALIGNANT)):
        points = [(size, _misses(results, size, judge, "found")) for size in SIZES_MM]
        known = [(size, one) for size, one in points if one is not None]
        _draw(axes, known, colour, judge)
    points = [(size, _misses(results, size, "at its place", "predicted")) for size in SIZES_MM]
    line = [(size, one.value) for size, one in points if one is not None]
    axes.plot([x for x, _ in line], [y for _, y in line], "--", color=MUTED, label="predicted")
    axes.set_xlabel("side of the region, mm", fontsize=8, color=INK)
    axes.set_ylabel("missed", fontsize=8, color=INK)
    axes.set_xticks(SIZES_MM)
    axes.set_ylim(-0.03, 1.03)
    axes.tick_params(labelsize=7, colors=MUTED)
    axes.legend(fontsize=7, frameon=False)
    width, height = figure.get_size_inches()
    figure.subplots_adjust(left=0.55 / width, right=1 - 0.15 / width, bottom=0.6 / height, top=1 - 0.12 / height)
    return as_png(figure)


def _misses(results: SealResults, size_mm: int, judge: str, name: str) -> Interval | None:
    for size, judged, rows in results.lines("size"):
        sites = int(sum(float(row.values["sites"]) for row in rows))
        if (size, judged) == (f"{size_mm} mm", judge) and sites:
            return exact_share(sites - int(sum(float(row.values[name]) for row in rows)), sites)
    return None


def _draw(axes: Any, known: Sequence[tuple[int, Interval]], colour: str, label: str) -> None:
    x, y = [size for size, _ in known], [one.value for _, one in known]
    low, high = ([one.value - one.low for _, one in known], [one.high - one.value for _, one in known])
    axes.errorbar(x, y, (low, high), fmt="o-", color=colour, capsize=3, markersize=4, label=label)


def _lines(measured: Sequence[Measured]) -> list[dict[str, Any]]:
    """One line of CSV per row."""
    lines = []
    for scan in measured:
        for row in scan.rows:
            head = {"patient": scan.patient, "scan": scan.scan_id, "table": row.table, "what": row.name}
            lines.append({**head, "judged": row.judge, **row.values})
    return lines
