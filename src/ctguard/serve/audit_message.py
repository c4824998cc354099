"""The audit trail as DICOM audit messages (PS3.15 A.5) to a syslog server over TLS (RFC 5424, RFC 5425).

Each message carries the hash of its event. Who keeps the messages elsewhere can tell whether the newest events of the
node's own trail were removed, which the chain alone cannot show.
"""

from __future__ import annotations

import base64
import logging
import os
import socket
import ssl
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from sqlalchemy import Engine, select

from ctguard.serve.config import Audit, Config
from ctguard.serve.logs import say
from ctguard.serve.objects import write_synced
from ctguard.serve.store.database import session_scope
from ctguard.serve.store.models import AuditEvent

POSITION = "syslog.position"
"""File in the node's folder: the id of the last event that was sent."""
_SECURITY_NOTICE = 10 * 8 + 5
_BATCH = 100
_IDLE_S = 2.0
_TIMEOUT_S = 20.0

Code = tuple[str, str]
_ACTIVITY: Code = ("110100", "Application Activity")
_TRANSFERRED: Code = ("110104", "DICOM Instances Transferred")
_SECURITY: Code = ("110113", "Security Alert")
_LOGIN: Code = ("110114", "User Authentication")
_CODES: dict[str, tuple[Code, Code | None, str]] = {
    "started": (_ACTIVITY, ("110120", "Application Start"), "E"),
    "stopped": (_ACTIVITY, ("110121", "Application Stop"), "E"),
    "series-began": (_TRANSFERRED, None, "C"),
    "object-delivered": (_TRANSFERRED, None, "R"),
    "association-rejected": (_SECURITY, ("110126", "Node Authentication"), "E"),
    "associations-rejected": (_SECURITY, ("110126", "Node Authentication"), "E"),
    "log-in": (_LOGIN, ("110122", "Login"), "E"),
    "log-in-refused": (_LOGIN, ("110122", "Login"), "E"),
    "log-out": (_LOGIN, ("110123", "Logout"), "E"),
    "alert-acknowledged": (_ACTIVITY, None, "E"),
}
"""Event code and type (PS3.16 CID 400, 401) and action of events that have their own; alerts are security alerts."""


def run_audit(config: Config, engine: Engine, stopping: threading.Event) -> None:
    """Send new events until told to stop; after a failure, all that were not sent, in order."""
    position = config.store.folder / POSITION
    while not stopping.wait(_IDLE_S):
        try:
            while send_new(config.audit, engine, position):
                pass
        except OSError as error:
            say("audit-not-sent", logging.WARNING, kind=type(error).__name__)


def send_new(settings: Audit, engine: Engine, position: Path) -> int:
    """Send the events after the last that was sent; how many. An event may be sent twice, and is never left out.

    Raises OSError where the server cannot be reached or shows another certificate.
    """
    last = int(position.read_text(encoding="ascii")) if position.exists() else 0
    with session_scope(engine, read_only=True) as session:
        wanted = select(AuditEvent).where(AuditEvent.id > last).order_by(AuditEvent.id).limit(_BATCH)
        events = session.scalars(wanted).all()
    if events:
        _send(settings, [syslog_line(event) for event in events])
        write_synced(position, str(events[-1].id).encode())
    return len(events)


def _send(settings: Audit, lines: Sequence[bytes]) -> None:
    context = ssl.create_default_context(cafile=settings.tls_ca)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if settings.tls_certificate is not None:
        context.load_cert_chain(settings.tls_certificate, settings.tls_key)
    address = (settings.syslog_host, settings.syslog_port)
    with (
        socket.create_connection(address, timeout=_TIMEOUT_S) as plain,
        context.wrap_socket(plain, server_hostname=settings.syslog_host) as stream,
    ):
        for line in lines:
            stream.sendall(b"%d %s" % (len(line), line))
        with suppress(ssl.SSLEOFError):  # most servers just close; a connection that broke is another error
            stream.unwrap()


def syslog_line(event: AuditEvent) -> bytes:
    """One event as RFC 5424 has it, its message id as PS3.15 A.6 does."""
    at = event.at.isoformat(timespec="milliseconds")
    head = f"<{_SECURITY_NOTICE}>1 {at} {socket.gethostname()} ctguard {os.getpid()} DICOM+RFC3881 - "
    return head.encode() + b"\xef\xbb\xbf" + message(event)


def message(event: AuditEvent) -> bytes:
    """The audit message (PS3.15 A.5.1), UTF-8 XML."""
    bad = event.event.startswith("alert-") or event.event.endswith(("failed", "refused", "rejected"))
    alert = bad and event.event != "alert-acknowledged"
    code, kind, action = _CODES.get(event.event, (_SECURITY if alert else _ACTIVITY, None, "E"))
    root = ElementTree.Element("AuditMessage")
    what = _add(
        root,
        "EventIdentification",
        EventActionCode=action,
        EventDateTime=event.at.isoformat(timespec="milliseconds"),
        EventOutcomeIndicator="4" if alert else "0",
    )
    _code(what, "EventID", code, "DCM")
    _code(what, "EventTypeCode", kind or (event.event, event.event), "DCM" if kind else "99CTGUARD")
    _add(root, "ActiveParticipant", UserID=event.actor, UserIsRequestor="true")
    source = _add(root, "AuditSourceIdentification", AuditSourceID="ctguard")
    _add(source, "AuditSourceTypeCode", **{"csd-code": "4"})  # an application server process
    chain = _add(
        root,
        "ParticipantObjectIdentification",
        ParticipantObjectID=event.hash,
        ParticipantObjectTypeCode="2",
        ParticipantObjectTypeCodeRole="13",
    )
    _code(chain, "ParticipantObjectIDTypeCode", ("chain-head", "Head of the audit chain"), "99CTGUARD")
    for name, value in {"event": event.id, **event.details}.items():
        _add(chain, "ParticipantObjectDetail", type=name, value=base64.b64encode(str(value).encode()).decode())
    return bytes(ElementTree.tostring(root, encoding="utf-8"))


def _add(parent: ElementTree.Element, tag: str, **attributes: str) -> ElementTree.Element:
    return ElementTree.SubElement(parent, tag, attributes)


def _code(parent: ElementTree.Element, tag: str, code: Code, system: str) -> None:
    names: dict[str, Any] = {"csd-code": code[0], "codeSystemName": system, "originalText": code[1]}
    _add(parent, tag, **names)
