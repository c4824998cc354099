"""What the matrix of general pictures is made of: CT patches, photographs, small generators, the detector."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from ctguard.bench.general.ct import edited_slices, read_ct
from ctguard.bench.general.latent import LatentDiffusion
from ctguard.bench.general.photographs import LEAST_SD, PHOTOGRAPHS, read_photographs
from ctguard.bench.general.progressive import Progressive
from ctguard.bench.general.stand_ins import draw
from ctguard.bench.general.style import StyleBased
from ctguard.core.errors import DataError, RecipeError
from ctguard.detect.general import GeneralDetector
from ctguard.io.forgeries import read_forgery
from tests.bench.make import data_set

GENERATORS = {
    "progressive": lambda: Progressive(16, 4, 8, steps=10),
    "style": lambda: StyleBased(16, 4, 8),
    "latent": lambda: LatentDiffusion(16, 4),
}


def made(name: str) -> nn.Module:
    torch.manual_seed(0)
    return GENERATORS[name]()


@pytest.fixture(scope="module")
def forged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return data_set(tmp_path_factory.mktemp("forged"), {"train": 1, "test": 1, "valid": 1}, ("pix2pix", "identity"))


def test_ct_patches_are_of_the_same_place_and_differ_where_it_was_forged(forged: Path) -> None:
    ct = read_ct(forged, 16)
    assert [(family.name, family.has("train"), family.has("test")) for family in ct.families] == [
        ("pix2pix", True, True),
        ("cyclegan", False, False),
        ("diffusion", False, False),
    ]
    real, fake = ct.families[0].real["test"], ct.families[0].fake["test"]
    assert real.values.shape == (14, 1, 16, 16) and real.units == ("patient-1",) * 14
    assert real.values.min() >= 0 and real.values.max() <= 1
    changed = np.flatnonzero((real.values != fake.values).any(axis=(0, 1, 2)))
    assert changed.min() >= 6 and changed.max() <= 9  # 3 pixels, in the middle of 16
    assert "pix2pix test 2 sites of 1 patients, 14 patches" in ct.note and "cyclegan" not in ct.note


def test_slices_that_hardly_changed_are_left_out(forged: Path) -> None:
    edit = read_forgery(next(forged.glob("*pix2pix_inject*.npz"))).edit
    mask = edit.mask.copy()
    mask[:2, 1:] = False  # a third of what the others have
    first = edit.box_start_zyx[0]
    assert edited_slices(replace(edit, mask=mask)) == list(range(first + 2, first + 7))


def test_a_data_set_without_the_generators_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no train or test scan is forged by pix2pix"):
        read_ct(data_set(tmp_path, {"valid": 1, "test": 1}, ("copy-move",)), 16)
    with pytest.raises(DataError, match="hold no patch of 64"):
        read_ct(data_set(tmp_path / "more", {"test": 1}, ("pix2pix",)), 64)


def test_photographs_give_equally_many_patches_with_texture() -> None:
    found = read_photographs(32, {"train": 44, "test": 12}, seed=0)
    assert Counter(found["train"].units) == dict.fromkeys(PHOTOGRAPHS, 4)
    assert found["test"].values.shape == (12, 1, 32, 32) and found["test"].values.dtype == np.uint8
    assert (found["train"].values.std(axis=(1, 2, 3)) >= LEAST_SD).mean() > 0.9
    again = read_photographs(32, {"train": 44, "test": 12}, seed=0)
    assert all((found[part].values == again[part].values).all() for part in found)


@pytest.mark.parametrize("name", GENERATORS)
def test_generators_learn_and_draw_the_same_pictures_from_a_seed(name: str) -> None:
    module = made(name)
    optimizers = module.optimizers({})  # type: ignore[operator]
    before = {key: value.clone() for key, value in module.named_parameters()}
    # of side 16; the steps go through the levels of the progressive one
    batch = {"x": torch.rand(4, 1, 16, 16) * 2 - 1, "z": torch.randn(4, module.latent)}  # type: ignore[arg-type]
    for _ in range(10):
        for turn in module.turns:  # type: ignore[union-attr]
            optimizers[turn].zero_grad()
            module.step(batch, turn)["loss"].backward()  # type: ignore[operator]
            optimizers[turn].step()
    unmoved = [key for key, value in module.named_parameters() if torch.equal(value, before[key])]
    assert unmoved == [], "every part is trained"
    module.eval()
    pictures = draw(module, 5, seed=3)
    assert pictures.shape == (5, 1, 16, 16) and pictures.dtype == np.uint8
    assert (pictures == draw(module, 5, seed=3)).all() and (pictures != draw(module, 5, seed=4)).any()


def test_a_progressive_network_grows_and_fades_levels_in() -> None:
    module = Progressive(16, 4, 8, steps=30)
    seen = []
    for step in (0, 9, 10, 12, 15, 20, 30):
        module.seen.fill_(step)
        level, fade = module.growth()
        assert module(torch.zeros(2, 8)).shape == (2, 1, 4 * 2**level, 4 * 2**level)
        seen.append((level, round(fade, 2)))
    assert seen == [(0, 1.0), (0, 1.0), (1, 0.0), (1, 0.4), (1, 1.0), (2, 0.0), (2, 1.0)]


def test_a_new_level_begins_as_the_old_one_doubled() -> None:
    module = Progressive(8, 4, 8, steps=20).eval()
    z = torch.randn(1, 8)
    module.seen.fill_(9)
    coarse = module(z)
    module.seen.fill_(10)
    assert torch.allclose(module(z), coarse.repeat_interleave(2, 2).repeat_interleave(2, 3), atol=1e-6)


def test_the_published_detector_keeps_every_pixel_until_its_second_stage() -> None:
    detector = GeneralDetector()
    assert sum(p.numel() for p in detector.parameters()) == 23_510_081  # ResNet-50 with one output
    small = GeneralDetector(2).eval()
    sizes = []
    for stage in (small.network.maxpool, small.network.layer1, small.network.layer4):
        stage.register_forward_hook(lambda _, __, y: sizes.append(y.shape[-1]))
    grey = torch.rand(3, 1, 32, 32)
    score = small(grey)
    assert score.shape == (3,) and sizes == [32, 32, 4]
    assert torch.equal(small(grey.expand(-1, 3, -1, -1)), score)
    with pytest.raises(RecipeError, match="width 0"):
        GeneralDetector(0)
