"""keygen, protect --protector seal, verify and restore on files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.uid import JPEG2000Lossless, RLELossless

from ctguard import io
from ctguard.core.marks import Mark
from ctguard.core.provenance import Step
from ctguard.core.volume import Volume
from tests.cli.runner import run
from tests.io.dicom_factory import make_series, pixel_type
from tests.protect.seals import scan, volume

Capture = pytest.CaptureFixture[str]
SHAPE = (6, 120, 132)


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clinical series of unsigned 12-bit values with padding."""
    stored = (scan(2, SHAPE).hu + 1024).clip(0, 4095)
    return make_series(tmp_path_factory.mktemp("scan") / "series", stored, pixel_type(bits=12, padding=0))


@pytest.fixture
def key(tmp_path: Path, capfd: Capture) -> Path:
    assert run(capfd, "keygen", tmp_path / "key").code == 0
    return tmp_path / "key"


def _seal(capfd: Capture, series: Path, out: Path, key: Path, *more: str | Path) -> Path:
    done = run(capfd, "protect", series, out, "--protector", "seal", "--key", key, "--quiet", *more)
    assert done.code == 0, done.err
    return out / "series"


def _verify(capfd: Capture, scan: Path, *more: str | Path) -> dict[str, object]:
    done = run(capfd, "verify", scan, "--json", *more)
    assert done.code == 0, done.err
    found: dict[str, object] = done.json
    return found


def _edit(folder: Path, slice_number: int, add: int) -> None:
    file = sorted(folder.glob("*.dcm"))[slice_number]
    ds = pydicom.dcmread(file)
    pixels = ds.pixel_array.copy()
    pixels[50:70, 20:40] += add
    ds.PixelData = pixels.tobytes()
    ds.save_as(file)


def test_seal_verify_edit_restore(series: Path, key: Path, tmp_path: Path, capfd: Capture) -> None:
    sealed = _seal(capfd, series, tmp_path / "out", key)
    header = pydicom.dcmread(next(sealed.glob("*.dcm")))
    assert header.SeriesDescription.startswith("PROTECTED COPY")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["report.html", "run.json", "seal.jsonl", "series"]
    intact = _verify(capfd, sealed, "--key", key, "--fail-if-broken")
    assert (intact["seal"], intact["regions"], intact["signature"]) == ("intact", [], "absent")
    done = run(capfd, "restore", sealed, tmp_path / "back", "--key", key)
    assert done.code == 0, done.err
    back = [pydicom.dcmread(f).pixel_array for f in sorted((tmp_path / "back").glob("*.dcm"))]
    before = [pydicom.dcmread(f).pixel_array for f in sorted(series.glob("*.dcm"))]
    assert np.array_equal(back, before)
    assert np.array_equal(io.read(tmp_path / "back").hu, io.read(series).hu)
    assert io.read(tmp_path / "back").provenance.marks == ()
    _edit(sealed, 3, 200)
    done = run(capfd, "verify", sealed, "--key", key, "--fail-if-broken", "--out", tmp_path / "judged")
    assert done.code == 3
    # keys differ: a neighbouring tile may be marked too, but the largest region is the edit
    assert "the seal is broken in " in done.out and " cm3 at 3, 60, 30 " in done.out.splitlines()[1]
    map_ = io.read(tmp_path / "judged" / "map.nii.gz")
    assert map_.hu[3, 60, 30] == 1
    assert map_.hu[0].max() == 0
    refused = run(capfd, "restore", sealed, tmp_path / "again", "--key", key)
    assert (refused.code, len(refused.errors)) == (1, 1)
    assert "slice 3 was changed" in refused.err
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, RLELossless], ids=["jpeg2000", "rle"])
def test_lossless_transcoding_and_other_windows_keep_the_seal(
    series: Path, key: Path, syntax: str, tmp_path: Path, capfd: Capture
) -> None:
    sealed = _seal(capfd, series, tmp_path / "out", key)
    for file in sealed.glob("*.dcm"):
        ds = pydicom.dcmread(file)
        ds.WindowCenter, ds.WindowWidth = "40", "400"
        ds.compress(syntax, generate_instance_uid=False)
        ds.save_as(file)
    assert _verify(capfd, sealed, "--key", key)["seal"] == "intact"


