"""The bounding box of a mask."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage


def mask_box(mask: NDArray[np.bool_]) -> tuple[slice, slice, slice] | None:
    """The smallest box that holds a mask (z, y, x), as slices; None where the mask is empty."""
    boxes = ndimage.find_objects(mask.astype(np.uint8))
    return boxes[0] if boxes else None
