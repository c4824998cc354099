"""Other people's programs take the results: dciodvfy validates, DCMTK stores and dumps them."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pydicom
import pytest

from ctguard import io
from ctguard.core.marks import Mark, MarkKind
from ctguard.core.provenance import Step
from ctguard.core.volume import Volume
from ctguard.export.results import write_results
from tests.export.series import make_marked, verdict_of
from tests.io.dicom_factory import make_enhanced, stored_values

ALLOWED = re.compile(
    "|".join(
        (
            # SyntheticData is younger than dciodvfy's dictionary, which then calls the object an extended class
            r"\(0x0008,0x001c\)",
            "this is a Standard Extended SOP Class",
            # a scheme of our own, as PS3.16 8.2 has it
            "Unrecognized defined term <99CTGUARD>",
            # a defined term that its dictionary does not have
            "Unrecognized defined term <QUANTITY> for value 4 of attribute <(Image|Frame) Type>",
        )
    )
)
needs_dciodvfy = pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="needs dciodvfy (Debian: dicom3tools)")
needs_dcmtk = pytest.mark.skipif(not Path("/usr/bin/storescp").exists(), reason="needs DCMTK (Debian: dcmtk)")


def findings(file: Path) -> set[str]:
    """Errors and warnings of dciodvfy."""
    done = subprocess.run(["dciodvfy", str(file)], capture_output=True, text=True, check=False)
    return {line for line in (done.stdout + done.stderr).splitlines() if "Error" in line or "Warning" in line}


def unexpected(files: list[Path], own: set[str]) -> set[str]:
    """Findings that are neither allowed nor those of the source itself."""
    return {line for file in files for line in findings(file) - own if not ALLOWED.search(line)}


@needs_dciodvfy
@pytest.mark.parametrize("kind", [None, "forged", "phantom", "protected"])
def test_dciodvfy_finds_nothing(kind: MarkKind | None, tmp_path: Path) -> None:
    volume = io.read(make_marked(tmp_path / "series"))
    if kind is not None:
        io.write(volume.changed(volume.hu, Step("change"), Mark(kind, "by a test")), tmp_path / "marked")
        volume = io.read(tmp_path / "marked")
    files = write_results(volume, verdict_of(volume), tmp_path / "out")
    assert len(files) == 4
    assert unexpected(files, set()) == set()


@needs_dciodvfy
def test_dciodvfy_finds_nothing_without_regions_and_in_results_of_an_enhanced_source(tmp_path: Path) -> None:
    series = io.read(make_marked(tmp_path / "series"))
    files = [
        *write_results(series, verdict_of(series, tampered=False), tmp_path / "clean"),
        *write_results(series, verdict_of(series, localises=False), tmp_path / "nowhere"),
    ]
    enhanced = io.read(make_enhanced(tmp_path / "enhanced.dcm", stored_values(4, low=2990, high=3010), [2, 0, 3, 1]))
    files += write_results(enhanced, verdict_of(enhanced), tmp_path / "enhanced")
    assert unexpected(files, set()) == set()


@needs_dciodvfy
@pytest.mark.real
@pytest.mark.parametrize("name", ["LIDC-IDRI-0003", "R01-001", "Lung_Dx-A0001_B", "Lung_Dx-A0001_L"])
def test_dciodvfy_finds_nothing_new_on_real_series(name: str, real_dir: Path, tmp_path: Path) -> None:
    for file in sorted((real_dir / name).glob("*.dcm"))[40:48]:
        shutil.copy(file, tmp_path / file.name)
    volume = io.read(tmp_path)
    own = set().union(*(findings(Path(file)) for file in volume.provenance.source.files))
    hu = volume.hu.copy()
    hu[2:5, 100:120, 200:230] = 3000 - 1024
    marked = Volume(hu, volume.geometry, volume.provenance)
    files = write_results(volume, verdict_of(marked), tmp_path / "out")
    assert len(files) == 4
    assert unexpected(files, own) == set()


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[tuple[int, Path]]:
    """A storage SCP of DCMTK on loopback: its port, and the folder where it puts what it gets."""
    folder = tmp_path / "archive"
    folder.mkdir()
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ["/usr/bin/storescp", "-aet", "ARCHIVE", "-od", str(folder), str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(100):
            with closing(socket.socket()) as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield port, folder
    finally:
        process.terminate()
        process.wait(timeout=10)


@needs_dcmtk
def test_an_archive_takes_them_and_a_reader_reads_them(archive: tuple[int, Path], tmp_path: Path) -> None:
    port, folder = archive
    volume = io.read(make_marked(tmp_path / "series"))
    files = write_results(volume, verdict_of(volume), tmp_path / "out")
    send = ["/usr/bin/storescu", "-R", "-aec", "ARCHIVE", "127.0.0.1", str(port), *map(str, files)]
    done = subprocess.run(send, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    stored = {pydicom.dcmread(file).SOPInstanceUID for file in folder.iterdir()}
    assert stored == {pydicom.dcmread(file).SOPInstanceUID for file in files}
    shown = subprocess.run(
        ["/usr/bin/dsrdump", "+Pl", str(tmp_path / "out" / "sr.dcm")], capture_output=True, text=True, check=True
    )
    assert shown.stderr == ""
    for words in (
        "Evidence of tampering in 2 regions.",
        "Tampering score",
        "ctguard region 2",
        "evidence of tampering",
    ):
        assert words in shown.stdout
    dumped = subprocess.run(["/usr/bin/dsrdump", str(tmp_path / "out" / "key.dcm")], capture_output=True, text=True)
    assert dumped.returncode == 0
    assert "Of Interest" in dumped.stdout
