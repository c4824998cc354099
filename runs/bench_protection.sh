#!/usr/bin/env bash
# The protection benchmark on synthetic patients: patients, every protector against every forger, then the seal's tables.
#
#   runs/bench_protection.sh OUT [SCANS] [SIZE] [NAME=FILE ...]
#
# SCANS, 5 by default: the first test patients (seeds from 460) of the "bench" tier, of whom no shipped network learned.
# NAME=FILE: more rows, a protector with weights of yours (three seeds of an alpha, say); the others are the shipped
# ones, and a protector without weights is a row that says so. REMOVAL names the protectors of the removal panel. Every
# step can be killed and started again: what is done is kept. JOBS sets the number of processes, a scan each; DEVICE
# where detectors run. Forging exists here to measure the defence: see MISUSE.md.
set -euo pipefail
out=${1:?usage: runs/bench_protection.sh OUT [SCANS] [SIZE] [NAME=FILE ...]}
scans=${2:-5}
size=${3:-bench}
shift $(($# < 3 ? $# : 3))
here=$(cd "$(dirname "$0")/.." && pwd)
export PATH="$here/.venv/bin:$PATH" OMP_NUM_THREADS=1
jobs=${JOBS:-2}
protectors=${PROTECTORS:-noise,ascent:steps=50,ascent,seal:budget=3,mitsgan,mitsgan-paper,tafim,tafim-global,shield:budget=12,shield+seal:budget=12}
mkdir -p "$out"

# 1. Patients. The same seeds give the same bytes on every machine.
ctguard phantom "$out/test" --patients "$scans" --size "$size" --seed 460 --split test --jobs "$jobs"

# 2. Tables, figures and one page.
weights=()
for pair in "$@"; do weights+=(--weights "$pair"); done
ctguard bench protection --data "$out/test/index.csv" --out "$out/tables" --protectors "$protectors" \
  --scans "$scans" --jobs "$jobs" --device "${DEVICE:-cpu}" ${REMOVAL:+--removal "$REMOVAL"} "${weights[@]}"

# 3. The seal: what it finds and misses, who forges it.
ctguard bench seal --data "$out/test/index.csv" --out "$out/seal" --scans "$scans" --jobs "$jobs"
