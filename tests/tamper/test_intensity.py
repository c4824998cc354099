"""The equaliser: a round trip, and what a share of soft tissue does to its scale."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ctguard.tamper.intensity import Equaliser


def fitted(soft_share: float) -> Equaliser:
    """Fitted to lung with a little soft tissue, as cubes around nodules are."""
    rng = np.random.default_rng(0)
    equaliser = Equaliser(soft_share)
    equaliser.fit(np.concatenate([rng.normal(-850, 40, 90000), rng.normal(40, 30, 10000)]).astype(np.float32))
    return equaliser


@pytest.mark.parametrize("soft_share", [0.0, 0.35])
def test_hu_come_back_from_network_range(soft_share: float) -> None:
    equaliser = fitted(soft_share)
    hu = torch.linspace(-1000, 1500, 500)
    norm = equaliser(hu)
    assert norm.min() >= -0.5 and norm.max() <= 0.5 and bool((norm.diff() > 0).all())
    assert torch.allclose(equaliser.inverse(norm), hu, atol=0.5)


def test_a_soft_share_gives_room_between_lung_and_soft_tissue() -> None:
    """Where a lesion's margin lies and training voxels are rare, the same step in network range is fewer HU."""
    margin = torch.tensor([-650.0, -150.0])
    narrow, wide = (float(fitted(share)(margin).diff()) for share in (0.0, 0.35))
    assert narrow < 0.03 and wide > 0.14
