"""Blocks of phantom lung with and without a nodule: training material for a scorer, many of them at little cost.

The tissue around a site is painted once; every block of the site shows it with another nodule, or with none, and with
a slice thickness, a kernel and noise of its own. The level of the noise is drawn and is the same all over a block.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from ctguard import io
from ctguard.core.errors import RecipeError
from ctguard.core.geometry import FloatTriple, Geometry, as_float_triple, lps_mm_to_index
from ctguard.core.marks import Mark
from ctguard.core.provenance import Json, Provenance, Source, Step
from ctguard.core.records import Case, Finding, Split
from ctguard.core.volume import Volume
from ctguard.io.cases import read_cases, write_cases
from ctguard.parallel import map_cases
from ctguard.phantom import physics
from ctguard.phantom.anatomy import lobe, lungs
from ctguard.phantom.fields import F32, grid_axes
from ctguard.phantom.nodules import Nodule, draw_nodule, paint_nodule
from ctguard.phantom.patients import COLLECTION, Patient, draw_acquisition, draw_lung_site, draw_patient
from ctguard.phantom.physics import KERNELS, Kernel
from ctguard.phantom.tissue import Canvas, paint_chest, paint_lungs

BLOCK_MM = 56.0
STEP = "block"
"""Provenance step of a block; "lung_box_lps_mm" is the box of the lungs in the scan that it stands for."""
NODULES_PER_SITE = 4
_BOX_GRID_MM = 10.0
_SLICE_MM = 1.25
_PIXELS_MM = (0.6, 0.85)
_EDGE = 6
_MARGIN = 2
_NOISE_HU = (17.0, 0.4)
"""Median and log-SD of the noise of the standard kernel in lung, as bench phantoms have it."""


def draw_blocks(
    patient: Patient, center_lps_mm: FloatTriple, seed: int, count: int = NODULES_PER_SITE
) -> list[tuple[Volume, Nodule | None]]:
    """Blocks of 56 mm around one place: one without a nodule, and `count` with nodules drawn anew for it.

    Nodules at one place share its surroundings and nothing else. About half are malignant, more in upper lobes, as in
    `nodules.draw_nodule`. Each block names the box of the lungs in a bench or a full-size scan of the patient.
    """
    rng = np.random.default_rng([patient.seed, patient.style, seed, 307])
    pixel = round(float(rng.uniform(*_PIXELS_MM)), 3)
    shape = (round(BLOCK_MM / _SLICE_MM), round(BLOCK_MM / pixel), round(BLOCK_MM / pixel))
    spacing = (_SLICE_MM, pixel, pixel)
    tissue, share, wide = _paint_tissue(patient, center_lps_mm, shape, spacing)
    upper = bool(np.isin(lobe(patient.anatomy, *(np.array([c]) for c in center_lps_mm)), (0, 3))[0])
    odds = 0.62 / (0.62 + 0.40) if upper else 0.38 / (0.38 + 0.60)
    nodules: list[Nodule | None] = [None]
    for _ in range(count):
        drawn = draw_nodule(patient.anatomy, rng, bool(rng.random() < odds))
        nodules.append(replace(drawn, center_lps_mm=center_lps_mm))
    axes = grid_axes(wide)
    boxes = [_lung_box(patient, center_lps_mm, size, int(rng.integers(2**31))) for size in ("bench", "full")]
    blocks = []
    for number, nodule in enumerate(nodules):
        hu = tissue.copy()
        if nodule is not None:
            paint_nodule(patient.anatomy, nodule, axes, hu, share)
        blocks.append((_taken(patient, hu, wide, nodule, boxes[number % 2], rng), nodule))
    return blocks


def _paint_tissue(
    patient: Patient, center_lps_mm: FloatTriple, shape: tuple[int, int, int], spacing: FloatTriple
) -> tuple[F32, F32, Geometry]:
    """HU and share of lung around a place, with a margin for the slice profile and the kernel, and their grid."""
    full = (shape[0] + 2 * _MARGIN, shape[1] + 2 * _EDGE, shape[2] + 2 * _EDGE)
    offset = [(n - 1) / 2 * s for n, s in zip(full, spacing, strict=True)]
    origin = as_float_triple(np.subtract(center_lps_mm, offset[::-1]))
    grid = Geometry(full, spacing, origin)
    canvas = Canvas(patient.anatomy, grid_axes(grid))
    paint_chest(canvas)
    return canvas.hu, paint_lungs(canvas), grid


def _taken(
    patient: Patient, hu: F32, wide: Geometry, nodule: Nodule | None, lung_box: Json, rng: np.random.Generator
) -> Volume:
    """The block as a scanner drawn at random shows it."""
    kernel: Kernel = KERNELS[int(rng.choice(3, p=[0.25, 0.5, 0.25]))]
    thickness = _SLICE_MM * float(rng.choice([1.0, 1.25, 1.6, 2.0, 3.0]))
    in_plane = wide.spacing_zyx_mm[1:]
    seen = physics.blur(_averaged(hu, thickness), in_plane, kernel)[:, _EDGE:-_EDGE, _EDGE:-_EDGE]
    ratio = physics.kernel_gain(kernel, in_plane) / physics.kernel_gain("standard", in_plane)
    sd = float(_NOISE_HU[0] * ratio * np.exp(_NOISE_HU[1] * rng.normal()) / np.sqrt(thickness / _SLICE_MM))
    shape = (seen.shape[0], seen.shape[1], seen.shape[2])
    seed = int(rng.integers(2**31))
    seen = seen + np.float32(sd) * physics.shaped_noise(seed, shape, wide.spacing_zyx_mm, kernel, thickness)
    geometry = wide.crop((_MARGIN, _EDGE, _EDGE), shape)
    params: dict[str, Json] = {
        "patient": patient.seed,
        "style": patient.style,
        "nodule": None if nodule is None else nodule.to_json(),
        "kernel": kernel,
        "slice_thickness_mm": thickness,
        "noise_sd_hu": round(sd, 2),
        "lung_box_lps_mm": lung_box,
    }
    source = Source("phantom", patient_id=patient.name, kernel=kernel, deidentified=True)
    mark = Mark("phantom", f"synthetic block of CT, patient seed {patient.seed}, style {patient.style}; no person")
    voxels = np.clip(np.rint(seen), -1024, 3071).astype(np.int16)
    return Volume(voxels, geometry, Provenance(source).then(Step(STEP, params), mark))


def _averaged(hu: F32, thickness_mm: float) -> F32:
    """Slices as thick as the profile: a box with the parts of slices at its ends."""
    reach = 0.5 * thickness_mm / _SLICE_MM - 0.5
    weights = [float(np.clip(reach + 1 - abs(k), 0, 1)) for k in range(-_MARGIN, _MARGIN + 1)]
    count = len(hu) - 2 * _MARGIN
    averaged = np.zeros((count, *hu.shape[1:]), np.float32)
    for k, weight in enumerate(weights):
        if weight > 0:
            averaged += np.float32(weight / sum(weights)) * hu[k : k + count]
    return averaged


def _lung_box(patient: Patient, middle: FloatTriple, size: str, seed: int) -> Json:
    """[[x, y, z] lowest, [x, y, z] highest] of lung in a scan of this size, which always holds the block's middle."""
    field = draw_acquisition(patient, size, seed).geometry
    if not field.contains(lps_mm_to_index(field, middle)):
        field = draw_acquisition(patient, "full", seed).geometry
    last = (np.asarray(field.shape_zyx) - 1) * np.asarray(field.spacing_zyx_mm)
    x, y, z = (
        np.arange(start, start + length + 1, _BOX_GRID_MM)
        for start, length in zip(field.origin_lps_mm, last[::-1], strict=True)
    )
    gz, gy, gx = (g.ravel() for g in np.meshgrid(z, y, x, indexing="ij"))
    inside = lungs(patient.anatomy, gx, gy, gz) < 0
    points = np.stack([gx, gy, gz], -1)[inside]
    low, high = np.minimum(points.min(0), middle), np.maximum(points.max(0), middle)
    return [[round(float(v), 1) for v in low], [round(float(v), 1) for v in high]]


