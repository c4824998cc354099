#!/usr/bin/env bash
# How the shipped weights were made: phantoms, phantom nodules planted in real lung, and real lung, on two cores.
#
#   runs/default_weights.sh OUT SERIES_FOLDER
#
# SERIES_FOLDER holds R01-001 (NSCLC Radiogenomics) and Lung_Dx-A0001_B and _L (Lung-PET-CT-Dx) as DICOM folders.
# About fourteen hours. Every step can be killed and started again. See MISUSE.md.
set -euo pipefail
out=${1:?usage: runs/default_weights.sh OUT SERIES_FOLDER}
series=${2:?usage: runs/default_weights.sh OUT SERIES_FOLDER}
here=$(cd "$(dirname "$0")/.." && pwd)
export PATH="$here/.venv/bin:$PATH" OMP_NUM_THREADS=1
mkdir -p "$out"

# 1. Patients: seeds 0-159 of the bench tier train, 0-59 of them generators and protectors, all of them detectors; 160-259
# are its first 100 of validation, 460-489 of test.
ctguard phantom "$out/train" --patients 60 --seed 0 --split train --jobs 2
ctguard phantom "$out/train2" --patients 100 --seed 60 --split train --jobs 2
ctguard phantom "$out/valid" --patients 100 --seed 160 --split valid --jobs 2
ctguard phantom "$out/test" --patients 30 --seed 460 --split test --jobs 2

# 2. Phantom nodules in real lung, one to a block.
ctguard phantom "$out/planted_R01" --patients 150 --seed 5000 --into "$series/R01-001"
ctguard phantom "$out/planted_B" --patients 25 --seed 5300 --into "$series/Lung_Dx-A0001_B"
ctguard phantom "$out/planted_L" --patients 25 --seed 5400 --into "$series/Lung_Dx-A0001_L"
# Large ones, whose rim stands around the core, for the remover; such at the edge of the lung for both.
ctguard phantom "$out/large_R01" --patients 90 --seed 6000 --min-mm 16 --into "$series/R01-001"
ctguard phantom "$out/large_B" --patients 25 --seed 6200 --min-mm 16 --into "$series/Lung_Dx-A0001_B"
ctguard phantom "$out/large_L" --patients 25 --seed 6300 --min-mm 16 --into "$series/Lung_Dx-A0001_L"
ctguard phantom "$out/wall_R01" --patients 120 --seed 6500 --at-wall --into "$series/R01-001"
ctguard phantom "$out/wall_B" --patients 30 --seed 6700 --at-wall --into "$series/Lung_Dx-A0001_B"
ctguard phantom "$out/wall_L" --patients 30 --seed 6800 --at-wall --into "$series/Lung_Dx-A0001_L"
# More of 10 mm and above, for those that learn from dense nodules alone.
ctguard phantom "$out/more_R01" --patients 150 --seed 7000 --min-mm 10 --into "$series/R01-001"
ctguard phantom "$out/more_B" --patients 40 --seed 7200 --min-mm 10 --into "$series/Lung_Dx-A0001_B"
ctguard phantom "$out/more_L" --patients 40 --seed 7300 --min-mm 10 --into "$series/Lung_Dx-A0001_L"
ctguard phantom "$out/big_R01" --patients 200 --seed 8000 --min-mm 14 --into "$series/R01-001"
ctguard phantom "$out/big_B" --patients 60 --seed 8300 --min-mm 14 --into "$series/Lung_Dx-A0001_B"
ctguard phantom "$out/big_L" --patients 60 --seed 8400 --min-mm 14 --into "$series/Lung_Dx-A0001_L"

# Blocks of other patients, of another phantom style: for the malignancy scorer, and as nodules that nobody touched.
ctguard phantom "$out/blocks" --blocks --patients 520 --seed 700000 --style 1

# 3. One index of the real series, and one of everything that the detector learns from.
python - "$out" "$series" <<'PY'
import os
import sys
from dataclasses import replace
from pathlib import Path

from ctguard.core.records import Case
from ctguard.io.cases import case_path, read_cases, write_cases

