"""The audit of a real archive by C-MOVE: what it finds, and what it says where the archive sends nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydicom import dcmread
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, generate_uid
from pynetdicom import AE, evt
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    CTImageStorage,
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelMove,
)

from ctguard.core.errors import DataError, ReadError
from ctguard.serve.archive import Findings, audit_archive
from ctguard.serve.config import Destination
from ctguard.serve.mover import Fetch, over_dicom
from ctguard.serve.store.database import open_database, session_scope
from ctguard.serve.store.models import Instance
from tests.cli.runner import run
from tests.serve.parts import Orthanc, free_port, needs_openssl, needs_orthanc, orthanc
from tests.serve.test_archive import image, make_ledger, upload

IMAGES = 12
TITLE = "CTGUARD_AUDIT"


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    """An archive that knows us, keeps nothing in memory, and is filled by each test."""
    folder = tmp_path_factory.mktemp("archive")
    with orthanc(folder / "orthanc", "ARCHIVE", MaximumStorageCacheSize=0, DicomScuTimeout=3) as started:
        yield started


@pytest.fixture
def port(archive: Orthanc) -> int:
    """Where the archive, which is empty, knows us."""
    for patient in httpx.get(f"http://127.0.0.1:{archive.web}/patients").json():
        httpx.delete(f"http://127.0.0.1:{archive.web}/patients/{patient}")
    free = free_port()
    know(archive, TITLE, free)
    return free


@pytest.fixture
def ledger(tmp_path: Path) -> Any:
    """Database, key, and the stored values of its images."""
    return make_ledger(tmp_path, IMAGES)


def know(archive: Orthanc, title: str, port: int) -> None:
    """An entry of the archive's list of DICOM nodes."""
    entry = httpx.put(f"http://127.0.0.1:{archive.web}/modalities/{title}", json=[title, "127.0.0.1", port])
    entry.raise_for_status()


def at(port: int, **more: Any) -> Destination:
    return Destination(name="archive", ae_title="ARCHIVE", host="127.0.0.1", port=port, **more)


def audited(ledger: Any, source: AbstractContextManager[Fetch], sample: int = IMAGES) -> Findings:
    return audit_archive(f"sqlite:///{ledger[0]}", ledger[1], source, sample=sample)


def words(archive: Orthanc, ledger: Any, port: int, *more: str) -> list[str]:
    """Of the command line."""
    known = ["--ledger", str(ledger[0]), "--key", str(ledger[1]), "--archive", f"127.0.0.1:{archive.dicom}"]
    return ["audit", *known, "--archive-title", "ARCHIVE", "--listen", f"127.0.0.1:{port}", *more]


def uid_of(number: int) -> str:
    return str(generate_uid(entropy_srcs=["archive", str(number)]))


