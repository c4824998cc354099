"""Remove images and cases when their time is over. Verdicts, readings, audit trail and ledger stay."""

from __future__ import annotations

import logging
import shutil
import time
from datetime import timedelta
from pathlib import Path

from sqlalchemy import Engine, exists, select, update

from ctguard.serve.config import Config
from ctguard.serve.logs import say
from ctguard.serve.store import audit, queue
from ctguard.serve.store.database import session_scope
from ctguard.serve.store.models import DONE, FAILED, PENDING, Delivery, Instance, Series, now

_REMOVED = ".removed"


def remove_old(config: Config, engine: Engine) -> int:
    """Remove series of which nothing has come for [store] retention_days; how many.

    One whose results are not delivered yet stays. Its folder is put out of the way while the series is locked, as the
    recorder locks it before it puts an image there: one that arrives meanwhile finds an empty place, or keeps the
    series. A crash before the commit leaves rows whose files are gone, for the next time to find.
    """
    _remove_folders(config.store.folder)
    days = config.store.retention_days
    if days == 0:
        return 0
    over = (Series.updated_at < now() - timedelta(days=days), Series.state.in_((DONE, FAILED)))
    waits = exists().where(Delivery.series_id == Series.id, Delivery.state == PENDING)
    wanted = select(Series).where(*over, Series.folder.is_not(None), ~waits).with_for_update()
    with session_scope(engine) as session:
        old = session.scalars(wanted).all()
        for series in old:
            folder = Path(series.folder or "")
            series.folder = series.verdict_path = None
            series.slices = 0
            session.execute(update(Instance).where(Instance.series_id == series.id).values(path=None))
            audit.append(session, queue.NODE, "series-removed", {"series": series.id, "days": days})
            if folder.exists():
                folder.rename(folder.with_name(f"{folder.name}-{time.time_ns()}{_REMOVED}"))
    _remove_folders(config.store.folder)
    if old:
        say("series-removed", count=len(old))
    return len(old)


def _remove_folders(root: Path) -> None:
    """What was put out of the way, now or before a crash."""
    for folder in (root / "series").glob(f"*{_REMOVED}"):
        try:
            shutil.rmtree(folder)
        except OSError as error:
            say("removal-failed", logging.ERROR, kind=type(error).__name__)
