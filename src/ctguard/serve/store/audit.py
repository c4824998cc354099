"""The audit trail: append-only, each event bound to the one before it by SHA-256.

Whoever changes, removes or inserts an event breaks the chain from there on; `check_chain` finds where. Only the loss
of the newest events does not show in the chain itself: compare its head with one that was sent elsewhere (syslog).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session as OrmSession

from ctguard.serve.store.models import AuditEvent, now

GENESIS = "0" * 64
"""What the first event is bound to."""
STARTED = "started"
"""The event of a start; it names the key of ledger and pseudonyms."""
_CHAIN_LOCK = 0x63746175


@dataclass(frozen=True)
class Chain:
    """A check of the trail: events, hash of the newest, and id of the first that does not fit (None: all do)."""

    length: int
    head: str
    broken_at: int | None


def append(session: OrmSession, actor: str, event: str, details: dict[str, Any] | None = None) -> AuditEvent:
    """One more event, in the caller's transaction. details: plain JSON, without names or ids of patients."""
    if session.get_bind().dialect.name == "postgresql":  # SQLite has one writer anyway
        session.execute(select(func.pg_advisory_xact_lock(_CHAIN_LOCK)))
    previous = head(session)
    at, facts = now(), details or {}
    row = AuditEvent(
        at=at,
        actor=actor,
        event=event,
        details=facts,
        previous_hash=previous,
        hash=_link(previous, at, actor, event, facts),
    )
    session.add(row)
    session.flush()
    return row


def head(session: OrmSession) -> str:
    """Hash of the newest event."""
    return session.scalar(select(AuditEvent.hash).order_by(AuditEvent.id.desc()).limit(1)) or GENESIS


def check_chain(session: OrmSession) -> Chain:
    """Compute every link again."""
    previous, length = GENESIS, 0
    for row in session.scalars(select(AuditEvent).order_by(AuditEvent.id).execution_options(yield_per=500)):
        if row.previous_hash != previous or row.hash != _link(previous, row.at, row.actor, row.event, row.details):
            return Chain(length, previous, row.id)
        previous, length = row.hash, length + 1
    return Chain(length, previous, None)


def _link(previous: str, at: datetime, actor: str, event: str, details: dict[str, Any]) -> str:
    record = {"at": at.isoformat(timespec="microseconds"), "actor": actor, "event": event, "details": details}
    text = json.dumps(record, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256((previous + text).encode()).hexdigest()
