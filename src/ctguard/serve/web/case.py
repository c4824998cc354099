"""One series: its verdict, the viewer, integrity, provenance, deliveries, readings, and the export as one HTML."""

from __future__ import annotations

from typing import Any, get_args

from fastapi import APIRouter, HTTPException, Request
from sqlalchemy import select
from starlette.responses import FileResponse, JSONResponse, Response

from ctguard import io
from ctguard.report.html import Grid, Paragraph, Section, render, verdict_sections
from ctguard.serve.store.audit import append
from ctguard.serve.store.database import session_scope
from ctguard.serve.store.models import Alert, Delivery, Reading, Series, User
from ctguard.serve.web.auth import Database, Id, Number, Viewer, web_of
from ctguard.serve.web.casefiles import MAP, CaseFiles, case_files, nifti, picture, prepared, series_of, viewer_facts
from ctguard.serve.web.meaning import FALSE_ALARMS, threshold_note, worth
from ctguard.serve.web.pages import page, when
from ctguard.serve.web.readings import clock
from ctguard.serve.web.study import not_blinded
from ctguard.serve.web.volumes import Name, Slices, volume_of

router = APIRouter(prefix="/cases/{series_id}")


@router.get("")
def case_page(request: Request, series_id: Id, who: Viewer, engine: Database) -> Response:
    """The page of a series in whatever state it is. Who opened it is audited."""
    not_blinded(engine, who.name, series_id)
    series = series_of(engine, series_id)
    files = CaseFiles.of(series)
    slices = files.slices if files else None
    with session_scope(engine) as session:
        append(session, who.name, "case-opened", {"series": series_id})
        deliveries = session.scalars(
            select(Delivery).where(Delivery.series_id == series_id).order_by(Delivery.id)
        ).all()
        alerts = session.scalars(select(Alert).where(Alert.series_id == series_id).order_by(Alert.id)).all()
        own = select(Reading, User.name).join(User).where(Reading.series_id == series_id, Reading.study.is_(None))
        readings = session.execute(own.order_by(Reading.id)).all()
    view: dict[str, Any] | None = None
    if files is not None and slices is not None:
        view = {**viewer_facts(slices, files.verdict["regions"]), "base": f"/cases/{series_id}", "map": True}
    verdict = files.verdict if files else {}
    return page(
        request,
        "case.html",
        series=series,
        verdict=verdict,
        view=view,
        carried=slices.carried if slices else None,
        geometry=slices.geometry if slices else None,
        deliveries=deliveries,
        alerts=alerts,
        readings=readings,
        note=threshold_note(verdict["detector"], verdict["model_id"]) if verdict else "",
        worth=worth(web_of(request).prevalences),
        false_alarms=FALSE_ALARMS,
        shown=clock(who, f"case {series_id}"),
    )


@router.get("/view")
def prepare_view(request: Request, series_id: Id, who: Viewer, engine: Database) -> Response:
    """Make what the viewer shows, where the analysis did not; answers when it is there."""
    _slices(request, series_id, who)
    return JSONResponse({"ready": True})


@router.get("/worst.png")
def worst_slices(series_id: Id, who: Viewer, engine: Database) -> Response:
    """The picture that the analysis left: shown until the viewer is ready."""
    not_blinded(engine, who.name, series_id)
    path = case_files(series_of(engine, series_id)).folder / "worst.png"
    if not path.is_file():
        raise HTTPException(404)
    return FileResponse(path, media_type="image/png")


@router.get("/{name}.nii")
def volume(request: Request, series_id: Id, name: str, who: Viewer) -> Response:
    """Scan or map, whole or thinned."""
    found: Name | None = next((known for known in get_args(Name) if known == name), None)
    if found is None:
        raise HTTPException(404)
    return nifti(_slices(request, series_id, who), found)


@router.get("/{window}/{k}.png")
def slice_picture(request: Request, series_id: Id, window: str, k: Number, who: Viewer) -> Response:
    """A slice of the scan in a window, or of the map."""
    return picture(_slices(request, series_id, who), k, window)


@router.get("/report.html")
def export(request: Request, series_id: Id, who: Viewer, engine: Database) -> Response:
    """The case as one self-contained HTML file: verdict, pictures, integrity and readings. Audited."""
    slices = _slices(request, series_id, who)
    series = series_of(engine, series_id)
    files = case_files(series)
    scan, map_ = volume_of(slices, series.series_uid), io.read(files.folder / MAP)
    verdict = files.whole_verdict(map_.hu, map_.geometry)
    with session_scope(engine) as session:
        own = select(Reading, User.name).join(User).where(Reading.series_id == series_id, Reading.study.is_(None))
        readings = session.execute(own.order_by(Reading.id)).all()
        append(session, who.name, "case-exported", {"series": series_id})
    sections = [*verdict_sections(scan, verdict), _integrity(series), _readings(readings)]
    headers = {"Content-Disposition": f'attachment; filename="case-{series_id}.html"'}
    return Response(render(f"Case {series_id}", sections), media_type="text/html; charset=utf-8", headers=headers)


def _slices(request: Request, series_id: int, who: Any) -> Slices:
    engine = request.app.state.engine
    not_blinded(engine, who.name, series_id)
    return prepared(engine, series_of(engine, series_id), request.app.state.config.analysis.allow_gaps)


def _integrity(series: Series) -> Section:
    rows = (
        ("seal", series.seal_state),
        ("digital signature", series.signature_state),
        ("received", f"{when(series.received_at)} from {series.calling_ae}, {series.slices} images"),
        ("says that it is synthetic", series.synthetic),
        ("study", series.study_uid),
    )
    return Section("Integrity", (Grid(rows),))


def _readings(readings: Any) -> Section:
    if not readings:
        return Section("Readings", (Paragraph("Nobody has read this case.", "note"),))
    columns = ("when", "reader", "verdict", "confidence, 1 to 5", "seconds", "note")
    rows = [(when(r.created_at), name, r.verdict, r.confidence, r.seconds, r.note) for r, name in readings]
    return Section("Readings", (Grid(rows, columns),))
