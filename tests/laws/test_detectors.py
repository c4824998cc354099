"""Laws that every detector keeps. A new detector is one more row of DETECTORS."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from ctguard.core.marks import Mark
from ctguard.core.provenance import Provenance, Source, Step
from ctguard.core.threshold import Threshold
from ctguard.core.volume import Volume
from ctguard.detect.detector import Batch, Detector
from ctguard.detect.hpfcn import HPFCN
from ctguard.detect.infer import detect_volume
from ctguard.detect.mantranet import ManTraNet
from ctguard.detect.mvssnet import MVSSNet
from ctguard.detect.trufor import TruFor
from ctguard.detect.unet import UNet2d
from ctguard.detect.volumetric import Volumetric
from ctguard.detect.xception import Xception
from tests.detect.scans import thorax

DETECTORS: dict[str, Callable[[], Detector]] = {
    "unet": lambda: UNet2d(width=4),
    "volumetric": lambda: Volumetric(width=4, tissue_width=2),
    "xception": lambda: Xception(width=2, window_px=32),
    "hpfcn": lambda: HPFCN(width=2),
    "mvssnet": lambda: MVSSNet(width=2),
    "mantranet": lambda: ManTraNet(width=2, hidden=2),
    "trufor": lambda: TruFor(width=2, depths=(1, 1, 1, 1), extractor_width=4, extractor_depth=3),
}


@pytest.fixture(params=list(DETECTORS))
def detector(request: pytest.FixtureRequest) -> Detector:
    torch.manual_seed(0)
    return DETECTORS[request.param]().eval()


def some_hu(detector: Detector, *size: int) -> torch.Tensor:
    shape = (2, 1, *size) if detector.dims == 2 else (2, 1, 24, *size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 300 - 700


def a_batch(detector: Detector) -> Batch:
    x = some_hu(detector, 48, 48)
    mask, ignore = torch.zeros_like(x), torch.zeros_like(x)
    mask[0, ..., 10:20, 12:22] = 1
    ignore[..., 30:40, :10] = 1
    return {"x": x, "mask": mask, "ignore": ignore, "label": torch.tensor([1.0, 0.0])}


@pytest.mark.parametrize("size", [(64, 64), (33, 47), (17, 96), (7, 5)])
def test_score_and_map_have_the_shapes_of_the_contract(detector: Detector, size: tuple[int, int]) -> None:
    x = some_hu(detector, *size)
    with torch.no_grad():
        score, map_logit = detector(x)
    assert score.shape == (2,) and map_logit.shape == x.shape
    assert torch.isfinite(score).all() and torch.isfinite(map_logit).all()


def test_padding_values_of_scanners_do_no_harm(detector: Detector) -> None:
    x = some_hu(detector, 48, 48)
    x[..., :8] = -3024.0
    x[..., -4:] = 32767.0
    with torch.no_grad():
        score, map_logit = detector(x)
    assert torch.isfinite(score).all() and torch.isfinite(map_logit).all()


def test_the_window_is_a_range_of_hounsfield_units(detector: Detector) -> None:
    low, high = detector.window_hu
    assert -3100 <= low < high <= 4000 and high - low >= 200


def test_a_gradient_reaches_the_voxels(detector: Detector) -> None:
    x = some_hu(detector, 48, 48).requires_grad_()
    score, map_logit = detector(x)
    (score.sum() + map_logit.mean()).backward()
    assert x.grad is not None and torch.isfinite(x.grad).all() and x.grad.abs().max() > 0


def test_every_turn_gives_finite_losses_and_moves_its_optimizer(detector: Detector) -> None:
    detector.train()
    optimizers = detector.optimizers({"lr": 1e-3})
    assert set(optimizers) == set(detector.turns)
    for turn in detector.turns:
        before = [p.detach().clone() for group in optimizers[turn].param_groups for p in group["params"]]
        losses = detector.step(a_batch(detector), turn)
        assert all(loss.ndim == 0 and torch.isfinite(loss) for loss in losses.values())
        optimizers[turn].zero_grad()
        losses["loss"].backward()
        optimizers[turn].step()
        after = [p for group in optimizers[turn].param_groups for p in group["params"]]
        assert any(not torch.equal(old, new) for old, new in zip(before, after, strict=True))


def test_an_ignore_mask_is_optional_and_may_cover_everything(detector: Detector) -> None:
    batch = a_batch(detector)
    for turn in detector.turns:
        whole = {**batch, "ignore": torch.ones_like(batch["mask"])}
        none = {key: value for key, value in batch.items() if key != "ignore"}
        for case in (whole, none):
            assert torch.isfinite(detector.step(case, turn)["loss"])


def judged(detector: Detector, volume: Volume, *, fast: bool = False) -> tuple[object, ...]:
    verdict = detect_volume(volume, detector, name="law", model_id="untrained", threshold=Threshold(0.01), fast=fast)
    return verdict.score, verdict.map.tobytes(), verdict.regions


def test_the_same_scan_gets_the_same_verdict(detector: Detector) -> None:
    assert judged(detector, thorax()) == judged(detector, thorax())


def test_a_verdict_reads_voxels_and_geometry_only(detector: Detector) -> None:
    """Every mark, UID, name, path and step goes: the verdict stays."""
    plain = thorax()
    told = Provenance(
        Source(
            "dicom",
            files=tuple(f"forged/{z}.dcm" for z in range(5)),
            series_uid="1.2.3",
            patient_id="CTGUARD^FORGED",
            kernel="FORGED",
            padding_hu=-3024.0,
            deidentified=True,
        ),
        (Step("inject", {"center_zyx": [2, 50, 34]}),),
        (Mark("forged", "a nodule"), Mark("phantom", "made"), Mark("protected", "x"), Mark("sealed", "y")),
    )
    assert judged(detector, plain) == judged(detector, replace(plain, provenance=told))


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("slices", [1, 5])
def test_the_map_lies_on_the_scan_s_own_grid(detector: Detector, slices: int, fast: bool) -> None:
    volume = thorax((slices, 96, 112))
    verdict = detect_volume(volume, detector, name="law", model_id="untrained", threshold=Threshold(0.5), fast=fast)
    assert verdict.geometry.agrees(volume.geometry) and verdict.map.shape == volume.hu.shape
    assert verdict.map.dtype == np.float32 and verdict.map.min() >= 0 and verdict.map.max() <= 1
    assert 0 <= verdict.score <= 1
