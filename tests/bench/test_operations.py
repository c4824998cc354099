"""The operations of the panels: what they leave alone, what they change, and what they refuse."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from ctguard import io, zoo
from ctguard.bench.codecs import jpeg2000, jpeg_ls
from ctguard.bench.operations import (
    OPERATIONS,
    Operation,
    another_kernel,
    blurred,
    crop_slices,
    longer,
    noisy,
    operations,
    reacquired,
    resampled,
    sixteen_bits,
    thick_slices,
)
from ctguard.core.errors import DataError, GeometryError, MissingExtraError
from ctguard.core.geometry import Geometry, index_to_lps_mm
from ctguard.core.provenance import Provenance, Source
from ctguard.core.volume import Volume
from ctguard.image.noise import lung_noise_sd
from ctguard.phantom.patients import Acquisition, draw_acquisition, draw_patient, render
from tests.detect.scans import thorax

BY_NAME = {one.name: one for one in OPERATIONS}
SCAN = thorax((12, 96, 112), (1.25, 3.0, 3.0))


@pytest.fixture(scope="module")
def phantom() -> Volume:
    patient = draw_patient(3)
    return render(patient, draw_acquisition(patient, "small", 3))


@pytest.mark.parametrize("operation", operations(after_forging=True), ids=lambda one: one.name)
def test_an_operation_keeps_the_scan_in_place_and_gives_the_same_again(operation: Operation) -> None:
    before = SCAN.hu.copy()
    first, second = operation(SCAN), operation(SCAN)
    assert np.array_equal(first.hu, second.hu) and np.array_equal(SCAN.hu, before)
    assert first.hu.dtype == np.int16 and first.provenance.marks == SCAN.provenance.marks
    if operation.name == "thick":
        assert first.geometry.shape_zyx == (3, 96, 112) and first.geometry.spacing_zyx_mm == (5.0, 3.0, 3.0)
        assert index_to_lps_mm(first.geometry, (0, 0, 0)) == pytest.approx(index_to_lps_mm(SCAN.geometry, (1.5, 0, 0)))
    else:
        assert first.geometry == SCAN.geometry
    if operation.name != "none":
        assert len(first.provenance.steps) == len(SCAN.provenance.steps) + 1


def test_a_sealed_scan_is_sealed_and_changes_by_no_more_than_its_budget() -> None:
    """The panel's scans are those that `ctguard protect` writes, and what is forged is not protected."""
    made = BY_NAME["sealed"](SCAN)
    added = np.abs(made.hu.astype(int) - SCAN.hu)
    assert made.provenance.has_mark("sealed") and 0 < added.max() <= 3
    assert np.array_equal(made.hu, BY_NAME["sealed"](SCAN).hu)
    assert not {"sealed", "shielded"} & {one.name for one in operations(after_forging=True)}


def test_what_uses_weights_is_known_by_their_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zoo, "WEIGHTS", tmp_path)
    one = BY_NAME["shielded"]
    assert one.key == "shielded" and BY_NAME["16-bit"].key == "16-bit"
    (tmp_path / "shield.safetensors").write_bytes(b"first")
    first = one.key
    (tmp_path / "shield.safetensors").write_bytes(b"second")
    assert first.startswith("shielded ") and one.key not in ("shielded", first)


@pytest.mark.parametrize("name", ["jpeg-2000", "16-bit"])
def test_lossless_is_lossless(name: str) -> None:
    assert np.array_equal(BY_NAME[name](SCAN).hu, SCAN.hu)


def test_lossy_codecs_change_what_they_say_and_no_more() -> None:
    near = np.abs(BY_NAME["jpeg-ls-3"](SCAN).hu.astype(int) - SCAN.hu)
    assert 0 < near.max() <= 3
    lossy = BY_NAME["jpeg-2000-5"](SCAN).hu.astype(int)
    assert 0 < np.abs(lossy - SCAN.hu).max() < 200
    assert lossy.min() >= SCAN.hu.min() and lossy.max() <= SCAN.hu.max()


def test_five_to_one_is_of_16_bit_words() -> None:
    from openjpeg.utils import encode_array

    words = (SCAN.hu[5].astype(np.int32) - int(SCAN.hu.min())).astype(np.uint16)
    coded = encode_array(words, bits_stored=16, photometric_interpretation=2, compression_ratios=[5.0])
    assert words.nbytes / len(coded) == pytest.approx(5.0, rel=0.04)


def test_a_missing_codec_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openjpeg.utils", None)
    monkeypatch.setitem(sys.modules, "jpeg_ls", None)
    with pytest.raises(MissingExtraError, match="pylibjpeg-openjpeg"):
        jpeg2000(SCAN.hu)
    with pytest.raises(MissingExtraError, match="pyjpegls"):
        jpeg_ls(SCAN.hu)


