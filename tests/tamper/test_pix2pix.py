"""CT-GAN's network as published: parameter counts, layer arithmetic."""

from __future__ import annotations

import torch
from torch import nn

from ctguard.tamper.blocks import SameConv3d, UpConv3d
from ctguard.tamper.pix2pix import Pix2Pix


def count(module: nn.Module, without_norm: bool = False) -> int:
    skipped = {id(p) for m in module.modules() if isinstance(m, nn.BatchNorm3d) for p in m.parameters()}
    return sum(p.numel() for p in module.parameters() if not (without_norm and id(p) in skipped))


def test_published_width_has_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        module = Pix2Pix(width=100)
    assert round(count(module.generator, without_norm=True) / 1e6, 2) == 162.58
    assert round(count(module.discriminator) / 1e6, 2) == 26.95


def test_cpu_width_fits_in_5_mb_at_half_precision() -> None:
    assert count(Pix2Pix(width=12).generator) * 2 < 5e6


def test_the_discriminator_judges_patches_of_2_cubed() -> None:
    module = Pix2Pix(width=2)
    cube = torch.zeros(2, 1, 32, 32, 32)
    assert module.discriminator(cube, cube).shape == (2, 1, 2, 2, 2)


def test_coarse_convolution_equals_upsampling_and_a_same_convolution() -> None:
    torch.manual_seed(0)
    fast, plain = UpConv3d(3, 2), SameConv3d(3, 2)
    with torch.no_grad():
        plain.conv.weight.copy_(fast.weight)
        fast.bias.normal_()
        plain.conv.bias.copy_(fast.bias)  # type: ignore[union-attr]
    x = torch.randn(2, 3, 4, 5, 6)
    up = nn.functional.interpolate(x, scale_factor=2.0, mode="nearest")
    assert torch.allclose(fast(x), plain(up), atol=1e-5)
