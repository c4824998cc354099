"""`ctguard bench protection`: every protector on the same scans, sites and forgeries, one scan at a time.

Rows of finished scans are kept per protector, so that a killed run goes on.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch

from ctguard import __version__, io, zoo
from ctguard.bench.judging import Judge
from ctguard.bench.kept import read_kept, with_nan, without_nan, write_kept
from ctguard.bench.models import Model, load_detector
from ctguard.bench.operations import crop_slices
from ctguard.bench.protection_damage import (
    Attempt,
    Values,
    attempt_values,
    attempts,
    known_site,
    other_seed,
    partial_values,
    protected_pictures,
)
from ctguard.bench.protection_price import detector_values, malignancy_values, nodule_values, price_values
from ctguard.bench.protection_removal import removal_values, removals
from ctguard.bench.protection_scene import Forger, Scene, set_scene
from ctguard.bench.protection_setups import CONTROL, Setup, noise_like, protect
from ctguard.cad.network import NoisyOr3d
from ctguard.cohort.public import as_public
from ctguard.core.marks import Mark
from ctguard.core.provenance import Step
from ctguard.core.records import Case
from ctguard.core.volume import Volume
from ctguard.io.cases import read_case
from ctguard.io.manifest import sha256_array
from ctguard.parallel import map_cases
from ctguard.protect.ascent import AscentSettings
from ctguard.synth.forge import log_forging

SCAN, SITE, NODULE, ATTEMPT = "scan", "site", "nodule", "attempt"
"""What a row is of."""


@dataclass(frozen=True)
class Row:
    """Values of one protector on one scan, on one site or nodule of it, or on one forging of a site."""

    setup: str
    patient: str
    scan_id: str
    of: str
    values: Mapping[str, float]
    number: int = -1
    task: str = ""
    forger: str = ""

    def to_json(self) -> dict[str, Any]:
        """As it is kept between runs; NaN becomes None."""
        return {**vars(self), "values": without_nan(self.values)}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Row:
        """What `to_json` made."""
        return cls(**{**row, "values": with_nan(row["values"])})


@dataclass(frozen=True)
class Experiment:
    """What is measured on every scan.

    sites, block_mm: per scan. ceiling_sites, ceiling_steps: gradient ascent at known sites, against the first forger.
    removal: protectors that go through the removal panel, on the first removal_sites sites.
    retrained: the forger who retrained on protected scans. scorer: weights of the malignancy scorer, and its threshold.
    """

    setups: tuple[Setup, ...]
    forgers: tuple[Forger, ...]
    detectors: tuple[Model, ...] = ()
    scorer: Path | None = None
    scorer_threshold: float = float("nan")
    sites: int = 8
    block_mm: float = 80.0
    seed: int = 0
    budget_hu: float = 5.0
    ceiling_sites: int = 2
    ceiling_steps: int = 10
    removal: tuple[str, ...] = ()
    removal_sites: int = 4
    denoiser: Path | None = None
    retrained: Forger | None = None
    device: str = "cpu"

    @property
    def panel_forger(self) -> Forger | None:
        """The first with weights: ceiling, removal panel, partial protection and the paper's tables are his alone."""
        return next((forger for forger in self.forgers if forger.known), None)

    def of(self, setup: Setup) -> tuple[object, ...]:
        """What the rows of a setup depend on."""
        shared = (self.forgers, self.sites, self.block_mm, self.seed, self.scorer and sha(self.scorer))
        models = [(model.name, model.sha256, str(model.threshold)) for model in self.detectors]
        own: tuple[object, ...] = (
            setup.label,
            setup.protector,
            setup.budget_hu,
            setup.steps,
            setup.refine,
            setup.sha256,
        )
        if setup == CONTROL:
            own = (self.budget_hu, self.ceiling_sites, self.ceiling_steps)
        panel: tuple[object, ...] = ()
        if setup.protector in self.removal:
            panel = (self.removal_sites, self.denoiser and sha(self.denoiser), self.retrained)
        return (*shared, models, own, panel)


