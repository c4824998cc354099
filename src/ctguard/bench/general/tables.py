"""The matrix in the layout of M3Dsynth's slides, beside the figures that they print."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from ctguard.bench.general.matrix import Matrix
from ctguard.bench.general.pictures import FAMILIES, GENERAL
from ctguard.core.records import Table

Figure = Literal["accuracy", "auc"]

PUBLISHED = {
    "progressive": "ProGAN",
    "style": "StyleGAN2",
    "latent": "LDM",
    "pix2pix": "Pix2Pix",
    "cyclegan": "CycleGAN",
    "diffusion": "DM",
}
"""The slides' names, in their order."""

ACCURACY: dict[str, tuple[float, ...]] = {
    "progressive": (99.9, 98.1, 57.1, 50.0, 47.1, 48.8),
    "style": (99.9, 100.0, 57.9, 50.4, 49.6, 52.0),
    "latent": (50.8, 50.0, 100.0, 44.6, 44.5, 46.2),
    "pix2pix": (50.5, 49.0, 48.9, 99.5, 96.6, 95.8),
    "cyclegan": (49.5, 49.0, 49.9, 97.7, 98.5, 91.6),
    "diffusion": (50.9, 50.6, 50.7, 96.1, 92.8, 97.3),
}
"""Accuracy in per cent, row: training set, columns in the order of PUBLISHED: M3Dsynth's slides (Zingarini et al.,
ICASSP 2024), "preliminary experiment". Intervals and AUC are not printed there."""

NO_FORGERIES = "no forgeries"


def matrix_tables(matrix: Matrix, run_id: str) -> list[Table]:
    """Accuracy at 0.5 beside the slides', and AUC; both in per cent with their 95 % intervals."""
    columns = tuple(f"test {name} (slides: {PUBLISHED[name]})" for name in FAMILIES)
    kind = "stand-ins" if matrix.stand_ins else "general"
    tables = []
    for figure, title in (("accuracy", "Accuracy at 0.5, per cent"), ("auc", "AUC, per cent")):
        rows: list[dict[str, Any]] = []
        for name in FAMILIES:
            group = kind if name in GENERAL else "CT"
            rows.append(
                {"training set": f"{group}: {name}", "by": "ours", **_line(columns, _ours(matrix, name, figure))}
            )
            bounds = _line(columns, _bounds(matrix, name, figure))
            rows += [{"training set": "", "by": "95 %", **bounds}] if any(bounds.values()) else []
            if figure == "accuracy":
                printed = (f"{value:.1f}" for value in ACCURACY[name])
                rows.append({"training set": "", "by": f"slides: {PUBLISHED[name]}", **_line(columns, printed)})
        hashes = {card.name: card.sha256 for card in matrix.cards.values()}
        tables.append(Table(title, ("training set", "by", *columns), tuple(rows), _counts(matrix), run_id, hashes))
    return tables


def matrix_rows(matrix: Matrix) -> list[dict[str, Any]]:
    """One line per cell, for CSV; figures in 0..1, empty where there is no cell."""
    out = []
    for name in FAMILIES:
        for test, printed in zip(FAMILIES, ACCURACY[name], strict=True):
            cell = matrix.cells.get((name, test))
            line: dict[str, Any] = {"trained": name, "test": test}
            line |= {"real": cell.real if cell else 0, "generated": cell.generated if cell else 0}
            for figure in ("accuracy", "auc"):
                found = getattr(cell, figure) if cell else None
                parts = (found.value, found.low, found.high) if found else ("", "", "")
                line |= dict(zip((figure, f"{figure} low", f"{figure} high"), parts, strict=True))
            out.append({**line, "accuracy slides": printed / 100})
    return out


def _ours(matrix: Matrix, name: str, figure: str) -> list[str]:
    cells = [matrix.cells.get((name, test)) for test in FAMILIES]
    return [NO_FORGERIES if cell is None else f"{100 * getattr(cell, figure).value:.1f}" for cell in cells]


def _bounds(matrix: Matrix, name: str, figure: str) -> list[str]:
    found = [getattr(matrix.cells.get((name, test)), figure, None) for test in FAMILIES]
    return ["" if one is None else f"{100 * one.low:.1f}–{100 * one.high:.1f}" for one in found]


def _line(columns: tuple[str, ...], values: Iterable[str]) -> dict[str, str]:
    return dict(zip(columns, values, strict=True))


def _counts(matrix: Matrix) -> dict[str, int]:
    return {
        f"{family.name} test patches, real and generated": 2 * len(family.real["test"].values)
        for family in matrix.families
        if family.has("test")
    }
