"""Reader studies: blinded cases in an order of each reader's own, with verdict, confidence and seconds.

A reader sees images alone: no score, no map, no description, and begins at the middle slice. Until all cases of a study
are answered, none of them stands in that reader's work list. Results are a CSV, one line per answer, for multi-reader
multi-case analysis.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Iterable

import numpy as np
from fastapi import HTTPException
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session as OrmSession

from ctguard.core.errors import DataError
from ctguard.serve.store.audit import append
from ctguard.serve.store.database import session_scope
from ctguard.serve.store.models import DONE, ReaderStudy, Reading, Series, User

COLUMNS = (
    *("study", "reader", "case", "series_uid", "position", "verdict", "confidence", "rating", "seconds"),
    *("answered_at", "detector_score", "detector_threshold"),
)


def order_for(study: ReaderStudy, reader: str) -> list[int]:
    """Series ids in this reader's order: the same seed and name give the same order."""
    number = int.from_bytes(hashlib.sha256(reader.encode()).digest()[:8])
    mixed: list[int] = np.random.default_rng([study.seed, number]).permutation(sorted(study.series)).tolist()
    return mixed


def create_study(engine: Engine, actor: str, name: str, seed: int, series: list[int], readers: list[str]) -> int:
    """Store a study, audited; its id. Raises DataError for a name that is taken, and unknown series and readers."""
    if not name.strip() or not series or not readers:
        raise DataError("a study takes a name, series and readers")
    with session_scope(engine) as session:
        if session.scalar(select(ReaderStudy).where(ReaderStudy.name == name)) is not None:
            raise DataError("there is a study of this name", where=name)
        known = session.scalars(select(Series.id).where(Series.id.in_(series), Series.state == DONE)).all()
        people = session.scalars(select(User.name).where(User.name.in_(readers), User.role != "viewer")).all()
        missing = [str(one) for one in (*sorted(set(series) - set(known)), *sorted(set(readers) - set(people)))]
        if missing:
            remedy = "series are given by the number of the case and must be done; readers need the role reviewer"
            raise DataError(f"{', '.join(missing[:10])} cannot be in a study", remedy=remedy)
        study = ReaderStudy(name=name, seed=seed, series=sorted(set(series)), readers=sorted(set(readers)))
        session.add(study)
        session.flush()
        append(session, actor, "study-created", {"study": name, "series": study.series, "readers": study.readers})
        return study.id


def studies_of(session: OrmSession, reader: str | None) -> list[tuple[ReaderStudy, dict[str, int]]]:
    """Studies, with the number of answers of each reader; only those of one reader, where one is named."""
    found = []
    for study in session.scalars(select(ReaderStudy).order_by(ReaderStudy.id)):
        if reader is None or reader in study.readers:
            names = study.readers if reader is None else [reader]
            found.append((study, {name: len(answered(session, study, name)) for name in names}))
    return found


def answered(session: OrmSession, study: ReaderStudy, reader: str) -> set[int]:
    """Series of the study that this reader has answered."""
    own = select(Reading.series_id).join(User).where(Reading.study == study.name, User.name == reader)
    return set(session.scalars(own))


def blinded_series(session: OrmSession, reader: str) -> set[int]:
    """Series that this reader must not see outside a study: those of the studies that are not finished."""
    hidden: set[int] = set()
    for study in session.scalars(select(ReaderStudy)):
        if reader in study.readers and set(study.series) - answered(session, study, reader):
            hidden |= set(study.series)
    return hidden


def not_blinded(engine: Engine, reader: str, series_id: int) -> None:
    """Raises HTTPException 403 for a series of a study that this reader has not finished."""
    with session_scope(engine, read_only=True) as session:
        if series_id in blinded_series(session, reader):
            raise HTTPException(403, "This series is part of a reader study that you have not finished.")


def results_csv(session: OrmSession, study: ReaderStudy) -> str:
    """One line per answer. rating: confidence, negative for "not tampered" and 0 for "unsure": an ordinal scale."""
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\n")
    table.writerow(COLUMNS)
    found = select(Reading, User.name, Series).join(User, Reading.user_id == User.id)
    found = found.join(Series, Reading.series_id == Series.id).where(Reading.study == study.name).order_by(Reading.id)
    for reading, reader, series in session.execute(found):
        sign = {"tampered": 1, "not tampered": -1}.get(reading.verdict, 0)
        position = order_for(study, reader).index(series.id) + 1
        table.writerow(
            _safe(
                (
                    *(study.name, reader, series.id, series.series_uid, position, reading.verdict),
                    *(reading.confidence, sign * (reading.confidence or 0), reading.seconds),
                    *(reading.created_at.isoformat(timespec="seconds"), series.score, series.threshold),
                )
            )
        )
    return out.getvalue()


def _safe(cells: Iterable[object]) -> list[object]:
    """Text that a spreadsheet would take for a formula gets an apostrophe before it."""
    return [f"'{cell}" if isinstance(cell, str) and cell[:1] in "=+-@\t\r" else cell for cell in cells]
