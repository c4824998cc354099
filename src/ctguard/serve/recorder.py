"""Group commit: images that arrive while a transaction is being committed share the next one.

A commit waits for the disk; with several senders, one wait serves all of them. Nobody is answered before his own image
is committed.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session as OrmSession

from ctguard.serve.logs import say
from ctguard.serve.objects import Head
from ctguard.serve.store import audit, queue
from ctguard.serve.store.database import session_scope
from ctguard.serve.store.models import Series

_LONGEST_S = 120.0


@dataclass(frozen=True)
class Arrival:
    """An image whose file is on disk. folder: of its series. again: its row is there already, but its file was not."""

    head: Head
    patient_id_hash: str
    calling_ae: str
    folder: Path
    path: Path
    size: int
    again: bool
    committed: Future[None] = field(default_factory=Future)


class Recorder:
    """One thread that commits; `record` may be called from any."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._known: dict[tuple[str, str], int] = {}
        self._waiting: SimpleQueue[Arrival] = SimpleQueue()
        threading.Thread(target=self._work, name="recorder", daemon=True).start()

    def record(self, arrival: Arrival) -> None:
        """Return when it is committed. Raises what the database raised, or TimeoutError."""
        self._waiting.put(arrival)
        arrival.committed.result(_LONGEST_S)

    def _work(self) -> None:
        while True:
            batch = [self._waiting.get()]
            try:
                while True:
                    batch.append(self._waiting.get_nowait())
            except Empty:
                self._commit(batch)

    def _commit(self, batch: list[Arrival]) -> None:
        by_series: dict[tuple[str, str], list[Arrival]] = {}
        for arrival in batch:
            by_series.setdefault((arrival.head.study_uid, arrival.head.series_uid), []).append(arrival)
        try:
            with session_scope(self.engine) as session:
                for uids, arrivals in by_series.items():
                    self._known[uids] = _add(session, arrivals, self._known.get(uids))
        except SQLAlchemyError as error:
            for arrival in batch:
                arrival.committed.set_exception(error)
        else:
            for arrival in batch:
                arrival.committed.set_result(None)


def _add(session: OrmSession, arrivals: list[Arrival], series_id: int | None) -> int:
    """Record images of one series; its row."""
    first = arrivals[0]
    if series_id is None:
        series = queue.series_of(session, first.head.study_uid, first.head.series_uid) or _begin(session, first)
        series_id = series.id
    for arrival in [one for one in arrivals if one.again]:
        queue.restore_instance(session, series_id, arrival.head.sop_uid, str(arrival.path))
    new = [
        {
            "sop_uid": arrival.head.sop_uid,
            "path": str(arrival.path),
            "bytes": arrival.size,
            "transfer_syntax": arrival.head.transfer_syntax,
        }
        for arrival in arrivals
        if not arrival.again
    ]
    queue.add_instances(session, series_id, new, str(first.folder), any(one.head.synthetic for one in arrivals))
    return series_id


def _begin(session: OrmSession, first: Arrival) -> Series:
    series = Series(
        series_uid=first.head.series_uid,
        study_uid=first.head.study_uid,
        patient_id_hash=first.patient_id_hash,
        modality=first.head.modality,
        description=first.head.description,
        calling_ae=first.calling_ae,
    )
    session.add(series)
    session.flush()
    audit.append(session, queue.NODE, "series-began", {"series": series.id, "calling_ae": first.calling_ae})
    say("series-began", series=series.id, calling_ae_title=first.calling_ae)
    return series
