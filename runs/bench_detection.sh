#!/usr/bin/env bash
# The detection benchmark on synthetic patients, from weights to tables: patients, forgeries, both protocols, panels.
#
#   runs/bench_detection.sh OUT [MATRIX] [PATIENTS] [SIZE]
#
# MATRIX is a folder of DETECTOR_on_GENERATOR.safetensors with their cards ("" for none); the other weights are the
# shipped ones, with the thresholds of their cards. PATIENTS, 100 by default: the first test patients (seeds from 460)
# of the "bench" tier, of whom no shipped generator or detector learned. Every step can be killed and started again:
# what is done is kept. JOBS sets the number of processes, DEVICE where detectors run. Forging exists here to measure
# the defence: see MISUSE.md.
set -euo pipefail
out=${1:?usage: runs/bench_detection.sh OUT [MATRIX] [PATIENTS] [SIZE]}
matrix=${2:-}
patients=${3:-100}
size=${4:-bench}
here=$(cd "$(dirname "$0")/.." && pwd)
export PATH="$here/.venv/bin:$PATH" OMP_NUM_THREADS=1
jobs=${JOBS:-2}
mkdir -p "$out"

# 1. Patients. The same seeds give the same bytes on every machine.
ctguard phantom "$out/test" --patients "$patients" --size "$size" --seed 460 --split test --jobs "$jobs"

# 2. Forgeries: the paper's three generators and two controls at the same sites. A scan that fails is reported and tried
#    again by the next start; the others count.
ctguard synth "$out/test/index.csv" "$out/forged" --generators pix2pix,cyclegan,diffusion,copy-move,identity \
  --injections 1 --anywhere --any-rating --seed 1 --jobs "$jobs" || [ -f "$out/forged/summary.json" ]

# 3. Tables, figures and one page.
ctguard bench detection --data "$out/forged" --out "$out/tables" --panels --jobs "$jobs" --device "${DEVICE:-cpu}" \
  ${matrix:+--matrix "$matrix"}
