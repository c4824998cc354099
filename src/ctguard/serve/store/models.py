"""The tables of the node (SQLAlchemy 2). Times are UTC and aware; paths are absolute.

How a series goes: receiving -> queued -> analysing -> done or failed (Series.reason says why). One more image sets a
series that was queued, done or failed back to receiving.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import JSON, DateTime, Double, ForeignKey, Index, String, Text, TypeDecorator, UniqueConstraint
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

RECEIVING, QUEUED, ANALYSING, DONE, FAILED = "receiving", "queued", "analysing", "done", "failed"
STATES = (RECEIVING, QUEUED, ANALYSING, DONE, FAILED)
PENDING, SENT, DEAD = "pending", "sent", "dead"
ROLES = ("viewer", "reviewer", "admin")
"""What a user may do; each may also do what those before it may."""


def now() -> datetime:
    """The present time, aware, in UTC."""
    return datetime.now(UTC)


class UtcDateTime(TypeDecorator[datetime]):
    """Aware times, the same in SQLite, which keeps no zone, and in PostgreSQL."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """To UTC. Raises ValueError for a time without a zone."""
        if value is not None and value.tzinfo is None:
            raise ValueError("a time without a zone cannot be stored")
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """From UTC, aware."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Base(DeclarativeBase):
    """The declarative base of all tables."""

    type_annotation_map = {datetime: UtcDateTime(), float: Double(), dict[str, Any]: JSON(), str: Text()}


class Series(Base):
    """One series. folder: where its images and cases lie, None once retention removed them.

    slices: images received. claim: token of the worker that holds it until lease_until. attempts: of the analysis.
    verdict_path: verdict.json in the case folder, beside map.nii.gz, report.html and the DICOM results.
    quarantined_until: until when copies that leave the house are held back.
    """

    __tablename__ = "series"
    __table_args__ = (UniqueConstraint("study_uid", "series_uid"), Index("series_by_state", "state", "updated_at"))

    id: Mapped[int] = mapped_column(primary_key=True)
    series_uid: Mapped[str] = mapped_column(String(64), index=True)
    study_uid: Mapped[str] = mapped_column(String(64))
    patient_id_hash: Mapped[str] = mapped_column(String(64), default="")
    modality: Mapped[str] = mapped_column(String(16), default="")
    description: Mapped[str] = mapped_column(default="")
    calling_ae: Mapped[str] = mapped_column(String(64), default="")
    state: Mapped[str] = mapped_column(String(16), default=RECEIVING)
    reason: Mapped[str | None] = mapped_column(default=None)
    received_at: Mapped[datetime] = mapped_column(default=now)
    completed_at: Mapped[datetime | None] = mapped_column(default=None)
    updated_at: Mapped[datetime] = mapped_column(default=now)
    slices: Mapped[int] = mapped_column(default=0)
    synthetic: Mapped[bool] = mapped_column(default=False)
    folder: Mapped[str | None] = mapped_column(default=None)
    lease_until: Mapped[datetime | None] = mapped_column(default=None)
    claim: Mapped[str | None] = mapped_column(String(32), default=None)
    attempts: Mapped[int] = mapped_column(default=0)
    score: Mapped[float | None] = mapped_column(default=None)
    threshold: Mapped[float | None] = mapped_column(default=None)
    tampered: Mapped[bool | None] = mapped_column(default=None)
    verdict_path: Mapped[str | None] = mapped_column(default=None)
    seal_state: Mapped[str] = mapped_column(String(24), default="not-checked")
    signature_state: Mapped[str] = mapped_column(String(24), default="not-checked")
    quarantined_until: Mapped[datetime | None] = mapped_column(default=None)

    instances: Mapped[list[Instance]] = relationship(back_populates="series")


class Instance(Base):
    """One DICOM object as it came. path: None once retention removed the file."""

    __tablename__ = "instance"

    id: Mapped[int] = mapped_column(primary_key=True)
    series_id: Mapped[int] = mapped_column(ForeignKey("series.id"), index=True)
    sop_uid: Mapped[str] = mapped_column(String(64), unique=True)
    path: Mapped[str | None]
    bytes: Mapped[int]
    transfer_syntax: Mapped[str] = mapped_column(String(64))
    received_at: Mapped[datetime] = mapped_column(default=now)

    series: Mapped[Series] = relationship(back_populates="instances")


