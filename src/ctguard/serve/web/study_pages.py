"""Pages of the reader studies: the list, the blinded case, and the results for administrators."""

from __future__ import annotations

import re
from typing import Annotated

from fastapi import APIRouter, Depends, Form, HTTPException, Request
from sqlalchemy import Engine
from starlette.responses import RedirectResponse, Response

from ctguard.core.errors import DataError
from ctguard.serve.store.audit import append
from ctguard.serve.store.database import session_scope
from ctguard.serve.store.models import ReaderStudy, Reading
from ctguard.serve.web.auth import NO_NUL, Admin, Database, Id, Number, Text, at_least, posts_as
from ctguard.serve.web.casefiles import nifti, picture, prepared, series_of, viewer_facts
from ctguard.serve.web.pages import page
from ctguard.serve.web.readings import Confidence, Note, Reviewer, Verdict, clock, keep, seconds_since
from ctguard.serve.web.study import answered, create_study, order_for, results_csv, studies_of
from ctguard.serve.web.users import Who
from ctguard.serve.web.volumes import Slices

router = APIRouter(prefix="/studies")
Reader = Annotated[Who, Depends(at_least("reviewer"))]


@router.get("")
def list_studies(request: Request, who: Reader, engine: Database) -> Response:
    """A reader's own studies; all of them for an administrator."""
    return _list(request, who, engine)


@router.post("")
def new_study(
    request: Request,
    who: Annotated[Who, Depends(posts_as("admin"))],
    engine: Database,
    name: Annotated[str, Form(max_length=128, pattern=NO_NUL)],
    series: Text,
    readers: Text,
    seed: Annotated[int, Form(ge=0, le=2**31 - 1)] = 0,
) -> Response:
    """Make a study of the cases and readers that a form lists."""
    numbers = re.findall(r"\S+", series.replace(",", " "))
    try:
        if not all(re.fullmatch(r"\d{1,9}", number) for number in numbers):
            raise DataError("cases are given by their numbers")
        create_study(engine, who.name, name.strip(), seed, [int(n) for n in numbers], readers.replace(",", " ").split())
    except DataError as error:
        return _list(request, who, engine, 400, f"{error}.")
    return RedirectResponse("/studies", 303)


@router.get("/{study_id}/results.csv")
def results(study_id: Id, who: Admin, engine: Database) -> Response:
    """The answers so far."""
    study = _study(engine, study_id)
    with session_scope(engine) as session:
        text = results_csv(session, study)
        append(session, who.name, "study-exported", {"study": study.name})
    headers = {"Content-Disposition": f'attachment; filename="study-{study_id}.csv"'}
    return Response(text, media_type="text/csv; charset=utf-8", headers=headers)


@router.get("/{study_id}")
def next_case(request: Request, study_id: Id, who: Reader, engine: Database) -> Response:
    """The reader's next case, or the end."""
    study = _study(engine, study_id, who)
    position, series_id = _place(engine, study, who)
    if series_id is None:
        return page(request, "study_done.html", study=study)
    slices = prepared(engine, series_of(engine, series_id), request.app.state.config.analysis.allow_gaps)
    facts = viewer_facts(slices, [])
    with session_scope(engine) as session:
        append(session, who.name, "study-case-shown", {"study": study.name, "position": position})
    shown = clock(who, _what(study, position))
    base = f"/studies/{study_id}/{position}"
    view = {**facts, "worst": facts["count"] // 2, "base": base, "map": False}
    return page(request, "study_case.html", study=study, position=position, view=view, shown=shown)


@router.post("/{study_id}/{position}")
def answer(
    study_id: Id,
    position: Id,
    who: Reviewer,
    engine: Database,
    verdict: Verdict,
    confidence: Confidence,
    note: Note = "",
    shown: Text = "",
) -> Response:
    """Keep an answer; each case is answered once."""
    study = _study(engine, study_id, who)
    now_at, series_id = _place(engine, study, who)
    if series_id is None or position != now_at:
        raise HTTPException(409, "This case is answered already.")
    seconds = seconds_since(who, _what(study, position), shown)
    facts = {"verdict": verdict, "confidence": confidence, "note": note, "seconds": seconds}
    keep(engine, who, Reading(series_id=series_id, study=study.name, **facts))
    return RedirectResponse(f"/studies/{study_id}", 303)


@router.get("/{study_id}/{position}/{window}/{k}.png")
def slice_of_case(request: Request, study_id: Id, position: Id, window: str, k: Number, who: Reader) -> Response:
    """A slice of the case that the reader is at; there is no map."""
    if window == "map":
        raise HTTPException(404)
    return picture(_slices(request, study_id, position, who), k, window)


@router.get("/{study_id}/{position}/{size}.nii")
def volume_of_case(request: Request, study_id: Id, position: Id, size: str, who: Reader) -> Response:
    """Its volume, whole (ct) or thinned (ct-small)."""
    if size not in ("ct", "ct-small"):
        raise HTTPException(404)
    return nifti(_slices(request, study_id, position, who), "ct" if size == "ct" else "ct-small")


def _slices(request: Request, study_id: int, position: int, who: Who) -> Slices:
    engine: Engine = request.app.state.engine
    study = _study(engine, study_id, who)
    now_at, series_id = _place(engine, study, who)
    if series_id is None or position != now_at:
        raise HTTPException(404)
    return prepared(engine, series_of(engine, series_id), request.app.state.config.analysis.allow_gaps)


def _study(engine: Engine, study_id: int, reader: Who | None = None) -> ReaderStudy:
    with session_scope(engine, read_only=True) as session:
        study = session.get(ReaderStudy, study_id)
    if study is None or (reader is not None and reader.name not in study.readers):
        raise HTTPException(404)
    return study


def _place(engine: Engine, study: ReaderStudy, who: Who) -> tuple[int, int | None]:
    """Position (from 1) and series of the first case that is not answered; None behind the last."""
    with session_scope(engine, read_only=True) as session:
        done = answered(session, study, who.name)
    for position, series_id in enumerate(order_for(study, who.name), start=1):
        if series_id not in done:
            return position, series_id
    return len(study.series) + 1, None


def _what(study: ReaderStudy, position: int) -> str:
    return f"study {study.id} {position}"


def _list(request: Request, who: Who, engine: Engine, status: int = 200, message: str = "") -> Response:
    with session_scope(engine, read_only=True) as session:
        found = studies_of(session, None if who.may("admin") else who.name)
    return page(request, "studies.html", status, studies=found, message=message)
