"""How near the fast sampler of the diffusion model comes to the full one: DDIM against ancestral, on the same sites.

    ctguard synth INDEX ddim --generators diffusion --sampler ddim --steps 50 --injections 1 --anywhere --any-rating
    ctguard synth INDEX ancestral --generators diffusion --sampler ddpm --steps 2000 --injections 1 --anywhere ...
    python runs/bench_samplers.py ddim ancestral --out DIR [--split test]

Both runs of synth draw the same sites. Writes DIR/samplers.md, samplers.json and samplers.png: the quality figures of
`ctguard bench malignancy` that need no scorer, means with 95 % intervals (2,000 bootstrap resamples of patients). A
figure passes where the means differ by no more than 10 %, or DDIM's lies in the interval of the full sampler's.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ctguard.bench.metrics import Interval, bootstrap
from ctguard.bench.quality import Quality, forgery_quality, histogram_distance_hu
from ctguard.image.lung import lung_mask
from ctguard.io.cases import read_case, read_cases
from ctguard.io.forgeries import Forgery, read_manifest
from ctguard.report.style import BENIGN, INK, MALIGNANT, MUTED, as_png, new_figure

SAMPLERS = ("DDIM", "ancestral")
TASKS = ("inject", "remove")
NEAR = 0.1
FIGURES: dict[str, Callable[[Quality], float]] = {
    "diameter, mm": lambda one: one.diameter_mm,
    "spectrum, dB": lambda one: one.spectrum_db,
    "seam of core": lambda one: one.boundary_core,
    "seam of cube": lambda one: one.boundary_cube,
    "noise ratio": lambda one: one.noise_ratio,
}


@dataclass(frozen=True, eq=False)
class Pair:
    """One site, forged by both samplers."""

    patient: str
    task: str
    qualities: tuple[Quality, Quality]


def by_site(forgeries: list[Forgery]) -> dict[tuple[Any, ...], Forgery]:
    """Forgeries by scan, task and place."""
    return {(one.scan_id, one.edit.task, one.edit.center_zyx): one for one in forgeries}


def pairs_of(folders: tuple[Path, Path], split: str) -> list[Pair]:
    """Every site of a split that both folders forged, measured."""
    index, some = read_manifest(folders[0])
    first, second = by_site(some), by_site(read_manifest(folders[1])[1])
    if set(first) != set(second):
        raise SystemExit("the two folders forge different sites; give synth the same INDEX, --seed and sites")
    pairs = []
    for case in (one for one in read_cases(index) if one.split == split):
        sites = [key for key in first if key[0] == case.scan_id]
        if not sites:
            continue
        volume = read_case(index, case)
        lung = lung_mask(volume)
        for key in sites:
            one, other = (
                forgery_quality(volume, forgery.paste(volume.hu), forgery.edit, lung)
                for forgery in (first[key], second[key])
            )
            pairs.append(Pair(case.patient, key[1], (one, other)))
    return pairs


def mean(pairs: list[Pair], which: int, figure: Callable[[Quality], float]) -> Interval:
    """The mean of a figure over the sites where both samplers have one."""
    values = np.array([[figure(q) for q in pair.qualities] for pair in pairs])
    known = np.isfinite(values).all(axis=1)
    column = values[known, which]
    patients = [pair.patient for pair, good in zip(pairs, known, strict=True) if good]
    return bootstrap(patients, lambda rows: float(column[rows].mean()))


def distance(pairs: list[Pair], which: int) -> Interval:
    """How far the HU of removals' cores lie from the lung around them."""

    def of(rows: Any) -> float:
        chosen = [pairs[int(row)].qualities[which] for row in rows]
        return histogram_distance_hu(
            np.sum([q.core for q in chosen], axis=0), np.sum([q.reference for q in chosen], axis=0)
        )

    return bootstrap([pair.patient for pair in pairs], of)


def rows_of(pairs: list[Pair]) -> list[dict[str, Any]]:
    """A row per task and figure."""
    rows = []
    for task in TASKS:
        chosen = [pair for pair in pairs if pair.task == task]
        found = {name: [mean(chosen, k, figure) for k in (0, 1)] for name, figure in FIGURES.items()}
        if task == "remove":
            found["HU distance"] = [distance(chosen, k) for k in (0, 1)]
        for name, (fast, full) in found.items():
            difference = fast.value / full.value - 1 if full.value else float("nan")
            near = abs(difference) <= NEAR or full.low <= fast.value <= full.high
            cells = {"task": task, "figure": name, "n": len(chosen)}
            rows.append({**cells, "fast": fast, "full": full, "difference": difference, "near": near})
    return rows


def text(one: Interval) -> str:
    """A figure with its interval."""
    return f"{one.value:.3f} [{one.low:.3f}, {one.high:.3f}]"


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table."""
    lines = ["| task | figure | n | " + " | ".join(SAMPLERS) + " | difference | near enough |", "|---" * 7 + "|"]
    for row in rows:
        told = f"{row['difference']:+.1%} | {'yes' if row['near'] else 'no'}"
        lines.append(
            f"| {row['task']} | {row['figure']} | {row['n']} | {text(row['fast'])} | {text(row['full'])} | {told} |"
        )
    return "\n".join(lines) + "\n"


def picture(rows: list[dict[str, Any]]) -> bytes:
    """Both means over the full sampler's, with their intervals."""
    figure = new_figure(1, 3)
    axes = figure.add_subplot(1, 1, 1)
    for which, (key, colour) in enumerate((("full", MUTED), ("fast", BENIGN))):
        for at, row in enumerate(rows):
            one, unit = row[key], row["full"].value
            low, high = (one.value - one.low) / unit, (one.high - one.value) / unit
            shown = colour if which == 0 or row["near"] else MALIGNANT
            axes.errorbar(
                at + 0.16 * (which - 0.5), one.value / unit, ([low], [high]), fmt="o", color=shown, capsize=3, ms=4
            )
    axes.axhspan(1 - NEAR, 1 + NEAR, color=MUTED, alpha=0.15, lw=0)
    names = [f"{row['task']}\n{row['figure']}" for row in rows]
    axes.set_xticks(range(len(rows)), names, fontsize=6, rotation=45, ha="right")
    axes.set_ylabel("over the mean of ancestral sampling", fontsize=8, color=INK)
    axes.tick_params(labelsize=7, colors=MUTED)
    axes.set_title("grey: ancestral; blue: DDIM, red where it differs by more", fontsize=8, color=INK)
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height + 0.9)
    figure.subplots_adjust(left=0.6 / width, bottom=1.35 / (height + 0.9), top=1 - 0.3 / (height + 0.9))
    return as_png(figure)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ddim", type=Path)
    parser.add_argument("ancestral", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--split", default="test")
    given = parser.parse_args()
    rows = rows_of(pairs_of((given.ddim, given.ancestral), given.split))
    given.out.mkdir(parents=True, exist_ok=True)
    plain = [{**row, "fast": asdict(row["fast"]), "full": asdict(row["full"])} for row in rows]
    (given.out / "samplers.json").write_text(json.dumps(plain, indent=1) + "\n", encoding="utf-8")
    (given.out / "samplers.md").write_text(markdown(rows), encoding="utf-8")
    (given.out / "samplers.png").write_bytes(picture(rows))


if __name__ == "__main__":
    main()
