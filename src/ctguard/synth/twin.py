"""`twin`: a cube of another, honest acquisition of a phantom, pasted in. Its one trace is the paste.

Nothing is resampled, equalised or touched up. Removal: the patient without the nodule. Injection: with one more.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ctguard.core.errors import GeometryError, RecipeError
from ctguard.core.geometry import as_float_triple, index_to_lps_mm
from ctguard.core.volume import Volume
from ctguard.phantom.twins import acquire_block, acquired, with_nodule, without_nodule
from ctguard.tamper.cube import Box
from ctguard.tamper.pipeline import Plan, plan_cube

TWIN = "twin"


def paste_twin(volume: Volume, plan: Plan) -> tuple[Box, NDArray[np.int16]]:
    """The nominal cube of a plan, and what the twin shows there, int16 HU. The plan's seed draws noise and nodule.

    Raises GeometryError where the scan has no twin: it is no phantom as rendered, or has no nodule to remove there.
    """
    where = as_float_triple(index_to_lps_mm(volume.geometry, plan.center_zyx))
    try:
        patient, acquisition = acquired(volume)
        if plan.task == "inject":
            patient = with_nodule(patient, where, np.random.default_rng([plan.seed, 401]))
        else:
            patient = without_nodule(patient, where)
    except RecipeError as error:
        raise GeometryError(error.what, remedy=error.remedy) from error
    box = plan_cube(volume.geometry, plan).paste
    return box, acquire_block(patient, acquisition, box.start_zyx, box.shape_zyx, plan.seed)
