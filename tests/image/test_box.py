"""The box of a mask: it holds all of it, and no smaller one does."""

from __future__ import annotations

import numpy as np
import pytest

from ctguard.image.box import mask_box


@pytest.mark.parametrize("count", [1, 2, 40])
def test_the_box_is_tight(count: int) -> None:
    rng = np.random.default_rng(count)
    mask = np.zeros((7, 9, 11), dtype=bool)
    mask.ravel()[rng.choice(mask.size, count, replace=False)] = True
    box = mask_box(mask)
    assert box is not None
    assert mask[box].sum() == count, "it holds all of the mask"
    for axis in range(3):
        inside = np.moveaxis(mask[box], axis, 0)
        assert inside[0].any() and inside[-1].any(), "every face of it touches the mask"


def test_the_box_of_a_full_mask_is_the_grid_and_an_empty_mask_has_none() -> None:
    assert mask_box(np.ones((3, 4, 5), dtype=bool)) == (slice(0, 3), slice(0, 4), slice(0, 5))
    assert mask_box(np.zeros((3, 4, 5), dtype=bool)) is None
