"""The storage SCP: C-STORE and C-ECHO, from listed titles and addresses, over TLS where it is configured.

It stands beside the route of images, never in it: it forwards nothing, answers no storage commitment, and its absence
stops nobody. pynetdicom speaks the protocol; added here are a limit to PDU and object sizes before they are in
memory, time-outs of accepted sockets, and TLS handshakes outside the thread that accepts connections.
"""

from __future__ import annotations

import logging
import secrets
import socket
import ssl
import threading
from contextlib import suppress
from ipaddress import ip_address
from queue import Empty
from typing import Any

from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import (
    UID,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    EnhancedCTImageStorage,
    LegacyConvertedEnhancedCTImageStorage,
)
from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, evt
from pynetdicom import _config as pynetdicom_config
from pynetdicom.association import Association
from pynetdicom.fsm import TRANSITION_TABLE, StateMachine
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]
from pynetdicom.transport import AssociationSocket, RequestHandler, ThreadedAssociationServer
from sqlalchemy import Engine

from ctguard.io.dicom_values import PARSE_ERRORS
from ctguard.serve.config import Config, Tls
from ctguard.serve.dicomweb import run_pull
from ctguard.serve.intake import Intake
from ctguard.serve.ledger import open_key
from ctguard.serve.logs import say
from ctguard.serve.rejections import Rejections
from ctguard.serve.store import queue
from ctguard.serve.store.database import session_scope

CLASSES = (CTImageStorage, EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage)


def _is_decoded(uid: str) -> bool:
    """Whether there is a decoder, installed or not: what nobody can judge should be refused, not kept."""
    try:
        get_decoder(uid)
    except NotImplementedError:
        return False
    return uid != DeflatedExplicitVRLittleEndian  # of which a few kilobytes can be gigabytes


SYNTAXES = [UID(uid) for uid in ALL_TRANSFER_SYNTAXES if _is_decoded(uid)]
_INVALID_PDU = "Evt19"
_OURS = ("Evt7", "Evt8", "Evt9", "Evt11", "Evt14", "Evt15")
"""Events that are requests and answers of ours (PS3.8 9.2.2); the others come from the connection."""
_CHUNK = 1 << 16
_WAITING = 4
"""Connections that have not said who they are, per association that is allowed."""


class _Socket(AssociationSocket):
    """Closes on a PDU or an object that is too large, before it is in memory. `received`: bytes of this object."""

    most_pdu = most_object = 0
    received = 0

    def recv(self, nr_bytes: int) -> bytearray:
        """Read so many bytes, or fewer where the peer left. Raises OSError over a limit; pynetdicom then closes."""
        self.received += nr_bytes
        if nr_bytes > self.most_pdu or self.received > self.most_object:
            say("connection-closed", logging.WARNING, why="PDU or object too large")
            raise OSError("PDU or object too large")
        buffer = bytearray(nr_bytes)
        view, got = memoryview(buffer), 0
        while got < nr_bytes and self.socket is not None:
            count = self.socket.recv_into(view[got:], min(nr_bytes - got, _CHUNK))
            if count == 0:
                break
            got += count
        view.release()
        del buffer[got:]
        return buffer


class _Machine(StateMachine):
    """Aborts a peer whose PDU cannot be decoded, and drops what comes too late: the acceptance of a peer that was
    aborted meanwhile, as it had not waited for it.

    pynetdicom's own raises, which ends the thread of the connection and leaves it open.
    """

    def do_action(self, event: str) -> None:
        """As PS3.8 9.2 has it, for events that are defined in this state."""
        if (event, self.current_state) not in TRANSITION_TABLE:
            with suppress(Empty):
                if event in _OURS:
                    self.dul.to_provider_queue.get_nowait()
            return
        try:
            super().do_action(event)
        except (*PARSE_ERRORS, Empty):
            self.dul._kill_thread = False
            super().do_action(_INVALID_PDU)


class _Handler(RequestHandler):
    server: Server

    def _create_association(self) -> Association:
        assoc = super()._create_association()
        assoc.dul.event_queue.get_nowait()  # of the socket that is replaced: a connection opens once
        limited = _Socket(assoc, client_socket=self.request)
        limited.most_pdu, limited.most_object = self.server.most_pdu, self.server.most_object
        assoc.dul.socket = limited
        assoc.dul.state_machine = _Machine(assoc.dul)
        return assoc


