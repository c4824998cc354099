"""The CT side: patches around known sites, forged by each generator, and the same places of the pristine scans."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctguard.bench.general.pictures import PARTS, Family, Part, Pictures
from ctguard.bench.paper_tables import GENERATORS
from ctguard.core.console import progress
from ctguard.core.errors import DataError
from ctguard.core.records import Edit
from ctguard.core.volume import Volume
from ctguard.io.cases import read_case, read_cases
from ctguard.io.forgeries import Forgery, read_manifest

WINDOW_HU = (-1150.0, 350.0)


@dataclass
class _Sites:
    """Patches of one generator and part while they are gathered."""

    pristine: list[NDArray[np.float32]] = field(default_factory=list)
    forged: list[NDArray[np.float32]] = field(default_factory=list)
    patients: list[str] = field(default_factory=list)
    sites: int = 0


@dataclass(frozen=True)
class CtSide:
    """The CT families, whether they are phantoms, and a note on them."""

    families: list[Family]
    phantom: bool
    note: str


def read_ct(data: Path, side: int) -> CtSide:
    """Patches of side x side pixels of the scans' own grid around every forged site, from a `ctguard synth` data set.

    Of each forgery, the slices in which at least half as many voxels changed as in the slice with the most. Patients
    of the train split are learned from, those of the test split tested on. A generator without forgeries in a split
    has no such part. Raises ReadError, and DataError where no split has any, or scans are smaller than a patch.
    """
    index, forgeries = read_manifest(data)
    found = {(name, part): _Sites() for name in GENERATORS for part in PARTS}
    by_scan: dict[str, list[Forgery]] = {}
    for forgery in forgeries:
        if forgery.edit.generator in GENERATORS:
            by_scan.setdefault(forgery.scan_id, []).append(forgery)
    chosen = [case for case in read_cases(index) if case.split in PARTS and case.scan_id in by_scan]
    phantom, spacings = False, []
    for case in progress(chosen, "reading sites", len(chosen)):
        volume = read_case(index, case)
        phantom |= volume.provenance.has_mark("phantom")
        spacings.append(volume.geometry.spacing_zyx_mm[1])
        for forgery in by_scan[case.scan_id]:
            part: Part = "train" if case.split == "train" else "test"
            _gather(found[forgery.edit.generator, part], volume, forgery, side, case.patient)
    if not any(sites.forged for sites in found.values()):
        what = f"no train or test scan is forged by {', '.join(GENERATORS)}"
        raise DataError(what, where=data, remedy="make some: ctguard synth --generators pix2pix,cyclegan,diffusion")
    families = [_family(name, {part: found[name, part] for part in PARTS}) for name in GENERATORS]
    return CtSide(families, phantom, _note(found, side, spacings, phantom))


def edited_slices(edit: Edit) -> list[int]:
    """Slices of the scan in which the edit is at least half as large as in its largest one."""
    area = edit.mask.sum(axis=(1, 2))
    return [edit.box_start_zyx[0] + int(k) for k in np.flatnonzero(2 * area >= area.max())]


def _gather(sites: _Sites, volume: Volume, forgery: Forgery, side: int, patient: str) -> None:
    edit = forgery.edit
    if min(volume.hu.shape[1:]) < side:
        raise DataError(f"slices of {volume.hu.shape[1:]} hold no patch of {side} pixels", where=forgery.scan_id)
    window = tuple(slice(a, a + n) for a, n in zip(edit.box_start_zyx[1:], forgery.block.shape[1:], strict=True))
    corner = tuple(
        int(np.clip(round(c - side / 2), 0, n - side))
        for c, n in zip(edit.center_zyx[1:], volume.hu.shape[1:], strict=True)
    )
    patch = tuple(slice(a, a + side) for a in corner)
    for z in edited_slices(edit):
        forged = volume.hu[z].copy()
        forged[window] = forgery.block[z - edit.box_start_zyx[0]]
        sites.pristine.append(_windowed(volume.hu[z][patch]))
        sites.forged.append(_windowed(forged[patch]))
        sites.patients.append(patient)
    sites.sites += 1


def _windowed(patch: NDArray[Any]) -> NDArray[np.float32]:
    low, high = WINDOW_HU
    return ((np.clip(patch.astype(np.float32), low, high) - low) / np.float32(high - low))[None]


def _family(name: str, parts: dict[Part, _Sites]) -> Family:
    full = {part: sites for part, sites in parts.items() if sites.forged}
    real = {part: Pictures(np.stack(sites.pristine), tuple(sites.patients)) for part, sites in full.items()}
    fake = {part: Pictures(np.stack(sites.forged), tuple(sites.patients)) for part, sites in full.items()}
    return Family(name, real, fake)


def _note(found: dict[tuple[str, Part], _Sites], side: int, spacings: Sequence[float], phantom: bool) -> str:
    counts = []
    for (name, part), sites in found.items():
        if sites.forged:
            patients = len(set(sites.patients))
            counts.append(f"{name} {part} {sites.sites} sites of {patients} patients, {len(sites.forged)} patches")
    low, high = min(spacings) * side, max(spacings) * side
    return (
        f"CT: {'phantoms' if phantom else 'scans'}; location known: patches of {side} x {side} pixels around each site "
        f"({low:.0f} to {high:.0f} mm), axial slices, grey window {WINDOW_HU[0]:.0f} to {WINDOW_HU[1]:.0f} HU; of each "
        "site the slices in which at least half as much changed as in the worst. Real: the same places of the same "
        f"scans before forging. {'; '.join(counts)}."
    )