@needs_orthanc
def test_one_substituted_slice_and_what_is_missing_are_found(
    archive: Orthanc, port: int, ledger: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    changed = ledger[2].copy()
    changed[7, 20:25, 20:25] += 40
    syntaxes = [ExplicitVRLittleEndian, JPEG2000Lossless]
    upload(archive, [image(n, plane, syntaxes[n % 2]) for n, plane in enumerate(changed) if n != 3])
    done = run(capfd, *words(archive, ledger, port, "--json", "--fail-if-substituted"))
    assert done.code == 3
    region = {"frames": [1], "rows": [11, 33], "columns": [20, 30]}
    assert done.json == {
        "compared": IMAGES - 1,
        "substituted": {uid_of(7): region},
        "missing": [uid_of(3)],
        "unreadable": [],
    }
    text = run(capfd, *words(archive, ledger, port))
    assert text.code == 0 and "11 images compared, 1 substituted, 1 missing, 0 unreadable" in text.out
    assert run(capfd, *words(archive, ledger, port, "--title", "NOBODY")).code == 1


@needs_orthanc
def test_an_image_that_the_archive_lost_is_unreadable_and_the_others_are_compared(
    archive: Orthanc, port: int, ledger: Any, tmp_path: Path
) -> None:
    def files() -> set[Path]:
        return {path for path in (archive.settings.parent / "storage").glob("??/??/*") if path.is_file()}

    upload(archive, [image(n, plane) for n, plane in enumerate(ledger[2][:4])])
    before = files()
    upload(archive, [image(4, ledger[2][4])])
    for path in files() - before:
        path.unlink()
    found = audited(ledger, over_dicom(at(archive.dicom), TITLE, ("127.0.0.1", port)))
    assert (found.compared, found.unreadable, len(found.missing)) == (4, [uid_of(4)], IMAGES - 5)


@needs_orthanc
def test_an_archive_that_sends_nothing_to_us_says_why(
    archive: Orthanc, port: int, ledger: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ctguard.serve.mover._LATE_S", 0.5)
    upload(archive, [image(n, plane) for n, plane in enumerate(ledger[2])])
    know(archive, "AWAY", free_port())
    know(archive, "ELSEWHERE", archive.dicom)
    cases = [
        ("AWAY", at(archive.dicom), r"sends nothing \(C-MOVE status C000\)"),
        ("ELSEWHERE", at(archive.dicom), "not to here: it knows ELSEWHERE at another place"),
        ("STRANGER", at(archive.dicom), "the archive gives no answer"),
        (TITLE, at(free_port()), "the archive cannot be reached"),
    ]
    for title, to, says in cases:
        with pytest.raises(ReadError, match=says) as raised:
            audited(ledger, over_dicom(to, title, ("127.0.0.1", port)))
        assert "127.0.0.1" in str(raised.value)
    with pytest.raises(ReadError, match=rf"127.0.0.1:{archive.web}: nobody can listen there \(Address already in use"):
        audited(ledger, over_dicom(at(archive.dicom), TITLE, ("127.0.0.1", archive.web)))


def asked(ledger: Any, *answers: Any, find: int = 0x0000, listen: int = 0) -> Findings:
    """Audit an archive of our own, which gives these answers to each C-MOVE."""
    archive, port = AE("ARCHIVE"), free_port()
    archive.add_supported_context(StudyRootQueryRetrieveInformationModelFind)
    if answers:
        archive.add_supported_context(StudyRootQueryRetrieveInformationModelMove)
    archive.add_requested_context(CTImageStorage)
    here = ("127.0.0.1", listen or free_port())

    def on_find(event: evt.Event) -> Iterator[Any]:
        if find == 0:
            yield 0xFF00, event.identifier
        else:
            yield find, None

    def on_move(event: evt.Event) -> Iterator[Any]:
        yield from answers

    handlers: Any = [(evt.EVT_C_FIND, on_find), (evt.EVT_C_MOVE, on_move)]
    server = archive.start_server(("127.0.0.1", port), block=False, evt_handlers=handlers)
    assert server is not None
    try:
        return audited(ledger, over_dicom(at(port), TITLE, here), sample=1)
    finally:
        server.shutdown()


def test_each_refusal_is_told_apart(ledger: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctguard.serve.mover._LATE_S", 0.1)
    with pytest.raises(ReadError, match=f"does not know {TITLE}, to which it should send"):
        asked(ledger, (None, None))
    with pytest.raises(ReadError, match=r"refuses to be searched \(C-FIND status A700\)"):
        asked(ledger, (None, None), find=0xA700)
    with pytest.raises(ReadError, match="No presentation context"):
        asked(ledger)


def test_an_image_that_nobody_asked_for_is_not_taken(tmp_path: Path) -> None:
    ledger, listen = make_ledger(tmp_path, 1), free_port()

    def sent(number: int) -> Findings:
        ds = dcmread(BytesIO(image(number, ledger[2][0])))
        return asked(ledger, ("127.0.0.1", listen), 1, (0xFF00, ds), listen=listen)

    assert sent(0).compared == 1
    with pytest.raises(ReadError, match=r"sends nothing \(C-MOVE status A702\)"):
        sent(99)


def test_a_ledger_without_the_series_of_an_image_is_a_clear_error(ledger: Any) -> None:
    with session_scope(open_database(f"sqlite:///{ledger[0]}")) as session:
        for row in session.query(Instance):
            session.delete(row)
    with pytest.raises(DataError, match="does not say of which series"):
        asked(ledger, (None, None))


@needs_orthanc
@needs_openssl
def test_over_tls_both_ways(tmp_path: Path, pki: Path, ledger: Any, capfd: pytest.CaptureFixture[str]) -> None:
    port = free_port()
    tls = {
        "DicomTlsEnabled": True,
        "DicomTlsCertificate": str(pki / "node.pem"),
        "DicomTlsPrivateKey": str(pki / "node.key"),
        "DicomTlsTrustedCertificates": str(pki / "ca.pem"),
        "DicomModalities": {"audit": {"AET": TITLE, "Host": "127.0.0.1", "Port": port, "UseDicomTls": True}},
    }
    own = ["--certificate", str(pki / "client.pem"), "--certificate-key", str(pki / "client.key")]
    with orthanc(tmp_path / "orthanc", "ARCHIVE", **tls) as archive:
        upload(archive, [image(n, plane) for n, plane in enumerate(ledger[2])])
        done = run(capfd, *words(archive, ledger, port, "--ca", str(pki / "ca.pem"), *own, "--json"))
        assert (done.code, done.json["compared"], done.json["missing"]) == (0, IMAGES, [])
        refused = run(capfd, *words(archive, ledger, port, "--ca", str(pki / "rogue-ca.pem"), *own))
        assert refused.code == 1 and "TLS: the archive's certificate is refused" in refused.err
        plain = run(capfd, *words(archive, ledger, port))
        assert plain.code == 1 and "the archive cannot be reached" in plain.err


@pytest.mark.parametrize(
    "given",
    [
        [],
        ["--url", "http://x", "--archive", "x:1"],
        ["--url", "http://x", "--listen", "x:1"],
        ["--archive", "x:1", "--archive-title", "A", "--listen", "0.0.0.0:99999"],
        ["--archive", "x", "--archive-title", "A", "--listen", "0.0.0.0:1"],
        ["--archive", "x:1", "--archive-title", "A"],
        ["--archive", "x:1", "--archive-title", "SEVENTEEN LETTERS", "--listen", "x:1"],
        ["--archive", "x:1", "--listen", "x:1"],
        ["--archive", "x:1", "--archive-title", "A", "--listen", "x:1", "--ca", "ca.pem"],
        ["--archive", "x:1", "--archive-title", "A", "--listen", "x:1", "--token", "t"],
    ],
)
def test_wrong_use_is_told(capfd: pytest.CaptureFixture[str], given: list[str]) -> None:
    assert run(capfd, "audit", "--ledger", "node.db", "--key", "node.key", *given).code == 2