class Server(ThreadedAssociationServer):
    """Accepts connections from listed addresses; each in a thread of its own from the first byte on."""

    daemon_threads = True
    block_on_close = False
    rejections: Rejections

    def __init__(self, *args: Any, config: Config, tls: ssl.SSLContext | None, **named: Any) -> None:
        self.networks = config.node.addresses
        self.places = threading.BoundedSemaphore(_WAITING * config.node.max_associations)
        self.timeout_s = config.node.network_timeout_s
        self.most_pdu = config.node.max_pdu_bytes + 1024
        self.most_object = int(config.node.max_object_mb * 1_050_000) + (1 << 20)
        self.tls = tls
        named["request_handler"] = _Handler
        super().__init__(*args, **named)

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Whether a connection is let in: by its address, and by how many there are."""
        address = ip_address(client_address[0])
        if not any(address in network for network in self.networks):
            say("connection-refused", logging.WARNING, why="address not listed", address=str(address))
            return False
        if not self.places.acquire(blocking=False):
            say("connection-refused", logging.WARNING, why="too many connections")
            return False
        return True

    def finish_request(self, request: Any, client_address: Any) -> None:
        """In its own thread: time-outs, the TLS handshake, which a client could draw out, and its first word.

        Who opens a connection and says nothing (a port scan, a health check) takes no association's place.
        """
        try:
            request.settimeout(self.timeout_s)
            if self.tls is not None:
                request = self.tls.wrap_socket(request, server_side=True)
            elif not request.recv(1, socket.MSG_PEEK):
                request.close()
                return
        except OSError as error:  # ssl.SSLError is one
            why = f"TLS: {getattr(error, 'reason', None) or type(error).__name__}" if self.tls else "it said nothing"
            say("connection-refused", logging.WARNING, why=why, address=client_address[0])
            request.close()
            return
        finally:
            self.places.release()
        super().finish_request(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """One line, no traceback: a peer that misbehaves is no fault of ours."""
        say("connection-broken", logging.WARNING)


def make_server(config: Config, engine: Engine, intake: Intake) -> Server:
    """The node, bound to its port but not serving yet. Raises OSError where the port is taken."""
    pynetdicom_config.LOG_HANDLER_LEVEL = "none"
    node = config.node
    ae = AE(node.ae_title)
    ae.require_called_aet = True
    ae.require_calling_aet = [] if "*" in node.calling_ae_titles else node.calling_ae_titles or [secrets.token_hex(8)]
    ae.maximum_associations = node.max_associations
    ae.maximum_pdu_size = node.max_pdu_bytes
    ae.network_timeout = ae.acse_timeout = ae.dimse_timeout = node.network_timeout_s
    ae.add_supported_context(Verification)
    for sop_class in CLASSES:
        ae.add_supported_context(sop_class, SYNTAXES)
    rejections = Rejections(engine)
    handlers: list[Any] = [
        (evt.EVT_C_STORE, _on_store, [intake]),
        (evt.EVT_ACCEPTED, _on_accepted),
        (evt.EVT_REJECTED, _on_rejected, [rejections]),
        (evt.EVT_ABORTED, _on_aborted),
    ]
    made = ae.make_server(
        (node.host, node.port),
        evt_handlers=handlers,
        server_class=Server,
        config=config,
        tls=tls_context(config.tls),
    )
    ae._servers.append(made)  # what AE.start_server does; without it shutdown() complains
    assert isinstance(made, Server)
    made.rejections = rejections
    return made


def tls_context(tls: Tls) -> ssl.SSLContext | None:
    """TLS 1.2 or newer with client certificates (PS3.15 B.9 and its successors); None where it is not configured."""
    if tls.certificate is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(tls.certificate, tls.key)
    context.load_verify_locations(tls.client_ca)
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def run_node(config: Config, engine: Engine, stopping: threading.Event) -> None:
    """Serve until told to stop. Series of which nothing came for a while are queued here, so that a node that was
    away does not take its own absence for the end of a series."""
    intake = Intake(config, engine, open_key(config.store.key_path))
    server = make_server(config, engine, intake)
    with session_scope(engine) as session:
        queue.touch_receiving(session)
    threading.Thread(target=server.serve_forever, name="accept", daemon=True).start()
    if config.pull.url:
        threading.Thread(target=run_pull, args=(config.pull, engine, intake, stopping), name="pull").start()
    say("node-listens", port=server.server_address[1], tls=server.tls is not None)
    while not stopping.wait(min(config.node.quiet_s / 4, 1.0)):
        with session_scope(engine) as session:
            queued = queue.queue_quiet(session, config.node.quiet_s)
        if queued:
            say("series-queued", count=queued)
        server.rejections.summarise()
    server.shutdown()
    for association in server.active_associations:
        association.abort()
    server.rejections.summarise(early=True)


def _on_store(event: evt.Event, intake: Intake) -> int:
    association: Any = event.assoc
    association.dul.socket.received = 0
    uid = str(event.request.AffectedSOPInstanceUID)  # type: ignore[union-attr]
    return intake.take(event.encoded_dataset(), uid, str(association.requestor.ae_title))


def _on_accepted(event: evt.Event) -> None:
    say("association-accepted", logging.DEBUG, calling_ae_title=event.assoc.requestor.ae_title)


def _on_aborted(event: evt.Event) -> None:
    say("association-aborted", logging.WARNING)


def _on_rejected(event: evt.Event, rejections: Rejections) -> None:
    requestor = event.assoc.requestor
    called = getattr(requestor.primitive, "called_ae_title", "")
    facts = {"calling_ae": str(requestor.ae_title), "called_ae": str(called), "address": str(requestor.address)}
    say("association-rejected", logging.WARNING, calling_ae_title=requestor.ae_title, address=requestor.address)
    rejections.record(facts)
