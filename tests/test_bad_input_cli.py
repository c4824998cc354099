"""Bad input: exit 1, exactly one line on stderr that names the place, nothing on stdout, nothing written."""

from __future__ import annotations

import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pydicom
import pytest
from pydicom.uid import MRImageStorage

from ctguard import io
from tests.cli.runner import run
from tests.cli.scans import small_volume

VERBS: dict[str, list[str]] = {
    "info": ["{scan}"],
    "convert": ["{scan}", "{out}.nii.gz"],
    "tamper": ["{scan}", "{out}", "--task", "inject", "--at", "4,16,16", "--generator", "identity"],
    "detect": ["{scan}", "--out", "{out}"],
    "protect": ["{scan}", "{out}", "--protector", "noise", "--budget-hu", "5"],
}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return io.write(small_volume(), tmp_path_factory.mktemp("good") / "series")


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.dcm"))


def empty_folder(good: Path, scan: Path) -> None:
    scan.mkdir()


def text_file(good: Path, scan: Path) -> None:
    scan.write_text("this is no scan\n")


def folder_of_text(good: Path, scan: Path) -> None:
    scan.mkdir()
    (scan / "notes.txt").write_text("this is no scan\n")


def truncated_slice(good: Path, scan: Path) -> None:
    shutil.copytree(good, scan)
    middle = _files(scan)[3]
    middle.write_bytes(middle.read_bytes()[:-700])


def missing_slice(good: Path, scan: Path) -> None:
    shutil.copytree(good, scan)
    _files(scan)[3].unlink()


def duplicate_slice(good: Path, scan: Path) -> None:
    shutil.copytree(good, scan)
    dataset = pydicom.dcmread(_files(scan)[3])
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    dataset.save_as(scan / "again.dcm")


def two_series(good: Path, scan: Path) -> None:
    io.write(small_volume(1), scan / "other")
    shutil.copytree(good, scan / "one")


def mr_series(good: Path, scan: Path) -> None:
    shutil.copytree(good, scan)
    for file in _files(scan):
        dataset = pydicom.dcmread(file)
        dataset.Modality = "MR"
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = MRImageStorage
        dataset.save_as(file)


def no_positions(good: Path, scan: Path) -> None:
    shutil.copytree(good, scan)
    for file in _files(scan):
        dataset = pydicom.dcmread(file)
        del dataset.ImagePositionPatient
        dataset.save_as(file)


def zip_bomb(good: Path, scan: Path) -> None:
    with zipfile.ZipFile(scan, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("0000.dcm", bytes(128) + b"DICM" + bytes(200 * 2**20))


def escaping_zip(good: Path, scan: Path) -> None:
    with zipfile.ZipFile(scan, "w") as archive:
        archive.write(_files(good)[0], "../../escaped.dcm")


def damaged_nifti(good: Path, scan: Path) -> None:
    whole = io.write(small_volume(), scan.with_name("whole.nii.gz"))
    scan.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    whole.unlink()


CASES: dict[str, tuple[Callable[[Path, Path], None], str, str]] = {
    # maker, name of the scan, words that its error must hold
    "an empty folder": (empty_folder, "scan", "scan"),
    "a text file": (text_file, "notes.txt", "notes.txt"),
    "a folder of text": (folder_of_text, "scan", "scan"),
    "a truncated slice": (truncated_slice, "scan", "0003.dcm"),
    "a missing slice": (missing_slice, "scan", "--allow-gaps"),
    "a slice twice": (duplicate_slice, "scan", "again.dcm"),
    "two series": (two_series, "scan", "--series"),
    "an MR series": (mr_series, "scan", "MR"),
    "slices without positions": (no_positions, "scan", "ImagePositionPatient"),
    "a zip bomb": (zip_bomb, "scan.zip", "bomb"),
    "a zip that escapes": (escaping_zip, "scan.zip", "escaped.dcm"),
    "half a NIfTI file": (damaged_nifti, "scan.nii.gz", "scan.nii.gz"),
    "nothing": (lambda good, scan: None, "scan.mha", "scan.mha"),
}


def _tree(folder: Path) -> dict[str, int]:
    return {str(p.relative_to(folder)): p.lstat().st_mtime_ns for p in folder.rglob("*")}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_refused_whole(
    case: str,
    verb: str,
    good: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    make, name, words = CASES[case]
    scan = tmp_path / name
    make(good, scan)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    before = _tree(tmp_path)
    done = run(capfd, verb, *(w.format(scan=scan, out=tmp_path / "out") for w in VERBS[verb]))
    assert (done.code, done.out) == (1, "")
    assert len(done.errors) == 1, done.err
    assert done.err.startswith("ctguard: error: ")
    assert words in done.err
    assert _tree(tmp_path) == before


def _unwritable(tmp_path: Path) -> list[Path]:
    """Places that nobody can write to: below a file, below the kernel's own tree, in a read-only folder."""
    below_file = tmp_path / "file"
    below_file.write_text("in the way\n")
    places = [below_file / "out"]
    if Path("/proc/self").is_dir():
        places.append(Path("/proc/out"))
    if os.geteuid() != 0:
        locked = tmp_path / "locked"
        locked.mkdir(mode=0o500)
        places.append(locked / "out")
    return places


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "info"])
def test_an_output_that_cannot_be_written_is_one_line(
    verb: str, good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    for place in _unwritable(tmp_path):
        before = _tree(tmp_path)
        done = run(capfd, verb, *(w.format(scan=good, out=place) for w in VERBS[verb]), "--quiet")
        assert (done.code, done.out) == (1, ""), place
        assert len(done.errors) == 1, done.err
        assert str(place) in done.err
        assert _tree(tmp_path) == before


@pytest.mark.parametrize("verb", ["tamper", "protect"])
def test_an_output_folder_that_holds_something_is_refused(
    verb: str, good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    shutil.copytree(good, tmp_path / "out")
    before = _tree(tmp_path)
    done = run(capfd, verb, *(w.format(scan=good, out=tmp_path / "out") for w in VERBS[verb]), "--quiet")
    assert (done.code, done.out, len(done.errors)) == (1, "", 1)
    assert str(tmp_path / "out") in done.err
    assert _tree(tmp_path) == before
