"""Remove images and cases when their time is over. Verdicts, readings, audit trail and ledger stay."""

from __future__ import annotations

import shutil
from datetime import timedelta
from pathlib import Path

from sqlalchemy import Engine, exists, select, update

from ctguard.serve.config import Config
from ctguard.serve.logs import say
from ctguard.serve.store import audit, queue
from ctguard.serve.store.database import session_scope
from ctguard.serve.store.models import DONE, FAILED, PENDING, Delivery, Instance, Series, now


def remove_old(config: Config, engine: Engine) -> int:
    """Remove series of which nothing has come for [store] retention_days; how many.

    One whose results are not delivered yet stays. The rows change first: a crash leaves a folder that no row names,
    never a row that names what is gone. Such a folder goes when its series is removed again, or comes again.
    """
    days = config.store.retention_days
    if days == 0:
        return 0
    over = (Series.updated_at < now() - timedelta(days=days), Series.state.in_((DONE, FAILED)))
    waits = exists().where(Delivery.series_id == Series.id, Delivery.state == PENDING)
    with session_scope(engine) as session:
        old = session.scalars(select(Series).where(*over, Series.folder.is_not(None), ~waits)).all()
        folders = [Path(series.folder or "") for series in old]
        for series in old:
            series.folder = series.verdict_path = None
            series.slices = 0
            session.execute(update(Instance).where(Instance.series_id == series.id).values(path=None))
            audit.append(session, queue.NODE, "series-removed", {"series": series.id, "days": days})
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
    if folders:
        say("series-removed", count=len(folders))
    return len(folders)
