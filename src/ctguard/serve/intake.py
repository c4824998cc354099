"""Take one DICOM object in: bytes to disk, then the database, then the answer.

Safe against kill -9 and power loss by order alone. 1. The bytes go to a temporary name, and the file is fsynced.
2. It is renamed, and its folder is fsynced. 3. The row is committed (SQLite synchronous=FULL, PostgreSQL's own log).
4. Only then the sender hears success. A crash before 3 leaves a file that nobody was promised and no row names: the
sender sends again, and it is replaced. So every row has its whole file, and every success its row.
"""

from __future__ import annotations

import hashlib
import shutil
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import Engine, bindparam, select
from sqlalchemy.exc import SQLAlchemyError

from ctguard.core.errors import CtguardError
from ctguard.serve.config import Config
from ctguard.serve.ledger import Fingerprint, NodeKey, changed_region, fingerprint
from ctguard.serve.logs import say
from ctguard.serve.objects import Head, hashed_name, make_folder, read_head, write_synced
from ctguard.serve.recorder import Arrival, Recorder
from ctguard.serve.store import queue
from ctguard.serve.store.database import session_scope
from ctguard.serve.store.models import Instance, LedgerEntry

SUCCESS, OUT_OF_RESOURCES, MISMATCH, NOT_UNDERSTOOD = 0x0000, 0xA700, 0xA900, 0xC000
"""Answers to a C-STORE (PS3.4 B.2.3)."""
IMAGES, ASIDE = "images", "aside"
_LOCKS = 64
_KNOWN = select(Instance.series_id, Instance.sop_uid, Instance.path).where(Instance.sop_uid == bindparam("uid"))


class Known(NamedTuple):
    """A row of Instance."""

    series_id: int
    sop_uid: str
    path: str | None


class Intake:
    """Takes objects in from any number of threads; two with the same UID one after the other.

    There is one for a database: all that comes in goes through the node's process.
    """

    def __init__(self, config: Config, engine: Engine, key: NodeKey) -> None:
        self.folder = config.store.folder.absolute() / "series"
        self.least_free = config.node.min_free_disk_mb * 1_000_000
        self.most_bytes = int(config.node.max_object_mb * 1_000_000)
        self.engine, self.key = engine, key
        self._recorder = Recorder(engine)
        self._locks = [threading.Lock() for _ in range(_LOCKS)]
        self._free_known: tuple[float, bool] = (-1.0, True)
        make_folder(self.folder)

    def take(self, encoded: bytes, sop_uid: str, calling: str) -> int:
        """Store a DICOM file's bytes, announced under `sop_uid`. Returns the status for the sender."""
        if len(encoded) > self.most_bytes or not self._has_room():
            say("image-refused", 30, why="too large" if len(encoded) > self.most_bytes else "disk full")
            return OUT_OF_RESOURCES
        head = read_head(encoded)
        if head is None:
            say("image-refused", 30, why="not understood")
            return NOT_UNDERSTOOD
        if head.sop_uid != sop_uid:
            say("image-refused", 30, why="another UID than announced")
            return MISMATCH
        try:
            with self._locks[hash(sop_uid) % _LOCKS]:
                return self._take(encoded, head, calling)
        except (OSError, SQLAlchemyError) as error:
            say("image-refused", 40, why="cannot be stored", kind=type(error).__name__)
            return OUT_OF_RESOURCES

    def _take(self, encoded: bytes, head: Head, calling: str) -> int:
        known = self._known(head.sop_uid)
        if known is not None and not self._is_same(known, encoded):
            return SUCCESS
        if known is not None and _file_of(known) is not None:
            return SUCCESS
        folder = self.folder / hashed_name(head.study_uid, head.series_uid)
        path = folder / IMAGES / f"{hashed_name(head.sop_uid)}.dcm"
        write_synced(path, encoded)
        pseudonym = self.key.pseudonym(head.patient_id)
        self._recorder.record(Arrival(head, pseudonym, calling, folder, path, len(encoded), known is not None))
        return SUCCESS

    def _known(self, sop_uid: str) -> Known | None:
        with self.engine.connect().execution_options(read_only=True) as connection:
            row = connection.execute(_KNOWN, {"uid": sop_uid}).first()
        return None if row is None else Known(*row)

    def _is_same(self, known: Known, encoded: bytes) -> bool:
        """Whether an object that came again has the pixels of the first one; if not, it is kept aside, with an alert.

        One whose pixels cannot be decoded is another, unless it is the same to the byte.
        """
        stored = _file_of(known)
        if stored is not None and stored.read_bytes() == encoded:
            return True
        before, after = self._before(known, stored), self._fingerprint(encoded)
        if stored is None and before is None:
            return True  # removed before it was fingerprinted: nothing to compare with
        if before is not None and after is not None and before.pixel_hmac == after.pixel_hmac:
            return True
        folder = self.folder.parent / ASIDE / hashed_name(known.sop_uid)
        aside = folder / f"{hashlib.sha256(encoded).hexdigest()[:32]}.dcm"
        if not aside.exists():
            write_synced(aside, encoded)
            region = {"whole": True} if before is None or after is None else _region(before, after)
            details = {"region": region, "kept": aside.name}
            with session_scope(self.engine) as session:
                queue.raise_alert(session, "substituted", details, series_id=known.series_id, sop_uid=known.sop_uid)
            say("image-substituted", 40, series=known.series_id, region=region, sop_uid=known.sop_uid)
        return False

    def _before(self, known: Known, stored: Path | None) -> Fingerprint | None:
        if stored is not None:
            return self._fingerprint(stored)
        with session_scope(self.engine, read_only=True) as session:
            entry = session.get(LedgerEntry, known.sop_uid)
        return None if entry is None else Fingerprint(entry.pixel_hmac, entry.block_digest)

    def _fingerprint(self, source: Path | bytes) -> Fingerprint | None:
        try:
            return fingerprint(source, self.key)
        except CtguardError:
            return None

    def _has_room(self) -> bool:
        """Whether there is disk left; asked anew each second."""
        at, free = self._free_known
        if time.monotonic() - at > 1:
            free = shutil.disk_usage(self.folder).free > self.least_free
            self._free_known = (time.monotonic(), free)
        return free


def _file_of(known: Known) -> Path | None:
    """The file of an image; None where retention, or somebody, removed it."""
    return Path(known.path) if known.path is not None and Path(known.path).exists() else None


def _region(before: Fingerprint, after: Fingerprint) -> dict[str, Any]:
    return changed_region(before.block_digest, after.block_digest)
