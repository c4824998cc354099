"""Where the pattern is missing, judged on evidence made by hand."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from ctguard.protect.evidence import Evidence, missing_tiles

SPACING_ZYX_MM, TILE_MM = (1.25, 8.0, 8.0), (8.0, 8.0)
HERE = (slice(None), 12, 12)


def evidence(*lacking: slice, seed: int | None = None, spread: float = 1.0) -> Evidence:
    """40 slices of 24 x 24 tiles; 32 mm in the middle of some slices lack the pattern. seed: noise on all of it."""
    expected = np.full((40, 24, 24), 0.5, np.float32)
    found = expected.copy()
    for part in lacking:
        found[part, 10:14, 10:14] = 0
    if seed is not None:
        noise = np.random.default_rng(seed).normal(size=found.shape)
        found += (spread * noise * np.sqrt(expected)).astype(np.float32)
    return Evidence(found, expected, np.ones_like(found))


def flags(shown: Evidence) -> NDArray[np.bool_]:
    return missing_tiles(shown, SPACING_ZYX_MM, TILE_MM)


def test_what_lies_between_two_forged_places_is_not_accused() -> None:
    flagged = flags(evidence(slice(2, 14), slice(26, 38)))
    assert flagged[HERE][4:12].all() and flagged[HERE][28:36].all()
    assert not flagged[15:25].any() and not flagged[:, :8].any()


@pytest.mark.parametrize("spread", [1.0, 1.3])
def test_windows_that_scatter_more_than_their_noise_says_raise_no_alarm(spread: float) -> None:
    assert not any(flags(evidence(seed=seed, spread=spread)).any() for seed in range(40))
    assert all(flags(evidence(slice(8, 34), seed=seed, spread=spread))[HERE][14:28].any() for seed in range(10))
