"""The worker: takes a complete series, judges it, writes the case folder, and enqueues what is to be delivered.

It may be killed at any moment. Files are written and fsynced first, under a name that carries the claim; one
transaction then makes them the result. What a killed worker left behind is removed by the next one that has the case.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, select

from ctguard.core.errors import CtguardError
from ctguard.serve.config import Config
from ctguard.serve.judging import Judge, judge_series, load_judge
from ctguard.serve.ledger import NodeKey, fingerprint
from ctguard.serve.logs import say
from ctguard.serve.store import queue
from ctguard.serve.store.database import session_scope
from ctguard.serve.store.models import Instance, LedgerEntry, Series

LEASE_S = 30.0
_IDLE_S = 0.5
_GRACE_S = 5.0


def run_worker(config: Config, engine: Engine, stopping: threading.Event) -> None:
    """Judge series until told to stop. Raises ModelError where the detector cannot be loaded."""
    judge = load_judge(config)
    say("worker-ready", detector=config.analysis.detector)
    while not stopping.is_set():
        if not work_once(judge, engine):
            stopping.wait(_IDLE_S)


def work_once(judge: Judge, engine: Engine) -> bool:
    """Claim and judge one series; False where none waits."""
    with session_scope(engine) as session:
        series = queue.claim(session, LEASE_S, judge.config.analysis.attempts)
        files = [] if series is None else _files(session, series)
    if series is None:
        return False
    started = time.monotonic()
    with _held(engine, series, judge.config.analysis.timeout_s):
        _remember(judge.node_key, engine, files)
        try:
            outcome = judge_series(judge, series, [path for _, path in files])
        except (CtguardError, OSError, MemoryError) as error:
            with session_scope(engine) as session:
                recorded = queue.fail(session, series, str(error) or type(error).__name__)
            say("series-failed", logging.WARNING, series=series.id, kind=type(error).__name__, recorded=recorded)
            return True
        with session_scope(engine) as session:
            recorded = queue.finish(session, series, outcome)
    facts = {"images": series.slices, "tampered": outcome.values["tampered"], "recorded": recorded}
    say("series-judged", series=series.id, seconds=round(time.monotonic() - started, 2), **facts)
    return True


@contextmanager
def _held(engine: Engine, series: Series, timeout_s: float) -> Iterator[None]:
    """Prolong the lease from another thread while the analysis runs, for as long as it may take.

    Native code cannot be interrupted, so an analysis that takes too long ends the whole worker; the supervisor starts
    another.
    """
    done = threading.Event()

    def watch() -> None:
        deadline = time.monotonic() + timeout_s
        while not done.wait(min(LEASE_S / 3, max(deadline - time.monotonic(), 0.01))):
            with session_scope(engine) as session:
                if time.monotonic() >= deadline:
                    queue.fail(session, series, f"its analysis took longer than {timeout_s:g} s")
                elif not queue.renew(session, series.id, series.claim or "", LEASE_S):
                    return
            if time.monotonic() >= deadline and not done.is_set():
                say("series-timed-out", logging.ERROR, series=series.id)
                os.kill(os.getpid(), signal.SIGKILL)

    thread = threading.Thread(target=watch, name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(_GRACE_S)


def _files(session: Any, series: Series) -> list[tuple[str, Path]]:
    """UID and file of each image, in the order of arrival."""
    there = (Instance.series_id == series.id, Instance.path.is_not(None))
    rows = session.execute(select(Instance.sop_uid, Instance.path).where(*there).order_by(Instance.id))
    return [(uid, Path(path)) for uid, path in rows]


def _remember(key: NodeKey, engine: Engine, files: Sequence[tuple[str, Path]]) -> None:
    """Fingerprints of images at first sight. One whose pixels cannot be decoded has none; its analysis says why."""
    with session_scope(engine, read_only=True) as session:
        wanted = select(LedgerEntry.sop_uid).where(LedgerEntry.sop_uid.in_([uid for uid, _ in files]))
        known = set(session.scalars(wanted))
    entries = []
    for uid, path in files:
        if uid not in known:
            try:
                print_ = fingerprint(path, key)
            except CtguardError:
                say("no-fingerprint", logging.WARNING, sop_uid=uid)
                continue
            entries.append(LedgerEntry(sop_uid=uid, pixel_hmac=print_.pixel_hmac, block_digest=print_.block_digest))
    with session_scope(engine) as session:
        session.add_all(entries)
