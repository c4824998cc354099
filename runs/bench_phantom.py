"""Seconds to render a phantom patient at each size, and a block around a nodule: first call (with its trees) and again.

python runs/bench_phantom.py [SEED]
"""

from __future__ import annotations

import sys
import time

from ctguard.io.manifest import peak_mb
from ctguard.phantom.patients import SIZES, draw_acquisition, draw_patient, render, render_block


def main() -> None:
    """Print a Markdown table."""
    seed = int(sys.argv[1]) if len(sys.argv) > 1 else 700
    lines = ["| what | first, s | again, s | peak MB |", "|---|---|---|---|"]
    for offset, size in enumerate(SIZES):
        patient = draw_patient(seed + offset)
        acquisition = draw_acquisition(patient, size, seed)
        seconds = []
        for _ in range(2):
            start = time.perf_counter()
            render(patient, acquisition)
            seconds.append(time.perf_counter() - start)
        lines.append(f"| {size} | {seconds[0]:.2f} | {seconds[1]:.2f} | {peak_mb():.0f} |")
    patient = draw_patient(seed + 9)
    acquisition = draw_acquisition(patient, "bench", seed)
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        render_block(patient, acquisition, patient.nodules[0].center_lps_mm, (52, 92, 92), (1.25, 0.7, 0.7))
        seconds.append(time.perf_counter() - start)
    lines.append(f"| block of 64 mm | {seconds[0]:.2f} | {seconds[1]:.2f} | {peak_mb():.0f} |")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
