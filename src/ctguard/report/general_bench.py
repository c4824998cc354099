"""`ctguard bench general`: from pictures and forgeries to tables, two figures and one page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctguard.bench.general.matrix import Matrix, Scale, measure_matrix
from ctguard.bench.general.pictures import FAMILIES, GENERAL, Family, as_unit
from ctguard.bench.general.tables import ACCURACY, PUBLISHED, matrix_rows, matrix_tables
from ctguard.bench.table import write_csv
from ctguard.io.forgeries import MANIFEST
from ctguard.io.manifest import RunManifest
from ctguard.report.bench_page import as_shown, write_bench
from ctguard.report.html import Picture
from ctguard.report.style import INK, MUTED, add_stamp, as_png, clear_axes, new_figure

STEM = "general"
TITLE = "General pictures and forged CT: what one detector knows of the other"
SHOWN = 10
"""Patches of each kind in the figure of examples: the first of the test part, nobody chose them."""

_CAPTIONS = {
    "matrix": "Accuracy at 0.5, per cent. Left: measured here. Right: M3Dsynth's slides. 50 is chance.",
    "examples": "Test patches, real above and generated or forged below, as the detectors are given them.",
}


def bench_general(
    data: Path,
    out: Path,
    images: Mapping[str, Path],
    scale: Scale,
    *,
    command: Sequence[str],
    seed: int = 0,
    device: str = "cpu",
) -> tuple[dict[str, Any], str]:
    """Measure, write OUT/general.{csv,json,md,html} and figures; the JSON and the Markdown.

    OUT/stand-ins, OUT/detectors and OUT/cells keep what is done. Raises as `measure_matrix` does.
    """
    with RunManifest(out, command, {"bench": seed}) as run:
        run.add_input(data / MANIFEST)
        matrix = measure_matrix(data, images, scale, out, seed=seed, device=device)
        tables, notes = matrix_tables(matrix, run.run_id), [*matrix.notes, *_missing(matrix)]
        figures = {
            "matrix": Picture(matrix_figure(matrix), "Both matrices", _CAPTIONS["matrix"]),
            "examples": Picture(examples_figure(matrix), "Examples", _CAPTIONS["examples"]),
        }
        csv = write_csv(matrix_rows(matrix), out / f"{STEM}.csv")
        for path in (csv, *write_bench(out, STEM, TITLE, tables, notes, figures)):
            run.add_output(path)
    return as_shown(out, STEM, tables, notes)


def _missing(matrix: Matrix) -> list[str]:
    lines = []
    for part, words in (("train", "learn from"), ("test", "be tested on")):
        absent = [family.name for family in matrix.families if not family.has(part)]  # type: ignore[arg-type]
        lines += [f"No forgeries to {words} in the data set: {', '.join(absent)}."] if absent else []
    return lines


def matrix_figure(matrix: Matrix) -> bytes:
    """Two 6 x 6 grids of accuracies, measured and printed; chance is white, all right blue, all wrong red."""
    ours = np.full((len(FAMILIES), len(FAMILIES)), np.nan)
    for (row, column), cell in matrix.cells.items():
        if cell.accuracy is not None:
            ours[FAMILIES.index(row), FAMILIES.index(column)] = 100 * cell.accuracy.value
    figure = new_figure(1, 2, 4.2)
    figure.subplots_adjust(left=0.12, right=0.99, top=0.8, bottom=0.1, wspace=0.3)
    left = [f"{name}*" if matrix.stand_ins and name in GENERAL else name for name in FAMILIES]
    sides = (
        (ours, left, "here (* stand-ins)" if matrix.stand_ins else "here"),
        (_printed(), None, "M3Dsynth's slides"),
    )
    for number, (values, names, title) in enumerate(sides, start=1):
        axes = figure.add_subplot(1, 2, number)
        axes.imshow(values, cmap="RdBu", vmin=0, vmax=100)
        named = names or list(PUBLISHED.values())
        axes.set_xticks(range(len(named)), named, rotation=40, ha="left", fontsize=8)
        axes.set_yticks(range(len(named)), named, fontsize=8)
        axes.tick_params(top=True, labeltop=True, bottom=False, labelbottom=False, length=0)
        axes.set_xlabel(f"tested on · {title}", fontsize=9, color=INK)
        axes.set_ylabel("trained on" if number == 1 else "", fontsize=9, color=INK)
        for (y, x), value in np.ndenumerate(values):
            words, colour = ("none", MUTED) if np.isnan(value) else (f"{value:.1f}", INK)
            colour = "white" if abs(value - 50) > 35 else colour
            axes.text(x, y, words, ha="center", va="center", fontsize=8, color=colour)
        for line in (axes.axhline, axes.axvline):
            line(len(GENERAL) - 0.5, color=INK, linewidth=1.0)
    return as_png(figure)


def _printed() -> NDArray[np.float64]:
    return np.array([ACCURACY[name] for name in FAMILIES])


def examples_figure(matrix: Matrix) -> bytes:
    """A strip of real and one of generated patches for every family that has a test part."""
    shown = [family for family in matrix.families if family.has("test")]
    figure = new_figure(1, 1, 7.6)
    figure.set_size_inches(7.6, 1.35 * len(shown) + 0.6)
    figure.subplots_adjust(left=0.15, right=0.99, top=0.99, bottom=0.05, hspace=0.12)
    for number, family in enumerate(shown):
        for row, side in enumerate((family.real, family.fake)):
            axes = figure.add_subplot(2 * len(shown), 1, 2 * number + row + 1)
            clear_axes(axes)
            axes.imshow(_strip(as_unit(side["test"].values[_spaced(family)])), cmap="gray", vmin=0, vmax=1)
            words = "real" if row == 0 else "generated" if family.name in GENERAL else "forged"
            name = f"{family.name}\n{words}" + (
                " stand-in" if row and family.name in GENERAL and matrix.stand_ins else ""
            )
            axes.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8, color=INK)
            if family.name not in GENERAL:
                add_stamp(axes, " · ".join(["SYNTHETIC"] * row + ["PHANTOM"] * matrix.phantom))
    return as_png(figure)


def _spaced(family: Family) -> NDArray[np.int64]:
    """Patches spread evenly over the test part, so that they are of different photographs and patients."""
    count = len(family.real["test"].values)
    return np.linspace(0, count - 1, min(SHOWN, count)).round().astype(np.int64)


def _strip(patches: NDArray[np.float32]) -> NDArray[np.float32]:
    """(n, c, y, x) side by side: (y, n * x), in colour (y, n * x, 3)."""
    joined = np.concatenate(list(patches), axis=2)
    return joined[0] if len(joined) == 1 else joined.transpose(1, 2, 0)
