"""Time and memory of io.read_dicom beside a bare pydicom loop over the same pixels.

    python runs/bench_read.py FOLDER [ROUNDS]

The bare loop reads each file with dcmread, takes pixel_array, sorts by position and stacks; it checks nothing and
does not rescale. Both run in turn, ROUNDS times (5), and the medians are compared. Peak memory is measured in a
process of its own, as the growth of the resident set while reading and as what tracemalloc sees, each over the
bytes of the int16 volume (Linux only: /proc/self/status).
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pydicom

from ctguard.io.dicom import read_dicom

_MEMORY = """
import json, sys, tracemalloc
from pathlib import Path
from ctguard.io.dicom import read_dicom

def status(key):
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024

folder = Path(sys.argv[1])
read_dicom(sorted(folder.glob("*.dcm"))[0])  # imports and decoders are loaded before the measurement
before = status("VmRSS")
volume = read_dicom(folder)
resident = status("VmHWM") - before
size = volume.hu.size * 2
del volume
tracemalloc.start()
read_dicom(folder)
print(json.dumps([resident / size, tracemalloc.get_traced_memory()[1] / size]))
"""


def bare(folder: Path) -> np.ndarray:
    """The loop that everyone writes."""
    slices = []
    for file in folder.glob("*.dcm"):
        ds = pydicom.dcmread(file)
        slices.append((float(ds.ImagePositionPatient[2]), ds.pixel_array))
    return np.stack([pixels for _, pixels in sorted(slices, key=lambda pair: pair[0])])


def main() -> None:
    """Print one line of JSON."""
    folder = Path(sys.argv[1])
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 5
    seconds: dict[str, list[float]] = {"bare": [], "ctguard": []}
    for _ in range(rounds + 1):  # the first round warms the file cache
        for name, read in (("bare", bare), ("ctguard", read_dicom)):
            start = time.perf_counter()
            read(folder)
            seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values[1:]) for name, values in seconds.items()}
    command = [sys.executable, "-c", _MEMORY, str(folder)]
    resident, traced = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    result = {
        "slices": len(list(folder.glob("*.dcm"))),
        "rounds": rounds,
        "bare_seconds": round(medians["bare"], 3),
        "ctguard_seconds": round(medians["ctguard"], 3),
        "ratio": round(medians["ctguard"] / medians["bare"], 3),
        "peak_resident_multiple": round(resident, 2),
        "peak_traced_multiple": round(traced, 2),
    }
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
