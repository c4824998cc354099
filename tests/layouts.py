"""Six small phantom patients in the layouts of LIDC-IDRI, LUNA16 and M3Dsynth, without any voxel of theirs.

Patients and series get names whose hashes put them where a pipeline needs them: two in each split, and the two of the
training split on both sides of the line between generators and scorer.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from scipy.ndimage import binary_dilation

from ctguard import io
from ctguard.cohort.split import split_of
from ctguard.core.geometry import index_to_lps_mm
from ctguard.core.records import Case, Finding, Split
from ctguard.core.volume import Volume
from ctguard.io.cases import write_cases
from ctguard.phantom.patients import draw_acquisition, draw_patient, findings, render

LIDC_ROOT = "1.3.6.1.4.1.14519.5.2.1.6279.6001."
_APART_SEED = 1

PLACES: tuple[tuple[int, int, Split, Split | None], ...] = (
    (7, 0, "train", "train"),
    (3, 0, "train", "test"),
    (7, 1, "valid", None),
    (0, 0, "valid", None),
    (3, 1, "test", None),
    (2, 0, "test", None),
)
"""Seed of a phantom, of its noise (0: its own), its split, and its side of the line of runs/lidc_full.sh ("train":
generators). Phantoms 7 and 3 have room in their small field of view for a removal and injections: they come twice."""


@dataclass(frozen=True, eq=False)
class Phantom:
    """A rendered patient with the nodules in view."""

    seed: int
    split: Split
    side: Split | None
    volume: Volume
    nodules: tuple[Finding, ...]


def phantoms() -> list[Phantom]:
    """The six patients, one nodule in view of each; malignant and benign ones in validation and test."""
    made = []
    for seed, noise, split, side in PLACES:
        patient = draw_patient(seed)
        acquisition = draw_acquisition(patient, "small", seed)
        acquisition = replace(acquisition, seed=acquisition.seed + noise)
        seen = findings(patient, acquisition.geometry)
        made.append(Phantom(seed, split, side, render(patient, acquisition), seen))
    return made


def write_lidc(patients: Sequence[Phantom], root: Path) -> Path:
    """LIDC-IDRI: PATIENT/STUDY/SERIES with DICOM files and the four readers' XML."""
    for one, name in zip(patients, _named("LIDC-IDRI-{:04d}".format, patients), strict=True):
        folder = root / name / "study" / "series"
        folder.parent.mkdir(parents=True)
        source = replace(one.volume.provenance.source, patient_id=name)
        io.write(replace(one.volume, provenance=replace(one.volume.provenance, source=source)), folder)
        (folder / "069.xml").write_text(_readings(one, folder), encoding="utf-8")
    return root


def write_luna16(patients: Sequence[Phantom], root: Path) -> Path:
    """LUNA16: subsets of MetaImage named by their series, and annotations.csv without ratings."""
    rows = []
    for number, (one, uid) in enumerate(zip(patients, _named((LIDC_ROOT + "{:030d}").format, patients), strict=True)):
        folder = root / f"subset{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        io.write(one.volume, folder / f"{uid}.mhd")
        rows += [[uid, *nodule.center_lps_mm, nodule.diameter_mm] for nodule in one.nodules]
    with (root / "annotations.csv").open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([["seriesuid", "coordX", "coordY", "coordZ", "diameter_mm"], *rows])
    return root


def _named(pattern: Callable[[int], str], patients: Sequence[Phantom]) -> Iterator[str]:
    """For each patient the next name whose hashes put it into its split, and on its side of the line."""
    number = 9000
    for one in patients:
        while not _fits(pattern(number), one):
            number += 1
        yield pattern(number)
        number += 1


def _fits(name: str, one: Phantom) -> bool:
    side = split_of(name, {"train": 0.6, "test": 0.4}, seed=_APART_SEED)
    return split_of(name) == one.split and one.side in (None, side)


def _readings(one: Phantom, folder: Path) -> str:
    """Four sessions that outline each nodule a little smaller or larger, rated by its label."""
    headers = [dcmread(path, stop_before_pixels=True) for path in sorted(folder.glob("*.dcm"))]
    slices = sorted(headers, key=lambda ds: float(ds.ImagePositionPatient[2]))
    sessions = ""
    for reader, scale in enumerate((0.94, 0.98, 1.02, 1.06)):
        sessions += "<readingSession>"
        for number, nodule in enumerate(one.nodules):
            rating = 5 - reader // 3 if nodule.malignancy == 5 else 1 + reader // 3
            rois = "".join(_roi(slices[z], edge) for z, edge in _outlines(one.volume, nodule, scale))
            sessions += (
                f"<unblindedReadNodule><noduleID>N{number}</noduleID><characteristics>"
                f"<malignancy>{rating}</malignancy></characteristics>{rois}</unblindedReadNodule>"
            )
        sessions += "</readingSession>"
    head = f"<ResponseHeader><SeriesInstanceUid>{slices[0].SeriesInstanceUID}</SeriesInstanceUid></ResponseHeader>"
    return f'<?xml version="1.0"?><LidcReadMessage xmlns="http://www.nih.gov">{head}{sessions}</LidcReadMessage>'


def _outlines(volume: Volume, nodule: Finding, scale: float) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Per slice the pixels (column, row) just outside a ball of the nodule's diameter, in order around it."""
    shape = volume.geometry.shape_zyx
    points = index_to_lps_mm(volume.geometry, np.moveaxis(np.indices(shape), 0, -1).reshape(-1, 3))
    distance = np.linalg.norm(points - np.asarray(nodule.center_lps_mm), axis=1).reshape(shape)
    inside = distance <= scale * nodule.diameter_mm / 2
    for z in np.flatnonzero(inside.any(axis=(1, 2))):
        edge = np.argwhere(binary_dilation(inside[z]) & ~inside[z])[:, ::-1]
        around = edge - edge.mean(axis=0)
        yield int(z), edge[np.argsort(np.arctan2(around[:, 1], around[:, 0]))]


def _roi(ds: Dataset, edge: NDArray[np.int64]) -> str:
    points = "".join(f"<edgeMap><xCoord>{x}</xCoord><yCoord>{y}</yCoord></edgeMap>" for x, y in edge)
    place = (
        f"<imageZposition>{ds.ImagePositionPatient[2]}</imageZposition><imageSOP_UID>{ds.SOPInstanceUID}</imageSOP_UID>"
    )
    return f"<roi>{place}<inclusion>TRUE</inclusion>{points}</roi>"


def write_cohort(patients: Sequence[Phantom], root: Path) -> Path:
    """An index of MHA files in the patients' own split, as `ctguard synth` takes it."""
    root.mkdir(parents=True)
    cases = []
    for number, one in enumerate(patients):
        name = f"phantom-{number}"
        io.write(one.volume, root / f"{name}.mha")
        cases.append(Case(name, name, f"{name}.mha", "ctguard-phantom", split=one.split, findings=one.nodules))
    write_cases(cases, root / "index.csv")
    return root / "index.csv"