def test_stripped_files_are_known_by_the_ledger(series: Path, key: Path, tmp_path: Path, capfd: Capture) -> None:
    ledger = tmp_path / "ledger.jsonl"
    sealed = _seal(capfd, series, tmp_path / "out", key, "--ledger", ledger)
    _seal(capfd, io.write(volume(scan(4, SHAPE).hu), tmp_path / "b.mha"), tmp_path / "out2", key, "--ledger", ledger)
    stripped = io.write(volume(io.read(sealed).hu, io.read(sealed).geometry), tmp_path / "stripped.nii.gz")
    found = _verify(capfd, stripped, "--key", key, "--ledger", ledger)
    assert found["seal"] == "intact"
    done = run(capfd, "restore", stripped, tmp_path / "back.mha", "--key", key, "--ledger", ledger)
    assert done.code == 0, done.err
    assert np.array_equal(io.read(tmp_path / "back.mha").hu, io.read(series).hu)
    assert ledger.stat().st_mode & 0o077 == 0
    patient = pydicom.dcmread(next(series.glob("*.dcm")))
    text = ledger.read_text()
    assert patient.SeriesInstanceUID not in text
    assert str(patient.PatientName) not in text


def test_keys_stand_in_no_output(series: Path, key: Path, tmp_path: Path, capfd: Capture) -> None:
    secret = key.read_bytes().strip().partition(b":")[2]
    sealed = _seal(capfd, series, tmp_path / "out", key, "--ledger", tmp_path / "ledger")
    run(capfd, "verify", sealed, "--key", key, "--out", tmp_path / "judged")
    files = [f for f in tmp_path.rglob("*") if f.is_file() and f != key]
    assert [f.name for f in files if secret[:20] in f.read_bytes()] == []
    key_id = json.loads((tmp_path / "out" / "run.json").read_text())["notes"]["protection"]["key_id"]
    assert key_id in run(capfd, "verify", sealed, "--key", key, "--json").out


def test_the_digest_alone_changes_no_voxel(series: Path, key: Path, tmp_path: Path, capfd: Capture) -> None:
    sealed = _seal(capfd, series, tmp_path / "out", key, "--digest-only")
    assert np.array_equal(io.read(sealed).hu, io.read(series).hu)
    assert _verify(capfd, sealed, "--key", key)["seal"] == "intact"
    _edit(sealed, 2, 60)
    assert _verify(capfd, sealed, "--key", key)["seal"] == "broken"


def test_slopes_that_are_no_whole_numbers_come_back(key: Path, tmp_path: Path, capfd: Capture) -> None:
    stored = ((scan(2, SHAPE).hu + 1024) * 2).clip(0, 4095)
    series = make_series(tmp_path / "series", stored, pixel_type(slope="0.488281", intercept="-1024.3", bits=16))
    sealed = _seal(capfd, series, tmp_path / "out", key)
    assert _verify(capfd, sealed, "--key", key)["seal"] == "intact"
    assert run(capfd, "restore", sealed, tmp_path / "back", "--key", key).code == 0
    for a, b in zip(sorted((tmp_path / "back").glob("*.dcm")), sorted(series.glob("*.dcm")), strict=True):
        assert np.array_equal(pydicom.dcmread(a).pixel_array, pydicom.dcmread(b).pixel_array)


def test_what_is_wrong_is_one_line(series: Path, key: Path, tmp_path: Path, capfd: Capture) -> None:
    sealed = _seal(capfd, series, tmp_path / "out", key)
    (tmp_path / "open").write_bytes(key.read_bytes())
    (tmp_path / "open").chmod(0o644)
    (tmp_path / "empty").touch(mode=0o600)
    for name, words in (("open", "mode 0644"), ("empty", "empty"), ("gone", "no such key file")):
        for verb in (["verify", sealed], ["restore", sealed, tmp_path / "x"]):
            done = run(capfd, *verb, "--key", tmp_path / name)
            assert (done.code, done.out, len(done.errors)) == (1, "", 1)
            assert words in done.err
    run(capfd, "keygen", tmp_path / "second")
    other = run(capfd, "verify", sealed, "--key", tmp_path / "second")
    assert (other.code, "another key" in other.out) == (0, True)
    assert run(capfd, "keygen", key).code == 1
    assert run(capfd, "protect", series, tmp_path / "y", "--protector", "seal").code == 2
    assert run(capfd, "verify", sealed, "--ledger", tmp_path / "l").code == 2
    assert "not checked" in run(capfd, "verify", sealed).out
    twice = run(capfd, "protect", sealed, tmp_path / "z", "--protector", "seal", "--key", key)
    assert (twice.code, "marked sealed" in twice.err) == (1, True)
    none = run(capfd, "restore", series, tmp_path / "z", "--key", key)
    assert (none.code, "carries no seal" in none.err) == (1, True)


def test_forged_scans_are_not_sealed(key: Path, tmp_path: Path, capfd: Capture) -> None:
    plain = scan(2, SHAPE)
    forged = Volume(plain.hu, plain.geometry, plain.provenance.then(Step("test"), Mark("forged", "a test")))
    path = io.write(forged, tmp_path / "forged.mha")
    done = run(capfd, "protect", path, tmp_path / "out", "--protector", "seal", "--key", key)
    assert (done.code, "marked forged" in done.err) == (1, True)
