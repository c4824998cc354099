"""The node on the network, spoken to by DCMTK and by bare sockets."""

from __future__ import annotations

import re
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from pydicom.uid import CTImageStorage, SecondaryCaptureImageStorage
from pynetdicom import AE
from pynetdicom.sop_class import StorageCommitmentPushModel
from sqlalchemy import select

from ctguard.serve.config import Config
from ctguard.serve.intake import Intake
from ctguard.serve.ledger import open_key
from ctguard.serve.node import make_server
from ctguard.serve.recorder import Recorder
from ctguard.serve.store.database import open_database, session_scope
from ctguard.serve.store.models import AuditEvent, Instance, Series
from tests.serve.parts import (
    config_for,
    logged,
    make_patient,
    needs_openssl,
    needs_storescu,
    storescu,
    wait_for,
)

pytestmark = needs_storescu
ECHOSCU = "/usr/bin/echoscu"
_RECORDERS: dict[Any, Recorder] = {}


@contextmanager
def serving(config: Config) -> Iterator[Any]:
    """A node in this process; yields its database."""
    config.store.folder.mkdir(parents=True, exist_ok=True)
    engine = open_database(config.store.url)
    intake = Intake(config, engine, open_key(config.store.key_path))
    server = make_server(config, engine, intake)
    _RECORDERS[engine] = intake.recorder
    with logged(config):
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        try:
            yield engine
        finally:
            server.shutdown()
            for association in server.active_associations:
                association.abort()
            engine.dispose()


def count(engine: Any) -> int:
    """Images that are recorded, once those that were acknowledged are."""
    assert _RECORDERS[engine].settle()
    with session_scope(engine, read_only=True) as session:
        return len(session.scalars(select(Instance)).all())


def echo(config: Config, *options: str) -> int:
    """Exit code of DCMTK's echoscu."""
    command = [ECHOSCU, *options, "127.0.0.1", str(config.node.port)]
    return subprocess.run(command, capture_output=True, check=False, timeout=60).returncode


def test_a_series_arrives_whole(tmp_path: Path) -> None:
    config = config_for(tmp_path / "data")
    sent = make_patient(tmp_path / "series", slices=5)
    with serving(config) as engine:
        assert echo(config, "-aec", "CTGUARD") == 0
        for _ in range(2):
            assert storescu(config.node.port, sent).returncode == 0
            assert count(engine) == 5
        with session_scope(engine, read_only=True) as session:
            (series,) = session.scalars(select(Series)).all()
            kept = [Path(path or "") for path in session.scalars(select(Instance.path))]
    assert series.slices == 5
    assert all(path.read_bytes()[128:132] == b"DICM" for path in kept) and len(kept) == 5


@pytest.mark.parametrize("syntax", ["-xi", "-xb", "-xe"])
def test_uncompressed_syntaxes_are_taken(tmp_path: Path, syntax: str) -> None:
    config = config_for(tmp_path / "data")
    with serving(config) as engine:
        assert storescu(config.node.port, make_patient(tmp_path / "series", slices=2), syntax).returncode == 0
        assert count(engine) == 2


def test_wrong_titles_are_rejected_and_audited(tmp_path: Path) -> None:
    config = config_for(tmp_path / "data", node={"calling_ae_titles": ["SCANNER"]})
    with serving(config) as engine:
        assert echo(config, "-aet", "SCANNER", "-aec", "CTGUARD") == 0
        assert echo(config, "-aet", "ROGUE", "-aec", "CTGUARD") != 0
        assert echo(config, "-aet", "SCANNER", "-aec", "OTHER") != 0
        sent = storescu(config.node.port, make_patient(tmp_path / "series", slices=1))
        assert sent.returncode != 0 and "Calling AE Title Not Recognized" in sent.stderr
        assert count(engine) == 0

        def rejected() -> list[str]:
            with session_scope(engine, read_only=True) as session:
                return [row.details["calling_ae"] for row in session.scalars(select(AuditEvent))]

        wait_for(lambda: rejected() == ["ROGUE", "SCANNER", "SENDER"], what="the audit of three rejections")


def test_an_empty_allow_list_lets_nobody_in(tmp_path: Path) -> None:
    config = config_for(tmp_path / "data", node={"calling_ae_titles": []})
    with serving(config):
        assert echo(config, "-aec", "CTGUARD") != 0


def test_an_address_that_is_not_listed_is_closed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config = config_for(tmp_path / "data", node={"addresses": ["10.0.0.0/8"]})
    with serving(config):
        assert echo(config, "-aec", "CTGUARD") != 0
    assert "address not listed" in capfd.readouterr().err


