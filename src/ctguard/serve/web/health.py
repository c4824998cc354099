"""For the people who run the node: health and Prometheus metrics. No patient, no UID, no user in either."""

from __future__ import annotations

import logging

from fastapi import APIRouter, Depends, HTTPException, Request
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, Gauge, generate_latest
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from starlette.responses import JSONResponse, Response

from ctguard.serve.logs import say
from ctguard.serve.store import queue
from ctguard.serve.store.database import session_scope
from ctguard.serve.store.models import STATES
from ctguard.serve.web.auth import Database, web_of
from ctguard.serve.web.security import comes_from, peer_of

router = APIRouter()
_COUNTED = (
    ("series", "state", "Series by state"),
    ("deliveries", "state", "Results and copies by state of delivery"),
    ("alerts", "kind", "Alerts that nobody acknowledged"),
)
_TOTALS = {
    "images": "Images received",
    "bytes": "Bytes received",
    "tampered": "Series with evidence of tampering",
    "oldest_queued_s": "Age of the oldest complete series without a verdict, seconds",
}


@router.get("/healthz")
def health(engine: Database) -> JSONResponse:
    """Whether the page and its database answer."""
    try:
        with session_scope(engine, read_only=True) as session:
            session.execute(text("SELECT 1"))
    except SQLAlchemyError as error:
        say("database-silent", logging.ERROR, kind=type(error).__name__)
        return JSONResponse({"status": "the database does not answer"}, 503)
    return JSONResponse({"status": "ok"})


def _listed(request: Request) -> None:
    if not comes_from(peer_of(request.scope), web_of(request).metrics_addresses):
        raise HTTPException(403, "Metrics are read from listed addresses only ([web] metrics_addresses).")


@router.get("/metrics", dependencies=[Depends(_listed)])
def metrics(engine: Database) -> Response:
    """Counts of the database, and what this process counts itself."""
    registry = CollectorRegistry()
    with session_scope(engine, read_only=True) as session:
        counts, totals = queue.counts(session), queue.totals(session)
    for name, label, words in _COUNTED:
        gauge = Gauge(f"ctguard_{name}", words, [label], registry=registry)
        for value in STATES if name == "series" else ():
            gauge.labels(value)  # 0 where there is none
        for value, n in counts[name].items():
            gauge.labels(value).set(n)
    for name, words in _TOTALS.items():
        Gauge(f"ctguard_{name}", words, registry=registry).set(totals[name])
    return Response(generate_latest(registry) + generate_latest(REGISTRY), media_type=CONTENT_TYPE_LATEST)
