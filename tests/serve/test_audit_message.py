"""The audit trail on its way to a syslog server: each event once or more, in order, with the chain's hash."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest
from sqlalchemy import Engine

from ctguard.serve.audit_message import message, send_new
from ctguard.serve.config import Audit
from ctguard.serve.store import audit
from ctguard.serve.store.database import open_database, session_scope
from tests.serve.parts import wait_for

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")


class Syslog:
    """A TLS syslog server that keeps what it gets."""

    def __init__(self, folder: Path) -> None:
        new = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=syslog"]
        files = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", "key.pem", "-out", "cert.pem"]
        subprocess.run([*new, *files], cwd=folder, check=True, capture_output=True)
        self.certificate = folder / "cert.pem"
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(self.certificate, folder / "key.pem")
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self.listener.getsockname()[1])
        self.got: list[bytes] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                plain, _ = self.listener.accept()
            except OSError:
                return
            try:
                with self.context.wrap_socket(plain, server_side=True) as stream, stream.makefile("rb") as lines:
                    while size := self._number(lines.read(1), lines):
                        self.got.append(lines.read(size))
            except OSError:
                continue

    @staticmethod
    def _number(first: bytes, lines: object) -> int:
        digits = first
        while digits and digits[-1:] != b" ":
            digits += lines.read(1)  # type: ignore[attr-defined]
        return int(digits or b"0")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Syslog]:
    made = Syslog(tmp_path)
    yield made
    made.listener.close()


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    made = open_database(f"sqlite:///{tmp_path / 'node.db'}")
    with session_scope(made) as session:
        audit.append(session, "node", "started", {"key": "abc"})
        audit.append(session, "node", "alert-substituted", {"series": 7})
        audit.append(session, "jané", "log-in", {})
    return made


def settings(server: Syslog, ca: Path | None = None) -> Audit:
    return Audit(
        syslog_host="127.0.0.1",
        syslog_port=server.port,
        tls_ca=ca or server.certificate,
        tls_certificate=None,
        tls_key=None,
    )


def test_events_are_sent_in_order_with_the_chain_head_and_only_the_new_ones(
    server: Syslog, engine: Engine, tmp_path: Path
) -> None:
    position = tmp_path / "position"
    assert send_new(settings(server), engine, position) == 3
    assert send_new(settings(server), engine, position) == 0
    with session_scope(engine) as session:
        head = audit.append(session, "jané", "log-out").hash
    assert send_new(settings(server), engine, position) == 1
    wait_for(lambda: len(server.got) == 4, 20, "the fourth message")
    assert all(line.startswith(b"<85>1 20") and b" DICOM+RFC3881 - \xef\xbb\xbf<" in line for line in server.got)
    roots = [ElementTree.fromstring(line[line.index(b"\xef\xbb\xbf") + 3 :]) for line in server.got]
    codes = [root.find("EventIdentification/EventID").attrib["csd-code"] for root in roots]  # type: ignore[union-attr]
    assert codes == ["110100", "110113", "110114", "110114"]
    heads = [root.find("ParticipantObjectIdentification") for root in roots]
    assert heads[-1] is not None and heads[-1].attrib["ParticipantObjectID"] == head
    users = [root.find("ActiveParticipant").attrib["UserID"] for root in roots]  # type: ignore[union-attr]
    assert users == ["node", "node", "jané", "jané"]


def test_a_server_with_another_certificate_or_none_gets_nothing_and_nothing_is_forgotten(
    server: Syslog, engine: Engine, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    other = Syslog(tmp_path / "other")
    position = tmp_path / "position"
    with pytest.raises(ssl.SSLCertVerificationError):
        send_new(settings(server, other.certificate), engine, position)
    port, closed = other.port, other.listener.close()
    assert closed is None
    with pytest.raises(OSError):
        send_new(settings(server).model_copy(update={"syslog_port": port}), engine, position)
    assert server.got == []
    assert send_new(settings(server), engine, position) == 3


def test_what_a_user_typed_cannot_break_the_message(engine: Engine) -> None:
    with session_scope(engine) as session:
        event = audit.append(session, '<x a="1">&', "log-in", {"why": "]]><!DOCTYPE"})
    root = ElementTree.fromstring(message(event))
    assert root.find("ActiveParticipant").attrib["UserID"] == '<x a="1">&'  # type: ignore[union-attr]