class Delivery(Base):
    """One object for one destination. kind: seg, map, sr, key or image. state: pending, sent or dead."""

    __tablename__ = "delivery"
    __table_args__ = (UniqueConstraint("destination", "sop_uid"), Index("delivery_due", "state", "next_at"))

    id: Mapped[int] = mapped_column(primary_key=True)
    series_id: Mapped[int] = mapped_column(ForeignKey("series.id"), index=True)
    destination: Mapped[str] = mapped_column(String(64))
    kind: Mapped[str] = mapped_column(String(16))
    path: Mapped[str]
    sop_uid: Mapped[str] = mapped_column(String(64))
    state: Mapped[str] = mapped_column(String(16), default=PENDING)
    attempts: Mapped[int] = mapped_column(default=0)
    next_at: Mapped[datetime] = mapped_column(default=now)
    error: Mapped[str | None] = mapped_column(default=None)


class Alert(Base):
    """What a person should look at: tampered, seal, substituted, synthetic, dead-letter, disk …"""

    __tablename__ = "alert"

    id: Mapped[int] = mapped_column(primary_key=True)
    series_id: Mapped[int | None] = mapped_column(ForeignKey("series.id"), index=True)
    sop_uid: Mapped[str | None] = mapped_column(String(64), default=None)
    kind: Mapped[str] = mapped_column(String(24))
    details: Mapped[dict[str, Any]] = mapped_column(default=dict)
    created_at: Mapped[datetime] = mapped_column(default=now)
    acknowledged_by: Mapped[str | None] = mapped_column(default=None)


class AuditEvent(Base):
    """One link of the audit chain; `store.audit` alone writes it, and the database refuses changes."""

    __tablename__ = "audit_event"

    id: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[datetime]
    actor: Mapped[str]
    event: Mapped[str] = mapped_column(String(64))
    details: Mapped[dict[str, Any]]
    previous_hash: Mapped[str] = mapped_column(String(64), unique=True)
    hash: Mapped[str] = mapped_column(String(64))


class User(Base):
    """A local user of the review page. password_hash: argon2, empty for one whom a proxy vouches for."""

    __tablename__ = "user_account"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(128), unique=True)
    password_hash: Mapped[str] = mapped_column(default="")
    role: Mapped[str] = mapped_column(String(16), default="viewer")
    disabled: Mapped[bool] = mapped_column(default=False)
    created_at: Mapped[datetime] = mapped_column(default=now)


class Session(Base):
    """A log-in. id: SHA-256 of the token that the browser holds, in hexadecimal."""

    __tablename__ = "session"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("user_account.id"), index=True)
    created_at: Mapped[datetime] = mapped_column(default=now)
    last_seen: Mapped[datetime] = mapped_column(default=now)
    expires_at: Mapped[datetime]
    csrf: Mapped[str] = mapped_column(String(64))


class Reading(Base):
    """A reader's verdict. study: name of a reader study, None in daily use. seconds: how long the reader looked."""

    __tablename__ = "reading"

    id: Mapped[int] = mapped_column(primary_key=True)
    series_id: Mapped[int] = mapped_column(ForeignKey("series.id"), index=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("user_account.id"), index=True)
    verdict: Mapped[str] = mapped_column(String(32))
    note: Mapped[str] = mapped_column(default="")
    confidence: Mapped[int | None] = mapped_column(default=None)
    seconds: Mapped[float | None] = mapped_column(default=None)
    study: Mapped[str | None] = mapped_column(String(128), default=None)
    created_at: Mapped[datetime] = mapped_column(default=now)


class ReaderStudy(Base):
    """Cases that readers judge blinded. series: ids; readers: names of users."""

    __tablename__ = "reader_study"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(128), unique=True)
    seed: Mapped[int]
    series: Mapped[list[int]] = mapped_column(JSON)
    readers: Mapped[list[str]] = mapped_column(JSON)
    created_at: Mapped[datetime] = mapped_column(default=now)


class LedgerEntry(Base):
    """What an image was at first sight: keyed hash of its pixels, and block means (serve/ledger.py). No PHI."""

    __tablename__ = "ledger_entry"

    sop_uid: Mapped[str] = mapped_column(String(64), primary_key=True)
    pixel_hmac: Mapped[str] = mapped_column(String(64))
    block_digest: Mapped[bytes]
    first_seen: Mapped[datetime] = mapped_column(default=now)
