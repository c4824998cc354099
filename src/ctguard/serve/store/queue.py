"""The work list and the queues, as transactions. Every function works in the caller's session.

A worker holds a series by a token and a lease. When the lease runs out, because the worker was killed, another may
take the series; and a result is taken only from the holder of the token, and only of all images that are there. So
a series is never lost, and never judged twice for the same images.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple, cast

from sqlalchemy import Boolean, Table, bindparam, case, delete, func, insert, or_, select, update
from sqlalchemy.orm import Session as OrmSession

from ctguard.serve.store import audit
from ctguard.serve.store.models import (
    ANALYSING,
    DEAD,
    DONE,
    FAILED,
    PENDING,
    QUEUED,
    RECEIVING,
    SENT,
    Alert,
    Delivery,
    Instance,
    Series,
    UtcDateTime,
    now,
)

NODE = "node"
"""The actor of what the node does by itself."""
_SERIES = cast(Table, Series.__table__)
_MORE = (
    update(_SERIES)
    .where(_SERIES.c.id == bindparam("of"))
    .values(
        slices=_SERIES.c.slices + bindparam("more"),
        updated_at=bindparam("at", type_=UtcDateTime),
        folder=bindparam("to"),
        synthetic=or_(_SERIES.c.synthetic, bindparam("flag", type_=Boolean)),
    )
)
_MORE_IMAGES = _MORE.where(_SERIES.c.state.not_in((DONE, FAILED))).values(
    state=case((_SERIES.c.state == ANALYSING, ANALYSING), else_=RECEIVING)
)
_OPEN_AGAIN = _MORE.values(state=RECEIVING, reason=None, attempts=0)
_NEW_INSTANCE = insert(cast(Table, Instance.__table__))


class Parcel(NamedTuple):
    """An object for a destination. kind: as in Delivery. at: not before."""

    destination: str
    kind: str
    path: str
    sop_uid: str
    at: datetime


@dataclass(frozen=True)
class Outcome:
    """What an analysis found: columns of Series, what is to be delivered, and alerts (kind, details)."""

    values: dict[str, Any]
    parcels: Sequence[Parcel]
    alerts: Sequence[tuple[str, dict[str, Any]]]


def series_of(session: OrmSession, study_uid: str, series_uid: str) -> Series | None:
    """A series by its UIDs, locked until the transaction ends."""
    wanted = select(Series).where(Series.study_uid == study_uid, Series.series_uid == series_uid)
    return session.scalar(wanted.with_for_update())


def add_instances(
    session: OrmSession, series_id: int, rows: Sequence[dict[str, Any]], folder: str, synthetic: bool
) -> None:
    """More images of a series: its quiet time begins anew, and one that was judged is open again.

    A series that is being analysed goes on, but `finish` will not take a result that lacks an image.
    rows: sop_uid, path, bytes and transfer_syntax of images that are new. This is the node's busiest call: plain SQL.
    """
    connection, at = session.connection(), now()
    values = {"of": series_id, "more": len(rows), "at": at, "to": folder, "flag": synthetic}
    if connection.execute(_MORE_IMAGES, values).rowcount == 0:
        audit.append(session, NODE, "series-reopened", {"series": series_id})
        connection.execute(_OPEN_AGAIN, values)
    if rows:
        same = {"series_id": series_id, "received_at": at}
        connection.execute(_NEW_INSTANCE, [{**row, **same} for row in rows])


def restore_instance(session: OrmSession, series_id: int, sop_uid: str, path: str) -> None:
    """An image whose row is there, but whose file retention, or somebody, had removed, is back."""
    row = session.scalars(select(Instance).where(Instance.sop_uid == sop_uid)).one()
    if row.path is None:
        session.get_one(Series, series_id).slices += 1
    row.series_id, row.path = series_id, path
    session.flush()


def touch_receiving(session: OrmSession) -> None:
    """The node was away, and senders could not go on: quiet time begins anew."""
    session.execute(update(Series).where(Series.state == RECEIVING).values(updated_at=now()))


def queue_quiet(session: OrmSession, quiet_s: float) -> int:
    """Series of which nothing has come for a while are complete; how many were queued."""
    quiet = Series.updated_at < now() - timedelta(seconds=quiet_s)
    ready = session.scalars(select(Series).where(Series.state == RECEIVING, quiet).with_for_update()).all()
    for series in ready:
        series.state, series.completed_at = QUEUED, now()
        audit.append(session, NODE, "series-complete", {"series": series.id, "images": series.slices})
    return len(ready)


def claim(session: OrmSession, lease_s: float, attempts: int) -> Series | None:
    """Take the oldest series that waits, or whose worker is gone. One that ended its worker too often is failed."""
    free = or_(Series.state == QUEUED, (Series.state == ANALYSING) & (Series.lease_until < now()))
    oldest = select(Series).where(free).order_by(Series.completed_at).limit(1)
    while (series := session.scalar(oldest.with_for_update(skip_locked=True))) is not None:
        if series.attempts < attempts:
            series.state, series.claim = ANALYSING, secrets.token_hex(16)
            series.lease_until, series.attempts = now() + timedelta(seconds=lease_s), series.attempts + 1
            return series
        _fail(session, series, f"its analysis ended the worker {series.attempts} times")
        session.flush()
    return None


def renew(session: OrmSession, series_id: int, token: str, lease_s: float) -> bool:
    """Prolong a lease; whether the series is still held."""
    mine = (Series.id == series_id, Series.claim == token, Series.state == ANALYSING)
    lease = {"lease_until": now() + timedelta(seconds=lease_s)}
    return _rows(session, update(Series).where(*mine).values(lease)) == 1


def finish(session: OrmSession, held: Series, outcome: Outcome) -> bool:
    """Record a result with its deliveries and alerts, all or nothing.

    Returns False, and records nothing, where the series is held by another, or images came meanwhile: then it is
    complete again after its quiet time.
    """
    series = _held(session, held)
    if series is None:
        return False
    series.claim = series.lease_until = None
    if series.slices != held.slices:
        series.state = RECEIVING
        return False
    series.state, series.reason = DONE, None
    for name, value in outcome.values.items():
        setattr(series, name, value)
    known = session.execute(select(Delivery.destination, Delivery.sop_uid).where(Delivery.series_id == series.id))
    there = {(destination, sop_uid) for destination, sop_uid in known}
    # What was not sent of an earlier result, of fewer images, is not sent any more.
    current = [parcel.sop_uid for parcel in outcome.parcels]
    old = (Delivery.series_id == series.id, Delivery.state == PENDING, Delivery.sop_uid.not_in(current))
    session.execute(delete(Delivery).where(*old))
    for parcel in outcome.parcels:
        if (parcel.destination, parcel.sop_uid) not in there:
            to, kind, path, sop_uid, at = parcel
            session.add(
                Delivery(series_id=series.id, destination=to, kind=kind, path=path, sop_uid=sop_uid, next_at=at)
            )
    for kind, details in outcome.alerts:
        raise_alert(session, kind, details, series_id=series.id)
    facts = {"series": series.id, "images": series.slices, "score": series.score, "tampered": series.tampered}
    audit.append(session, NODE, "series-judged", {**facts, "seal": series.seal_state, "synthetic": series.synthetic})
    return True


def fail(session: OrmSession, held: Series, reason: str) -> bool:
    """Record why a series cannot be judged; False where it is held by another."""
    series = _held(session, held)
    if series is None:
        return False
    if series.slices != held.slices:
        series.state, series.claim, series.lease_until = RECEIVING, None, None
        return False
    _fail(session, series, reason)
    return True


def raise_alert(
    session: OrmSession, kind: str, details: dict[str, Any], *, series_id: int | None = None, sop_uid: str | None = None
) -> None:
    """An alert, and its audit event."""
    session.add(Alert(series_id=series_id, sop_uid=sop_uid, kind=kind, details=details))
    audit.append(session, NODE, f"alert-{kind}", {"series": series_id, **details})


def due_deliveries(session: OrmSession, destination: str, limit: int = 50) -> Sequence[Delivery]:
    """What is to be sent to a destination now, the oldest first; nothing of a series that is open again."""
    due = (Delivery.destination == destination, Delivery.state == PENDING, Delivery.next_at <= now())
    wanted = select(Delivery).join(Series, Series.id == Delivery.series_id).where(*due, Series.state == DONE)
    return session.scalars(wanted.order_by(Delivery.id).limit(limit)).all()


def sent(session: OrmSession, delivery_id: int) -> None:
    """An archive has confirmed an object."""
    row = session.get_one(Delivery, delivery_id)
    row.state, row.error = SENT, None
    row.attempts += 1
    facts = {"series": row.series_id, "destination": row.destination, "kind": row.kind}
    audit.append(session, NODE, "object-delivered", facts)


def put_off(session: OrmSession, delivery_id: int, reason: str, wait_s: float) -> None:
    """An archive did not take an object: try it again later."""
    row = session.get_one(Delivery, delivery_id)
    row.attempts, row.error, row.next_at = row.attempts + 1, reason, now() + timedelta(seconds=wait_s)


def give_up(session: OrmSession, delivery_id: int, reason: str, path: str) -> None:
    """An archive refused an object too often: it lies in the dead-letter folder now."""
    row = session.get_one(Delivery, delivery_id)
    row.attempts, row.error, row.state, row.path = row.attempts + 1, reason, DEAD, path
    details = {"destination": row.destination, "kind": row.kind, "reason": reason}
    raise_alert(session, "dead-letter", details, series_id=row.series_id)


def release(session: OrmSession, series_id: int, actor: str) -> None:
    """A person lets the copies of a series go that quarantine holds back."""
    held = (Delivery.series_id == series_id, Delivery.state == PENDING)
    session.execute(update(Delivery).where(*held).values(next_at=now()))
    session.execute(update(Series).where(Series.id == series_id).values(quarantined_until=None))
    audit.append(session, actor, "quarantine-released", {"series": series_id})


def counts(session: OrmSession) -> dict[str, dict[str, int]]:
    """For metrics: series by state, deliveries by state, open alerts by kind."""
    found: dict[str, dict[str, int]] = {}
    for name, column, among in (
        ("series", Series.state, Series.id.is_not(None)),
        ("deliveries", Delivery.state, Delivery.id.is_not(None)),
        ("alerts", Alert.kind, Alert.acknowledged_by.is_(None)),
    ):
        rows = session.execute(select(column, func.count()).where(among).group_by(column))
        found[name] = {str(key): int(count) for key, count in rows}
    return found


def totals(session: OrmSession) -> dict[str, float]:
    """For metrics: images and bytes received, series judged tampered, age of the oldest series that waits (s)."""
    images, received = session.execute(select(func.count(), func.coalesce(func.sum(Instance.bytes), 0))).one()
    tampered = session.scalar(select(func.count()).where(Series.tampered.is_(True)))
    oldest = session.scalar(select(func.min(Series.completed_at)).where(Series.state.in_((QUEUED, ANALYSING))))
    waits = 0.0 if oldest is None else (now() - oldest).total_seconds()
    return {"images": images, "bytes": float(received), "tampered": float(tampered or 0), "oldest_queued_s": waits}


def _held(session: OrmSession, held: Series) -> Series | None:
    """The series as it is now, where its claim is still that of `held`."""
    mine = (Series.id == held.id, Series.claim == held.claim, Series.state == ANALYSING)
    return session.scalar(select(Series).where(*mine).with_for_update())


def _fail(session: OrmSession, series: Series, reason: str) -> None:
    series.state, series.reason = FAILED, reason
    series.claim = series.lease_until = None
    audit.append(session, NODE, "series-failed", {"series": series.id, "images": series.slices})


def _rows(session: OrmSession, statement: Any) -> int:
    return int(session.execute(statement).rowcount)  # type: ignore[attr-defined]