out, series = Path(sys.argv[1]), Path(sys.argv[2])
names = {"R01-001": "NSCLC Radiogenomics", "Lung_Dx-A0001_B": "Lung-PET-CT-Dx", "Lung_Dx-A0001_L": "Lung-PET-CT-Dx"}
real = [
    Case(name, name.rsplit("_", 1)[0] if "Dx" in name else name, os.path.relpath(series / name, out), collection, "", "train")
    for name, collection in names.items()
]
write_cases(real, out / "real.csv")
phantoms = [
    replace(case, path=os.path.relpath(case_path(index, case), out))
    for index in (out / f"{part}/index.csv" for part in ("train", "train2", "valid", "test"))
    for case in read_cases(index)
]
write_cases([*real, *phantoms], out / "all.csv")
PY

# 4. Generators.
inject=(--data "$out/train/index.csv")
for name in planted_R01 planted_B planted_L wall_R01 wall_B wall_L more_R01 more_B more_L; do inject+=(--data "$out/$name/index.csv"); done
ctguard train "$here/recipes/pix2pix_inject.toml" "${inject[@]}" --out "$out/pix2pix_inject" --resume
remove=(--data "$out/train/index.csv")
for part in planted large wall; do for name in R01 B L; do remove+=(--data "$out/${part}_$name/index.csv"); done; done
ctguard train "$here/recipes/pix2pix_remove.toml" "${remove[@]}" --data "$out/real.csv" --out "$out/pix2pix_remove" --resume
# Without pairs: tissue of the wanted kind, and places to make it of.
unpaired=(--data "$out/train/index.csv" --data "$out/real.csv")
for name in planted_R01 planted_B planted_L; do unpaired+=(--data "$out/$name/index.csv"); done
ctguard train "$here/recipes/cyclegan_remove.toml" "${unpaired[@]}" --out "$out/cyclegan_remove" --resume
for name in more_R01 more_B more_L; do unpaired+=(--data "$out/$name/index.csv"); done
ctguard train "$here/recipes/cyclegan_inject.toml" "${unpaired[@]}" --out "$out/cyclegan_inject" --resume
for name in big_R01 big_B big_L; do inject+=(--data "$out/$name/index.csv"); done
ctguard train "$here/recipes/diffusion_inject.toml" "${inject[@]}" --out "$out/diffusion_inject" --resume
ctguard train "$here/recipes/diffusion_remove.toml" "${remove[@]}" --data "$out/real.csv" --out "$out/diffusion_remove" --resume
cp "$out"/{pix2pix,cyclegan,diffusion}_*/{pix2pix,cyclegan,diffusion}_*.{safetensors,json} "$here/src/ctguard/weights/"

# 5. Forgeries: the same sites for every generator; more of them in the few real series.
ctguard synth "$out/all.csv" "$out/forged" --generators pix2pix,cyclegan,diffusion,copy-move --injections 2 --anywhere --any-rating \
  --plain-sites 24 --seed 1 --jobs 2

# 6. Detectors, which see untouched nodules too; their thresholds come from the pristine validation patients. TruFor looks at the extractor's residual,
#    `volumetric` holds the U-Net.
ctguard train "$here/recipes/residual.toml" --data "$out/train/index.csv" --data "$out/real.csv" --out "$out/residual" --resume
cp "$out"/residual/residual.{safetensors,json} "$here/src/ctguard/weights/"
for detector in unet xception hpfcn mvssnet mantranet trufor volumetric; do
  ctguard train "$here/recipes/$detector.toml" --data "$out/forged" --data "$out/blocks/index.csv" \
    --out "$out/$detector" --resume
  cp "$out/$detector/$detector".{safetensors,json} "$here/src/ctguard/weights/"
done

# 7. Malignancy scorer.
ctguard train "$here/recipes/cad.toml" --data "$out/blocks/index.csv" --out "$out/cad" --resume
cp "$out"/cad/cad.{safetensors,json} "$here/src/ctguard/weights/"

# 8. Protectors, against the generators above; the diffusion model stays unseen.
for protector in mitsgan_paper mitsgan_gradient tafim shield; do
  ctguard train "$here/recipes/$protector.toml" --data "$out/train/index.csv" --data "$out/real.csv" --out "$out/$protector" --resume
  cp "$out/$protector/$protector".{safetensors,json} "$here/src/ctguard/weights/"
done
