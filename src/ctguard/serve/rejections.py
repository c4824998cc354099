"""Rejected associations in the audit trail: the first of a minute one by one, the rest counted.

Who scans ports or guesses titles cannot fill the database: a minute makes at most PER_MINUTE rows and one summary.
Counts are in memory until then: a kill -9 loses those of the last minute, which the log still has line by line.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from typing import Any

from sqlalchemy import Engine

from ctguard.serve.store import audit, queue
from ctguard.serve.store.database import session_scope

PER_PEER, PER_MINUTE = 5, 50
"""Rows of their own in a minute: of one address, and of all."""
NAMED = 20
"""A summary names so many addresses; the rest are OTHERS."""
OTHERS = "others"
_MINUTE_S = 60.0


class Rejections:
    """Of one node; `record` may be called from any thread."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._lock = threading.Lock()
        self._began = time.monotonic()
        self._alone: Counter[str] = Counter()
        self._counted: Counter[str] = Counter()

    def record(self, facts: dict[str, Any]) -> None:
        """One more: a row of its own, or one in the summary of its minute. facts: address, and what else is known."""
        self.summarise()
        peer = str(facts["address"])
        with self._lock:
            alone = self._alone[peer] < PER_PEER and self._alone.total() < PER_MINUTE
            if alone:
                self._alone[peer] += 1
            else:
                self._counted[peer if peer in self._counted or len(self._counted) < NAMED else OTHERS] += 1
        if alone:
            with session_scope(self.engine) as session:
                audit.append(session, queue.NODE, "association-rejected", facts)

    def summarise(self, *, early: bool = False) -> None:
        """Write the summary when the minute is over; early: before that, too. The node calls it each second."""
        with self._lock:  # for as long as it is written, so that nothing is counted twice, or forgotten on an error
            seconds = time.monotonic() - self._began
            if seconds < _MINUTE_S and not early:
                return
            if self._counted:
                facts = {"count": self._counted.total(), "seconds": round(seconds), "by_address": dict(self._counted)}
                with session_scope(self.engine) as session:
                    audit.append(session, queue.NODE, "associations-rejected", facts)
            self._counted.clear()
            self._alone.clear()
            self._began = time.monotonic()
