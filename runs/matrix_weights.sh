#!/usr/bin/env bash
# The 21 detectors of the benchmark's 3 x 3 matrix: each of seven, trained on the forgeries of one generator alone.
#
#   runs/matrix_weights.sh OUT DATA NODULES
#
# DATA is a folder of forgeries (`ctguard synth`), NODULES an index of untouched ones (`ctguard phantom --blocks`).
# OUT/matrix becomes what `ctguard bench detection --matrix` takes.
# About 8 to 15 minutes each on one core, 18 for `volumetric`. Every step can be killed and started again. See MISUSE.md.
set -euo pipefail
out=$(realpath -m "${1:?usage: runs/matrix_weights.sh OUT DATA NODULES}")
data=$(realpath "${2:?usage: runs/matrix_weights.sh OUT DATA NODULES}")
nodules=$(realpath "${3:?usage: runs/matrix_weights.sh OUT DATA NODULES}")
here=$(cd "$(dirname "$0")/.." && pwd)
export PATH="$here/.venv/bin:$PATH"
mkdir -p "$out/matrix"
cd "$out"
sed 's/^name = "unet"/name = "tissue"/; s/width = 7/width = 5/' "$here/recipes/unet.toml" > tissue.toml

train() {  # RECIPE NAME GENERATOR
  [ -f "$2/$2.json" ] || ctguard train "$1" --size matrix --generators "$3" \
    --data "$data" --data "$nodules" --out "$2" --resume
}

for generator in pix2pix cyclegan diffusion; do
  for detector in xception unet hpfcn mantranet mvssnet trufor volumetric; do
    name=${detector}_on_$generator
    recipe=$here/recipes/$detector.toml
    if [ "$detector" = volumetric ]; then  # its tissue stream, narrower than the U-Net's cell, learns first
      tissue=tissue_on_$generator
      train tissue.toml "$tissue" "$generator"
      recipe=volumetric_on_$generator.toml
      sed "s#tissue_on_pix2pix.safetensors#$tissue/$tissue.safetensors#" "$here/recipes/volumetric.toml" > "$recipe"
    fi
    train "$recipe" "$name" "$generator"
    cp "$name/$name".{safetensors,json} matrix/
  done
done
