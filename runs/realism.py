"""Phantom against real chest CT: measures both, writes the table and the figures of docs/benchmarks/realism.md.

    python runs/realism.py --real DIR --out realism-out --patients 12

DIR holds the series LIDC-IDRI-0003, R01-001, Lung_Dx-A0001_B and Lung_Dx-A0001_L (The Cancer Imaging Archive). The
table goes to OUT/realism_table.md, the figures to OUT/realism_*.png.
"""

from __future__ import annotations

import argparse
import logging
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from numpy.typing import NDArray

from ctguard import io
from ctguard.bench import realism
from ctguard.image.lung import lung_mask
from ctguard.phantom.physics import Kernel

log = logging.getLogger("realism")

SERIES: dict[str, tuple[str, str, Kernel, float]] = {
    "LIDC-IDRI-0003": ("LIDC-IDRI-0003", "GE STANDARD", "standard", 2.5),
    "R01-001": ("R01-001", "Siemens B45f", "standard", 1.0),
    "Lung_Dx-A0001_B": ("Lung_Dx-A0001", "Philips B", "soft", 5.0),
    "Lung_Dx-A0001_L": ("Lung_Dx-A0001", "Philips L", "sharp", 5.0),
}
"""Folder: patient, kernel, the phantom's kernel class, slice thickness in mm."""

FIRST_SEED = 1000  # outside the bench tier's 0 to 759
WINDOWS = {"lung": (-1100.0, -300.0), "mediastinum": (-160.0, 240.0)}


@dataclass(frozen=True, eq=False)
class Row:
    """One real series beside its phantoms."""

    scan: realism.Scan
    lung: NDArray[np.bool_]
    real: realism.Description
    phantoms: list[realism.Scan]
    described: list[realism.Description]
    dose_mas: float


