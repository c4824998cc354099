"""M3Dsynth TIFF stacks: bit-exact round trips, order of slices, and refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile

from ctguard import io
from ctguard.core.errors import ReadError, WriteError
from ctguard.core.geometry import Geometry
from ctguard.core.marks import Mark
from ctguard.core.provenance import Provenance, Source, Step
from ctguard.core.volume import Volume
from ctguard.io.tiff import SIDECAR, read_label_stack, read_tiff, write_label_stack, write_tiff

GRID = Geometry((5, 16, 20), (2.5, 0.7, 0.8), (-10.5, 3.25, -100.0))


def _volume(low: int = -1024, high: int = 1500) -> Volume:
    hu = np.random.default_rng(1).integers(low, high, GRID.shape_zyx).astype(np.int16)
    hu[0, 0, 0], hu[-1, -1, -1] = low, high
    source = Source("dicom", ("a",), kernel="STANDARD", padding_hu=-2000.0, deidentified=True)
    return Volume(hu, GRID, Provenance(source)).changed(hu, Step("tamper", {"seed": 7}), Mark("forged", "test"))


@pytest.mark.parametrize(
    ("low", "offset"),
    [(0, 0), (-500, 512), (-1024, 1024), (-1025, 2000), (-2048, 2048), (-3024, 3024), (-32768, 32768)],
)
def test_round_trip_is_bit_exact_at_every_offset(low: int, offset: int, tmp_path: Path) -> None:
    volume = _volume(low, 32767 if low == -32768 else 1500)
    out = io.write(volume, tmp_path / "scan.tiff")
    back = io.read(out)
    assert json.loads((out / SIDECAR).read_text())["offset"] == offset
    assert back.hu.dtype == np.int16
    np.testing.assert_array_equal(back.hu, volume.hu)
    assert back.geometry == volume.geometry
    assert (back.provenance.steps, back.provenance.marks) == (volume.provenance.steps, volume.provenance.marks)
    assert (back.provenance.source.kernel, back.provenance.source.deidentified) == ("STANDARD", True)


def test_slices_run_from_the_head_down_in_uint16_lzma(tmp_path: Path) -> None:
    volume = _volume()
    write_tiff(volume, tmp_path / "scan")
    names = sorted(path.name for path in (tmp_path / "scan").glob("*.tiff"))
    assert names == [f"slide{n:04d}.tiff" for n in range(5)]
    with tifffile.TiffFile(tmp_path / "scan" / "slide0000.tiff") as tiff:
        page = tiff.pages.first
        assert page.compression.name == "LZMA"
        head = page.asarray()
    assert head.dtype == np.uint16
    np.testing.assert_array_equal(head.astype(int) - 1024, volume.hu[-1])


def test_every_slice_says_that_it_is_forged(tmp_path: Path) -> None:
    write_tiff(_volume(), tmp_path / "scan")
    for path in (tmp_path / "scan").glob("*.tiff"):
        with tifffile.TiffFile(path) as tiff:
            assert "FORGED (research)" in tiff.pages.first.description
            assert '\\"forged\\"' in tiff.pages.first.description


def test_marks_survive_the_loss_of_the_sidecar(tmp_path: Path) -> None:
    write_tiff(_volume(), tmp_path / "scan")
    (tmp_path / "scan" / SIDECAR).unlink()
    back = io.read(tmp_path / "scan")
    assert back.provenance.has_mark("forged")
    np.testing.assert_array_equal(back.hu, _volume().hu)


def test_a_sidecar_that_hides_the_mark_is_refused(tmp_path: Path) -> None:
    write_tiff(_volume(), tmp_path / "scan")
    sidecar = tmp_path / "scan" / SIDECAR
    sidecar.write_text(sidecar.read_text().replace("forged", "phantom"))
    with pytest.raises(ReadError, match="description is not that"):
        io.read(tmp_path / "scan")


def test_a_slice_whose_description_was_stripped_is_refused(tmp_path: Path) -> None:
    write_tiff(_volume(), tmp_path / "scan")
    path = tmp_path / "scan" / "slide0002.tiff"
    tifffile.imwrite(path, tifffile.imread(path))
    with pytest.raises(ReadError, match=r"slide0002\.tiff"):
        io.read(tmp_path / "scan")


def test_swapped_slices_are_refused(tmp_path: Path) -> None:
    write_tiff(_volume(), tmp_path / "scan")
    a, b, c = (tmp_path / "scan" / name for name in ("slide0001.tiff", "slide0003.tiff", "x"))
    a.rename(c), b.rename(a), c.rename(b)
    with pytest.raises(ReadError, match=r"slide0001\.tiff"):
        io.read(tmp_path / "scan")


@pytest.mark.parametrize("victim", ["slide0000.tiff", "slide0002.tiff", "slide0004.tiff"])
def test_a_missing_slice_is_refused(victim: str, tmp_path: Path) -> None:
    write_tiff(_volume(), tmp_path / "scan.tiff")
    (tmp_path / "scan.tiff" / victim).unlink()
    with pytest.raises(ReadError):
        io.read(tmp_path / "scan.tiff")


@pytest.mark.parametrize("keep", [0, 4, 60, 0.5, 0.9])
def test_a_cut_off_slice_is_named(keep: float, tmp_path: Path) -> None:
    write_tiff(_volume(), tmp_path / "scan")
    path = tmp_path / "scan" / "slide0003.tiff"
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if 0 < keep < 1 else int(keep)])
    with pytest.raises(ReadError) as caught:
        io.read(tmp_path / "scan")
    assert "slide0003.tiff" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_released_stack_needs_spacing_and_offset(tmp_path: Path) -> None:
    pixels = np.random.default_rng(5).integers(0, 4095, (4, 8, 9)).astype(np.uint16)
    for number, plane in enumerate(pixels):
        tifffile.imwrite(tmp_path / f"slide{number:04d}.tiff", plane, compression="lzma")
    with pytest.raises(ReadError, match="neither its spacing nor its offset"):
        io.read(tmp_path)
    volume = read_tiff(tmp_path, spacing_zyx_mm=(1.25, 0.7, 0.7), offset=1024)
    np.testing.assert_array_equal(volume.hu, pixels[::-1].astype(int) - 1024)
    assert volume.geometry.spacing_zyx_mm == (1.25, 0.7, 0.7)
    assert not volume.provenance.source.deidentified


def test_parameters_that_contradict_the_stack_are_refused(tmp_path: Path) -> None:
    write_tiff(_volume(), tmp_path / "scan")
    with pytest.raises(ReadError, match="offset is 1024"):
        read_tiff(tmp_path / "scan", offset=0)
    with pytest.raises(ReadError, match="spacing is"):
        read_tiff(tmp_path / "scan", spacing_zyx_mm=(1.0, 1.0, 1.0))


def test_pixels_beyond_int16_become_float32(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "slide0000.tiff", np.full((4, 5), 60000, np.uint16))
    volume = read_tiff(tmp_path, spacing_zyx_mm=(1.0, 1.0, 1.0), offset=0)
    assert volume.hu.dtype == np.float32
    assert float(volume.hu.max()) == 60000.0


def test_fractions_are_refused_and_whole_floats_written(tmp_path: Path) -> None:
    hu = np.full(GRID.shape_zyx, -0.5, np.float32)
    with pytest.raises(WriteError, match="whole numbers"):
        io.write(Volume(hu, GRID, Provenance(Source("phantom"))), tmp_path / "scan.tiff")
    assert list(tmp_path.iterdir()) == []
    io.write(Volume(np.rint(hu - 1), GRID, Provenance(Source("phantom"))), tmp_path / "scan.tiff")
    np.testing.assert_array_equal(io.read(tmp_path / "scan.tiff").hu, np.full(GRID.shape_zyx, -2))


def test_a_folder_in_use_is_refused_and_kept(tmp_path: Path) -> None:
    out = tmp_path / "scan.tiff"
    out.mkdir()
    (out / "mine.txt").write_text("keep")
    with pytest.raises(WriteError, match="not an empty folder"):
        io.write(_volume(), out)
    assert [path.name for path in out.iterdir()] == ["mine.txt"]
    shutil.rmtree(out)
    out.mkdir()
    io.write(_volume(), out)
    np.testing.assert_array_equal(io.read(out).hu, _volume().hu)


def test_same_volume_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_tiff(_volume(), tmp_path / name)
    first, second = (sorted((tmp_path / name).iterdir()) for name in ("a", "b"))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_labels_lie_beside_the_slices_that_they_describe(tmp_path: Path) -> None:
    mask = np.zeros(GRID.shape_zyx, dtype=bool)
    mask[4, 3:6, 2:9] = True
    write_label_stack(mask, tmp_path / "labels", GRID)
    assert tifffile.imread(tmp_path / "labels" / "slide0000.tiff").sum() == 21
    np.testing.assert_array_equal(read_label_stack(tmp_path / "labels"), mask)
    with pytest.raises(WriteError, match="3-D mask"):
        write_label_stack(mask.astype(np.uint8), tmp_path / "other")


def test_one_slice_alone_is_sent_to_its_folder(tmp_path: Path) -> None:
    write_tiff(_volume(), tmp_path / "scan")
    with pytest.raises(ReadError, match="give the folder"):
        io.read(tmp_path / "scan" / "slide0000.tiff")