def sha(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def measure(
    experiment: Experiment, index: Path, cases: Sequence[Case], work: Path, *, jobs: int = 1, quiet: bool = False
) -> tuple[list[Row], dict[str, dict[str, float]]]:
    """Rows of the control and of every setup that has weights, and the seconds that protecting took, by setup and scan.

    work: keeps rows, and examples for the figures, of finished scans.
    """
    wanted = [CONTROL, *(setup for setup in experiment.setups if not setup.missing)]
    for setup in wanted:
        (work / slug(setup.label)).mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    seconds: dict[str, dict[str, float]] = {setup.label: {} for setup in wanted}
    function = partial(_measure_scan, experiment=experiment, setups=wanted, index=index, work=work)
    for result in map_cases(function, cases, jobs=jobs, label="scans", quiet=quiet):
        for setup, (found, took) in zip(wanted, result.unwrap(), strict=True):
            rows += found
            seconds[setup.label][result.item.scan_id] = took
    return rows, seconds


def slug(label: str) -> str:
    """A setup's name as a folder."""
    return re.sub(r"[^\w.=-]+", "_", label)


def _measure_scan(
    case: Case, experiment: Experiment, setups: Sequence[Setup], index: Path, work: Path
) -> list[tuple[list[Row], float]]:
    """Rows and seconds of one scan for every setup, from the work folder where they are there already."""
    torch.set_num_threads(1)
    scene: Scene | None = None
    out = []
    for setup in setups:
        kept = work / slug(setup.label) / f"{case.scan_id}.json"
        key = hashlib.sha256(repr((__version__, case.path, experiment.of(setup))).encode()).hexdigest()
        stored = read_kept(kept, key)
        if stored is None:
            scene = scene or _scene(case, experiment, index)
            rows, seconds, tried = measure_setup(scene, setup, experiment)
            keep_examples(tried, kept.with_suffix(""), setup == CONTROL)
            write_kept(kept, key, [{"seconds": seconds}, *(row.to_json() for row in rows)])
        else:
            seconds, rows = float(stored[0]["seconds"]), [Row.from_json(row) for row in stored[1:]]
        out.append((rows, seconds))
    return out


def _scene(case: Case, experiment: Experiment, index: Path) -> Scene:
    volume = as_public(case, read_case(index, case))
    return set_scene(case, volume, sites=experiment.sites, block_mm=experiment.block_mm, seed=experiment.seed)


def _judges(experiment: Experiment) -> dict[str, Judge]:
    return {
        model.name: Judge(load_detector(model.detector, model.weights), model.threshold, experiment.device)
        for model in experiment.detectors
        if model.weights is not None
    }


@lru_cache(maxsize=1)
def load_scorer(weights: Path) -> NoisyOr3d:
    """The malignancy scorer, once per process."""
    scorer: NoisyOr3d = zoo.load(zoo.find("noisy-or", "scorer"), weights)[0]
    return scorer


def measure_setup(scene: Scene, setup: Setup, experiment: Experiment) -> tuple[list[Row], float, list[Attempt]]:
    """All rows of one protector on one scan, the seconds that protecting took, and its forgings."""
    scorer = None if experiment.scorer is None else load_scorer(experiment.scorer)
    protected = protect(setup, scene)
    p = protected.volume
    control = p is scene.volume
    noise = p if control else noise_like(scene, p)
    tried = list(attempts(scene, experiment.forgers, p))
    of_scan, of_forged = detector_values(_judges(experiment), scene, p, tried)
    found = [
        _attempt(attempt, noise, experiment, setup) | values for attempt, values in zip(tried, of_forged, strict=True)
    ]
    for values, attempt in zip(found, tried, strict=True):
        values |= malignancy_values(attempt, scorer)
    if setup.protector in experiment.removal:
        first = [k for k, one in enumerate(tried) if _in_panel(one, experiment)]
        panel = removals(experiment.denoiser, experiment.retrained)
        for k, values in zip(first, removal_values([tried[k] for k in first], noise, panel), strict=True):
            found[k] |= values
    rows = [_row(scene, setup, SCAN, price_values(scene, p) | of_scan)]
    for place in scene.places:
        values = {f"center {axis}": at for axis, at in zip("zyx", place.center_zyx, strict=True)}
        rows.append(_row(scene, setup, SITE, values | protected_pictures(scene, place, p), place.number))
    rows += [_row(scene, setup, NODULE, values, k) for k, values in enumerate(nodule_values(scene, p, scorer))]
    for attempt, values in zip(tried, found, strict=True):
        row = _row(scene, setup, ATTEMPT, values, attempt.place.number)
        rows.append(Row(**{**vars(row), "task": attempt.task, "forger": attempt.forger.label}))
    return rows, protected.seconds, tried


def _attempt(attempt: Attempt, noise: Volume, experiment: Experiment, setup: Setup) -> Values:
    """What is measured of one forging, detectors, scorer and removal panel apart."""
    values = attempt_values(attempt, noise)
    if setup == CONTROL:
        values |= other_seed(attempt)
        if attempt.forger == experiment.panel_forger and attempt.place.number < experiment.ceiling_sites:
            values |= known_site(attempt, AscentSettings(experiment.budget_hu, experiment.ceiling_steps))
    elif attempt.forger == experiment.panel_forger:
        values |= partial_values(attempt)
    return values


def _in_panel(attempt: Attempt, experiment: Experiment) -> bool:
    return attempt.forger == experiment.panel_forger and attempt.place.number < experiment.removal_sites


def _row(scene: Scene, setup: Setup, of: str, values: Values, number: int = -1) -> Row:
    return Row(setup.label, scene.case.patient, scene.case.scan_id, of, values, number)


def keep_examples(tried: Sequence[Attempt], folder: Path, control: bool) -> None:
    """The axial slice of the first site as volumes with their marks: p (of the control x), and t(p) of both tasks.

    What is forged is logged, as all forgings that are written are (MISUSE.md).
    """
    folder.mkdir(parents=True, exist_ok=True)
    for attempt in (one for one in tried if one.place.number == 0 and one.forger == tried[0].forger):
        p = attempt.p
        detail = f"{attempt.task} by {attempt.forger.generator}, on {'a scan' if control else 'a protected scan'}"
        forged = p.changed(attempt.tp.paste(p.hu), Step("tamper", attempt.plan.to_json()), Mark("forged", detail))
        z = round(attempt.place.center_zyx[0])
        io.write(crop_slices(p, z, 1), folder / "p.mha")
        io.write(crop_slices(forged, z, 1), folder / f"{attempt.task}.mha")
        log_forging(attempt.plan.to_json(), sha256_array(p.hu), sha256_array(forged.hu))


def read_example(folder: Path, name: str) -> Volume | None:
    """A slice that `keep_examples` wrote, None where no forger had weights."""
    path = folder / f"{name}.mha"
    return io.read(path) if path.is_file() else None
