"""Delivery over TLS to a real archive, DCMTK's storescp: who it takes, whom we take, and what is said where not."""

from __future__ import annotations

import re
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pynetdicom import AE
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]
from sqlalchemy import Engine, select

from ctguard.serve.config import Config
from ctguard.serve.deliver import deliver_once
from ctguard.serve.store.database import open_database, session_scope
from ctguard.serve.store.models import DONE, PENDING, SENT, Alert, AuditEvent, Delivery, Series, now
from tests.serve.parts import config_for, free_port, listens, make_patient, needs_openssl, wait_for

STORESCP = Path("/usr/bin/storescp")
pytestmark = [needs_openssl, pytest.mark.skipif(not STORESCP.exists(), reason="needs storescp (Debian: dcmtk)")]


@contextmanager
def storescp(folder: Path, *options: str | Path) -> Iterator[int]:
    """An archive that keeps what it gets in a folder; its port."""
    folder.mkdir()
    port = free_port()
    command = [str(word) for word in (STORESCP, *options, "-aet", "SECURITY", "-od", folder, port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: listens(port), what="storescp's start")
        yield port
    finally:
        process.terminate()
        process.wait(timeout=20)


def with_tls(pki: Path) -> list[str | Path]:
    return ["+tls", pki / "node.key", pki / "node.pem", "+cf", pki / "ca.pem"]


def node(folder: Path, port: int, **tls: str | Path) -> tuple[Config, Engine]:
    """A node with one destination and two images that are due there."""
    archive = {"name": "security", "ae_title": "SECURITY", "host": "127.0.0.1", "port": port}
    config = config_for(folder / "data", destination=[{**archive, **{key: str(file) for key, file in tls.items()}}])
    config.store.folder.mkdir()
    engine = open_database(config.store.url)
    with session_scope(engine) as session:
        series = Series(study_uid="1", series_uid="2", state=DONE)
        session.add(series)
        session.flush()
        for file in sorted(make_patient(folder / "series", slices=2).iterdir()):
            uid = str(pydicom.dcmread(file, stop_before_pixels=True).SOPInstanceUID)
            session.add(
                Delivery(series_id=series.id, destination="security", kind="image", path=str(file), sop_uid=uid)
            )
    return config, engine


def deliver(made: tuple[Config, Engine]) -> tuple[list[Delivery], list[Alert]]:
    config, engine = made
    assert deliver_once(config, engine, config.destination[0])
    with session_scope(engine, read_only=True) as session:
        rows: Any = session.scalars(select(Delivery).order_by(Delivery.id)).all()
        return list(rows), list(session.scalars(select(Alert)).all())


def test_a_good_certificate_delivers(tmp_path: Path, pki: Path) -> None:
    with storescp(tmp_path / "archive", *with_tls(pki)) as port:
        ours = {"tls_ca": pki / "ca.pem", "tls_certificate": pki / "client.pem", "tls_key": pki / "client.key"}
        rows, alerts = deliver(node(tmp_path, port, **ours))
    assert [(row.state, row.error) for row in rows] == [(SENT, None)] * 2 and alerts == []
    kept = {str(pydicom.dcmread(file).SOPInstanceUID) for file in (tmp_path / "archive").iterdir()}
    assert kept == {row.sop_uid for row in rows}


@pytest.mark.parametrize(
    ("ca", "own", "says"),
    [
        ("rogue-ca", "client", r"TLS: the archive's certificate is refused \(.*certificate.*\)"),
        ("ca", "rogue", r"TLS: no connection comes about \(.*UNKNOWN_CA\)"),
        ("ca", "", r"TLS: no connection comes about \(.*CERTIFICATE_REQUIRED\)"),
        ("absent", "client", r"TLS: our certificates cannot be read \(No such file or directory\)"),
    ],
)
def test_a_wrong_certificate_delivers_nothing_and_is_tried_again_with_one_alert(
    tmp_path: Path, pki: Path, ca: str, own: str, says: str
) -> None:
    files = {"tls_ca": pki / f"{ca}.pem"}
    if own:
        files |= {"tls_certificate": pki / f"{own}.pem", "tls_key": pki / f"{own}.key"}
    with storescp(tmp_path / "archive", *with_tls(pki)) as port:
        made = node(tmp_path, port, **files)
        for attempts in (1, 2):
            wait_for(lambda: due(made[1]) == 2, what="the next try")
            rows, alerts = deliver(made)
            assert [(row.state, row.attempts) for row in rows] == [(PENDING, attempts)] * 2
    assert list((tmp_path / "archive").iterdir()) == []
    (alert,) = alerts
    assert alert.kind == "tls" and alert.details["destination"] == "security"
    for text in (rows[0].error or "", alert.details["reason"]):
        assert re.fullmatch(says, text), text
    with session_scope(made[1], read_only=True) as session:
        assert "alert-tls" in session.scalars(select(AuditEvent.event)).all()


def test_an_archive_of_another_name_is_refused(tmp_path: Path, pki: Path) -> None:
    with storescp(tmp_path / "archive", *with_tls(pki)) as port:
        config, engine = node(tmp_path, port, tls_ca=pki / "ca.pem")
        other = config.destination[0].model_copy(update={"host": "127.0.0.2"})
        assert deliver_once(config, engine, other)
    with session_scope(engine, read_only=True) as session:
        errors = set(session.scalars(select(Delivery.error)))
    assert len(errors) == 1 and "IP address mismatch" in str(errors.pop())


def test_over_dicomweb_a_certificate_is_told_apart_from_an_archive_that_says_no(tmp_path: Path, pki: Path) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)  # hangs up on every POST
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(pki / "node.pem", pki / "node.key")
    server.socket = tls.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    config, engine = node(tmp_path, server.server_port)
    url = {"ae_title": "", "host": "", "port": 0, "url": f"https://127.0.0.1:{server.server_port}/dicom-web"}
    answers = []
    for ca in ("ca", "rogue-ca"):
        wait_for(lambda: due(engine) == 2, what="the next try")
        to = config.destination[0].model_copy(update={**url, "tls_ca": pki / f"{ca}.pem"})
        rows, alerts = deliver((config.model_copy(update={"destination": [to]}), engine))
        answers.append((rows[0].error or "", len(alerts)))
    server.shutdown()
    refused = "TLS: the archive's certificate is refused (unable to get local issuer certificate)"
    assert answers[0][0].startswith("the archive") and answers[0][1] == 0
    assert answers[1] == (refused, 1)


@pytest.mark.parametrize(
    ("title", "says"),
    [
        ("SECURITY", "the archive supports none of what was proposed"),
        ("OTHER", "the archive rejected the association (Called AE title not recognised)"),
        ("", "the archive cannot be reached"),
    ],
)
def test_an_archive_that_takes_nothing_is_named_but_raises_no_alert_yet(tmp_path: Path, title: str, says: str) -> None:
    port = free_port()
    if title:
        ae = AE(title)
        ae.require_called_aet = True
        ae.add_supported_context(Verification)
        archive = ae.start_server(("127.0.0.1", port), block=False)
    rows, alerts = deliver(node(tmp_path, port))
    if title:
        archive.shutdown()
    assert {row.error for row in rows} == {says} and alerts == []


def due(engine: Engine) -> int:
    with session_scope(engine, read_only=True) as session:
        return len(session.scalars(select(Delivery).where(Delivery.next_at <= now())).all())
