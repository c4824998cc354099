"""Sealing and restoring: bit for bit, whatever the stored numbers are; and what a seal costs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from ctguard.core.errors import DataError, GeometryError, ReadError, RecipeError, RefusedError
from ctguard.core.marks import Mark
from ctguard.core.provenance import Provenance, Source
from ctguard.core.volume import Volume
from ctguard.image.noise import local_sd_map
from ctguard.protect.record import Seal, block_of, from_blocks, tagged
from ctguard.protect.seal import SealSettings, restore_volume, seal_volume
from tests.protect.seals import KEY, OTHER, SPACING, scan, volume


def _as_stored(quantum: float, offset: float, dtype: type) -> NDArray[np.generic]:
    """A scan on another lattice of stored values."""
    steps = np.rint((scan().hu - offset) / quantum)
    return (steps * quantum + offset).astype(dtype)


@pytest.mark.parametrize(
    ("quantum", "offset", "dtype"),
    [
        (1, -1024, np.int16),
        (2, -1024, np.int16),
        (3, -1000, np.int16),
        (0.5, -1024, np.float32),
        (0.3, -1000.2, np.float32),
    ],
)
def test_restoring_gives_every_bit_back(quantum: float, offset: float, dtype: type) -> None:
    original = volume(_as_stored(quantum, offset, dtype))
    sealed, seal, price = seal_volume(original, KEY)
    assert 0 < price.max_hu <= 3
    assert (sealed.hu != original.hu).mean() > 0.1
    back = restore_volume(sealed, seal, KEY)
    assert back.hu.dtype == original.hu.dtype
    if dtype is np.int16:
        assert np.array_equal(back.hu, original.hu)
    assert np.abs(back.hu.astype(np.float64) - original.hu).max() < 1e-4
    # what was added is whole steps of the stored values
    steps = (sealed.hu.astype(np.float64) - original.hu) / quantum
    assert np.abs(steps - np.rint(steps)).max() < 1e-3


def test_the_ends_of_the_stored_range_and_padding_stay_untouched() -> None:
    hu = scan().hu.copy()
    hu[:, :20] = -2000
    hu[:, 60:64, 30:40] = -1024
    hu[:, 64:66, 30:40] = -1023
    hu[:, 80:84, 60:70] = 60
    marked = Volume(hu, volume(hu).geometry, Provenance(Source("dicom", padding_hu=-2000)))
    sealed, seal, _ = seal_volume(marked, KEY, stored_range_hu=(-1024.0, 60.0))
    assert np.array_equal(sealed.hu[hu == -2000], hu[hu == -2000])
    assert sealed.hu[hu > -2000].min() >= -1024
    assert sealed.hu[hu <= 60].max() <= 60
    assert np.array_equal(restore_volume(sealed, seal, KEY).hu, hu)
    within = Volume(scan().hu, volume(hu).geometry, Provenance(Source("dicom", padding_hu=-820)))
    sealed, seal, _ = seal_volume(within, KEY)
    assert np.array_equal(sealed.hu == -820, within.hu == -820)
    assert np.array_equal(restore_volume(sealed, seal, KEY).hu, within.hu)


def test_the_pattern_stays_within_budget_and_below_the_noise() -> None:
    original = scan()
    sealed, _, price = seal_volume(original, KEY)
    d = sealed.hu.astype(float) - original.hu
    assert np.abs(d).max() == price.max_hu <= 3
    assert d.sum() == 0
    tissue = original.hu > -950
    ratio = np.sqrt((d[tissue] ** 2).mean()) / np.median(local_sd_map(original.hu, SPACING)[tissue])
    assert ratio < 0.2
    less = seal_volume(scan(noise_hu=5), KEY)[2]
    assert 0 < less.sd_hu < price.sd_hu


def test_the_digest_alone_changes_no_pixel() -> None:
    original = scan()
    sealed, seal, price = seal_volume(original, KEY, SealSettings(max_hu=0))
    assert np.array_equal(sealed.hu, original.hu)
    assert price.max_hu == 0
    assert np.array_equal(restore_volume(sealed, seal, KEY).hu, original.hu)


def test_the_same_call_gives_the_same_seal_and_any_other_gives_another_nonce() -> None:
    one, first, _ = seal_volume(scan(), KEY)
    again, second, _ = seal_volume(scan(), KEY)
    assert np.array_equal(one.hu, again.hu)
    assert first.header.nonce == second.header.nonce
    assert first.slices == second.slices
    others = [
        seal_volume(scan(1), KEY)[1],
        seal_volume(scan(), OTHER)[1],
        seal_volume(scan(), KEY, SealSettings(seed=1))[1],
        seal_volume(scan(), KEY, SealSettings(max_hu=2))[1],
        seal_volume(scan(series="1.2.4"), KEY)[1],
    ]
    assert len({first.header.nonce, *(seal.header.nonce for seal in others)}) == 6


def test_another_key_gives_an_unrelated_pattern() -> None:
    original = scan()
    one, other = (seal_volume(original, key)[0].hu.astype(float) - original.hu for key in (KEY, OTHER))
    assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 0.02


def test_restoring_refuses_what_it_cannot_give_back_exactly() -> None:
    sealed, seal, _ = seal_volume(scan(), KEY)
    with pytest.raises(RefusedError, match="sealed with key"):
        restore_volume(sealed, seal, OTHER)
    touched = sealed.hu.copy()
    touched[3, 60, 40] += 1
    with pytest.raises(ReadError, match="slice 3 was changed"):
        restore_volume(volume(touched, sealed.geometry), seal, KEY)
    with pytest.raises(GeometryError):
        restore_volume(volume(sealed.hu[:-1]), seal, KEY)
    forged = {**seal.slices, 2: replace(seal.slices[2], sha256_original="0" * 64)}
    with pytest.raises(ReadError, match="slice 2 was altered"):
        restore_volume(sealed, Seal(seal.header, forged), KEY)


def test_restored_volumes_carry_no_mark_of_the_seal() -> None:
    sealed, seal, _ = seal_volume(scan(), KEY)
    assert sealed.provenance.has_mark("sealed")
    back = restore_volume(sealed, seal, KEY)
    assert not back.provenance.has_mark("sealed")
    assert back.provenance.steps == ()


@pytest.mark.parametrize("kind", ["forged", "sealed"])
def test_marked_scans_are_not_sealed(kind: str) -> None:
    marked = replace(scan().provenance, marks=(Mark(kind, "a test"),))  # type: ignore[arg-type]
    with pytest.raises(RefusedError, match=kind):
        seal_volume(Volume(scan().hu, scan().geometry, marked), KEY)


def test_interpolated_values_and_empty_budgets_are_refused() -> None:
    hu = scan().hu + np.random.default_rng(0).normal(size=scan().hu.shape)
    with pytest.raises(DataError, match="lattice"):
        seal_volume(volume(hu.astype(np.float32)), KEY)
    with pytest.raises(RecipeError):
        SealSettings(max_hu=0.5)


def test_blocks_of_a_series_make_its_seal_again() -> None:
    _, seal, _ = seal_volume(scan(), KEY)
    blocks = [block_of(seal.header, record) for record in seal.slices.values()]
    again = from_blocks([*blocks[2:6], None], "here")
    assert again is not None
    assert again.slices == {z: seal.slices[z] for z in range(2, 6)}
    assert tagged(again.header, again.slices[3], KEY) == seal.slices[3]
    assert from_blocks([None, None], "here") is None
    with pytest.raises(ReadError, match="damaged"):
        from_blocks([blocks[0][:100]], "here")
    with pytest.raises(ReadError, match="version 9"):
        from_blocks([blocks[0].replace(b'"ctguard_seal":1', b'"ctguard_seal":9')], "here")