def main() -> None:
    """Read, render, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--patients", type=int, default=12)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    seeds = range(FIRST_SEED, FIRST_SEED + options.patients)
    rows, real_patches, phantom_patches = [], {}, {}
    for name, (patient, _, kernel, thickness) in SERIES.items():
        scan = realism.Scan(name, patient, io.read(options.real / name), kernel, thickness)
        lung = lung_mask(scan.volume)
        phantoms, dose = realism.phantoms_like(scan, seeds)
        masks = [lung_mask(one.volume) for one in phantoms]
        described = [realism.describe(one.volume, mask) for one, mask in zip(phantoms, masks, strict=True)]
        rows.append(Row(scan, lung, realism.describe(scan.volume, lung), phantoms, described, dose))
        real_patches[name] = (patient, realism.lung_patches(scan.volume, lung))
        pairs = zip(phantoms, masks, strict=True)
        phantom_patches[name] = np.concatenate([realism.lung_patches(one.volume, mask) for one, mask in pairs])
        log.info("%s: measured, phantom dose %.1f mAs", name, dose)
    separations, weights = realism.separate(real_patches, phantom_patches)
    options.out.mkdir(parents=True, exist_ok=True)
    text = table(rows, separations, weights, real_patches, phantom_patches)
    (options.out / "realism_table.md").write_text(text, encoding="utf-8")
    draw_slices(rows, options.out / "realism_slices.png")
    draw_curves(rows, options.out / "realism_curves.png")


def _mean(row: Row, name: str) -> float:
    return float(np.mean([_value(one, name) for one in row.described]))


def _value(one: realism.Description, name: str) -> float:
    values = {
        "lung HU": one.lung_hu,
        "Q1": one.lung_noise.quartiles[0],
        "median": one.lung_noise.median,
        "Q3": one.lung_noise.quartiles[1],
        "soft": one.soft_noise.median,
        "soft frequency": one.soft_frequency,
        "lung frequency": one.lung_frequency,
        "vessels": one.vessel_share,
    }
    return values[name]


def table(
    rows: list[Row],
    separations: list[realism.Separation],
    weights: dict[str, float],
    real_patches: dict[str, tuple[str, realism.Floats]],
    phantom_patches: dict[str, realism.Floats],
) -> str:
    """The measurements, as Markdown."""
    n = len(rows[0].phantoms)
    lines = [
        f"n = {len(rows)} real series of {len({r.scan.group for r in rows})} patients; {n} phantom patients for each "
        f"(seeds {FIRST_SEED} to {FIRST_SEED + n - 1}), whose mean is given. Real -> phantom.",
        "",
        "| measure | limit | " + " | ".join(f"{r.scan.name}, {SERIES[r.scan.name][1]}" for r in rows) + " |",
        "|---|---|" + "---|" * len(rows),
        "| phantom's kernel, dose | | " + " | ".join(f"{r.scan.kernel}, {r.dose_mas:.0f} mAs" for r in rows) + " |",
    ]
    limits = (
        ("lung HU", "lung HU, median", "30 HU", realism.LUNG_HU_TOLERANCE, 0),
        ("Q1", "local SD in lung, 25 %", "25 %", realism.SD_TOLERANCE, 1),
        ("median", "local SD in lung, median", "25 %", realism.SD_TOLERANCE, 1),
        ("Q3", "local SD in lung, 75 %", "25 %", realism.SD_TOLERANCE, 1),
        ("soft frequency", "mean NPS frequency, soft tissue, 1/mm", "15 %", realism.FREQUENCY_TOLERANCE, 3),
        ("lung frequency", "mean NPS frequency, lung with anatomy, 1/mm", "15 %", realism.FREQUENCY_TOLERANCE, 3),
    )
    for key, label, limit, tolerance, digits in limits:
        cells = []
        for row in rows:
            real, phantom = _value(row.real, key), _mean(row, key)
            miss = abs(phantom - real) / (1 if key == "lung HU" else real)
            verdict = "met" if miss <= tolerance else "**missed**"
            cells.append(f"{real:.{digits}f} -> {phantom:.{digits}f} {verdict}")
        lines.append(f"| {label} | {limit} | " + " | ".join(cells) + " |")
    for key, label, digits in (("soft", "local SD in soft tissue, median", 1), ("vessels", "lung above -700 HU", 3)):
        cells = [f"{_value(row.real, key):.{digits}f} -> {_mean(row, key):.{digits}f}" for row in rows]
        lines.append(f"| {label} | none | " + " | ".join(cells) + " |")
    found = {one.name: one for one in separations}
    cells = [
        f"{found[r.scan.name].auc:.2f} ({found[r.scan.name].n_real} / {found[r.scan.name].n_phantom})" for r in rows
    ]
    lines.append("| AUC of patches, patient left out (n real / phantom) | none | " + " | ".join(cells) + " |")
    lines += [
        "",
        "What the classifier looks at: weight per SD of the feature (positive: real has more), and the AUC of",
        "",
    ]
    lines[-2] += " the feature alone in each series (0.5: alike)."
    lines += ["| feature | weight | " + " | ".join(r.scan.name for r in rows) + " |", "|---|---|" + "---|" * len(rows)]
    for feature in sorted(weights, key=lambda one: -abs(weights[one]))[:10]:
        k = realism.FEATURES.index(feature)
        alone = [realism.auc(real_patches[r.scan.name][1][:, k], phantom_patches[r.scan.name][:, k]) for r in rows]
        lines.append(f"| {feature} | {weights[feature]:+.2f} | " + " | ".join(f"{a:.2f}" for a in alone) + " |")
    return "\n".join(lines) + "\n"


def draw_slices(rows: list[Row], path: Path) -> None:
    """Real and phantom side by side, in the lung window and the mediastinal one."""
    figure, axes = plt.subplots(len(rows), 4, figsize=(12, 3.15 * len(rows)))
    for line, row in zip(axes, rows, strict=True):
        phantom = row.phantoms[0].volume
        shown = phantom.hu[phantom.hu.shape[0] // 2]
        z = int(np.argmax(row.lung.sum(axis=(1, 2))))
        ys, xs = np.nonzero(row.lung[z])
        top = int(np.clip(ys.mean() - shown.shape[0] / 2, 0, row.lung.shape[1] - shown.shape[0]))
        left = int(np.clip(np.percentile(xs, 75) - shown.shape[1] / 2, 0, row.lung.shape[2] - shown.shape[1]))
        cut = row.scan.volume.hu[z, top : top + shown.shape[0], left : left + shown.shape[1]]
        panels = [(kind, image, w) for w in WINDOWS for kind, image in ((row.scan.name, cut), ("phantom", shown))]
        for axis, (kind, image, window) in zip(line, panels, strict=True):
            low, high = WINDOWS[window]
            axis.imshow(image, cmap="gray", vmin=low, vmax=high)
            axis.set_title(f"{kind}, {row.scan.kernel if kind == 'phantom' else SERIES[kind][1]}, {window}", fontsize=8)
            axis.axis("off")
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    plt.close(figure)


def draw_curves(rows: list[Row], path: Path) -> None:
    """HU histograms, spectra in soft tissue and lung, quartiles of the local SD."""
    figure, axes = plt.subplots(4, len(rows), figsize=(3.6 * len(rows), 11))
    middle = (realism.HU_EDGES[1:] + realism.HU_EDGES[:-1]) / 2
    for column, row in zip(axes.T, rows, strict=True):
        for kind, color, many in (("real", "black", [row.real]), ("phantom", "tab:red", row.described)):
            for one in many:
                column[0].plot(middle, one.histogram, color=color, lw=1)
                for axis, (frequency, power) in zip(column[1:3], (one.soft_spectrum, one.lung_spectrum), strict=True):
                    axis.semilogy(frequency, power, color=color, lw=1)
            column[0].plot([], [], color=color, label=kind)
        bars = {"real": row.real.lung_noise} | {
            f"{one.name.split()[1]}": d.lung_noise for one, d in zip(row.phantoms, row.described, strict=True)
        }
        for place, (label, noise) in enumerate(bars.items()):
            color = "black" if label == "real" else "tab:red"
            column[3].plot([place, place], noise.quartiles, color=color, lw=6, alpha=0.4)
            column[3].plot(place, noise.median, "o", color=color)
        column[3].set_xticks(range(len(bars)), list(bars), fontsize=7)
        column[3].set_ylim(bottom=0)
        for axis, title in zip(
            column, ("HU in lung", "NPS, soft tissue (1/mm)", "NPS, lung (1/mm)", "local SD in lung (HU)"), strict=True
        ):
            axis.set_title(f"{row.scan.name}: {title}", fontsize=8)
        column[0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    plt.close(figure)


if __name__ == "__main__":
    main()
