"""Small scans and a detector that needs no training, for the tests of detection and of its laws."""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from ctguard.core.geometry import FloatTriple, Geometry, IntTriple
from ctguard.core.provenance import Provenance, Source
from ctguard.core.volume import Volume
from ctguard.detect.detector import Batch, Detector


def thorax(shape_zyx: IntTriple = (5, 96, 112), spacing_zyx_mm: FloatTriple = (2.5, 3.0, 3.0), seed: int = 0) -> Volume:
    """An oval body with two lungs and correlated noise, int16 HU, on a grid that is not at the origin."""
    rng = np.random.default_rng(seed)
    _, y, x = shape_zyx
    yy, xx = np.mgrid[0:y, 0:x]
    hu = np.full(shape_zyx, -1000.0)
    hu[:, _oval(yy, xx, (y / 2, x / 2), (0.42 * y, 0.42 * x))] = 40
    for side in (-1, 1):
        hu[:, _oval(yy, xx, (y / 2, x / 2 + side * 0.19 * x), (0.28 * y, 0.13 * x))] = -830
    hu += ndimage.gaussian_filter(rng.normal(0, 80, shape_zyx), (0, 0.7, 0.7))
    geometry = Geometry(shape_zyx, spacing_zyx_mm, (-120.0, -90.0, 33.0))
    return Volume(hu.round().astype(np.int16), geometry, Provenance(Source("phantom")))


def _oval(yy: np.ndarray, xx: np.ndarray, center: tuple[float, float], radii: tuple[float, float]) -> np.ndarray:
    return ((yy - center[0]) / radii[0]) ** 2 + ((xx - center[1]) / radii[1]) ** 2 <= 1


class BrightSpot(Detector):
    """Calls forged what is brighter than 500 HU, in the whole body. Its score is the slice's hottest pixel."""

    area = "body"

    def __init__(self) -> None:
        super().__init__()
        self.window_hu = (-1000.0, 1000.0)
        self.dims = 2
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.shapes.append(tuple(x.shape))
        logit = (x - 500) / 50
        return logit.flatten(1).amax(dim=1), logit

    def step(self, batch: Batch, turn: str) -> dict[str, Tensor]:
        return {"loss": torch.zeros(())}
