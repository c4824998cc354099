"""Progress and log lines: bars on a terminal, plain lines elsewhere. Nothing else in the library prints."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
log = logging.getLogger("ctguard")

_SECONDS_BETWEEN_LINES = 15.0


def progress(items: Iterable[T], label: str, total: int, quiet: bool = False) -> Iterator[T]:
    """Yield the items, showing rate and remaining time: a bar on a terminal, a log line every 15 s elsewhere."""
    if quiet or not log.isEnabledFor(logging.INFO):
        yield from items
    elif sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
            yield from bars.track(items, total=total, description=label)
    else:
        yield from _logged(items, label, total)


def _logged(items: Iterable[T], label: str, total: int) -> Iterator[T]:
    start = last = time.monotonic()
    for done, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - last >= _SECONDS_BETWEEN_LINES or done == total:
            last = now
            rate = done / max(now - start, 1e-9)
            log.info("%s: %d/%d, %.2f a second, %.0f s left", label, done, total, rate, (total - done) / rate)
