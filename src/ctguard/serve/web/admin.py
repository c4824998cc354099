"""For administrators: users, the audit trail with its check, and what retention will remove."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

from fastapi import APIRouter, Depends, Form, HTTPException, Query, Request
from sqlalchemy import Engine, delete, func, select
from starlette.responses import RedirectResponse, Response

from ctguard.core.errors import DataError
from ctguard.serve.store.audit import append, check_chain
from ctguard.serve.store.database import session_scope
from ctguard.serve.store.models import ROLES, AuditEvent, Series, Session, User, now
from ctguard.serve.web.auth import NO_NUL, Admin, Database, Id, Text, posts_as
from ctguard.serve.web.pages import page
from ctguard.serve.web.users import MIN_PASSWORD, Who, add_user, hash_password

router = APIRouter(prefix="/admin")
PER_PAGE = 100
AdminForm = Annotated[Who, Depends(posts_as("admin"))]


@router.get("/users")
def users_page(request: Request, who: Admin, engine: Database) -> Response:
    """All users, local ones and those of a proxy."""
    return _users(request, engine)


@router.post("/users")
def new_user(
    request: Request, who: AdminForm, engine: Database, name: Text = "", role: Text = "", password: Text = ""
) -> Response:
    """Add a local user."""
    try:
        add_user(engine, name, role, password, who.name)
    except DataError as error:
        return _users(request, engine, 400, f"{error}.")
    return RedirectResponse("/admin/users", 303)


@router.post("/users/{user_id}")
def change_user(
    request: Request,
    user_id: Id,
    who: AdminForm,
    engine: Database,
    role: Text,
    disabled: Annotated[bool, Form()] = False,
    password: Text = "",
) -> Response:
    """Role, whether disabled, and a new password where one is given. The user's log-ins end."""
    if user_id == who.id:
        return _users(request, engine, 400, "Another administrator has to change your own account.")
    try:
        if role not in ROLES:
            raise DataError(f"there is no role {role!r}")
        hashed = hash_password(password) if password else None
    except DataError as error:
        return _users(request, engine, 400, f"{error}.")
    with session_scope(engine) as session:
        user = session.get(User, user_id)
        if user is None:
            raise HTTPException(404)
        user.role, user.disabled = role, disabled
        user.password_hash = hashed or user.password_hash
        session.execute(delete(Session).where(Session.user_id == user.id))
        facts = {"user": user.name, "role": role, "disabled": disabled, "password": hashed is not None}
        append(session, who.name, "user-changed", facts)
    return RedirectResponse("/admin/users", 303)


@router.get("/audit")
def audit_page(
    request: Request,
    who: Admin,
    engine: Database,
    event: Annotated[str, Query(max_length=64, pattern=NO_NUL)] = "",
    actor: Annotated[str, Query(max_length=128, pattern=NO_NUL)] = "",
    number: Annotated[int, Query(alias="page", ge=1, le=1_000_000)] = 1,
) -> Response:
    """The trail, newest first, and whether its chain holds."""
    with session_scope(engine, read_only=True) as session:
        chain = check_chain(session)
        wanted = select(AuditEvent)
        wanted = wanted.where(AuditEvent.event == event) if event else wanted
        wanted = wanted.where(AuditEvent.actor == actor) if actor else wanted
        total = session.scalar(select(func.count()).select_from(wanted.subquery())) or 0
        pages = max(1, -(-total // PER_PAGE))
        number = min(number, pages)
        newest = wanted.order_by(AuditEvent.id.desc()).limit(PER_PAGE).offset((number - 1) * PER_PAGE)
        events = session.scalars(newest).all()
        kinds = session.scalars(select(AuditEvent.event).distinct().order_by(AuditEvent.event)).all()
    values = {"chain": chain, "events": events, "kinds": kinds, "event": event, "actor": actor}
    return page(request, "audit.html", number=number, pages=pages, total=total, **values)


@router.get("/retention")
def retention_page(request: Request, who: Admin, engine: Database) -> Response:
    """How long images are kept, and which go next."""
    days = request.app.state.config.store.retention_days
    with session_scope(engine, read_only=True) as session:
        held = select(func.count(), func.coalesce(func.sum(Series.slices), 0)).where(Series.folder.is_not(None))
        kept, images = session.execute(held).one()
        gone = session.scalar(select(func.count()).where(Series.folder.is_(None))) or 0
        oldest = select(Series).where(Series.folder.is_not(None)).order_by(Series.updated_at).limit(50)
        next_ones = [(one, one.updated_at + timedelta(days=days)) for one in session.scalars(oldest)] if days else []
    return page(
        request, "retention.html", days=days, kept=kept, images=images, gone=gone, next_ones=next_ones, at=now()
    )


def _users(request: Request, engine: Engine, status: int = 200, message: str = "") -> Response:
    with session_scope(engine, read_only=True) as session:
        users = session.scalars(select(User).order_by(User.name)).all()
    values = {"users": users, "roles": ROLES, "least": MIN_PASSWORD}
    return page(request, "users.html", status, message=message, **values)
