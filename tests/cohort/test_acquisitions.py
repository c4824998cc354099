"""Patches by where their noise comes from: which series of a folder they are cut from."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ctguard import io
from ctguard.cohort.acquisitions import read_acquisitions
from ctguard.core.records import Case
from tests.detect.scans import thorax

PATCH = 16


def test_a_case_is_cut_from_its_own_series_where_its_folder_holds_two(tmp_path: Path) -> None:
    cases = []
    (tmp_path / "both").mkdir()
    for seed in (1, 2):
        folder = tmp_path / str(seed)
        io.write(thorax(seed=seed), folder)
        uid = io.read(folder).provenance.source.series_uid
        for file in sorted(folder.glob("*.dcm")):
            (tmp_path / "both" / f"{seed}-{file.name}").write_bytes(file.read_bytes())
        cases.append(Case(f"s{seed}", "p", "both", series_uid=uid or ""))
    read = read_acquisitions(tmp_path / "index.csv", cases, PATCH, planes=5, seed=0)
    for acquisition, seed in zip(read, (1, 2), strict=True):
        assert np.array_equal(acquisition.planes, thorax(seed=seed).hu)
