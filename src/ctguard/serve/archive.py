"""Audit an archive against the ledger: fetch a sample of what the node saw, and compare its pixels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from requests import HTTPError, RequestException
from sqlalchemy import select
from sqlalchemy.orm import Session as OrmSession

from ctguard.core.console import progress
from ctguard.core.errors import DataError, ReadError, RefusedError
from ctguard.io.dicom_values import PARSE_ERRORS
from ctguard.protect.keys import read_key
from ctguard.serve.dicomweb import Uids, client, find, retrieve
from ctguard.serve.ledger import NodeKey, changed_region, fingerprint, sub_keys
from ctguard.serve.mover import Fetch
from ctguard.serve.store import audit
from ctguard.serve.store.audit import STARTED
from ctguard.serve.store.database import open_database, session_scope
from ctguard.serve.store.models import AuditEvent, Instance, LedgerEntry, Series

_GONE = 404


@dataclass
class Findings:
    """compared: images. substituted: UID -> where they differ. missing: UIDs that the archive does not have.
    unreadable: UIDs that it has, but cannot send, or whose pixels cannot be decoded."""

    compared: int = 0
    substituted: dict[str, dict[str, Any]] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """As `audit --json` prints it."""
        return asdict(self)


def audit_archive(
    database: str, key_path: Path, archive: AbstractContextManager[Fetch], *, sample: int, seed: int = 0
) -> Findings:
    """Compare a seeded sample of the ledger with an archive; the result stands in the audit trail, too.

    archive: `over_web`, or `mover.over_dicom`. Raises DataError where the ledger is empty, RefusedError for another key
    than the node's, ReadError where the archive cannot be reached or sends nothing.
    """
    key, engine = sub_keys(read_key(key_path)), open_database(database)
    with session_scope(engine, read_only=True) as session:
        _check_key(session, key)
        known = sorted(session.scalars(select(LedgerEntry.sop_uid)))
    if not known:
        raise DataError("the ledger holds no image", where=database, remedy="let the node see some")
    chosen = np.random.default_rng(seed).permutation(len(known))[:sample]
    found = Findings()
    with archive as fetch:
        for index in progress(chosen, "images", len(chosen)):
            uid = known[index]
            with session_scope(engine, read_only=True) as session:
                entry, uids = session.get_one(LedgerEntry, uid), _uids(session, uid)
            content = fetch(uids)
            if content is None:
                found.missing.append(uid)
                continue
            try:
                now = fingerprint(content, key)
            except ReadError:
                found.unreadable.append(uid)
                continue
            found.compared += 1
            if now.pixel_hmac != entry.pixel_hmac:
                found.substituted[uid] = changed_region(entry.block_digest, now.block_digest)
    facts = {name: value if isinstance(value, int) else len(value) for name, value in found.to_json().items()}
    with session_scope(engine) as session:
        audit.append(session, "ctguard audit", "archive-audited", facts)
    return found


@contextmanager
def over_web(url: str, ca: Path | None = None, token: Path | None = None) -> Iterator[Fetch]:
    """An archive by DICOMweb, where an image is found by its UID alone (QIDO-RS) and fetched (WADO-RS)."""
    service = client(url, ca, token)

    def fetch(uids: Uids) -> bytes | None:
        try:
            return _fetch(service, uids[2])
        except RequestException as error:
            reason = f"the archive does not answer ({type(error).__name__})"
            raise ReadError(reason, where=url, remedy="check --url, --ca and --token") from error
        except PARSE_ERRORS:
            return b""

    yield fetch


def _uids(session: OrmSession, uid: str) -> Uids:
    """Of an image of the ledger; study and series are empty where no row tells them."""
    wanted = select(Series.study_uid, Series.series_uid).join(Instance).where(Instance.sop_uid == uid)
    row = session.execute(wanted).one_or_none()
    return ("", "", uid) if row is None else (row.study_uid, row.series_uid, uid)


def _check_key(session: OrmSession, key: NodeKey) -> None:
    """With another key every image would seem to be another."""
    started = select(AuditEvent).where(AuditEvent.event == STARTED).order_by(AuditEvent.id.desc()).limit(1)
    event = session.scalar(started)
    if event is not None and event.details["key"] != key.key_id:
        raise RefusedError("the ledger was made with another key", remedy="give --key the node's own: [store] key")


def _fetch(service: Any, uid: str) -> bytes | None:
    """An object of the archive by its UID alone; None where it is not there. Raises RequestException."""
    try:
        row = next(find(service, "instances", {"SOPInstanceUID": uid}), None)
        if row is None:
            return None
        return retrieve(service, (str(row.StudyInstanceUID), str(row.SeriesInstanceUID), uid))
    except HTTPError as error:
        if error.response is not None and error.response.status_code == _GONE:
            return None
        raise
