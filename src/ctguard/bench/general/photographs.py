"""Patches of the photographs that come with scikit-image: the real pictures of the stand-ins. Nothing is downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import skimage
from numpy.typing import NDArray
from PIL import Image

from ctguard.bench.general.pictures import PARTS, Part, Pictures
from ctguard.core.errors import DataError

PHOTOGRAPHS = (
    *("astronaut.png", "brick.png", "camera.png", "chelsea.png", "coffee.png", "coins.png"),
    *("grass.png", "gravel.png", "moon.png", "motorcycle_left.png", "rocket.jpg"),
)
"""Photographs in scikit-image's wheel, but for microscopes, telescopes' composites and scanned pages."""
SHARES: dict[Part, tuple[float, float]] = {"train": (0.0, 0.6), "test": (0.7, 1.0)}
"""Of a photograph's width; a tenth between them belongs to neither."""
LEAST_SD = 4.0
"""Grey levels; patches with less are sky or wall, and say nothing."""


def read_photographs(side: int, counts: dict[Part, int], seed: int) -> dict[Part, Pictures]:
    """Patches (n, 1, side, side), uint8 grey, equally many of each photograph; units are the photographs.

    Training and test are different parts of the same photographs. Raises DataError where one is missing.
    """
    folder = Path(skimage.__file__).parent / "data"
    found: dict[Part, tuple[list[NDArray[np.uint8]], list[str]]] = {part: ([], []) for part in PARTS}
    for number, name in enumerate(PHOTOGRAPHS):
        if not (folder / name).is_file():
            raise DataError(
                "this scikit-image has no such photograph", where=name, remedy="install it anew, or --images"
            )
        with Image.open(folder / name) as opened:
            grey = np.asarray(opened.convert("L"))
        for part, (patches, units) in found.items():
            first, last = (round(share * grey.shape[1]) for share in SHARES[part])
            rng = np.random.default_rng([seed, number, PARTS.index(part)])
            wanted = counts[part] // len(PHOTOGRAPHS) + (number < counts[part] % len(PHOTOGRAPHS))
            patches += _patches(grey[:, first:last], side, wanted, rng)
            units += [name] * wanted
    return {part: Pictures(np.stack(patches)[:, None], tuple(units)) for part, (patches, units) in found.items()}


def _patches(grey: NDArray[Any], side: int, count: int, rng: np.random.Generator) -> list[NDArray[np.uint8]]:
    """Patches at random places; of four times as many places, those with texture come first."""
    places = zip(*(rng.integers(n - side + 1, size=4 * count) for n in grey.shape), strict=True)
    drawn = [grey[y : y + side, x : x + side] for y, x in places]
    return sorted(drawn, key=lambda patch: float(patch.std()) < LEAST_SD)[:count]
