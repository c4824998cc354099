"""A Grand Challenge algorithm: `ctguard detect IN --out OUT` for the one CT image of a job.

The platform lists the inputs of a job in /input/inputs.json and takes what lies in /output. The container is run once
per job and ends (it has no label `org.grand-challenge.api-method`).
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

MAP = "images/ct-tampering-map"
LIKELIHOOD = "ct-tampering-likelihood.json"
VERDICT = "ct-tampering-verdict.json"
"""Relative paths of the output sockets, as they are defined on the platform."""


def scan_of(folder: Path) -> Path:
    """The input image: a file, or a folder of DICOM. Raises ValueError where the job has not exactly one."""
    inputs = json.loads((folder / "inputs.json").read_text(encoding="utf-8"))
    places = [str(one["socket"]["relative_path"]) for one in inputs]
    images = [folder / place for place in places if place.startswith("images/")]
    if len(images) != 1:
        raise ValueError(f"this algorithm takes one CT image; the job has the sockets {', '.join(places)}")
    files = sorted(path for path in images[0].iterdir() if path.is_file())
    return files[0] if len(files) == 1 else images[0]


def judge(scan: Path, out: Path) -> None:
    """Judge a scan, and write what the output sockets take. Raises CalledProcessError where ctguard refuses it."""
    with TemporaryDirectory() as work:
        verdict = Path(work) / "verdict"
        facts = _ctguard("detect", scan, "--out", verdict, "--json")
        (out / MAP).mkdir(parents=True, exist_ok=True)
        _ctguard("convert", verdict / "map.nii.gz", out / MAP / "map.mha", "--json")
    facts = {key: value for key, value in facts.items() if key != "scan"}
    (out / LIKELIHOOD).write_text(json.dumps(facts["score"]), encoding="utf-8")
    (out / VERDICT).write_text(json.dumps(facts), encoding="utf-8")


def _ctguard(*words: str | Path) -> dict[str, Any]:
    done = subprocess.run(["ctguard", *map(str, words)], stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


if __name__ == "__main__":
    try:
        judge(scan_of(Path("/input")), Path("/output"))
    except (ValueError, subprocess.CalledProcessError) as error:
        sys.exit(str(error))
