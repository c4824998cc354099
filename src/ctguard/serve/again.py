"""An image that comes again under a UID that is known: the first one stays, whatever comes.

With the same pixels it is no news; with others it is kept aside, and an alert names the region that differs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import Engine, select
from sqlalchemy.orm import Session as OrmSession

from ctguard.core.errors import CtguardError
from ctguard.serve.ledger import Fingerprint, NodeKey, changed_region, fingerprint
from ctguard.serve.logs import say
from ctguard.serve.objects import hashed_name, write_synced
from ctguard.serve.store import queue
from ctguard.serve.store.database import session_scope
from ctguard.serve.store.models import Instance, LedgerEntry


class Known(NamedTuple):
    """A row of Instance."""

    series_id: int
    sop_uid: str
    path: str | None

    @property
    def file(self) -> Path | None:
        """Its file; None where retention, or somebody, removed it."""
        return Path(self.path) if self.path is not None and Path(self.path).exists() else None


def known_images(session: OrmSession, sop_uids: Sequence[str]) -> dict[str, Known]:
    """Those of these images that have a row."""
    wanted = select(Instance.series_id, Instance.sop_uid, Instance.path).where(Instance.sop_uid.in_(sop_uids))
    return {row.sop_uid: Known(*row) for row in session.execute(wanted)}


def is_same(known: Known, encoded: bytes, aside: Path, engine: Engine, key: NodeKey) -> bool:
    """Whether an object that came again has the pixels of the first one; if not, it is kept in `aside`, with an alert.

    One whose pixels cannot be decoded is another, unless it is the same to the byte.
    """
    stored = known.file
    if stored is not None and stored.read_bytes() == encoded:
        return True
    before, after = _before(known, stored, engine, key), _fingerprint(encoded, key)
    if stored is None and before is None:
        return True  # removed before it was fingerprinted: nothing to compare with
    if before is not None and after is not None and before.pixel_hmac == after.pixel_hmac:
        return True
    kept = aside / hashed_name(known.sop_uid) / f"{hashlib.sha256(encoded).hexdigest()[:32]}.dcm"
    if not kept.exists():
        region = {"whole": True} if before is None or after is None else _region(before, after)
        with session_scope(engine) as session:
            details = {"region": region, "kept": kept.name}
            queue.raise_alert(session, "substituted", details, series_id=known.series_id, sop_uid=known.sop_uid)
        write_synced(kept, encoded)  # last: a crash between the two gives a second alert rather than none
        say("image-substituted", 40, series=known.series_id, region=region, sop_uid=known.sop_uid)
    return False


def _before(known: Known, stored: Path | None, engine: Engine, key: NodeKey) -> Fingerprint | None:
    if stored is not None:
        return _fingerprint(stored, key)
    with session_scope(engine, read_only=True) as session:
        entry = session.get(LedgerEntry, known.sop_uid)
    return None if entry is None else Fingerprint(entry.pixel_hmac, entry.block_digest)


def _fingerprint(source: Path | bytes, key: NodeKey) -> Fingerprint | None:
    try:
        return fingerprint(source, key)
    except CtguardError:
        return None


def _region(before: Fingerprint, after: Fingerprint) -> dict[str, Any]:
    return changed_region(before.block_digest, after.block_digest)
