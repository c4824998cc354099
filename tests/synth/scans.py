"""Small scans and indexes to forge: no network is needed for the controls."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ctguard import io
from ctguard.cohort.patches import draw_lung_sites
from ctguard.core.errors import GeometryError
from ctguard.core.geometry import FloatTriple, IntTriple, as_float_triple, index_to_lps_mm
from ctguard.core.marks import Mark
from ctguard.core.provenance import Provenance, Source
from ctguard.core.records import Case, Finding, Split
from ctguard.core.volume import Volume
from ctguard.io.cases import write_cases
from ctguard.tamper.cube import exact_cube
from tests.detect.scans import thorax

PHANTOM = (Mark("phantom", "test"),)


def scan(
    marks: tuple[Mark, ...] = PHANTOM,
    deidentified: bool = False,
    seed: int = 0,
    shape_zyx: IntTriple = (24, 96, 112),
) -> Volume:
    """Two lungs in an oval, 2.5 x 3 x 3 mm; the lungs are about 40 mm from left to right and 160 mm deep."""
    whole = thorax(shape_zyx, seed=seed)
    source = Source("phantom", series_uid="1.2.3", patient_id="secret", deidentified=deidentified)
    return Volume(whole.hu.astype(np.int16), whole.geometry, Provenance(source, (), marks))


def lung_site(volume: Volume) -> FloatTriple:
    for site in draw_lung_sites(volume, [], 200, 0.0, np.random.default_rng(0)):
        try:
            exact_cube(volume.geometry, site, 16.0)
        except GeometryError:
            continue
        return site
    raise AssertionError("the test scan has no site")


def at(volume: Volume, center_zyx: FloatTriple, diameter_mm: float, malignancy: float | None = None) -> Finding:
    """A finding at a voxel."""
    return Finding(as_float_triple(index_to_lps_mm(volume.geometry, center_zyx)), diameter_mm, malignancy, "test")


LEFT: FloatTriple = (12.0, 40.0, 35.0)
LEFT_BACK: FloatTriple = (12.0, 60.0, 35.0)
RIGHT: FloatTriple = (12.0, 48.0, 77.0)
"""Voxels deep in the lungs of `scan`; the first two are 60 mm apart."""


def cohort(folder: Path, count: int = 2, splits: tuple[Split | None, ...] = ("train", "test")) -> Path:
    """An index of phantoms, each with a malignant nodule of 14 mm and a benign one of 6 mm."""
    folder.mkdir(parents=True, exist_ok=True)
    cases = []
    for k in range(count):
        volume = scan(seed=k)
        io.write(volume, folder / f"scan{k}.mha")
        nodules = (at(volume, LEFT, 14.0, 5.0), at(volume, RIGHT, 6.0, 1.0))
        case = Case(f"scan{k}", f"patient{k}", f"scan{k}.mha", "ctguard-phantom", "", splits[k % len(splits)], nodules)
        cases.append(case)
    write_cases(cases, folder / "index.csv")
    return folder / "index.csv"


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a data set but run.json, which alone holds wall-clock values."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "run.json")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
