"""Send what is due to its destinations, by C-STORE or STOW-RS, with retry, back-off and a dead-letter folder.

An object that was sent, but whose row the node had no time to change, is sent again: it has the same UID and bytes, so
that the archive has it once. A destination that is down holds up no other.
"""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydicom.filereader import read_file_meta_info
from pynetdicom import _config as pynetdicom_config
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session as OrmSession

from ctguard.core.errors import ReadError
from ctguard.serve.associate import TLS, associate, make_ae
from ctguard.serve.audit_message import run_audit
from ctguard.serve.config import Config, Destination
from ctguard.serve.dicomweb import store_files
from ctguard.serve.logs import say
from ctguard.serve.objects import make_folder
from ctguard.serve.retention import remove_old
from ctguard.serve.store import queue
from ctguard.serve.store.database import session_scope
from ctguard.serve.store.models import Alert, Delivery

DEAD_LETTERS = "dead-letter"
_IDLE_S = 0.5
_RETENTION_S = 3600.0
_STORED = (0x0000, 0xB000, 0xB006, 0xB007)
"""Success, and the warnings with which an object is stored all the same (PS3.4 B.2.3)."""
Answer = tuple[int, str | None]
"""Row of a delivery, and why it was not taken; None where it was."""


def run_deliver(config: Config, engine: Engine, stopping: threading.Event) -> None:
    """Deliver until told to stop, each destination and the audit trail in a thread of its own; and keep retention."""
    threads = [
        threading.Thread(target=_serve, args=(config, engine, destination, stopping), name=destination.name)
        for destination in config.destination
    ]
    if config.audit.syslog_host:
        threads.append(threading.Thread(target=run_audit, args=(config, engine, stopping), name="audit"))
    for thread in threads:
        thread.start()
    say("delivery-ready", destinations=[destination.name for destination in config.destination])
    while not stopping.is_set():
        remove_old(config, engine)
        stopping.wait(_RETENTION_S)
    for thread in threads:
        thread.join()


def _serve(config: Config, engine: Engine, destination: Destination, stopping: threading.Event) -> None:
    while not stopping.is_set():
        if not deliver_once(config, engine, destination):
            stopping.wait(_IDLE_S)


def deliver_once(config: Config, engine: Engine, destination: Destination) -> bool:
    """Send what is due to one destination; False where nothing is."""
    with session_scope(engine, read_only=True) as session:
        due = queue.due_deliveries(session, destination.name)
    if not due:
        return False
    answers = _stow(destination, due) if destination.url else _c_store(config.node.ae_title, destination, due)
    for row, reason in answers:
        _note(config, engine, next(one for one in due if one.id == row), reason)
    return True


def _note(config: Config, engine: Engine, row: Delivery, reason: str | None) -> None:
    """Record one answer."""
    with session_scope(engine) as session:
        if reason is None:
            queue.sent(session, row.id)
        elif row.attempts + 1 < config.delivery.attempts:
            wait_s = min(config.delivery.first_retry_s * 2.0**row.attempts, config.delivery.longest_retry_s)
            queue.put_off(session, row.id, reason, wait_s)
        else:
            queue.give_up(session, row.id, reason, str(_keep(config, row)))
        if reason is not None and reason.startswith(TLS):
            _alert(session, row.destination, reason)
    level = logging.INFO if reason is None else logging.WARNING
    say("delivery", level, series=row.series_id, destination=row.destination, kind=row.kind, failed=reason)


def _alert(session: OrmSession, destination: str, reason: str) -> None:
    """Somebody should look at a certificate, or at who is in between, now; one alert until it is acknowledged."""
    open_ones = select(Alert).where(Alert.kind == "tls", Alert.acknowledged_by.is_(None))
    if not any(alert.details["destination"] == destination for alert in session.scalars(open_ones)):
        queue.raise_alert(session, "tls", {"destination": destination, "reason": reason})


def _keep(config: Config, row: Delivery) -> Path:
    """A copy in the dead-letter folder, which retention does not touch."""
    kept = config.store.folder.absolute() / DEAD_LETTERS / row.destination / f"{row.series_id}-{row.id}-{row.kind}.dcm"
    make_folder(kept.parent)
    if Path(row.path).exists():
        shutil.copyfile(row.path, kept)
    return kept


def _stow(destination: Destination, due: Sequence[Delivery]) -> Iterator[Answer]:
    for row in due:
        yield row.id, store_files(destination, [Path(row.path)])


def _c_store(title: str, destination: Destination, due: Sequence[Delivery]) -> Iterator[Answer]:
    """All in one association. An archive that cannot be reached is one failure of each."""
    pynetdicom_config.STORE_SEND_CHUNKED_DATASET = True  # a map can be hundreds of megabytes
    ae = make_ae(title)
    rows = []
    for row in due:
        try:
            meta = read_file_meta_info(row.path)
        except OSError as error:
            yield row.id, f"its file cannot be read ({error.strerror})"
            continue
        rows.append(row)
        ae.add_requested_context(meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID)
    if not rows:
        return
    try:
        association = associate(ae, destination)
    except ReadError as error:
        yield from ((row.id, error.what) for row in rows)
        return
    try:
        for row in rows:
            yield row.id, _send(association, row)
    finally:
        association.release()


def _send(association: Any, row: Delivery) -> str | None:
    try:
        status = association.send_c_store(Path(row.path)).get("Status")
    except (ValueError, RuntimeError, OSError) as error:  # no context was accepted for it; the association is gone
        return str(error).splitlines()[0]
    if status is None:
        return "the archive did not answer"
    return None if status in _STORED else f"the archive answered {status:04X}"
