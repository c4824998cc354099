#!/usr/bin/env bash
# The whole pipeline on one page, on synthetic patients, without a GPU and without any download:
# patients, generators, forgeries, detector, threshold, test, a verdict, a protected scan.
#
#   runs/phantom_cpu.sh OUT [PATIENTS] [SIZE] [RECIPES] [ATTACKS]
#
# SIZE is a phantom size, RECIPES a folder of recipes to take instead of the repository's, ATTACKS how many forgings the
# protection works against (200): a test goes the whole way in two minutes with small ones.
# 760 patients (160 train, 300 validation, 300 test) are the "bench" tier of the tables and take about half a day on two
# cores; 40 show the way in about three hours and prove nothing. Every step can be killed and started again: what is
# done is kept. Forging exists here to measure the defence: see MISUSE.md.
set -euo pipefail
out=${1:?usage: runs/phantom_cpu.sh OUT [PATIENTS]}
patients=${2:-760}
here=$(cd "$(dirname "$0")/.." && pwd)
size=${3:-bench}
recipes=${4:-$here/recipes}
attacks=${5:-200}
export PATH="$here/.venv/bin:$PATH" OMP_NUM_THREADS=1
mkdir -p "$out/weights"

# 1. Patients. The same seeds give the same bytes on every machine.
ctguard phantom "$out/cohort" --patients "$patients" --size "$size" --seed 0 --jobs 2

# 2. Generators: one to put nodules in, one to take them out; trained on patients of the train split alone.
for name in pix2pix_inject pix2pix_remove; do
  if [ ! -f "$out/weights/$name.safetensors" ]; then
    ctguard train "$recipes/$name.toml" --data "$out/cohort/index.csv" --out "$out/$name" --size cpu --resume
    cp "$out/$name/$name".{safetensors,json} "$out/weights/"
  fi
done

# 3. Forgeries of all splits: by both generators, and by copy-move, a forgery without a generator. Stored as Plan and
#    changed block beside the pristine scan.
ctguard synth "$out/cohort/index.csv" "$out/forged" --generators pix2pix,copy-move --injections 2 --anywhere \
  --any-rating --weights "$out/weights" --seed 1 --jobs 2

# 4. Detector, on forged and pristine slices of the train split; its threshold, 1 % false alarms on pristine validation
#    patients, goes into the card.
if [ ! -f "$out/weights/unet.safetensors" ]; then
  ctguard train "$recipes/unet.toml" --data "$out/forged" --out "$out/unet" --size cpu --resume
  cp "$out/unet/unet".{safetensors,json} "$out/weights/"
fi

# 5. The test split, once.
python - "$out" <<'PY'
import sys
from pathlib import Path

from ctguard import zoo
from ctguard.bench.calibrated import calibrated_table
from ctguard.bench.detection import score_folder
from ctguard.bench.table import markdown

out = Path(sys.argv[1])
zoo.WEIGHTS = out / "weights"
detector, card = zoo.load(zoo.find("unet", "detector"))
rows = score_folder(detector, card.scan_threshold, out / "forged", "test")
table = calibrated_table(rows, "U-Net on phantom patients", "phantom_cpu", card.sha256)
(out / "detection.md").write_text(markdown(table))
print(markdown(table))
PY

# 6. The last patient of the test split through the command line: take a nodule out, judge, protect, try again.
read -r site scan < <(python - "$out/cohort/index.csv" <<'PY'
import sys

from ctguard.io.cases import case_path, read_cases

case = [case for case in read_cases(sys.argv[1]) if case.findings][-1]
largest = max(case.findings, key=lambda finding: finding.diameter_mm)
print(",".join(f"{v:g}" for v in largest.center_lps_mm), case_path(sys.argv[1], case))
PY
)
unet="$out/weights/unet.safetensors"
remove="$out/weights/pix2pix_remove.safetensors"
rm -rf "$out/removed" "$out/removed-after-protection" "$out/protected" "$out/verdict-"*
ctguard tamper "$scan" "$out/removed" --task remove --at-mm "$site" --weights "$remove"
ctguard detect "$scan" --weights "$unet" --out "$out/verdict-pristine"
ctguard detect "$out/removed/series" --weights "$unet" --out "$out/verdict-removed"
ctguard protect "$scan" "$out/protected" --protector ascent --budget-hu 8 --steps "$attacks" --against "$out/weights"
ctguard tamper "$out/protected/series" "$out/removed-after-protection" --task remove --at-mm "$site" --weights "$remove"
ctguard detect "$out/protected/series" --weights "$unet" --out "$out/verdict-protected"
