"""The first tables, and an audit trail that refuses changes."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from ctguard.serve.store.models import UtcDateTime

revision = "0001"
down_revision = None

_SQLITE_GUARD = """
CREATE TRIGGER audit_event_{verb} BEFORE {verb} ON audit_event
BEGIN SELECT RAISE(ABORT, 'the audit trail is append-only'); END
"""
_POSTGRES_GUARD = (
    """
CREATE FUNCTION audit_event_guard() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN RAISE EXCEPTION 'the audit trail is append-only'; END $$
""",
    """
CREATE TRIGGER audit_event_guard BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_event
FOR EACH STATEMENT EXECUTE FUNCTION audit_event_guard()
""",
)


def upgrade() -> None:
    """Make every table."""
    _images()
    _work()
    _people()
    if op.get_bind().dialect.name == "postgresql":
        for statement in _POSTGRES_GUARD:
            op.execute(statement)
    else:
        for verb in ("UPDATE", "DELETE"):
            op.execute(_SQLITE_GUARD.format(verb=verb))


def _images() -> None:
    op.create_table(
        "series",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("series_uid", sa.String(64), nullable=False, index=True),
        sa.Column("study_uid", sa.String(64), nullable=False),
        sa.Column("patient_id_hash", sa.String(64), nullable=False),
        sa.Column("modality", sa.String(16), nullable=False),
        sa.Column("description", sa.Text, nullable=False),
        sa.Column("calling_ae", sa.String(64), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("reason", sa.Text),
        sa.Column("received_at", UtcDateTime, nullable=False),
        sa.Column("completed_at", UtcDateTime),
        sa.Column("updated_at", UtcDateTime, nullable=False),
        sa.Column("slices", sa.Integer, nullable=False),
        sa.Column("synthetic", sa.Boolean, nullable=False),
        sa.Column("folder", sa.Text),
        sa.Column("lease_until", UtcDateTime),
        sa.Column("claim", sa.String(32)),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("score", sa.Double),
        sa.Column("threshold", sa.Double),
        sa.Column("tampered", sa.Boolean),
        sa.Column("verdict_path", sa.Text),
        sa.Column("seal_state", sa.String(24), nullable=False),
        sa.Column("signature_state", sa.String(24), nullable=False),
        sa.Column("quarantined_until", UtcDateTime),
        sa.UniqueConstraint("study_uid", "series_uid"),
    )
    op.create_index("series_by_state", "series", ["state", "updated_at"])
    op.create_table(
        "instance",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("series_id", sa.Integer, sa.ForeignKey("series.id"), nullable=False, index=True),
        sa.Column("sop_uid", sa.String(64), nullable=False, unique=True),
        sa.Column("path", sa.Text),
        sa.Column("bytes", sa.Integer, nullable=False),
        sa.Column("transfer_syntax", sa.String(64), nullable=False),
        sa.Column("received_at", UtcDateTime, nullable=False),
    )
    op.create_table(
        "ledger_entry",
        sa.Column("sop_uid", sa.String(64), primary_key=True),
        sa.Column("pixel_hmac", sa.String(64), nullable=False),
        sa.Column("block_digest", sa.LargeBinary, nullable=False),
        sa.Column("first_seen", UtcDateTime, nullable=False),
    )


def _work() -> None:
    op.create_table(
        "delivery",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("series_id", sa.Integer, sa.ForeignKey("series.id"), nullable=False, index=True),
        sa.Column("destination", sa.String(64), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("path", sa.Text, nullable=False),
        sa.Column("sop_uid", sa.String(64), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("next_at", UtcDateTime, nullable=False),
        sa.Column("error", sa.Text),
        sa.UniqueConstraint("destination", "sop_uid"),
    )
    op.create_index("delivery_due", "delivery", ["state", "next_at"])
    op.create_table(
        "alert",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("series_id", sa.Integer, sa.ForeignKey("series.id"), index=True),
        sa.Column("sop_uid", sa.String(64)),
        sa.Column("kind", sa.String(24), nullable=False),
        sa.Column("details", sa.JSON, nullable=False),
        sa.Column("created_at", UtcDateTime, nullable=False),
        sa.Column("acknowledged_by", sa.Text),
    )
    op.create_table(
        "audit_event",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("at", UtcDateTime, nullable=False),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("event", sa.String(64), nullable=False),
        sa.Column("details", sa.JSON, nullable=False),
        sa.Column("previous_hash", sa.String(64), nullable=False, unique=True),
        sa.Column("hash", sa.String(64), nullable=False),
    )


def _people() -> None:
    op.create_table(
        "user_account",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("name", sa.String(128), nullable=False, unique=True),
        sa.Column("password_hash", sa.Text, nullable=False),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("disabled", sa.Boolean, nullable=False),
        sa.Column("created_at", UtcDateTime, nullable=False),
    )
    op.create_table(
        "session",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("user_id", sa.Integer, sa.ForeignKey("user_account.id"), nullable=False, index=True),
        sa.Column("created_at", UtcDateTime, nullable=False),
        sa.Column("last_seen", UtcDateTime, nullable=False),
        sa.Column("expires_at", UtcDateTime, nullable=False),
        sa.Column("csrf", sa.String(64), nullable=False),
    )
    op.create_table(
        "reading",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("series_id", sa.Integer, sa.ForeignKey("series.id"), nullable=False, index=True),
        sa.Column("user_id", sa.Integer, sa.ForeignKey("user_account.id"), nullable=False, index=True),
        sa.Column("verdict", sa.String(32), nullable=False),
        sa.Column("note", sa.Text, nullable=False),
        sa.Column("confidence", sa.Integer),
        sa.Column("seconds", sa.Double),
        sa.Column("study", sa.String(128)),
        sa.Column("created_at", UtcDateTime, nullable=False),
    )
    op.create_table(
        "reader_study",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("name", sa.String(128), nullable=False, unique=True),
        sa.Column("seed", sa.Integer, nullable=False),
        sa.Column("series", sa.JSON, nullable=False),
        sa.Column("readers", sa.JSON, nullable=False),
        sa.Column("created_at", UtcDateTime, nullable=False),
    )
