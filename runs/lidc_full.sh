#!/usr/bin/env bash
# The whole pipeline on one page at published size, from LIDC-IDRI, LUNA16 or M3Dsynth's release:
# index, generators, malignancy scorer, forgeries, malignancy check, detector, test.
#
#   runs/lidc_full.sh OUT KIND ROOT [SIZE] [RECIPES] [JOBS]
#
# KIND and ROOT: lidc, DICOM series with the readers' XML; luna16, MetaImage with ROOT/annotations.csv; m3dsynth, the
# released TIFF stacks with their tables in ROOT/data. SIZE and RECIPES: full, and the repository's; a test goes the
# whole way in a minute with small ones. docs/how-to/full-size.md says what to download and how long it takes.
# An OUT/index.csv that is there already is taken as it is (`ctguard index` has more options than are passed here).
# Every step can be killed and started again: what is done is kept. Forging exists here to measure the defence: see
# MISUSE.md.
set -euo pipefail
out=${1:?usage: runs/lidc_full.sh OUT KIND ROOT}
kind=${2:?usage: runs/lidc_full.sh OUT KIND ROOT}
root=${3:?usage: runs/lidc_full.sh OUT KIND ROOT}
here=$(cd "$(dirname "$0")/.." && pwd)
size=${4:-full}
recipes=${5:-$here/recipes}
jobs=${6:-$(getconf _NPROCESSORS_ONLN)}
export PATH="$here/.venv/bin:$PATH" OMP_NUM_THREADS=1
mkdir -p "$out/weights"

# 1. Patients, split 66/14/20 by patient, or as published with M3Dsynth's tables.
case $kind in
  lidc) marks=() ;;
  luna16) marks=(--annotations "$root/annotations.csv") ;;
  m3dsynth) marks=(--tables "$root/data") ;;
  *) echo "KIND is lidc, luna16 or m3dsynth" >&2; exit 2 ;;
esac
[ -f "$out/index.csv" ] || ctguard index "$root" "$out/index.csv" --kind "$kind" ${marks[@]+"${marks[@]}"}

learn() {  # learn NAME DATA: train a recipe, unless its weights are there
  if [ ! -f "$out/weights/$1.safetensors" ]; then
    ctguard train "$recipes/$1.toml" --data "$2" --out "$out/$1" --size "$size" --resume
    cp "$out/$1/$1".{json,safetensors} "$out/weights/"
  fi
}

if [ "$kind" = m3dsynth ]; then
  # 2.-4. The release holds forgeries, and neither nodules nor ratings to train a generator or a scorer on: its stacks
  #       become Plans and changed blocks beside the pristine scans. OUT/originals.csv, an index of LIDC-IDRI, gives
  #       stacks that do not say them spacing and Hounsfield units.
  python - "$out" "$root" "$jobs" <<'PY'
import sys
from pathlib import Path

from ctguard.synth.released import import_release

out, root, jobs = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
originals = out / "originals.csv"
print(import_release(root, root / "data", out / "forged", originals if originals.is_file() else None, jobs=jobs))
PY
else
  # 2. Generators, three to put nodules in and three to take them out. They and the scorer share no patient, so that the
  #    scorer cannot know a forger's hand: where nodules are rated, two of five training patients are the scorer's.
  rated=$(python - "$out/index.csv" <<'PY'
import os
import sys
from dataclasses import replace
from pathlib import Path

from ctguard.cohort.nodules import label_of
from ctguard.cohort.split import split_of
from ctguard.io.cases import read_cases, write_cases

index = Path(sys.argv[1])
cases = read_cases(index)
labels = {label_of(f.malignancy) for case in cases if case.split == "valid" for f in case.findings}
rated = {True, False} <= labels
train = [case for case in cases if case.split == "train"]
forgers = [c for c in train if not rated or split_of(c.patient, {"train": 0.6, "test": 0.4}, seed=1) == "train"]
patients = {case.patient for case in forgers}
for name, rows in (
    ("generators", forgers),
    ("scorer", [case for case in cases if case.split != "test" and case.patient not in patients]),
):
    folder = index.parent / name
    folder.mkdir(exist_ok=True)
    moved = [replace(c, path=Path(os.path.relpath(index.parent / c.path, folder)).as_posix()) for c in rows]
    write_cases(moved, folder / "index.csv")
print("yes" if rated else "no")
PY
)
  for name in pix2pix cyclegan diffusion; do
    for task in inject remove; do learn "${name}_$task" "$out/generators/index.csv"; done
  done

  # 3. Scorer. LUNA16's annotations.csv has no ratings: then the shipped one, trained on phantoms, is taken, and
  #    nodules of any rating are removed.
  paper=()
  if [ "$rated" = yes ]; then
    learn cad "$out/scorer/index.csv"
  else
    echo "no rated nodules: removals of any nodule, judged by the phantom scorer" >&2
    paper=(--any-rating)
    [ -f "$out/weights/cad.safetensors" ] || cp "$here/src/ctguard/weights/cad".{json,safetensors} "$out/weights/"
  fi

  # 4. Forgeries of all splits by the three generators and two controls, at sites by the paper's rules. A scan that
  #    fails is reported and tried again by the next start; the others count.
  ctguard synth "$out/index.csv" "$out/forged" --generators pix2pix,cyclegan,diffusion,identity,copy-move \
    ${paper[@]+"${paper[@]}"} --weights "$out/weights" --seed 1 --jobs "$jobs" || [ -f "$out/forged/summary.json" ]

  # 5. Malignancy check on the test split: histograms, flips, quality.
  if [ ! -f "$out/malignancy/malignancy.png" ]; then
    ctguard bench malignancy --data "$out/forged" --out "$out/malignancy" --weights "$out/weights/cad.safetensors" \
      --jobs "$jobs"
  fi
fi

# 6. Detector, on forged and pristine slices of the train split; its threshold, 1 % false alarms on pristine validation
#    patients, is written into its card. Then the test split, once.
learn unet "$out/forged"
if [ ! -f "$out/detection.md" ]; then
  python - "$out" <<'PY'
import sys
from pathlib import Path

import torch

from ctguard import zoo
from ctguard.bench.calibrated import calibrated_table
from ctguard.bench.detection import score_folder
from ctguard.bench.table import markdown

out = Path(sys.argv[1])
detector, card = zoo.load(zoo.find("unet", "detector"), out / "weights" / "unet.safetensors")
detector.to("cuda" if torch.cuda.is_available() else "cpu")
rows = score_folder(detector, card.scan_threshold, out / "forged", "test")
table = calibrated_table(rows, f"U-Net, {card.size} size, test patients", "lidc_full", card.sha256)
(out / "detection.md").write_text(markdown(table) + "\n")
print(markdown(table))
PY
fi
