"""Forge a real, de-identified series at two sites, judge it before and after, and write figures and a table.

    python runs/real_series.py SERIES OUT --remove Z,Y,X --inject Z,Y,X [--core-mm N] [--seed N] [--detector NAME]

OUT gets removal.png and injection.png (with the word SYNTHETIC in them), verdict.png and table.md.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from ctguard import io, zoo
from ctguard.core.geometry import as_float_triple
from ctguard.core.records import Task, Verdict
from ctguard.core.volume import Volume
from ctguard.detect.infer import detect_volume
from ctguard.io.manifest import peak_mb
from ctguard.report.figures import overview_figure, site_figure
from ctguard.synth.forge import Request, edit_summary, tamper_scan


def main() -> None:
    """Read the arguments, do the work, write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("series", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--remove", required=True)
    parser.add_argument("--inject", required=True)
    parser.add_argument("--core-mm", type=float, default=None, help="masked core of the removal")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--detector", default="unet")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    volume = io.read(arguments.series)
    name = arguments.detector
    detector, card = zoo.load(zoo.find(name, "detector"))

    def judge(scan: Volume) -> tuple[Verdict, float]:
        start = time.perf_counter()
        found = detect_volume(scan, detector, name=name, model_id=card.sha256, threshold=card.scan_threshold)
        return found, time.perf_counter() - start

    rows = [_row("pristine", *judge(volume), "", "")]
    for task, text in (("remove", arguments.remove), ("inject", arguments.inject)):
        kind: Task = "remove" if task == "remove" else "inject"
        core = arguments.core_mm if task == "remove" else None
        site = as_float_triple([float(v) for v in text.split(",")])
        start = time.perf_counter()
        forged, edit, _ = tamper_scan(volume, Request(kind, site, core_mm=core, seed=arguments.seed))
        seconds = time.perf_counter() - start
        facts = edit_summary(volume, edit)
        written = io.read(io.write(forged, arguments.out / f"{task}.mha"))
        verdict, spent = judge(written)
        truth = f"{facts['changed_mm3']:.0f} / {facts['strong_mm3']:.0f}"
        rows.append(_row(f"{task} at {text}", verdict, spent, f"{seconds:.2f}", truth))
        picture = {"remove": "removal", "inject": "injection"}[task]
        figure = site_figure(volume, forged, verdict.map, center_zyx=site)
        (arguments.out / f"{picture}.png").write_bytes(figure)
        if task == "remove":
            (arguments.out / "verdict.png").write_bytes(overview_figure(written, verdict, count=2))
    head = "| scan | score | threshold | verdict | regions | detect, s | forge, s | changed / strong, mm3 |"
    lines = [
        head,
        "|" + "---|" * 8,
        *rows,
        "",
        f"Peak resident memory {peak_mb():.0f} MB; {torch.get_num_threads()} threads.",
    ]
    (arguments.out / "table.md").write_text("\n".join(lines) + "\n")


def _row(name: str, verdict: Verdict, seconds: float, forge: str, truth: str) -> str:
    cells = (name, f"{verdict.score:.4f}", f"{verdict.threshold:.4f}", verdict.words, str(len(verdict.regions)))
    return "| " + " | ".join((*cells, f"{seconds:.1f}", forge, truth)) + " |"


if __name__ == "__main__":
    main()
