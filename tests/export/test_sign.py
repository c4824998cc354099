"""Signatures by DCMTK's dcmsign: what is valid, what is not, and that none is left on changed pixels."""

from __future__ import annotations

import shutil
import subprocess
import time
import zipfile
from pathlib import Path

import pydicom
import pytest
from pydicom.dataset import Dataset

from ctguard import io
from ctguard.core.errors import MissingExtraError, ReadError, RefusedError, WriteError
from ctguard.core.marks import Mark
from ctguard.core.provenance import Step
from ctguard.export.sign import check_files, is_signed, sign_files
from tests.cli.runner import run
from tests.io.dicom_factory import make_series, stored_values

Capture = pytest.CaptureFixture[str]
pytestmark = pytest.mark.skipif(
    shutil.which("dcmsign") is None or shutil.which("openssl") is None, reason="needs dcmsign (Debian: dcmtk), openssl"
)
Pair = tuple[Path, Path]


def pair(folder: Path, name: str) -> Pair:
    """A key and its own certificate."""
    key, certificate = folder / f"{name}.key", folder / f"{name}.pem"
    words = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "9999", "-subj", f"/CN={name}"]
    command = ["openssl", *words, "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    key.chmod(0o600)
    time.sleep(1.1)  # valid from this second on; a signature of the same second may count as older
    return key, certificate


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return pair(tmp_path_factory.mktemp("keys"), "gateway")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return pair(tmp_path_factory.mktemp("keys"), "stranger (7fe0,0010)")


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    return sorted(make_series(tmp_path / "series", stored_values(3)).glob("*.dcm"))


def state(files: list[Path], certificate: Path | None = None) -> str:
    return check_files([str(file) for file in files], certificate).state


def flip(file: Path, bit: int = 1) -> None:
    ds = pydicom.dcmread(file)
    pixels = bytearray(ds.PixelData)
    pixels[100] ^= bit
    ds.PixelData = bytes(pixels)
    ds.save_as(file)


def test_signed_files_are_valid_under_a_trusted_certificate_and_the_pixels_are_the_same(
    files: list[Path], gateway: Pair, stranger: Pair
) -> None:
    before = [pydicom.dcmread(file).PixelData for file in files]
    assert state(files, gateway[1]) == "absent"
    sign_files(files, *gateway)
    assert is_signed([str(file) for file in files]) == 3
    verdict = check_files([str(file) for file in files], gateway[1])
    assert verdict.state == "valid" and "gateway" in verdict.words
    assert [pydicom.dcmread(file).PixelData for file in files] == before
    assert state(files) == "not-checked" and "--cert" in check_files([str(files[0])]).words
    assert state(files, stranger[1]) == "invalid"
    assert sorted(file.name for file in files[0].parent.iterdir()) == [file.name for file in files]


def test_one_changed_bit_of_pixels_or_header_breaks_it_with_or_without_trust(files: list[Path], gateway: Pair) -> None:
    sign_files(files, *gateway)
    flip(files[1])
    assert state(files, gateway[1]) == state(files) == "invalid"
    flip(files[1])
    assert state(files, gateway[1]) == "valid"
    ds = pydicom.dcmread(files[2])
    ds.PatientName = "OTHER^NAME"
    ds.save_as(files[2])
    assert state(files, gateway[1]) == "invalid"


def test_a_series_that_is_signed_in_part_is_invalid(files: list[Path], gateway: Pair) -> None:
    sign_files(files[:2], *gateway)
    assert state(files, gateway[1]) == "invalid"


def test_a_signature_that_leaves_the_pixels_out_is_invalid(files: list[Path], gateway: Pair, tmp_path: Path) -> None:
    command = ["dcmsign", "+s", *map(str, gateway), "-t", "PatientName", str(files[0]), str(tmp_path / "part.dcm")]
    subprocess.run(command, check=True)
    assert state([tmp_path / "part.dcm"], gateway[1]) == "invalid"


def test_a_name_in_a_certificate_is_not_taken_for_a_signed_element(
    files: list[Path], stranger: Pair, tmp_path: Path
) -> None:
    command = ["dcmsign", "+s", *map(str, stranger), "-t", "PatientName", str(files[0]), str(tmp_path / "part.dcm")]
    subprocess.run(command, check=True)
    assert state([tmp_path / "part.dcm"], stranger[1]) == "invalid"


def test_a_zipped_series_is_checked_too(files: list[Path], gateway: Pair, tmp_path: Path) -> None:
    sign_files(files, *gateway)
    with zipfile.ZipFile(tmp_path / "series.zip", "w") as archive:
        for file in files:
            archive.write(file, file.name)
    names = list(io.read(tmp_path / "series.zip").provenance.source.files)
    assert check_files(names, gateway[1]).state == "valid"


def test_forged_images_are_not_signed_and_none_is_signed_in_part(files: list[Path], gateway: Pair) -> None:
    ds = pydicom.dcmread(files[2])
    ds.SyntheticData = "YES"
    ds.save_as(files[2])
    before = [file.read_bytes() for file in files]
    with pytest.raises(RefusedError, match="forged"):
        sign_files(files, *gateway)
    assert [file.read_bytes() for file in files] == before


def test_what_is_wrong_with_keys_is_said_before_anything_is_written(
    files: list[Path], gateway: Pair, stranger: Pair, tmp_path: Path
) -> None:
    with pytest.raises(ReadError, match="no such key"):
        sign_files(files, tmp_path / "none", gateway[1])
    with pytest.raises(WriteError, match="dcmsign could not sign"):
        sign_files(files, stranger[0], gateway[1])
    opened = tmp_path / "open.key"
    shutil.copy(gateway[0], opened)
    opened.chmod(0o644)
    with pytest.raises(RefusedError, match="chmod"):
        sign_files(files, opened, gateway[1])
    with pytest.raises(ReadError, match="certificate"):
        state(files, tmp_path / "none.pem")
    assert state(files) == "absent"


def test_without_dcmsign_signing_fails_and_checking_says_so(
    files: list[Path], gateway: Pair, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sign_files(files, *gateway)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingExtraError, match="dcmtk"):
        sign_files(files, *gateway)
    verdict = check_files([str(file) for file in files], gateway[1])
    assert verdict.state == "not-checked" and "dcmtk" in verdict.words


def test_no_signature_is_left_on_what_was_written_anew(files: list[Path], gateway: Pair, tmp_path: Path) -> None:
    sign_files(files, *gateway)
    volume = io.read(files[0].parent)
    changed = volume.hu.copy()
    changed[1, 3, 3] += 1
    for kind in ("protected", "forged"):
        made = io.write(volume.changed(changed, Step("test"), Mark(kind, "by a test")), tmp_path / kind)  # type: ignore[arg-type]
        for file in made.glob("*.dcm"):
            found: list[str] = []

            def look(_: Dataset, element: pydicom.DataElement, found: list[str] = found) -> None:
                found.append(element.keyword)

            pydicom.dcmread(file).walk(look)
            assert "DigitalSignaturesSequence" not in found and "MACParametersSequence" not in found


def test_protect_signs_and_verify_checks(files: list[Path], gateway: Pair, tmp_path: Path, capfd: Capture) -> None:
    words = ["--protector", "noise", "--budget-hu", "3", "--quiet"]
    volume = tmp_path / "body"
    stored = stored_values(6, 64, 900, 1200)
    make_series(volume, stored)
    done = run(capfd, "protect", volume, tmp_path / "out", *words, "--sign", *gateway)
    assert done.code == 0, done.err
    series = tmp_path / "out" / "series"
    answer = run(capfd, "verify", series, "--cert", gateway[1], "--json").json
    assert answer["signature"] == "valid" and "gateway" in answer["signature_words"]
    assert run(capfd, "verify", series, "--json").json["signature"] == "not-checked"
    flip(sorted(series.glob("*.dcm"))[0])
    broken = run(capfd, "verify", series, "--cert", gateway[1], "--fail-if-broken", "--json")
    assert (broken.code, broken.json["signature"]) == (3, "invalid")
    assert run(capfd, "verify", volume, "--json").json["signature"] == "absent"


def test_signing_other_formats_is_wrong_use_and_a_missing_key_stops_early(
    files: list[Path], gateway: Pair, tmp_path: Path, capfd: Capture
) -> None:
    words = ["--protector", "noise", "--budget-hu", "3"]
    wrong = run(capfd, "protect", files[0].parent, tmp_path / "a", *words, "--format", "mha", "--sign", *gateway)
    assert wrong.code == 2
    none = run(capfd, "protect", files[0].parent, tmp_path / "b", *words, "--sign", tmp_path / "no.key", gateway[1])
    assert (none.code, len(none.errors)) == (1, 1) and "no.key" in none.err
    assert not (tmp_path / "a").exists() and not (tmp_path / "b").exists()
