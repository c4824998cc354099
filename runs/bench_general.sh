#!/usr/bin/env bash
# The 6 x 6 matrix of general pictures and forged CT, on synthetic patients, from weights to tables.
#
#   runs/bench_general.sh OUT [PATIENTS] [SIZE] [MORE...]
#
# PATIENTS, 40 by default, of the "bench" tier are learned from and half as many are tested: seeds from 160 and from
# 460, of whom no shipped generator learned. SIZE is cpu or full. MORE goes to `ctguard bench general`: --images
# real=DIR and so on, for general images of your own instead of the stand-ins. Every step can be killed and started
# again: what is done is kept. JOBS sets the number of processes, DEVICE where patches are scored, TIER the phantoms'
# size. Forging exists here to measure the defence: see MISUSE.md.
set -euo pipefail
out=${1:?usage: runs/bench_general.sh OUT [PATIENTS] [SIZE] [MORE...]}
patients=${2:-40}
size=${3:-cpu}
shift $(($# < 3 ? $# : 3))
here=$(cd "$(dirname "$0")/.." && pwd)
export PATH="$here/.venv/bin:$PATH" OMP_NUM_THREADS=1
jobs=${JOBS:-2}
tier=${TIER:-bench}
mkdir -p "$out"

# 1. Patients to learn from and to test on, in one index. The same seeds give the same bytes on every machine.
ctguard phantom "$out/train" --patients "$patients" --size "$tier" --seed 160 --split train --jobs "$jobs"
ctguard phantom "$out/test" --patients "$(((patients + 1) / 2))" --size "$tier" --seed 460 --split test --jobs "$jobs"
python - "$out" <<'PY'
import sys
from dataclasses import replace
from pathlib import Path

from ctguard.io.cases import read_cases, write_cases

out = Path(sys.argv[1])
parts = {part: read_cases(out / part / "index.csv") for part in ("train", "test")}
moved = [replace(case, path=f"{part}/{case.path}") for part, cases in parts.items() for case in cases]
write_cases(moved, out / "index.csv")
PY

# 2. Forgeries by the paper's three generators. A scan that fails is reported and tried again by the next start; the
#    others count.
ctguard synth "$out/index.csv" "$out/forged" --generators pix2pix,cyclegan,diffusion --injections 2 --anywhere \
  --any-rating --seed 1 --jobs "$jobs" || [ -f "$out/forged/summary.json" ]

# 3. Small generators of general pictures (or MORE), six detectors, 36 cells, tables, figures and one page.
ctguard bench general --data "$out/forged" --out "$out/tables" --size "$size" --device "${DEVICE:-auto}" "$@"
