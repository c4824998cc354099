"""A phantom patient acquired once more, with a nodule less or more: tissue that no generator made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ctguard.core.errors import RecipeError
from ctguard.core.geometry import FloatTriple, as_int_triple
from ctguard.core.volume import Volume
from ctguard.phantom.nodules import Nodule, draw_nodule
from ctguard.phantom.patients import Acquisition, Patient, draw_patient
from ctguard.phantom.render import Scan, image

INJECTED_MM = (10.0, 20.0)
"""Diameters of injected nodules (protocols: injection)."""
_NEAR_MM = 4.0


def acquired(volume: Volume) -> tuple[Patient, Acquisition]:
    """Who was scanned, with the nodules that were rendered, and how, from the volume's provenance.

    Raises RecipeError for a scan that is not a phantom as it was rendered, on its own grid.
    """
    params = next((step.params for step in volume.provenance.steps if step.name == "phantom"), None)
    if params is None:
        raise RecipeError("this scan is no phantom of ours: it has no twin", remedy="leave out twin, or give phantoms")
    patient = draw_patient(int(params["patient"]), int(params["style"]))  # type: ignore[arg-type]
    if params["nodules"] is not True:
        chosen: Sequence[int] = params["nodules"] or ()  # type: ignore[assignment]
        patient = replace(patient, nodules=tuple(patient.nodules[int(k)] for k in chosen))
    acquisition = Acquisition.from_json(cast(dict[str, Any], params["acquisition"]))
    if acquisition.geometry != volume.geometry:
        raise RecipeError("this phantom lies on another grid than it was rendered on", remedy="give it as rendered")
    return patient, acquisition


def without_nodule(patient: Patient, at_lps_mm: FloatTriple) -> Patient:
    """The patient without the nodule that covers a place. Raises RecipeError where there is none."""
    kept = _others(patient, at_lps_mm)
    if len(kept) == len(patient.nodules):
        raise RecipeError("no nodule of this phantom lies there", remedy="remove one of its findings")
    return replace(patient, nodules=kept)


def with_nodule(patient: Patient, at_lps_mm: FloatTriple, rng: np.random.Generator) -> Patient:
    """The patient with a further malignant nodule of 10-20 mm at a place; one that covers the place makes room."""
    while True:
        drawn = draw_nodule(patient.anatomy, rng, malignant=True)
        if INJECTED_MM[0] <= drawn.diameter_mm <= INJECTED_MM[1]:
            break
    new = replace(drawn, center_lps_mm=at_lps_mm, attachment="none")
    return replace(patient, nodules=(*_others(patient, at_lps_mm), new))


def acquire_block(
    patient: Patient, acquisition: Acquisition, start_zyx: Sequence[int], shape_zyx: Sequence[int], seed: int
) -> NDArray[np.int16]:
    """Some voxels of a new acquisition, (z, y, x) HU: same grid, dose and kernel; noise of its own, by `seed`."""
    geometry = acquisition.geometry.crop(as_int_triple(start_zyx), as_int_triple(shape_zyx))
    how = (acquisition.dose_mas, acquisition.kernel, acquisition.slice_thickness_mm)
    hu = image(patient.anatomy, patient.nodules, Scan(geometry, *how, seed, acquisition.metal), True)
    return np.clip(np.rint(hu), -1024, 3071).astype(np.int16)


def _others(patient: Patient, at_lps_mm: FloatTriple) -> tuple[Nodule, ...]:
    """The nodules that do not cover a place."""
    away = [float(np.linalg.norm(np.subtract(one.center_lps_mm, at_lps_mm))) for one in patient.nodules]
    return tuple(one for one, mm in zip(patient.nodules, away, strict=True) if mm > max(one.diameter_mm / 2, _NEAR_MM))
