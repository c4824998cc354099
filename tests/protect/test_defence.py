"""Protecting a scan: what is refused, what is measured, and that the shipped attack is answered."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ctguard.core.errors import DataError, RecipeError, RefusedError
from ctguard.core.geometry import Geometry
from ctguard.core.marks import Mark, MarkKind
from ctguard.core.provenance import Provenance, Source
from ctguard.core.volume import Volume
from ctguard.defence import lung_attacks, protect_scan, site_attack
from tests.detect.scans import thorax


def scan(*marks: Mark) -> Volume:
    whole = thorax((24, 96, 112))
    return Volume(whole.hu, whole.geometry, Provenance(Source("phantom"), (), marks))


@pytest.mark.parametrize("kind", ["forged", "protected", "sealed"])
def test_marked_scans_are_not_laundered(kind: MarkKind) -> None:
    with pytest.raises(RefusedError, match=kind):
        protect_scan(scan(Mark(kind, "")), "noise", budget_hu=5)


def test_the_price_is_measured_on_the_rounded_voxels_and_air_stays() -> None:
    volume = scan(Mark("phantom", ""))
    protected, price = protect_scan(volume, "noise", budget_hu=5, seed=1)
    change = protected.hu.astype(int) - volume.hu
    assert protected.hu.dtype == np.int16 and np.abs(change).max() == price.max_hu == 5
    assert not change[:, :2].any()  # outside the body
    assert price.sd_hu == pytest.approx(np.sqrt(10), rel=0.05)
    assert protected.provenance.has_mark("protected") and protected.provenance.has_mark("phantom")


def test_wrong_requests_are_named() -> None:
    with pytest.raises(RecipeError, match="no protector"):
        protect_scan(scan(), "magic", budget_hu=5)
    floats = Volume(scan().hu.astype(np.float32), scan().geometry, scan().provenance)
    with pytest.raises(RecipeError, match="whole numbers"):
        protect_scan(floats, "noise", budget_hu=5)
    air = np.full((10, 30, 30), -1000, np.int16)
    empty = Volume(air, Geometry(air.shape, (2.0, 2.0, 2.0)), Provenance(Source("phantom")))  # type: ignore[arg-type]
    with pytest.raises(DataError, match="no body"):
        protect_scan(empty, "noise", budget_hu=5)


def test_attacks_are_drawn_in_lung_and_answer_to_the_shell() -> None:
    volume = scan(Mark("phantom", ""))
    draw = lung_attacks(volume, "identity")
    attack = draw(np.random.default_rng(0))
    block = torch.from_numpy(volume.hu[attack.window].astype(np.float32)).requires_grad_()
    (gradient,) = torch.autograd.grad(attack.forge(block).square().sum(), block)
    assert gradient.abs().sum() > 0


def test_a_site_attack_is_the_forging_of_that_site() -> None:
    from ctguard.synth.forge import Request, tamper_scan
    from tests.synth.scans import lung_site

    volume = scan(Mark("phantom", ""))
    site = lung_site(volume)
    forged, _, _ = tamper_scan(volume, Request("remove", site, "identity", seed=4))
    attack = site_attack(volume, site, "remove", "identity", 4)
    with torch.no_grad():
        block = attack.forge(torch.from_numpy(volume.hu[attack.window].astype(np.float32)))
    assert np.abs(np.rint(block.numpy()) - forged.hu[attack.window]).max() <= 1