def write_blocks(
    out: Path, patients: int, *, first_seed: int = 0, style: int = 1, jobs: int = 1, split: Split | None = None
) -> Path:
    """Write blocks of patients first_seed, first_seed + 1, … into `out`, and index.csv; return its path.

    Every patient gives the blocks of up to two nodules' places and one of healthy lung. Findings have malignancy 1
    or 5; blocks without a nodule have none. Patients that are there already are kept, so that a killed run goes on.
    split: of all patients; by default every tenth is for validation and the others train.
    Raises RecipeError for no patients.
    """
    if patients < 1:
        raise RecipeError(f"blocks of {patients} patients", remedy="give 1 or more")
    out.mkdir(parents=True, exist_ok=True)
    seeds = range(first_seed, first_seed + patients)
    make = partial(_patient_blocks, out=out, style=style)
    cases: list[Case] = []
    for order, result in enumerate(map_cases(make, seeds, jobs=jobs, label="blocks")):
        place: Split = split or ("valid" if order % 10 == 9 else "train")
        cases += [replace(case, split=place) for case in result.unwrap()]
    write_cases(cases, out / "index.csv")
    return out / "index.csv"


def _patient_blocks(seed: int, out: Path, style: int) -> list[Case]:
    done = out / f"patient-s{style}-{seed:06d}.csv"
    if done.is_file():
        return read_cases(done)
    patient = draw_patient(seed, style)
    sites = [nodule.center_lps_mm for nodule in patient.nodules[:2]]
    rng = np.random.default_rng([seed, style, 311])
    sites.append(draw_lung_site(patient, draw_acquisition(patient, "full", seed), rng))
    cases = []
    for place, site in enumerate(sites):
        healthy = place + 1 == len(sites)
        for number, (volume, nodule) in enumerate(
            draw_blocks(patient, site, place, count=0 if healthy else NODULES_PER_SITE)
        ):
            name = f"{patient.name}-{place}-{number}"
            io.write(volume, out / f"{name}.mha")
            found = () if nodule is None else (_finding(nodule),)
            cases.append(Case(name, patient.name, f"{name}.mha", COLLECTION, findings=found))
    write_cases(cases, done)
    return cases


def _finding(nodule: Nodule) -> Finding:
    return Finding(nodule.center_lps_mm, nodule.diameter_mm, 5.0 if nodule.malignant else 1.0, "phantom")
