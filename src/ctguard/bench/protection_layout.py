"""Tables 1, 2 and 3 of the MITS-GAN paper, in its layout, beside its figures, with the control that it lacks."""

from __future__ import annotations

from collections.abc import Sequence

from ctguard.bench.metrics import Interval
from ctguard.bench.protection import ATTEMPT, SITE, Row
from ctguard.bench.protection_paper import (
    LPIPS_MISSING,
    PAPER_ABLATION,
    PAPER_ALPHAS,
    PAPER_ROWS,
    PAPER_TABLES,
    lpips_network,
)
from ctguard.bench.protection_setups import CONTROL, Setup
from ctguard.bench.protection_tables import NO_WEIGHTS, NOT_MEASURED, Cells, Results
from ctguard.core.records import Table

PAPER_METHODS = {"MITS-GAN": "mitsgan", "TAFIM": "tafim"}
"""Methods of the paper, and how the names of our protectors begin."""

OURS = {"RMSE": {"HU": "RMSE"}, "LPIPS": {"lung window": "LPIPS"}}
OURS |= {name: {f"range {width:,}": f"{name} {width}" for width in (4095, 1500)} for name in ("PSNR", "SSIM")}
"""Rows of the paper to our metrics: the range stands beside each."""

_PARTS = {"slice": "Table 1 of the paper: the whole slice", "square": "Table 2 of the paper: the square that is forged"}


def paper_layout(results: Results) -> list[Table]:
    """Real against protected, and real against forged after protection: slice, square, and the square by alpha."""
    return [*(_metric_table(results, part) for part in _PARTS), _ablation_table(results)]


def _metric_table(results: Results, part: str) -> Table:
    """Columns of the paper first; the control, forged without protection, stands last."""
    columns = _columns(results.experiment.setups)
    out: list[Cells] = []
    for metric in PAPER_ROWS:
        for unit, name in OURS[metric].items():
            cells: Cells = {"metric": metric, "by": f"ours, {unit}"}
            for head, setup in columns:
                cells[f"real : {head}"] = _cell(results, setup, f"real {part} {name}")
            for head, setup in columns:
                cells[f"real : {head} forged"] = _cell(results, setup, f"tampered {part} {name}")
            out.append(cells | {"real : forged": _cell(results, CONTROL, f"tampered {part} {name}")})
        printed = PAPER_TABLES[part][metric]
        heads = [f"real : {head}{word}" for word in ("", " forged") for head in PAPER_METHODS]
        out.append({"metric": "", "by": "paper", **{h: f"{v:g}" for h, v in zip(heads, printed, strict=True)}})
    return results.table(_PARTS[part], out)


def _columns(setups: Sequence[Setup]) -> list[tuple[str, Setup | None]]:
    """MITS-GAN and TAFIM, each by the first row of ours that is one of them; then all others by their own names."""
    columns: list[tuple[str, Setup | None]] = []
    for head, stem in PAPER_METHODS.items():
        columns.append((head, next((one for one in setups if one.protector.startswith(stem)), None)))
    taken = [setup for _, setup in columns]
    return [*columns, *((setup.label, setup) for setup in setups if setup not in taken)]


def _cell(results: Results, setup: Setup | None, name: str) -> Interval | str | None:
    if setup is None:
        return NOT_MEASURED
    if setup.missing:
        return NO_WEIGHTS
    if name.endswith("LPIPS") and lpips_network() is None:
        return LPIPS_MISSING
    rows = _forged(results, setup.label) if name.startswith("tampered") else results.pick(setup.label, SITE)
    return results.mean(rows, name)


def _forged(results: Results, label: str) -> list[Row]:
    """Forgings by the first forger, as the paper has one manipulation model."""
    forger = results.experiment.panel_forger
    return [] if forger is None else results.pick(label, ATTEMPT, forger=forger.label)


def _ablation_table(results: Results) -> Table:
    """The square, forged after protection by MITS-GAN, by alpha: one column per alpha, the mean over its seeds."""
    ours = [setup for setup in results.experiment.setups if setup.alpha is not None]
    alphas = sorted({*PAPER_ALPHAS, *(setup.alpha for setup in ours if setup.alpha is not None)})
    out: list[Cells] = []
    for metric in PAPER_ROWS:
        for protector in sorted({setup.protector for setup in ours}):
            for unit, name in OURS[metric].items():
                cells: Cells = {"metric": metric, "by": f"ours, {protector}, {unit}"}
                for alpha in alphas:
                    labels = [one.label for one in ours if (one.protector, one.alpha) == (protector, alpha)]
                    rows = [row for label in labels for row in _forged(results, label)]
                    value = results.mean(rows, f"tampered square {name}")
                    cells[f"alpha {alpha:g}"] = value if labels else NOT_MEASURED
                out.append(cells)
        printed = {f"alpha {a:g}": f"{v:g}" for a, v in zip(PAPER_ALPHAS, PAPER_ABLATION[metric], strict=True)}
        out.append({"metric": metric if not ours else "", "by": "paper", **printed})
    return results.table("Table 3 of the paper: the square by alpha, real : MITS-GAN forged", out)
