"""Records what arrived: one thread, and one transaction for all images that arrived meanwhile.

A commit waits for the disk and takes as long for many images as for one. An image that cannot be recorded alone, while
the database takes others, is put aside with an alert, so that it stops nothing.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.exc import OperationalError, SQLAlchemyError
from sqlalchemy.orm import Session as OrmSession

from ctguard.serve.again import is_same, known_images
from ctguard.serve.ledger import NodeKey
from ctguard.serve.logs import say
from ctguard.serve.objects import Head, hashed_name, make_folder, sync
from ctguard.serve.store import audit, queue
from ctguard.serve.store.database import session_scope
from ctguard.serve.store.models import Series

IMAGES, ASIDE = "images", "aside"
_MOST_WAITING = 1000
_LONGEST_S = 20.0
_GATHER_S = 0.1
_BATCH = 200
_PAUSE_S = 2.0


@dataclass(frozen=True)
class Arrival:
    """An image that was kept, and for which its sender heard success. path: in the folder of what arrived."""

    head: Head
    calling_ae: str
    path: Path
    size: int

    @property
    def uids(self) -> tuple[str, str]:
        """Of study and series."""
        return self.head.study_uid, self.head.series_uid


class Recorder:
    """One thread that records; the other methods may be called from any. folder: of all series."""

    def __init__(self, folder: Path, engine: Engine, key: NodeKey) -> None:
        self.folder, self.engine, self.key = folder, engine, key
        self._series: dict[tuple[str, str], int] = {}
        self._waiting: SimpleQueue[tuple[Arrival, bool]] = SimpleQueue()
        self._places = threading.BoundedSemaphore(_MOST_WAITING)
        self._left, self._none_left = 0, threading.Condition()
        threading.Thread(target=self._work, name="recorder", daemon=True).start()

    def has_place(self) -> bool:
        """Wait for a place, and take it; False where the database has taken nothing for long."""
        return self._places.acquire(timeout=_LONGEST_S)

    def give_back(self) -> None:
        """A place that nothing came for."""
        self._places.release()

    def add(self, arrival: Arrival, *, waits: bool = True) -> None:
        """Record an image soon. waits: it has a place."""
        with self._none_left:
            self._left += 1
        self._waiting.put((arrival, waits))

    def settle(self, timeout_s: float = 30.0) -> bool:
        """Wait until all that was added is recorded; whether it is."""
        with self._none_left:
            return self._none_left.wait_for(lambda: self._left == 0, timeout_s)

    def alert(self, kind: str, details: dict[str, Any]) -> None:
        """Raise an alert; where the database takes none, it is in the log."""
        try:
            with session_scope(self.engine) as session:
                queue.raise_alert(session, kind, details)
        except SQLAlchemyError as error:
            say("alert-lost", 50, kind=kind, why=type(error).__name__)

    def _work(self) -> None:
        while True:
            batch = [self._waiting.get()]
            time.sleep(_GATHER_S)
            try:
                while len(batch) < _BATCH:
                    batch.append(self._waiting.get_nowait())
            except Empty:
                pass
            self._record([arrival for arrival, _ in batch])
            for _, waits in batch:
                if waits:
                    self._places.release()
            with self._none_left:
                self._left -= len(batch)
                self._none_left.notify_all()

    def _record(self, batch: Sequence[Arrival]) -> None:
        """Record a batch, as often as it takes."""
        while True:
            try:
                self._recorded(batch)
                return
            except (OperationalError, OSError) as error:  # the database or the disk, not the image
                say("recording-waits", 40, images=len(batch), kind=type(error).__name__)
                time.sleep(_PAUSE_S)
            except (SQLAlchemyError, ValueError) as error:
                if len(batch) == 1:
                    self._put_aside(batch[0], type(error).__name__)
                for arrival in batch if len(batch) > 1 else ():
                    self._record([arrival])
                return

    def _recorded(self, batch: Sequence[Arrival]) -> None:
        """New images in one transaction; those that come again one by one."""
        batch = [arrival for arrival in batch if arrival.path.exists()]  # not what an attempt before this one finished
        with session_scope(self.engine, read_only=True) as session:
            known = known_images(session, [arrival.head.sop_uid for arrival in batch])
        new: dict[str, Arrival] = {}
        again = []
        for arrival in batch:
            uid = arrival.head.sop_uid
            if uid in known or uid in new:
                again.append(arrival)
            else:
                new[uid] = arrival
        if new:
            self._add(list(new.values()))
        for arrival in again:
            self._add_again(arrival)

    def _add(self, arrivals: Sequence[Arrival]) -> None:
        by_series: dict[tuple[str, str], list[Arrival]] = {}
        for arrival in arrivals:
            by_series.setdefault(arrival.uids, []).append(arrival)
        ids: dict[tuple[str, str], int] = {}
        with session_scope(self.engine) as session:
            for uids, some in by_series.items():
                ids[uids] = self._series.get(uids) or _series_of(session, some[0], self.key)
                self._add_rows(session, ids[uids], some)
                self._link(some)
        self._series |= ids
        for arrival in arrivals:
            arrival.path.unlink()

    def _add_rows(self, session: OrmSession, series_id: int, arrivals: Sequence[Arrival]) -> None:
        rows = [
            {
                "sop_uid": arrival.head.sop_uid,
                "path": str(self._place(arrival)),
                "bytes": arrival.size,
                "transfer_syntax": arrival.head.transfer_syntax,
            }
            for arrival in arrivals
        ]
        synthetic = any(arrival.head.synthetic for arrival in arrivals)
        queue.add_instances(session, series_id, rows, str(self._folder(arrivals[0])), synthetic)

    def _add_again(self, arrival: Arrival) -> None:
        """The same pixels are no news, unless the file is gone: then the image is taken in again."""
        uid = arrival.head.sop_uid
        with session_scope(self.engine, read_only=True) as session:
            known = known_images(session, [uid])[uid]
        same = is_same(known, arrival.path.read_bytes(), self.folder.parent / ASIDE, self.engine, self.key)
        if same and known.file is None:
            with session_scope(self.engine) as session:
                series_id = _series_of(session, arrival, self.key)
                queue.restore_instance(session, series_id, uid, str(self._place(arrival)))
                queue.add_instances(session, series_id, [], str(self._folder(arrival)), arrival.head.synthetic)
                self._link([arrival])
        arrival.path.unlink()

    def _link(self, arrivals: Sequence[Arrival]) -> None:
        """Files of one series (locked by now) to their places; on disk on return. What no row names is replaced."""
        folder = self._folder(arrivals[0]) / IMAGES
        make_folder(folder)
        for arrival in arrivals:
            self._place(arrival).unlink(missing_ok=True)
            os.link(arrival.path, self._place(arrival))
        sync(folder)

    def _folder(self, arrival: Arrival) -> Path:
        return self.folder / hashed_name(*arrival.uids)

    def _place(self, arrival: Arrival) -> Path:
        return self._folder(arrival) / IMAGES / f"{hashed_name(arrival.head.sop_uid)}.dcm"

    def _put_aside(self, arrival: Arrival, kind: str) -> None:
        make_folder(self.folder.parent / ASIDE)
        arrival.path.replace(self.folder.parent / ASIDE / arrival.path.name)
        say("image-aside", 50, kind=kind, kept=arrival.path.name)
        self.alert("not-recorded", {"kind": kind, "kept": arrival.path.name})


def _series_of(session: OrmSession, first: Arrival, key: NodeKey) -> int:
    """The series' row, made where there is none."""
    found = queue.series_of(session, *first.uids)
    if found is not None:
        return found.id
    series = Series(
        series_uid=first.head.series_uid,
        study_uid=first.head.study_uid,
        patient_id_hash=key.pseudonym(first.head.patient_id),
        modality=first.head.modality,
        description=first.head.description,
        calling_ae=first.calling_ae,
    )
    session.add(series)
    session.flush()
    audit.append(session, queue.NODE, "series-began", {"series": series.id, "calling_ae": first.calling_ae})
    say("series-began", series=series.id, calling_ae_title=first.calling_ae)
    return series.id
