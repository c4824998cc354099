"""A reader's verdict: one more row each time, never changed or removed, with time, person and seconds."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Form, HTTPException, Request
from itsdangerous import BadSignature, SignatureExpired, TimestampSigner
from sqlalchemy import Engine
from starlette.responses import RedirectResponse, Response

from ctguard.serve.store import queue
from ctguard.serve.store.audit import append
from ctguard.serve.store.database import session_scope
from ctguard.serve.store.models import Alert, Reading, now
from ctguard.serve.web.auth import NO_NUL, Database, Id, Text, posts_as
from ctguard.serve.web.casefiles import series_of
from ctguard.serve.web.study import not_blinded
from ctguard.serve.web.users import Who

router = APIRouter()
MAX_NOTE = 4000
_LONGEST_S = 12 * 3600
ReadVerdict = Literal["tampered", "not tampered", "unsure"]
Verdict = Annotated[ReadVerdict, Form()]
Confidence = Annotated[int, Form(ge=1, le=5)]
Note = Annotated[str, Form(max_length=MAX_NOTE, pattern=NO_NUL)]
Reviewer = Annotated[Who, Depends(posts_as("reviewer"))]
"""A reader who sent a form."""


def clock(who: Who, what: str) -> str:
    """A token that tells when a page was shown; it cannot be made or moved to another case or person."""
    return TimestampSigner(who.csrf, salt=what).sign(b"shown").decode()


def seconds_since(who: Who, what: str, token: str) -> float:
    """How long ago the page was shown. Raises HTTPException 403 for a token of another page, or an old one."""
    try:
        _, shown = TimestampSigner(who.csrf, salt=what).unsign(token, max_age=_LONGEST_S, return_timestamp=True)
    except (BadSignature, SignatureExpired):
        raise HTTPException(403, "This form ran out. Open the page again and repeat.") from None
    return round((now() - shown).total_seconds(), 1)


@router.post("/cases/{series_id}/readings")
def add_reading(
    series_id: Id,
    who: Reviewer,
    engine: Database,
    verdict: Verdict,
    confidence: Confidence,
    note: Note = "",
    shown: Text = "",
) -> Response:
    """Keep a verdict and go back to the case."""
    not_blinded(engine, who.name, series_id)
    series = series_of(engine, series_id)
    seconds = seconds_since(who, f"case {series_id}", shown)
    keep(engine, who, Reading(series_id=series.id, verdict=verdict, confidence=confidence, note=note, seconds=seconds))
    return RedirectResponse(f"/cases/{series_id}#readings", 303)


def keep(engine: Engine, who: Who, reading: Reading) -> None:
    """Store a reading and its audit event in one transaction."""
    reading.user_id = who.id
    with session_scope(engine) as session:
        session.add(reading)
        session.flush()
        facts = {"series": reading.series_id, "reading": reading.id, "verdict": reading.verdict}
        append(session, who.name, "reading", {**facts, "confidence": reading.confidence, "study": reading.study})


@router.post("/alerts/{alert_id}/acknowledge")
def acknowledge(request: Request, alert_id: Id, who: Reviewer, engine: Database) -> Response:
    """A person has seen an alert."""
    with session_scope(engine) as session:
        alert = session.get(Alert, alert_id)
        if alert is None:
            raise HTTPException(404)
        if alert.acknowledged_by is None:
            alert.acknowledged_by = who.name
            append(session, who.name, "alert-acknowledged", {"alert": alert.id, "kind": alert.kind})
        target = f"/cases/{alert.series_id}" if alert.series_id is not None else "/"
    return RedirectResponse(target, 303)


@router.post("/cases/{series_id}/release")
def release(series_id: Id, who: Reviewer, engine: Database) -> Response:
    """Let the copies go that quarantine holds back ([forward] quarantine_hours)."""
    not_blinded(engine, who.name, series_id)
    if series_of(engine, series_id).quarantined_until is None:
        raise HTTPException(409, "Nothing of this series is held back.")
    with session_scope(engine) as session:
        queue.release(session, series_id, who.name)
    return RedirectResponse(f"/cases/{series_id}", 303)
