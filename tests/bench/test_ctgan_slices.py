"""Labelled slices: what is read, what counts, and what a perfect and an empty map get, on slices made here."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from scipy import ndimage

from ctguard.bench.ctgan_slices import (
    Ground,
    SliceScore,
    ground_of,
    read_labels,
    read_slice,
    score_map,
    tiles_of,
)
from ctguard.bench.slice_baselines import difference_ratio, low_residual
from ctguard.core.errors import DataError, ReadError
from tests.bench.make import add_detectors
from tests.cli.runner import run
from tests.detect.scans import thorax

SPACING = (1.5, 1.5)
SITE_YX = (96, 70)
SHAPE = (1, 192, 224)


def tissue(seed: int) -> NDArray[np.int16]:
    return thorax(SHAPE, (1.0, *SPACING), seed).hu[0]


def write_slice(path: Path, hu: NDArray[np.int16]) -> None:
    """As CT-GAN writes them: one template for all headers, where only spacing and rescale values mean anything."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = CTImageStorage, ExplicitVRLittleEndian
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=["template"])
    ds = Dataset()
    ds.file_meta = meta
    ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
    ds.Modality, ds.PatientID, ds.InstanceNumber = "CT", "template", 7
    ds.PixelSpacing, ds.RescaleSlope, ds.RescaleIntercept = list(SPACING), 1, -1024
    ds.Rows, ds.Columns = hu.shape
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PixelRepresentation = 1, "MONOCHROME2", 1
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, 16, 15
    ds.PixelData = (hu + 1024).astype("<i2").tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    ds.save_as(path, enforce_file_format=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two scans with one bright and one smooth site each, in a layout like that of the public set."""
    root = tmp_path_factory.mktemp("slices")
    rows = ["type,uuid,slice,x,y"]
    for scan in (1005, 2024):
        for kind, number in (("FM", 80), ("FB", 83)):
            hu = tissue(scan + number)
            near = np.hypot(*np.ogrid[-96:96, -70:154]) * SPACING[0] <= 7
            hu = np.where(near, np.int16(2000) if kind == "FM" else np.int16(-830), hu)
            write_slice(root / str(scan) / f"{number}.dcm", hu)
            rows.append(f"{kind},{scan},{number},{SITE_YX[1]},{SITE_YX[0]}")
    (root / "labels.csv").write_text("\n".join(rows) + "\n")
    return root


@pytest.fixture
def ground(folder: Path) -> Ground:
    labels = read_labels(folder)
    return ground_of(labels[0], labels, folder)


def test_x_is_a_column_and_y_a_row(folder: Path, ground: Ground) -> None:
    assert ground.label.site_yx == SITE_YX and ground.label.task == "injections"
    assert ground.volume.hu[0][SITE_YX] == 2000
    assert np.unravel_index(int(np.argmin(ground.distance_mm)), SHAPE[1:]) == SITE_YX


def test_voxels_are_rescaled_and_headers_are_not_believed(folder: Path) -> None:
    volume = read_slice(folder / "1005" / "80.dcm")
    assert volume.hu.shape == SHAPE and volume.geometry.spacing_zyx_mm == (1.0, *SPACING)
    assert np.median(volume.hu[0, 80:110, 160:165]) == pytest.approx(-830, abs=40)
    assert volume.provenance.source.patient_id is None and volume.geometry.origin_lps_mm == (0.0, 0.0, 0.0)


def test_the_lung_holds_the_site_even_where_it_is_dense(ground: Ground) -> None:
    assert ground.lung[ground.distance_mm <= 5].all()
    assert ground.near.any() and ground.far.any() and not (ground.near & ground.far).any()
    assert ground.distance_mm[ground.near].max() <= 10 and ground.distance_mm[ground.far].min() > 16


def test_a_map_that_knows_the_site_gets_everything(ground: Ground) -> None:
    score = score_map((ground.distance_mm <= 10).astype(np.float32), ground, "m")
    assert (score.auc, score.hit, score.rank, score.tile_auc) == (1.0, 1.0, 1.0, 1.0) and score.tiles > 4
    worst = score_map((ground.distance_mm > 12).astype(np.float32), ground, "m")
    assert worst.auc == 0.0 and worst.hit == 0.0 and worst.rank > 1 and worst.tile_auc < 0.5


def test_a_map_that_says_nothing_is_a_coin(ground: Ground) -> None:
    score = score_map(np.zeros(SHAPE[1:], np.float32), ground, "m")
    assert score.auc == 0.5 and score.tile_auc == 0.5 and score.rank == (score.tiles + 1) / 2


def test_what_a_map_says_outside_the_lung_does_not_count(ground: Ground) -> None:
    plain = (ground.distance_mm <= 10).astype(np.float32)
    loud = np.where(ground.lung, plain, 5.0).astype(np.float32)
    assert score_map(loud, ground, "m") == score_map(plain, ground, "m")


def test_tiles_are_32_mm_and_the_first_is_around_the_site(ground: Ground) -> None:
    first, *rest = tiles_of(ground)
    assert first[SITE_YX] and first.sum() == pytest.approx((32 / 1.5) ** 2, rel=0.1)
    assert not any((first & tile).any() for tile in rest)
    assert all((tile & ground.lung).sum() >= 0.5 * (32 / 1.5) ** 2 for tile in rest)


def test_another_label_of_the_slice_is_no_negative(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "1005").symlink_to(folder / "1005")
    other = (96, 154)
    lines = [f"FM,1005,80,{x},{y}" for y, x in (SITE_YX, other)]
    (tmp_path / "labels.csv").write_text("\n".join(["type,uuid,slice,x,y", *lines]) + "\n")
    labels = read_labels(tmp_path)
    ground = ground_of(labels[0], labels, tmp_path)
    assert not ground.far[other] and not any(tile[other] for tile in tiles_of(ground))


def test_labels_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    for text, words in (
        ("type,uuid,slice,x\nFB,1,2,3\n", "column y"),
        ("type,uuid,slice,x,y\nTB,1,2,3,4\n", "type 'TB'"),
        ("type,uuid,slice,x,y\nFB,1,2,3,\n", "no pixel centre"),
        ("type,uuid,slice,x,y\n", "lists no slice"),
    ):
        (tmp_path / "labels.csv").write_text(text)
        with pytest.raises(DataError, match=words):
            read_labels(tmp_path)
    with pytest.raises(ReadError, match="no CT slice"):
        read_slice(tmp_path / "missing.dcm")


def correlated(seed: int, shape: tuple[int, int] = (128, 128)) -> NDArray[np.float64]:
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(0, 1, shape), 0.8)
    return -830 + 40 * noise / noise.std()


def test_the_first_baseline_rises_with_white_noise_and_the_second_with_smoothness() -> None:
    lung = np.ones((128, 128), bool)
    inside = np.hypot(*np.ogrid[-64:64, -64:64]) < 12
    white = np.where(inside, -830 + np.random.default_rng(9).normal(0, 40, lung.shape), correlated(1))
    smooth = np.where(inside, -830 + (correlated(2) + 830) / 4, correlated(1))
    ratio = difference_ratio(white.astype(np.float32), lung, (0.7, 0.7))
    low = low_residual(smooth.astype(np.float32), lung, (0.7, 0.7))
    core, around = np.hypot(*np.ogrid[-64:64, -64:64]) < 5, np.hypot(*np.ogrid[-64:64, -64:64]) > 25
    assert ratio[core].min() > np.percentile(ratio[around], 99)
    assert low[core].min() > np.percentile(low[around], 99)


def test_baselines_call_dense_places_ordinary() -> None:
    hu = correlated(3).astype(np.float32)
    hu[40:90, 40:90] = 40
    lung = np.ones(hu.shape, bool)
    for made in (difference_ratio, low_residual):
        map_ = made(hu, lung, (0.7, 0.7))
        assert np.isfinite(map_).all()
        assert map_[65, 65] == pytest.approx(float(np.median(map_[:30])), rel=0.1)


def test_the_verb_takes_labelled_slices(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    add_detectors(monkeypatch, tmp_path / "weights")
    out = tmp_path / "out"
    words = (
        "bench",
        "detection",
        "--data",
        folder,
        "--out",
        out,
        "--weights",
        tmp_path / "weights",
        "--device",
        "cpu",
        "--json",
    )
    done = run(capfd, *words)
    assert done.code == 0, done.err
    table = json.loads(done.out)["tables"][0]
    rows = {(row["method"], row["forgery"]): row for row in table["rows"]}
    assert (
        rows["stub (cpu)", "injections"]["auc"]["value"] > 0.7
        and rows["stub (cpu)", "injections"]["hit@1"]["value"] == 1
    )
    assert rows["low residual SD", "removals"]["auc"]["value"] > 0.8
    assert rows["uniform guess", "removals"]["hit@1"]["value"] < 0.3
    assert ("mute (cpu)", "does not say where") in rows
    assert table["n"] == {"scans": 2, "slices": 4, "sites": 4}
    kept = {path.name: path.read_bytes() for path in out.glob("slices.*")}
    assert run(capfd, *words).code == 0
    assert {path.name: path.read_bytes() for path in out.glob("slices.*")} == kept


def test_slices_are_refused_what_they_cannot_give(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    done = run(capfd, "bench", "detection", "--data", folder, "--out", tmp_path, "--device", "cpu", "--panels")
    assert done.code == 1 and "no panels" in done.err


def test_a_row_survives_its_file() -> None:
    row = SliceScore("m", "removals", "1", "2", 0.5, 1.0, 2.0)
    assert repr(SliceScore.from_json(json.loads(json.dumps(row.to_json())))) == repr(row)
