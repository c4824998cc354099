"""Phantom nodules planted in the lung of a real, de-identified scan: training material with real noise around it.

Only blocks are made, one nodule each, and each is marked as a phantom.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy import ndimage

from ctguard import io
from ctguard.core.errors import GeometryError, RefusedError
from ctguard.core.geometry import FloatTriple, as_float_triple, as_int_triple, index_to_lps_mm
from ctguard.core.marks import Mark
from ctguard.core.provenance import Step
from ctguard.core.records import Case, Finding, Split
from ctguard.core.volume import Volume
from ctguard.image.lung import lung_mask
from ctguard.image.noise import sample_noise_like
from ctguard.io.cases import twin_path, write_cases
from ctguard.phantom.anatomy import Anatomy
from ctguard.phantom.fields import F32, Axes
from ctguard.phantom.nodules import Nodule, paint_nodule
from ctguard.phantom.patients import draw_patient

COLLECTION = "planted"
BLOCK_MM = 64.0
_LUNG_HU = (-950.0, -600.0)
_WALL_MM = (2.0, 9.0)
_SUB_MM = 1.0
_PROBE_HU = 1000.0


def plant_nodule(
    volume: Volume, nodule: Nodule, anatomy: Anatomy, center_zyx: FloatTriple
) -> tuple[Volume, Volume, Finding]:
    """A 64 mm block of the scan with a phantom nodule at its site, the same block without it, and the finding.

    The nodule replaces tissue in proportion to its partial volume in each voxel, and carries noise of the block's own
    spectrum where it took the original's away. Raises RefusedError for a scan that is not de-identified.
    """
    if not volume.provenance.source.deidentified:
        raise RefusedError(
            "this scan does not say that it is de-identified", remedy="give PatientIdentityRemoved = YES"
        )
    spacing = np.asarray(volume.geometry.spacing_zyx_mm)
    half = np.ceil(BLOCK_MM / 2 / spacing).astype(int)
    start = np.maximum(np.round(center_zyx).astype(int) - half, 0)
    stop = np.minimum(np.round(center_zyx).astype(int) + half + 1, volume.hu.shape)
    block = volume.hu[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))].astype(np.float32)
    geometry = volume.geometry.crop(as_int_triple(start), as_int_triple(stop - start))
    emitted, kept = _painted(nodule, anatomy, block, as_float_triple(np.subtract(center_zyx, start)), spacing)
    seen = (block < _LUNG_HU[1]) & (kept > 0.999)
    noise = sample_noise_like(block, geometry.shape_zyx, np.random.default_rng(nodule.seed), seen)
    planted = block * kept + emitted + noise * np.sqrt(1 - kept**2)
    hu = np.clip(np.rint(planted), -1024, 3071).astype(np.int16)
    mark = Mark("phantom", "a phantom nodule planted in a block of a de-identified scan")
    where = as_float_triple(index_to_lps_mm(volume.geometry, center_zyx))
    step = Step("plant", {"nodule": nodule.to_json()})
    finding = Finding(where, nodule.diameter_mm, 5.0 if nodule.malignant else 1.0, "phantom")
    bare = np.clip(np.rint(block), -1024, 3071).astype(np.int16)
    without = Volume(bare, geometry, volume.provenance.then(Step("crop", {"center_zyx": list(center_zyx)})))
    return Volume(hu, geometry, volume.provenance.then(step, mark)), without, finding


def _painted(
    nodule: Nodule, anatomy: Anatomy, block: F32, center_zyx: FloatTriple, spacing: np.ndarray
) -> tuple[F32, F32]:
    """What the nodule adds (HU) and what share of the block it lets through, both averaged over slice thickness."""
    parts = max(1, round(spacing[0] / _SUB_MM))
    count = block.shape[0]
    index = (np.arange(count * parts) + 0.5) / parts - 0.5
    cx, cy, cz = nodule.center_lps_mm
    axes: Axes = (
        cz + (index - center_zyx[0]) * spacing[0],
        cy + (np.arange(block.shape[1]) - center_zyx[1]) * spacing[1],
        cx + (np.arange(block.shape[2]) - center_zyx[2]) * spacing[2],
    )
    # Painting is linear in what lies beneath: two flat backgrounds tell emission and transmission apart.
    share = ndimage.gaussian_filter((block < _LUNG_HU[1] + 200).astype(np.float32), 1.0)
    share = np.repeat(share, parts, axis=0)
    on_zero, on_probe = np.zeros_like(share), np.full_like(share, _PROBE_HU)
    for canvas in (on_zero, on_probe):
        paint_nodule(anatomy, nodule, axes, canvas, share)
    shape = (count, parts, *block.shape[1:])
    emitted, probed = (canvas.reshape(shape).mean(axis=1, dtype=np.float32) for canvas in (on_zero, on_probe))
    return emitted, np.clip((probed - emitted) / _PROBE_HU, 0, 1)


def _plant_sites(volume: Volume, at_wall: bool) -> np.ndarray:
    """Voxels (n, 3) of aerated lung where a nodule may stand: away from the edge of the lung, or 2-9 mm from it."""
    lung = lung_mask(volume)
    if at_wall:
        depth_mm = ndimage.distance_transform_edt(lung, sampling=volume.geometry.spacing_zyx_mm)
        allowed = (depth_mm >= _WALL_MM[0]) & (depth_mm <= _WALL_MM[1])
    else:
        allowed = ndimage.binary_erosion(lung, iterations=4)
    ends = max(1, len(allowed) // 8)
    allowed[:ends] = allowed[-ends:] = False
    return np.argwhere(allowed & (volume.hu > _LUNG_HU[0]) & (volume.hu < _LUNG_HU[1]))


def write_planted(
    scan: Path,
    out: Path,
    count: int,
    *,
    first_seed: int = 0,
    min_mm: float = 8.0,
    at_wall: bool = False,
    split: Split = "train",
) -> Path:
    """Write `count` planted blocks of a scan, each with one nodule of `min_mm` or more, and their index.csv.

    Beside each block lies the same block without the nodule (`io.cases.twin_path`). Nodules come from phantom patients
    first_seed, first_seed + 1, … at_wall: at the edge of the lung, so that they lean on the chest wall, a fissure's
    end or the mediastinum; by default they keep away from it. Raises GeometryError where no lung is found.
    """
    volume = io.read(scan)
    rng = np.random.default_rng([first_seed, count])
    sites = _plant_sites(volume, at_wall)
    if len(sites) == 0:
        raise GeometryError("no lung was found to plant in", where=scan, remedy="give a chest CT")
    patient_id = volume.provenance.source.patient_id or scan.stem
    cases: list[Case] = []
    seed = first_seed
    while len(cases) < count:
        patient = draw_patient(seed)
        seed += 1
        for nodule in (one for one in patient.nodules if one.diameter_mm >= min_mm):
            if len(cases) == count:
                break
            site = as_float_triple(sites[rng.integers(len(sites))])
            block, without, finding = plant_nodule(volume, nodule, patient.anatomy, site)
            name = f"planted-{len(cases):05d}"
            io.write(block, out / f"{name}.mha")
            io.write(without, twin_path(out / f"{name}.mha"))
            cases.append(Case(name, patient_id, f"{name}.mha", COLLECTION, "", split, (finding,)))
    write_cases(cases, out / "index.csv")
    return out / "index.csv"
