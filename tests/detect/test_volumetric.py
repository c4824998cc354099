"""The volumetric detector judges tissue against the scan's own noise, at any depth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage

from ctguard.core.errors import RecipeError
from ctguard.core.threshold import Threshold
from ctguard.detect import noise_features
from ctguard.detect.infer import BLOCK, OVERLAP, detect_volume
from ctguard.detect.volumetric import Volumetric
from ctguard.train.fit import fit
from ctguard.train.recipe import Recipe
from tests.detect.scans import thorax


def lung(sd: float, seed: int = 0, shape: tuple[int, int, int] = (6, 80, 80)) -> torch.Tensor:
    noise = np.random.default_rng(seed).standard_normal(shape)
    coloured = ndimage.gaussian_filter(noise, (0, 0.7, 0.7))
    return torch.from_numpy(-850 + sd * coloured / coloured.std()).float()[None, None]


def seen(hu: torch.Tensor) -> torch.Tensor:
    weight = noise_features.aerated_weight(hu)
    noise = noise_features.normalised(noise_features.residuals(hu), weight)
    return noise_features.energies(noise, weight)


def test_dose_falls_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same noise at twice the level gives the same features to the network."""
    low, high = seen(lung(20)), seen(lung(40))
    assert float((low - high).abs().mean()) < 0.05


def test_noise_that_grows_across_the_chest_falls_out() -> None:
    """Four times the level at one side of 400 pixels: no side of untouched lung may look smoothed, or sharpened."""
    even = lung(1, shape=(6, 64, 400)) + 850
    hu = -850 + even * torch.linspace(10, 40, 400)
    found = seen(hu)[:, : noise_features.IN_PLANE, :, 5:-5]
    left, right = found[..., 10:60].mean(dim=(2, 3, 4)), found[..., 140:190].mean(dim=(2, 3, 4))
    assert float((left - right).abs().max()) < 0.5  # of log energy, which differs by 2 between these places


def test_smoothed_tissue_shows_in_the_shortest_lags_first() -> None:
    hu = lung(30)
    forged = hu.clone()
    part = (..., slice(24, 56), slice(24, 56))
    smooth = ndimage.gaussian_filter(hu[0, 0].numpy(), (0, 0.8, 0.8))
    forged[part] = torch.from_numpy(smooth)[None, None, ...][part]
    change = (seen(forged) - seen(hu))[0, :, :, 15:25, 15:25].mean(dim=(1, 2, 3))
    first, long = change[0], change[8]  # first difference along x at lag 1, second difference at lag 2
    assert first < -0.5 and first < long < 0


def test_a_single_slice_has_no_difference_between_slices() -> None:
    found = noise_features.residuals(lung(30)[:, :, :1])
    assert not found[:, noise_features.IN_PLANE :].any()
    with torch.no_grad():
        score, map_logit = Volumetric(width=4, tissue_width=2).eval()(lung(30)[:, :, :1])
    assert score.shape == (1,) and map_logit.shape == (1, 1, 1, 80, 80)


def test_residuals_have_unit_gain_on_white_noise() -> None:
    white = torch.randn(1, 1, 12, 96, 96, generator=torch.Generator().manual_seed(0))
    spread = noise_features.residuals(white)[..., 1:-1, 3:-3, 3:-3].std(dim=(0, 2, 3, 4))
    assert torch.allclose(spread, torch.ones(noise_features.CHANNELS), atol=0.05)


def test_blocks_of_a_long_scan_meet_without_a_seam() -> None:
    """With context on either side, no slice at a block's end is judged as if the scan ended there."""
    torch.manual_seed(0)
    detector = Volumetric(width=4, tissue_width=2).eval()
    assert OVERLAP >= 4 and BLOCK > 2 * OVERLAP
    volume = thorax((BLOCK + 10, 96, 112))
    verdict = detect_volume(volume, detector, name="v", model_id="m", threshold=Threshold(0.99))
    steps = np.abs(np.diff(verdict.map, axis=0)).max(axis=(1, 2))
    assert steps[BLOCK - 1] <= 3 * np.median(steps) + 1e-3


def test_the_map_is_the_mean_of_what_both_streams_say() -> None:
    torch.manual_seed(0)
    detector = Volumetric(width=4, tissue_width=2).eval()
    x = lung(30, shape=(5, 48, 50))
    with torch.no_grad():
        slices = torch.stack([detector.tissue.map_logit(x[:, :, z]) for z in range(5)], dim=2)
        assert torch.allclose(detector.map_logit(x), (detector.noise(x) + slices) / 2, atol=1e-4)


def test_the_tissue_stream_is_not_trained(tmp_path: Path) -> None:
    torch.manual_seed(0)
    detector = Volumetric(width=4, tissue_width=2)
    before = {key: value.clone() for key, value in detector.state_dict().items()}
    x = lung(30, shape=(2, 48, 48))
    batch = {"x": torch.cat((x, x)), "mask": (torch.cat((x, x)) > -830).float(), "label": torch.tensor([1.0, 1.0])}
    recipe = Recipe("t", "volumetric", "cpu", steps=2, batch=2, optimiser={"lr": 1e-2})
    after = fit(detector, lambda _: batch, recipe, tmp_path, quiet=True).module.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before if key.startswith("tissue."))
    assert any(not torch.equal(before[key], after[key]) for key in before if key.startswith("noise."))


@pytest.mark.parametrize("settings", [{"width": 0}, {"smooth": 4}])
def test_settings_that_make_no_network_are_refused(settings: dict[str, int]) -> None:
    with pytest.raises(RecipeError, match="no volumetric detector"):
        Volumetric(**settings)
