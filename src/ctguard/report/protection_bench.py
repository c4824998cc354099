"""`ctguard bench protection`: from an index of scans to tables, figures and one page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctguard import zoo
from ctguard.bench.metrics import Interval
from ctguard.bench.models import Model, find_models
from ctguard.bench.protection import ATTEMPT, SITE, Experiment, Row, measure, read_example, slug
from ctguard.bench.protection_layout import paper_layout
from ctguard.bench.protection_notes import notes_of
from ctguard.bench.protection_removal import removals
from ctguard.bench.protection_scene import TASKS, find_forger
from ctguard.bench.protection_setups import CONTROL, NONE, find_setups
from ctguard.bench.protection_tables import MAKERS, Results
from ctguard.bench.table import write_csv
from ctguard.core.errors import DataError, ModelError
from ctguard.core.geometry import FloatTriple
from ctguard.core.records import Split
from ctguard.core.volume import Volume
from ctguard.io.cases import read_cases
from ctguard.io.manifest import RunManifest
from ctguard.report.bench_page import as_shown, write_bench
from ctguard.report.html import Picture
from ctguard.report.protection import (
    Bar,
    Example,
    damage_figure,
    effort_figure,
    forged_figure,
    heat_figure,
    protected_figure,
    removal_figure,
)
from ctguard.train.checkpoint import read_card

STEM = "protection"
TITLE = "Protection against forging, measured"
REMOVAL_OF = ("shield", "mitsgan", "seal")
"""Names, or how they begin, of the protectors that go through the removal panel unless others are named."""

_CAPTIONS = {
    "damage": ("Damage", "Masked core, both tasks, the first forger; 95 % intervals by patient."),
    "effort": ("Damage against effort", "Masked core, as above, by the steps or minutes that a row's name states."),
    "protected": ("Real and protected", "The paper's figure 3: whole slices, one grey window, p - x in one range."),
    "inject": ("Injected", "The paper's figure 6: the first site of the first scan, 80 mm, axial; SD within 32 mm."),
    "remove": ("Removed", "The same site, removal; SD within 32 mm."),
    "heat": ("Heat maps", "The paper's figure 7: |p - x| of the same slice, one scale for all."),
    "removal": ("Removal panel", "Damage in the core that is left after an operation, and how often that of noise."),
}
Figures = dict[str, bytes]


@dataclass(frozen=True)
class Wanted:
    """What to measure: `ctguard bench protection`.

    protectors: "NAME" or "NAME:steps=50:budget=3". weights: (NAME, file), each a row. generators: "NAME" or
    "LABEL=NAME:FOLDER". detectors: None: all of the zoo; empty: none. scorer: None: the shipped one, if there is one.
    removal: protectors of the removal panel; None: those of REMOVAL_OF. retrained: a folder with the first generator's
    weights, retrained.
    """

    protectors: tuple[str, ...]
    weights: tuple[tuple[str, Path], ...] = ()
    generators: tuple[str, ...] = ("pix2pix", "cyclegan", "diffusion")
    detectors: tuple[str, ...] | None = None
    scorer: Path | None = None
    split: Split = "test"
    scans: int = 5
    sites: int = 8
    block_mm: float = 80.0
    budget_hu: float = 5.0
    steps: int = 200
    seed: int = 0
    ceiling_sites: int = 2
    ceiling_steps: int = 10
    removal: tuple[str, ...] | None = None
    removal_sites: int = 4
    denoiser: Path | None = None
    retrained: Path | None = None


def bench_protection(
    data: Path, out: Path, wanted: Wanted, *, command: Sequence[str], device: str = "cpu", jobs: int = 1
) -> tuple[dict[str, Any], str]:
    """Measure, write OUT/protection.{csv,json,md,html} and figures; the JSON and the Markdown.

    OUT/scans keeps the rows of finished scans. Wall-clock seconds of protecting stand in run.json alone.
    Raises DataError where the split is empty, RefusedError for scans that must not be forged, ModelError, RecipeError.
    """
    experiment = find_experiment(wanted, device)
    cases = [case for case in read_cases(data) if case.split == wanted.split][: wanted.scans]
    if not cases:
        raise DataError(f"it has no {wanted.split} scan", where=data, remedy="give --split, or another index")
    with RunManifest(out, command, {"bench": wanted.seed}) as run:
        run.add_input(data)
        for path in _weights(experiment):
            run.add_input(path)
        rows, seconds = measure(experiment, data, cases, out / "scans", jobs=jobs)
        run.note("seconds of protecting", {label: dict(found) for label, found in seconds.items()})
        results = Results.of(experiment, rows, run.run_id)
        made = (make(results) for make in MAKERS)
        tables = [*(table for table in made if table is not None), *paper_layout(results)]
        notes = notes_of(results, wanted.split)
        figures = make_figures(results, out / "scans", cases[0].scan_id)
        csv = write_csv([_line(row) for row in rows], out / f"{STEM}.csv")
        shown = {name: Picture(png, *_CAPTIONS[name]) for name, png in figures.items()}
        for path in (csv, *write_bench(out, STEM, TITLE, tables, notes, shown)):
            run.add_output(path)
    return as_shown(out, STEM, tables, notes)


def find_experiment(wanted: Wanted, device: str = "cpu") -> Experiment:
    """What was asked for, with weights found and settings checked. Raises ModelError and RecipeError."""
    setups = find_setups(wanted.protectors, wanted.weights, budget_hu=wanted.budget_hu, steps=wanted.steps)
    forgers = tuple(find_forger(text) for text in wanted.generators)
    first = next((forger for forger in forgers if forger.known), None)
    retrained = None
    if wanted.retrained is not None and first is not None:
        retrained = find_forger(f"retrained={first.generator}:{wanted.retrained}")
    scorer = wanted.scorer or zoo.find("noisy-or", "scorer").weights_path
    scorer = scorer if scorer is not None and (wanted.scorer or scorer.is_file()) else None
    names = {setup.protector for setup in setups}
    chosen = wanted.removal
    if chosen is None:
        chosen = tuple(sorted(name for name in names if name.startswith(REMOVAL_OF)))
    return Experiment(
        setups=setups,
        forgers=forgers,
        detectors=tuple(_detectors(wanted.detectors)),
        scorer=scorer,
        scorer_threshold=_threshold(scorer),
        sites=wanted.sites,
        block_mm=wanted.block_mm,
        seed=wanted.seed,
        budget_hu=wanted.budget_hu,
        ceiling_sites=wanted.ceiling_sites,
        ceiling_steps=wanted.ceiling_steps,
        removal=chosen,
        removal_sites=wanted.removal_sites,
        denoiser=wanted.denoiser,
        retrained=retrained,
        device=device,
    )


def _detectors(names: tuple[str, ...] | None) -> list[Model]:
    models = find_models(names or ()) if names is None or names else []
    for model in models:
        if model.card is not None and model.card.threshold is None:
            raise ModelError("its card has no threshold", where=model.name, remedy="train it with validation cases")
    return models


def _threshold(scorer: Path | None) -> float:
    if scorer is None:
        return float("nan")
    threshold = read_card(scorer.with_suffix(".json")).threshold
    if threshold is None:
        raise ModelError("its card has no threshold", where=scorer, remedy="train it with validation cases")
    return float(threshold)


def _weights(experiment: Experiment) -> list[Path]:
    paths = [setup.weights for setup in experiment.setups]
    paths += [model.weights for model in experiment.detectors]
    for forger in (*experiment.forgers, *([experiment.retrained] if experiment.retrained else [])):
        paths += [zoo.find(forger.generator, "generator", task).weights_in(forger.folder) for task in TASKS]
    paths += [experiment.scorer, experiment.denoiser]
    return [path for path in dict.fromkeys(paths) if path is not None and path.is_file()]


def _line(row: Row) -> dict[str, Any]:
    """One line of CSV."""
    return {**{key: value for key, value in vars(row).items() if key != "values"}, **row.values}


def make_figures(results: Results, work: Path, scan_id: str) -> Figures:
    """File stem to PNG. The examples are the first site of the first scan: nobody chose them."""
    figures: Figures = {}
    bars, lines = damage_bars(results)
    if bars:
        figures["damage"] = damage_figure(bars, lines)
    curves = effort_curves(results, bars)
    if curves:
        figures["effort"] = effort_figure(curves, lines)
    shown = [one for setup in results.setups if (one := _example(work, setup.label, scan_id)) is not None]
    if len(shown) > 1 and shown[0].label == NONE:
        control, others = shown[0], shown[1:]
        figures["protected"] = protected_figure(control, others)
        for task in TASKS:
            figures[task] = forged_figure(control, others, task, _first_site(results, scan_id))
        figures["heat"] = heat_figure(control, others)
    left = _left(results)
    if left:
        figures["removal"] = removal_figure(left)
    return figures


def _example(work: Path, label: str, scan_id: str) -> Example | None:
    folder = work / slug(label) / scan_id
    p = read_example(folder, "p")
    forged: dict[str, Volume] = {task: volume for task in TASKS if (volume := read_example(folder, task)) is not None}
    return Example(label, p, forged) if p is not None and len(forged) == len(TASKS) else None


def _first_site(results: Results, scan_id: str) -> FloatTriple:
    row = next(row for row in results.pick(CONTROL.label, SITE) if (row.scan_id, row.number) == (scan_id, 0))
    return row.values["center z"], row.values["center y"], row.values["center x"]


def damage_bars(results: Results) -> tuple[list[Bar], dict[str, float]]:
    """Damage in the core of every protector by the first forger, and the means that stand as lines beside them."""
    forger = results.experiment.panel_forger
    if forger is None:
        return [], {}
    bars = []
    for setup in results.experiment.setups:
        rows = results.pick(setup.label, ATTEMPT, forger=forger.label)
        damage = results.mean(rows, "damage core")
        if damage is not None:
            bars.append(Bar(setup.label, damage, results.mean(rows, "noise core")))
    control = results.pick(CONTROL.label, ATTEMPT, forger=forger.label)
    named = {"another seed": "seed core", "ceiling": "ceiling core"}
    found = {words: results.mean(control, key) for words, key in named.items()}
    return bars, {words: one.value for words, one in found.items() if one is not None}


def effort_curves(results: Results, bars: Sequence[Bar]) -> dict[str, dict[str, list[tuple[float, Interval]]]]:
    """Damage by the effort that names of rows state, of protectors with two rows or more of one unit and budget."""
    damage = {bar.label: bar.damage for bar in bars}
    curves: dict[str, dict[str, list[tuple[float, Interval]]]] = {}
    for setup in results.experiment.setups:
        found = setup.effort
        if found is not None and setup.label in damage:
            name = f"{setup.protector}, {setup.budget_hu:g} HU"
            curves.setdefault(found[0], {}).setdefault(name, []).append((found[1], damage[setup.label]))
    kept = {unit: {name: one for name, one in some.items() if len(one) > 1} for unit, some in curves.items()}
    return {unit: some for unit, some in kept.items() if some}


def _left(results: Results) -> dict[str, dict[str, tuple[float, float]]]:
    """What is left after each operation, by protector, and how it compares with noise."""
    experiment = results.experiment
    left: dict[str, dict[str, tuple[float, float]]] = {}
    for setup in experiment.setups:
        rows = results.pick(setup.label, ATTEMPT)
        for one in removals(experiment.denoiser, experiment.retrained):
            key = f"removal {one.name}"
            kept = results.over(rows, f"{key} core", "removal int16 core")
            times = results.over(rows, f"{key} core", f"{key} noise core")
            if kept is not None and times is not None:
                left.setdefault(setup.label, {})[one.words] = (kept.value, times.value)
    return left