def test_too_many_associations_are_rejected_and_silent_connections_do_not_count(tmp_path: Path) -> None:
    config = config_for(tmp_path / "data", node={"max_associations": 1})
    ae = AE("SENDER")
    ae.add_requested_context(CTImageStorage)
    with serving(config), socket.create_connection(("127.0.0.1", config.node.port)):
        association = ae.associate("127.0.0.1", config.node.port, ae_title="CTGUARD")
        assert echo(config, "-aec", "CTGUARD") != 0
        association.release()
        wait_for(lambda: echo(config, "-aec", "CTGUARD") == 0, what="the end of the first association")


def test_too_many_silent_connections_are_closed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config = config_for(tmp_path / "data", node={"max_associations": 1, "network_timeout_s": 3.0})
    with serving(config), ExitStack() as stack:
        for _ in range(5):
            stack.enter_context(socket.create_connection(("127.0.0.1", config.node.port)))
        assert wait_for(lambda: "too many connections" in capfd.readouterr().err, what="a refusal")
        wait_for(lambda: echo(config, "-aec", "CTGUARD") == 0, what="the time-out of the silent ones")


def test_a_pdu_over_the_limit_is_closed_before_it_is_read(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config = config_for(tmp_path / "data")
    with serving(config), socket.create_connection(("127.0.0.1", config.node.port), timeout=20) as peer:
        peer.sendall(struct.pack(">BBL", 1, 0, 0xFFFFFFF0))
        assert peer.recv(100) == b""
        assert echo(config, "-aec", "CTGUARD") == 0
    assert "too large" in capfd.readouterr().err


def test_an_object_over_the_limit_is_closed_while_it_comes(tmp_path: Path) -> None:
    config = config_for(tmp_path / "data", node={"max_object_mb": 0.01})
    with serving(config) as engine:
        assert storescu(config.node.port, make_patient(tmp_path / "series", slices=1, side=1100)).returncode != 0
        assert count(engine) == 0
        assert echo(config, "-aec", "CTGUARD") == 0


def test_random_bytes_on_the_port_do_no_harm(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config = config_for(tmp_path / "data", node={"network_timeout_s": 1.0})
    with serving(config):
        for content in (b"GET / HTTP/1.1\r\n\r\n", b"\x01\x00\x00\x00\x00\x10" + bytes(16), b"\xff" * 300, b"\x04"):
            with socket.create_connection(("127.0.0.1", config.node.port), timeout=20) as peer:
                peer.sendall(content)
                peer.settimeout(20)
                assert b"Traceback" not in peer.recv(4096)
        assert echo(config, "-aec", "CTGUARD") == 0
    assert "Traceback" not in capfd.readouterr().err


def test_storage_commitment_and_other_classes_are_not_offered(tmp_path: Path) -> None:
    config = config_for(tmp_path / "data")
    with serving(config):
        ae = AE("SENDER")
        for offered in (CTImageStorage, StorageCommitmentPushModel, SecondaryCaptureImageStorage):
            ae.add_requested_context(offered)
        association = ae.associate("127.0.0.1", config.node.port, ae_title="CTGUARD")
        accepted = [context.abstract_syntax for context in association.accepted_contexts]
        association.release()
    assert accepted == [CTImageStorage]


@needs_openssl
def test_tls_lets_in_certificates_of_its_ca_alone(tmp_path: Path, pki: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tls = {"certificate": str(pki / "node.pem"), "key": str(pki / "node.key"), "client_ca": str(pki / "ca.pem")}
    config = config_for(tmp_path / "data", tls=tls, node={"network_timeout_s": 2.0})
    sent = make_patient(tmp_path / "series", slices=2)
    with serving(config) as engine, socket.create_connection(("127.0.0.1", config.node.port)):  # one that says nothing

        def options(name: str) -> list[str]:
            own = ["+tls", str(pki / f"{name}.key"), str(pki / f"{name}.pem")]
            return [*own, "+cf", str(pki / "ca.pem")]

        assert storescu(config.node.port, sent, *options("rogue")).returncode != 0
        assert storescu(config.node.port, sent).returncode != 0
        assert count(engine) == 0
        assert storescu(config.node.port, sent, *options("client")).returncode == 0
        assert count(engine) == 2
    refused = re.findall(r'"why": "TLS: ([^"]*)"', capfd.readouterr().err)
    assert len(refused) >= 2
