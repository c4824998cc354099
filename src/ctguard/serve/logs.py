"""The log: one JSON object per line on stderr. A series is named by its row; nothing of a patient is here."""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import warnings
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

from ctguard.serve.config import Log

_log = logging.getLogger("ctguard.serve")
_IDENTIFYING = ("uid", "ae_title", "address")
"""Endings of facts that are left out unless [log] uids is set."""


class _Lines(logging.Formatter):
    def __init__(self, role: str, uids: bool) -> None:
        super().__init__()
        self.role, self.uids = role, uids

    def format(self, record: logging.LogRecord) -> str:
        """One line: time, level, process, event and its facts."""
        facts = getattr(record, "facts", {})
        shown = {k: v for k, v in facts.items() if self.uids or not k.endswith(_IDENTIFYING)}
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        head = {"at": at, "level": record.levelname, "process": self.role, "pid": os.getpid()}
        return json.dumps({**head, "event": record.getMessage(), **shown}, default=str)


def start_log(role: str, settings: Log) -> None:
    """Send the log of this process to stderr, and the end by an error, too: its kind and place, not its text."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines(role, settings.uids))
    for name in ("ctguard.serve", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(settings.level)
    # These say too much: names of files with UIDs, whole datasets, tracebacks for each broken connection.
    for name in ("pynetdicom", "pydicom", "ctguard", "python_multipart"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    warnings.simplefilter("ignore")  # pydicom quotes values in them
    sys.excepthook = _fault
    threading.excepthook = lambda args: _fault(args.exc_type, args.exc_value, args.exc_traceback)


def say(event: str, level: int = logging.INFO, **facts: Any) -> None:
    """One line. Facts are plain JSON; those named …uid, …ae_title or …address are left out by default."""
    _log.log(level, event, extra={"facts": facts})


def _fault(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = "" if trace is None else f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"
    say("internal-error", logging.ERROR, kind=kind.__name__, place=place)
