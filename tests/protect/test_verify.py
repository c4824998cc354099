"""What verify answers: after benign operations, after moves, and to forgers who know the method but not the key."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from openjpeg.utils import decode, encode_array
from scipy import ndimage

from ctguard.core.geometry import Geometry
from ctguard.core.volume import Volume
from ctguard.protect.record import Seal
from ctguard.protect.seal import SealSettings, seal_volume
from ctguard.protect.verdict import SealVerdict
from ctguard.protect.verify import verify_volume
from tests.protect.seals import KEY, OTHER, nodule, scan, volume

SHAPE = (12, 200, 216)
SITE = (6, 100, 50)


@pytest.fixture(scope="module")
def original() -> Volume:
    return scan(3, SHAPE)


@pytest.fixture(scope="module")
def sealing(original: Volume) -> tuple[Volume, Seal]:
    sealed, seal, _ = seal_volume(original, KEY)
    return volume(sealed.hu, sealed.geometry), seal


def _jpeg2000(hu: NDArray[Any], ratio: float) -> NDArray[Any]:
    planes = []
    for plane in hu:
        words = (plane.astype(np.int32) + 32768).astype(np.uint16)
        planes.append(decode(encode_array(words, bits_stored=16, compression_ratios=[ratio])).astype(np.int32) - 32768)
    return np.stack(planes).astype(np.int16)


def _at(verdict: SealVerdict, center_zyx: tuple[int, int, int]) -> bool:
    return verdict.map is not None and bool(verdict.map[center_zyx] == 1)


def test_an_unchanged_scan_is_intact_with_header_ledger_or_key_alone(sealing: tuple[Volume, Seal]) -> None:
    sealed, seal = sealing
    for header, ledger in ((seal, []), (None, [seal]), (None, [])):
        verdict = verify_volume(sealed, KEY, header, ledger)
        assert (verdict.state, verdict.regions, verdict.nonce) == ("intact", (), seal.header.nonce)


def test_jpeg2000_at_5_to_1_keeps_the_seal(sealing: tuple[Volume, Seal]) -> None:
    sealed, seal = sealing
    lossy = volume(_jpeg2000(sealed.hu, 5), sealed.geometry)
    assert (lossy.hu != sealed.hu).mean() > 0.2
    verdict = verify_volume(lossy, KEY, None, [seal])
    assert (verdict.state, verdict.regions) == ("intact", ())


def test_slices_of_much_more_noise_survive_jpeg2000_and_edits_in_them_are_found() -> None:
    rng = np.random.default_rng(0)
    noise = ndimage.gaussian_filter(rng.normal(size=(3, *SHAPE[1:])), (0, 0.5, 0.5))
    hu = scan(5, SHAPE).hu.astype(np.float32)
    hu[9:] += noise / noise.std() * 70  # as between the shoulders: a codec of fixed rate loses more of them
    sealed, seal, _ = seal_volume(volume(np.clip(np.rint(hu), -1024, 3071).astype(np.int16)), KEY)
    assert verify_volume(volume(_jpeg2000(sealed.hu, 5)), KEY, None, [seal]).state == "intact"
    edited = nodule(sealed, (10, 100, 50), 700)
    assert _at(verify_volume(volume(_jpeg2000(edited.hu, 5)), KEY, None, [seal]), (10, 100, 50))


def test_coding_noise_in_air_is_no_change_and_tissue_put_there_is_found() -> None:
    """Errors spread the voxels of an airway about -1024 HU, where the digest cuts off: the mean rises by 5 HU."""
    rng = np.random.default_rng(1)
    airway = (slice(None), slice(80, 144), slice(16, 80))
    hu = scan(5, SHAPE).hu + rng.normal(0, 130, SHAPE)
    hu[airway] = -1024
    fine = Geometry(SHAPE, (2.5, 0.5, 0.5), (-40.0, -50.0, -300.0))
    sealed, seal, _ = seal_volume(volume(np.clip(np.rint(hu), -1024, 3071).astype(np.int16), fine), KEY)
    error = rng.normal(0, 12, SHAPE)
    assert np.maximum(sealed.hu + error, -1024)[airway].mean() > -1020
    coded = volume(np.rint(sealed.hu + error).astype(np.int16), fine)
    assert verify_volume(coded, KEY, None, [seal]).state == "intact"
    edited = coded.hu.copy()
    edited[4:8, 100:120, 40:60] += 60
    assert _at(verify_volume(volume(edited, fine), KEY, None, [seal]), (6, 110, 50))


def test_a_copy_in_float_or_clipped_to_12_bits_keeps_the_seal(sealing: tuple[Volume, Seal]) -> None:
    sealed, seal = sealing
    for hu in (sealed.hu.astype(np.float32), np.clip(sealed.hu, -1024, 3071)):
        assert verify_volume(volume(hu, sealed.geometry), KEY, seal).state == "intact"


@pytest.mark.parametrize("add_hu", [700.0, 60.0])
def test_a_nodule_added_on_sealed_voxels_is_found_by_the_digest(sealing: tuple[Volume, Seal], add_hu: float) -> None:
    sealed, seal = sealing
    verdict = verify_volume(nodule(sealed, SITE, add_hu), KEY, seal)
    assert verdict.state == "broken"
    assert _at(verdict, SITE)
    assert not _at(verdict, (6, 100, 160))


@pytest.mark.parametrize("alone", [False, True])
def test_replaced_content_with_the_sealed_residual_put_back_is_found(
    original: Volume, sealing: tuple[Volume, Seal], alone: bool
) -> None:
    sealed, seal = sealing
    hu = sealed.hu.copy()
    box = (slice(1, 11), slice(72, 128), slice(30, 80))
    new = original.hu[1:11, 72:128, 136:186].astype(np.int32)[:, ::-1]
    fine = sealed.hu[box] - ndimage.median_filter(sealed.hu[box], 3)
    hu[box] = np.clip(ndimage.median_filter(new, 3) + fine, -1024, 3071)
    verdict = verify_volume(volume(hu, sealed.geometry), KEY, None if alone else seal)
    assert verdict.state == "broken"
    assert _at(verdict, (6, 100, 54))


def test_the_digest_finds_changes_that_keep_every_mean(sealing: tuple[Volume, Seal]) -> None:
    """Noise of another draw, made to add up to zero over each 4 mm cell: no mean changes at all."""
    sealed, _ = sealing
    bare, seal, _ = seal_volume(scan(3, SHAPE), KEY, SealSettings(max_hu=0))
    hu = bare.hu.copy()
    noise = np.random.default_rng(9).normal(0, 40, (4, 25, 10)).round()
    hu[4:8, 90:100, 40:65] += np.concatenate([noise, -noise], axis=2).transpose(0, 2, 1)[:, :10].astype(np.int16)
    before, after = bare.hu[4:8, 90:100, 40:65].mean(), hu[4:8, 90:100, 40:65].mean()
    assert abs(before - after) < 3
    verdict = verify_volume(volume(hu, bare.geometry), KEY, seal)
    assert verdict.state == "broken"
    assert sealed.hu.shape == hu.shape


def test_a_region_of_the_unsealed_original_is_found_by_the_pattern_alone(
    original: Volume, sealing: tuple[Volume, Seal]
) -> None:
    sealed, _ = sealing
    hu = sealed.hu.copy()
    box = (slice(0, 12), slice(80, 120), slice(30, 70))
    hu[box] = original.hu[box]
    verdict = verify_volume(volume(hu, sealed.geometry), KEY)
    assert verdict.state == "broken"
    assert _at(verdict, (6, 100, 50))
    assert not _at(verdict, (6, 100, 160))


def test_the_original_put_back_is_missing_and_a_stranger_never_sealed(
    original: Volume, sealing: tuple[Volume, Seal]
) -> None:
    _, seal = sealing
    assert verify_volume(original, KEY, seal).state == "missing"
    assert verify_volume(original, KEY, None, [seal]).state == "missing"
    assert verify_volume(original, KEY).state == "never-sealed"
    stranger = volume(np.roll(scan(8, SHAPE).hu, 60, 1) // 2)
    assert verify_volume(stranger, KEY, None, [seal]).state == "never-sealed"
    # its header says sealed, and nothing of that is there
    assert verify_volume(stranger, KEY, seal).state == "broken"


def test_another_key_is_told_where_the_header_names_it(sealing: tuple[Volume, Seal]) -> None:
    sealed, seal = sealing
    assert verify_volume(sealed, OTHER, seal).state == "wrong-key"
    assert verify_volume(sealed, OTHER).state == "never-sealed"
    assert verify_volume(sealed, None, seal).state == "not-checked"


Move = Callable[[NDArray[Any], Geometry], tuple[NDArray[Any], Geometry]]


def _crop(hu: NDArray[Any], grid: Geometry) -> tuple[NDArray[Any], Geometry]:
    return hu[2:10, 13:180, 7:201], grid.crop((2, 13, 7), (8, 167, 194))


MOVES: dict[str, tuple[Move, str, str]] = {
    "left-right": (lambda hu, g: (hu[:, :, ::-1], g), "geometry-changed", "mirrored"),
    "up-down": (lambda hu, g: (hu[:, ::-1], g), "geometry-changed", "mirrored"),
    "head-feet": (lambda hu, g: (hu[::-1], g), "geometry-changed", "the other way"),
    "one slice on": (lambda hu, g: (np.roll(hu, 1, 0), g), "geometry-changed", "order"),
    "in plane": (lambda hu, g: (np.roll(hu, (3, -5), (1, 2)), g), "geometry-changed", "mm from where"),
    "dropped": (
        lambda hu, g: (np.delete(hu, 5, 0), replace(g, shape_zyx=(11, *g.shape_zyx[1:]))),
        "geometry-changed",
        "missing (5)",
    ),
    "swapped": (lambda hu, g: (hu[[0, 1, 2, 7, 4, 5, 6, 3, 8, 9, 10, 11]], g), "geometry-changed", "order"),
    "crop": (_crop, "intact", "8 of the 12"),
    "some slices": (lambda hu, g: (hu[4:7], g.crop((4, 0, 0), (3, *g.shape_zyx[1:]))), "intact", "3 of the 12"),
    "one slice": (lambda hu, g: (hu[4:5], g.crop((4, 0, 0), (1, *g.shape_zyx[1:]))), "intact", "1 of the 12"),
}


@pytest.mark.parametrize("name", MOVES)
def test_moved_scans_are_told_from_changed_ones(sealing: tuple[Volume, Seal], name: str) -> None:
    sealed, seal = sealing
    move, state, words = MOVES[name]
    verdict = verify_volume(volume(*move(sealed.hu, sealed.geometry)), KEY, None, [seal])
    assert verdict.state == state, verdict.words
    assert words in verdict.words
    assert verdict.regions == ()


def test_an_edit_in_a_moved_scan_is_found_in_its_place(sealing: tuple[Volume, Seal]) -> None:
    sealed, seal = sealing
    edited = nodule(sealed, SITE, 300)
    flipped = verify_volume(volume(edited.hu[:, :, ::-1], sealed.geometry), KEY, None, [seal])
    assert flipped.state == "broken"
    assert _at(flipped, (6, 100, 215 - 50))
    assert not _at(flipped, (6, 100, 30))
    cropped = verify_volume(volume(*_crop(edited.hu, sealed.geometry)), KEY, None, [seal])
    assert cropped.state == "broken"
    assert _at(cropped, (4, 87, 43))


@pytest.mark.parametrize("name", ["left-right", "head-feet", "one slice on", "dropped"])
def test_the_key_alone_finds_moved_scans(sealing: tuple[Volume, Seal], name: str) -> None:
    sealed, seal = sealing
    move, state, _ = MOVES[name]
    verdict = verify_volume(volume(*move(sealed.hu, sealed.geometry)), KEY)
    assert (verdict.state, verdict.nonce) == (state, seal.header.nonce), verdict.words


@pytest.mark.parametrize("noise_hu", [3.0, 9.0])
def test_a_quiet_scan_with_one_voxel_changed_raises_no_alarm(noise_hu: float) -> None:
    quiet = scan(2, (8, 300, 330), noise_hu=noise_hu)
    sealed, seal, _ = seal_volume(quiet, KEY)
    hu = sealed.hu.copy()
    hu[4, 0, 0] += 1  # so that no hash excuses it from being compared
    verdict = verify_volume(volume(hu, sealed.geometry), KEY, None, [seal])
    assert (verdict.state, verdict.regions) == ("intact", ())
    assert verdict.gain is not None and verdict.gain > 0.8


def test_blurred_or_interpolated_scans_are_resampled(sealing: tuple[Volume, Seal]) -> None:
    sealed, seal = sealing
    shifted = ndimage.shift(sealed.hu.astype(np.float32), (0, 0.5, 0.5), order=1, mode="nearest")
    verdict = verify_volume(volume(np.rint(shifted).astype(np.int16), sealed.geometry), KEY, seal)
    assert verdict.state == "resampled"


def test_the_key_alone_tells_a_filtered_scan_from_an_intact_one() -> None:
    sealed, _, _ = seal_volume(scan(3, (24, 256, 256)), KEY)
    filtered = np.rint(ndimage.gaussian_filter(sealed.hu.astype(np.float32), (0, 0.6, 0.6))).astype(np.int16)
    assert verify_volume(volume(filtered, sealed.geometry), KEY).state == "resampled"


def test_another_grid_cannot_be_verified(sealing: tuple[Volume, Seal]) -> None:
    sealed, seal = sealing
    turned = volume(np.rot90(sealed.hu, axes=(1, 2)))
    verdict = verify_volume(turned, KEY, seal)
    assert verdict.state == "geometry-changed"
    assert "does not say forged" in verdict.words


def test_altered_records_and_replayed_versions_are_told(sealing: tuple[Volume, Seal]) -> None:
    sealed, seal = sealing
    touched = Seal(seal.header, {**seal.slices, 4: replace(seal.slices[4], skips=b"other")})
    verdict = verify_volume(sealed, KEY, touched)
    assert verdict.state == "broken"
    assert "MAC" in verdict.words
    moved = Seal(seal.header, {z: replace(seal.slices[11 - z], z=z) for z in seal.slices})
    assert verify_volume(sealed, KEY, moved).state == "broken"
    later = seal_volume(scan(3, SHAPE), KEY, SealSettings(seed=1))[1]
    assert "later seal" in verify_volume(sealed, KEY, seal, [seal, later]).words
    assert "later seal" not in verify_volume(sealed, KEY, seal, [later, seal]).words


def test_a_slice_of_another_sealed_scan_is_found(sealing: tuple[Volume, Seal]) -> None:
    sealed, seal = sealing
    other, _, _ = seal_volume(scan(5, SHAPE), KEY)
    hu = sealed.hu.copy()
    hu[7] = other.hu[7]
    verdict = verify_volume(volume(hu, sealed.geometry), KEY, seal)
    assert verdict.state == "broken"
    assert verdict.map is not None
    assert verdict.map[7].mean() > 0.5
    assert verdict.map[5].mean() == 0
