"""The work list: every series that the node received, with verdict, state and what a person should look at."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from sqlalchemy import Select, func, or_, select
from sqlalchemy.orm import Session as OrmSession
from starlette.responses import Response

from ctguard.serve.store.database import session_scope
from ctguard.serve.store.models import ANALYSING, FAILED, QUEUED, RECEIVING, Alert, Reading, Series, now
from ctguard.serve.web.auth import NO_NUL, Database, Viewer, web_of
from ctguard.serve.web.pages import page
from ctguard.serve.web.study import blinded_series

router = APIRouter()
PER_PAGE = 25
Show = Literal["all", "evidence", "clear", "unread", "alerts", "working", "failed"]
SHOWS: dict[Show, str] = {
    "all": "All",
    "evidence": "Evidence of tampering",
    "unread": "Not read yet",
    "alerts": "Open alerts",
    "clear": "No evidence found",
    "working": "In progress",
    "failed": "Failed",
}


@dataclass(frozen=True)
class Row:
    """One line of the list. alerts: kinds that nobody acknowledged; reading: the newest reader's verdict."""

    series: Series
    alerts: tuple[str, ...]
    reading: str


@router.get("/")
def work_list(
    request: Request,
    who: Viewer,
    engine: Database,
    show: Show = "all",
    q: Annotated[str, Query(max_length=100, pattern=NO_NUL)] = "",
    number: Annotated[int, Query(alias="page", ge=1, le=1_000_000)] = 1,
) -> Response:
    """A page of the list, newest first."""
    web = web_of(request)
    with session_scope(engine, read_only=True) as session:
        wanted = _wanted(show, q.strip(), blinded_series(session, who.name))
        total = session.scalar(select(func.count()).select_from(wanted.subquery())) or 0
        pages = max(1, -(-total // PER_PAGE))
        number = min(number, pages)
        order = wanted.order_by(Series.received_at.desc(), Series.id.desc())
        rows = _rows(session, session.scalars(order.limit(PER_PAGE).offset((number - 1) * PER_PAGE)).all())
        of_node = select(Alert).where(Alert.series_id.is_(None), Alert.acknowledged_by.is_(None))
        node_alerts = session.scalars(of_node.order_by(Alert.id.desc()).limit(5)).all()
        week = select(func.count()).where(Series.received_at > now() - timedelta(days=7))
        alarms = session.scalar(week.where(Series.tampered.is_(True))) or 0
        judged = session.scalar(week.where(Series.tampered.is_not(None))) or 0
    values: dict[str, Any] = {"rows": rows, "show": show, "shows": SHOWS, "q": q, "number": number, "pages": pages}
    week_of = {"alarms": alarms, "judged": judged, "budget": web.weekly_alarm_budget}
    return page(request, "worklist.html", total=total, week=week_of, node_alerts=node_alerts, **values)


def _wanted(show: Show, text: str, blinded: set[int]) -> Select[Any]:
    wanted = select(Series).where(Series.id.not_in(blinded))
    open_alerts = select(Alert.series_id).where(Alert.acknowledged_by.is_(None), Alert.series_id.is_not(None))
    read = select(Reading.series_id).where(Reading.study.is_(None))
    conditions = {
        "all": None,
        "evidence": Series.tampered.is_(True),
        "clear": Series.tampered.is_(False),
        "unread": Series.tampered.is_not(None) & Series.id.not_in(read),
        "alerts": Series.id.in_(open_alerts),
        "working": Series.state.in_((RECEIVING, QUEUED, ANALYSING)),
        "failed": Series.state == FAILED,
    }
    condition = conditions[show]
    if condition is not None:
        wanted = wanted.where(condition)
    if text:
        fields = (Series.description, Series.calling_ae, Series.series_uid, Series.study_uid, Series.patient_id_hash)
        wanted = wanted.where(or_(*(field.icontains(text, autoescape=True) for field in fields)))
    return wanted


def _rows(session: OrmSession, found: Any) -> list[Row]:
    ids = [series.id for series in found]
    alerts: dict[int, set[str]] = {}
    unseen = select(Alert).where(Alert.series_id.in_(ids), Alert.acknowledged_by.is_(None))
    for alert in session.scalars(unseen):
        alerts.setdefault(alert.series_id or 0, set()).add(alert.kind)
    readings: dict[int, str] = {}
    for reading in session.scalars(
        select(Reading).where(Reading.series_id.in_(ids), Reading.study.is_(None)).order_by(Reading.id)
    ):
        readings[reading.series_id] = reading.verdict
    return [Row(one, tuple(sorted(alerts.get(one.id, ()))), readings.get(one.id, "")) for one in found]
