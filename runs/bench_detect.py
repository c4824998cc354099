"""Seconds and memory of the detectors: a whole series at the shipped size, and one slice of 512 x 512 at each size.

    python runs/bench_detect.py SERIES [--threads 2] [--detectors unet,volumetric] [--skip-slices]

Each measurement runs in a process of its own; memory is the peak resident set of that process, with the volume, its
map and the libraries in it. A slice is noise at random weights, the median of three looks (`full` is the published
width). Prints two tables.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from ctguard import zoo

RECIPES = Path(__file__).parent.parent / "recipes"

_SERIES = """
import json, resource, sys, time
import torch
from ctguard import io, zoo
from ctguard.detect.infer import detect_volume

series, name, threads = sys.argv[1:]
torch.set_num_threads(int(threads))
detector, card = zoo.load(zoo.find(name, "detector"))
volume = io.read(series)
start = time.perf_counter()
detect_volume(volume, detector, name=name, model_id=card.sha256, threshold=card.scan_threshold)
seconds = time.perf_counter() - start
megabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps({"shape": volume.hu.shape, "seconds": seconds, "megabytes": megabytes}))
"""

_SLICE = """
import json, statistics, sys, time
from pathlib import Path
import torch
from ctguard import zoo
from ctguard.train.recipe import read_recipe

recipe, size, threads = sys.argv[1:]
torch.set_num_threads(int(threads))
torch.manual_seed(0)
settings = read_recipe(Path(recipe), size)
settings.model_settings.pop("extractor", None)
detector = zoo.build(zoo.find(settings.model, "detector"), settings.model_settings).eval()
shape = (1, 1, 512, 512) if detector.dims == 2 else (1, 1, 1, 512, 512)
x = torch.randn(shape) * 200 - 500
taken = []
with torch.inference_mode():
    for _ in range(4):  # the first look makes buffers
        start = time.perf_counter()
        detector(x)
        taken.append(time.perf_counter() - start)
parameters = sum(p.numel() for p in detector.parameters())
print(json.dumps({"seconds": statistics.median(taken[1:]), "parameters": parameters}))
"""


def measured(code: str, *words: object) -> dict[str, float]:
    """What a process of its own prints."""
    command = [sys.executable, "-c", code, *map(str, words)]
    result: dict[str, float] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return result


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("series", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--detectors", default=",".join(zoo.names("detector")))
    parser.add_argument("--skip-slices", action="store_true")
    given = parser.parse_args()
    names = given.detectors.split(",")
    lines = ["| detector | voxels | seconds | peak MB |", "|---|---|---|---|"]
    for name in names:
        if not zoo.find(name, "detector").weights_path.exists():
            lines.append(f"| {name} | no weights | | |")
            continue
        got = measured(_SERIES, given.series, name, given.threads)
        voxels = " x ".join(str(n) for n in got["shape"])  # type: ignore[attr-defined]
        lines.append(f"| {name} | {voxels} | {got['seconds']:.1f} | {got['megabytes']:.0f} |")
    if not given.skip_slices:
        lines += ["", "| detector | size | parameters, M | seconds a slice |", "|---|---|---|---|"]
        for name in names:
            for size in ("cpu", "full"):
                got = measured(_SLICE, RECIPES / f"{name}.toml", size, given.threads)
                lines.append(f"| {name} | {size} | {got['parameters'] / 1e6:.2f} | {got['seconds']:.2f} |")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