def test_a_series_without_whole_hu_is_not_compressed() -> None:
    floats = Volume(SCAN.hu.astype(np.float32) + 0.5, SCAN.geometry, SCAN.provenance)
    with pytest.raises(DataError, match="whole numbers"):
        BY_NAME["jpeg-2000"](floats)
    assert sixteen_bits(floats).hu.dtype == np.float32


def test_resampling_to_1_mm_loses_fine_noise_of_fine_grids_and_nothing_of_smooth_ones() -> None:
    z, y, x = np.indices((10, 40, 40))
    smooth = np.round(-800 + 100 * np.sin(z / 4) + 80 * np.cos(y / 6) + 60 * np.sin(x / 7)).astype(np.int16)
    fine = Geometry(smooth.shape, (1.25, 0.7, 0.7))
    volume = Volume(smooth, fine, Provenance(Source("phantom")))
    inner = np.s_[1:-1, 2:-2, 2:-2]
    assert np.abs(resampled(volume).hu.astype(int) - smooth)[inner].max() <= 2
    noise = np.random.default_rng(0).normal(0, 50, smooth.shape).round().astype(np.int16)
    after = resampled(Volume(noise, fine, volume.provenance)).hu
    assert 0.2 < after[inner].std() / noise[inner].std() < 0.9


def test_added_noise_is_that_share_of_the_scan_s_own() -> None:
    sd = lung_noise_sd(SCAN).median
    for share in (0.25, 0.5):
        added = noisy(SCAN, share).hu.astype(float) - SCAN.hu
        assert added.std() == pytest.approx(share * sd, rel=0.05)
    assert not np.array_equal(noisy(SCAN, 0.5).hu, noisy(SCAN, 0.5, seed=1).hu)


def test_a_blur_takes_noise_away() -> None:
    assert blurred(SCAN, 1.0).hu.std() < blurred(SCAN, 0.5).hu.std() < SCAN.hu.std()


def test_thick_slices_are_means_and_thick_scans_have_none() -> None:
    assert thick_slices(SCAN).hu[1] == pytest.approx(SCAN.hu[4:8].mean(axis=0), abs=0.51)
    with pytest.raises(DataError, match="5 mm apart already"):
        thick_slices(thorax((6, 96, 112), (5.0, 3.0, 3.0)))


def test_cropped_slices_stay_where_they_are_in_the_patient() -> None:
    cropped = crop_slices(SCAN, 3, 5)
    assert np.array_equal(cropped.hu, SCAN.hu[3:8])
    here, there = index_to_lps_mm(cropped.geometry, (1, 2, 3)), index_to_lps_mm(SCAN.geometry, (4, 2, 3))
    assert here == pytest.approx(there)
    assert BY_NAME["shorter"](SCAN).hu.shape[0] == 6


def test_the_same_patient_again_is_the_same_patient(phantom: Volume, tmp_path: Path) -> None:
    """From the file, as the bench reads it: another kernel and other noise, the same anatomy."""
    read = io.read(io.write(phantom, tmp_path / "phantom.mha"))
    again = BY_NAME["kernel"](read)
    taken, other = (Acquisition.from_json(one.provenance.steps[0].params["acquisition"]) for one in (read, again))  # type: ignore[arg-type]
    assert other.kernel == another_kernel(taken).kernel != taken.kernel
    assert again.geometry == read.geometry and again.provenance.has_mark("phantom")
    difference = again.hu.astype(float) - read.hu
    assert not np.array_equal(again.hu, read.hu) and abs(np.median(difference)) < 10
    assert np.corrcoef(again.hu.ravel(), read.hu.ravel())[0, 1] > 0.9


def test_a_longer_scan_holds_the_scan_in_its_middle(phantom: Volume) -> None:
    taken = Acquisition.from_json(phantom.provenance.steps[0].params["acquisition"])  # type: ignore[arg-type]
    grid = longer(taken).geometry
    assert grid.shape_zyx == (64, 96, 96)
    assert index_to_lps_mm(grid, (16, 0, 0)) == pytest.approx(index_to_lps_mm(phantom.geometry, (0, 0, 0)))


def test_real_scans_and_changed_phantoms_are_not_scanned_again(phantom: Volume) -> None:
    with pytest.raises(DataError, match="no phantom"):
        reacquired(SCAN, another_kernel)
    with pytest.raises(DataError, match="changed since"):
        reacquired(blurred(phantom, 0.5), another_kernel)


def test_noise_needs_lung_to_measure_its_scale_in() -> None:
    plain = Volume(np.full((3, 64, 64), 40, np.int16), Geometry((3, 64, 64), (2.5, 3.0, 3.0)), SCAN.provenance)
    with pytest.raises((DataError, GeometryError), match="lung"):
        noisy(plain, 0.5)
