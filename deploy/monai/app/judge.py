"""`ctguard detect IN --out OUT` for each CT series of a folder; no MONAI Deploy in it."""

from __future__ import annotations

import subprocess
from pathlib import Path

from pydicom import dcmread
from pydicom.errors import InvalidDicomError


def judge(folder: Path, out: Path) -> list[Path]:
    """Judge each CT series below a folder; the result folders, OUT/SERIES.

    Raises ValueError where there is no CT series, CalledProcessError where ctguard refuses one.
    """
    found = []
    for uid in _ct_series(folder):
        found.append(out / uid)
        subprocess.run(["ctguard", "detect", str(folder), "--series", uid, "--out", str(found[-1])], check=True)
    if not found:
        raise ValueError(f"{folder} holds no CT series")
    return found


def _ct_series(folder: Path) -> list[str]:
    series = set()
    for file in filter(Path.is_file, folder.rglob("*")):
        try:
            header = dcmread(file, specific_tags=["SeriesInstanceUID", "Modality"], stop_before_pixels=True)
        except InvalidDicomError:
            continue
        if header.get("Modality") == "CT":
            series.add(str(header.SeriesInstanceUID))
    return sorted(series)
