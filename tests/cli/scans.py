"""Small volumes for tests of the command line: a body with one lung and noise, and nothing else."""

from __future__ import annotations

import numpy as np

from ctguard.core.geometry import Geometry
from ctguard.core.marks import Mark
from ctguard.core.provenance import Provenance, Source
from ctguard.core.volume import Volume


def small_volume(seed: int = 0, shape_zyx: tuple[int, int, int] = (8, 32, 32), phantom: bool = True) -> Volume:
    """A tube of tissue (40 HU) around lung (-800 HU), marked as a phantom unless it shall pass for a clinical scan."""
    ny, nx = shape_zyx[1:]
    y, x = np.ogrid[-1 : 1 : ny * 1j, -1 : 1 : nx * 1j]
    radius = np.hypot(y, x)
    plane = np.where(radius < 0.65, -800.0, np.where(radius < 0.95, 40.0, -1000.0))
    hu = np.random.default_rng(seed).normal(plane, 30, shape_zyx).round().clip(-1024, 3071).astype(np.int16)
    source = Source("phantom", kernel="soft", patient_id=f"phantom-{seed}", deidentified=phantom)
    marks = (Mark("phantom", f"made for a test, {seed}"),) if phantom else ()
    return Volume(hu, Geometry(shape_zyx, (2.0, 1.5, 1.5), (0.0, 0.0, 10.0 * seed)), Provenance(source, marks=marks))
