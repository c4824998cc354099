"""A person's own account: a new password."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, HTTPException, Request
from sqlalchemy import Engine
from starlette.responses import Response

from ctguard.core.errors import DataError
from ctguard.serve.store.audit import append
from ctguard.serve.store.database import session_scope
from ctguard.serve.store.models import User
from ctguard.serve.web.auth import Database, Text, Viewer, posts_as, web_of, with_cookie
from ctguard.serve.web.pages import page
from ctguard.serve.web.security import peer_of
from ctguard.serve.web.users import MIN_PASSWORD, Attempts, Who, check_password, hash_password, replace_password

router = APIRouter()


@router.get("/password")
def password_page(request: Request, who: Viewer, engine: Database, changed: bool = False) -> Response:
    """The form; for one whom a proxy vouches for, where to go instead."""
    return _form(request, engine, who, changed=changed)


@router.post("/password")
def change_password(
    request: Request,
    who: Annotated[Who, Depends(posts_as("viewer"))],
    engine: Database,
    old: Text = "",
    new: Text = "",
    again: Text = "",
) -> Response:
    """A new password for the old one. The tries are those of the log-in: a screen left open lets nobody guess."""
    peer = peer_of(request.scope)
    key = f"{who.name}\0{peer}"
    attempts: Attempts = request.app.state.attempts[0]
    if not attempts.take(key):
        return _form(request, engine, who, 429, "Too many attempts. Wait 15 minutes.")
    user = check_password(engine, who.name, old)
    if user is None:
        with session_scope(engine) as session:
            append(session, who.name, "password-refused", {"from": peer})
        return _form(request, engine, who, 403, "The old password is wrong.")
    attempts.forget(key)
    if new != again:
        return _form(request, engine, who, 400, "The new password was not the same both times.")
    if new == old:
        return _form(request, engine, who, 400, "The new password is the old one.")
    try:
        token = replace_password(engine, user, hash_password(new), web_of(request))
    except DataError as error:
        return _form(request, engine, who, 400, f"{error}.")
    if token is None:
        raise HTTPException(409, "An administrator changed your account just now. Log in again.")
    return with_cookie("/password?changed=true", token, web_of(request))


def _form(
    request: Request, engine: Engine, who: Who, status: int = 200, message: str = "", *, changed: bool = False
) -> Response:
    with session_scope(engine, read_only=True) as session:
        local = bool(session.get_one(User, who.id).password_hash)
    values = {"local": local, "least": MIN_PASSWORD, "changed": changed}
    return page(request, "password.html", status, message=message, **values)
