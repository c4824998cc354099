"""A mercure processing module: `ctguard detect IN --out OUT` for each CT series of a task.

mercure puts SERIES#FILE.dcm, .tags and task.json into MERCURE_IN_DIR, and sends the .dcm files of MERCURE_OUT_DIR on.
There: the results of each series as DICOM objects, and result.json. Exit 1, after which mercure puts the task aside as
failed, where there were CT series and none could be judged.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pydicom import dcmread

OPTIONS = {"detector": "--detector", "weights": "--weights", "fast": "--fast", "allow_gaps": "--allow-gaps"}
"""Settings of the module or the rule, and the options that they become."""
Json = dict[str, Any]


def options(task: Json) -> list[str]:
    """Of the task's settings. Raises ValueError for one that there is none of."""
    words: list[str] = []
    for name, value in ((task.get("process") or {}).get("settings") or {}).items():
        if name not in OPTIONS:
            raise ValueError(f"task.json has the setting {name!r}; there are {', '.join(OPTIONS)}")
        if value is not False:
            words += [OPTIONS[name]] if value is True else [OPTIONS[name], str(value)]
    return words


def judge(folder: Path, out: Path, words: list[str]) -> Json:
    """Judge each CT series of a folder, write the results, and return what result.json says."""
    series = {}
    for file in sorted(folder.glob("*.dcm")):
        header = dcmread(file, specific_tags=["SeriesInstanceUID", "Modality"], stop_before_pixels=True)
        series[str(header.SeriesInstanceUID)] = str(header.get("Modality"))
    judged = [_judge(folder, uid, out, words) for uid, modality in series.items() if modality == "CT"]
    tampered, failed = ([one for one in judged if one.get(key)] for key in ("tampered", "failed"))
    text = f"ctguard: {len(judged)} CT series, {len(tampered)} with evidence of tampering, {len(failed)} not judged. "
    text += "Research use only. Not a medical device. Not for diagnosis."
    notification = {"text": text, "requested": bool(tampered or failed)}
    return {"series": judged, "__mercure_notification": notification}


def _judge(folder: Path, uid: str, out: Path, words: list[str]) -> Json:
    with TemporaryDirectory() as work:
        verdict = Path(work) / "verdict"
        command = ["ctguard", "detect", str(folder), "--series", uid, "--out", str(verdict), "--json", *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        sys.stderr.write(done.stderr)
        if done.returncode != 0:
            return {"series": uid, "failed": done.stderr.strip().rpartition("\n")[2]}
        for file in sorted(verdict.glob("*.dcm")):
            ds = dcmread(file, stop_before_pixels=True)
            (out / f"{ds.SeriesInstanceUID}#{ds.SOPInstanceUID}.dcm").write_bytes(file.read_bytes())
        return {"series": uid, **{key: value for key, value in json.loads(done.stdout).items() if key != "scan"}}


def main() -> int:
    """As mercure calls it."""
    folder, out = (Path(os.environ[name]) for name in ("MERCURE_IN_DIR", "MERCURE_OUT_DIR"))
    words = options(json.loads((folder / "task.json").read_text(encoding="utf-8")))
    result = judge(folder, out, words)
    (out / "result.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    failed = ["failed" in one for one in result["series"]]
    return 1 if failed and all(failed) else 0


if __name__ == "__main__":
    raise SystemExit(main())
