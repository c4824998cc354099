"""Law: a mark is never lost. Any chain of two formats, then DICOM, keeps marks, steps and voxels as they were."""

from __future__ import annotations

import gzip
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from ctguard import io
from ctguard.core.errors import WriteError
from ctguard.core.geometry import Geometry
from ctguard.core.marks import Mark, MarkKind
from ctguard.core.provenance import Provenance, Source, Step
from ctguard.core.volume import Volume

NAMES = ("dicom", "scan.mha", "scan.mhd", "scan.nii", "scan.nii.gz", "scan.nrrd", "scan.tiff")
KINDS: tuple[MarkKind, ...] = ("forged", "phantom", "protected", "sealed")

GRID = Geometry((4, 16, 18), (2.5, 0.75, 0.75), (-120.5, -101.25, -300.0))
HU = np.random.default_rng(2).integers(-1024, 1800, GRID.shape_zyx).astype(np.int16)
STEP = Step("tamper", {"task": "inject", "seed": 7, "center_zyx": [1, 8.5, 9], "nested": {"a": None, "b": True}})


def _marked(kind: MarkKind) -> Volume:
    source = Source("phantom", deidentified=True, kernel="B70f", patient_id="ROE^JANE", series_uid="1.2.840.99.1.2.3.4")
    return Volume(HU, GRID, Provenance(source)).changed(HU, STEP, Mark(kind, "made by a test: (1, 2)"))


def _assert_kept(volume: Volume, like: Volume) -> None:
    assert volume.provenance.marks == like.provenance.marks
    assert volume.provenance.steps == like.provenance.steps
    assert volume.provenance.source.deidentified
    assert volume.hu.dtype == like.hu.dtype
    np.testing.assert_array_equal(volume.hu, like.hu)
    assert volume.geometry.agrees(like.geometry)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("first", "second"), list(product(NAMES, repeat=2)))
def test_every_chain_of_two_formats_then_dicom(kind: MarkKind, first: str, second: str, tmp_path: Path) -> None:
    volume = original = _marked(kind)
    for number, name in enumerate((first, second, "dicom")):
        (tmp_path / str(number)).mkdir()
        volume = io.read(io.write(volume, tmp_path / str(number) / name))
        _assert_kept(volume, original)


@pytest.mark.parametrize("name", NAMES)
def test_a_forgery_names_no_patient_and_no_source(name: str, tmp_path: Path) -> None:
    source = io.write(_marked("forged"), tmp_path / name)
    files = source.rglob("*") if source.is_dir() else tmp_path.iterdir()
    for file in (file for file in files if file.is_file()):
        content = file.read_bytes()
        content = gzip.decompress(content) if file.suffix == ".gz" else content
        assert b"ROE" not in content
        assert b"1.2.840.99.1.2.3.4" not in content
    assert io.read(source).provenance.source.patient_id != "ROE^JANE"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ending", [".raw", ".png", ".npy", ".hdr", ".img", ".gipl"])
def test_a_format_that_cannot_carry_the_mark_is_refused(kind: MarkKind, ending: str, tmp_path: Path) -> None:
    with pytest.raises(WriteError, match="cannot carry the marks"):
        io.write(_marked(kind), tmp_path / f"scan{ending}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["scan.mha", "scan.nii.gz", "scan.nrrd"])
def test_fractional_voxels_keep_their_marks_too(name: str, tmp_path: Path) -> None:
    hu = HU.astype(np.float32) + np.float32(0.25)
    volume = Volume(hu, GRID, Provenance(Source("phantom", deidentified=True))).changed(hu, STEP, Mark("forged", "x"))
    _assert_kept(io.read(io.write(volume, tmp_path / name)), volume)


def test_marks_add_up(tmp_path: Path) -> None:
    volume = _marked("phantom")
    for number, name in enumerate(NAMES[1:]):
        (tmp_path / str(number)).mkdir()
        volume = volume.changed(volume.hu, Step("again", {"n": number}), Mark("forged", f"number {number}"))
        kept = io.read(io.write(volume, tmp_path / str(number) / name))
        _assert_kept(kept, volume)
        volume = kept
    assert len(volume.provenance.marks) == len(NAMES)
