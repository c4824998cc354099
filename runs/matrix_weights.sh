#!/usr/bin/env bash
# The 21 detectors of the benchmark's 3 x 3 matrix: each of seven, trained on the forgeries of one generator alone.
#
#   runs/matrix_weights.sh OUT DATA NODULES
#
# DATA is a folder of forgeries (`ctguard synth`), NODULES an index of untouched ones (`ctguard phantom --blocks`).
# OUT/matrix becomes what `ctguard bench detection --matrix` takes.
# About 8 minutes each on one core. Every step can be killed and started again. See MISUSE.md.
set -euo pipefail
out=${1:?usage: runs/matrix_weights.sh OUT DATA NODULES}
data=${2:?usage: runs/matrix_weights.sh OUT DATA NODULES}
nodules=${3:?usage: runs/matrix_weights.sh OUT DATA NODULES}
here=$(cd "$(dirname "$0")/.." && pwd)
export PATH="$here/.venv/bin:$PATH"
mkdir -p "$out/matrix"

for generator in pix2pix cyclegan diffusion; do
  for detector in xception unet hpfcn mantranet mvssnet trufor volumetric; do
    name=${detector}_on_$generator
    [ -f "$out/matrix/$name.json" ] && continue
    ctguard train "$here/recipes/$detector.toml" --size matrix --generators "$generator" \
      --data "$data" --data "$nodules" --out "$out/$name" --resume
    cp "$out/$name/$name".{safetensors,json} "$out/matrix/"
  done
done
