"""Who asks: log-in and log-out, and what each page demands of the person (role, CSRF token)."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable
from typing import Annotated
from urllib.parse import quote, urlsplit

from fastapi import APIRouter, Depends, Form, HTTPException, Path, Query, Request
from sqlalchemy import Engine
from starlette.responses import RedirectResponse, Response

from ctguard.serve.config import Web
from ctguard.serve.logs import say
from ctguard.serve.store.audit import append
from ctguard.serve.store.database import session_scope
from ctguard.serve.web.pages import page
from ctguard.serve.web.security import peer_of
from ctguard.serve.web.users import (
    Attempts,
    Who,
    check_password,
    close_sessions,
    find_session,
    open_session,
    proxy_user,
)

router = APIRouter()
TRIES_PER_NAME, TRIES_PER_ADDRESS = 5, 50
"""Log-ins within 15 minutes: of one name from one address, and of any name from one address."""
NO_NUL = r"^[^\x00]*$"
"""PostgreSQL keeps no NUL in a text."""
Text = Annotated[str, Form(max_length=20_000, pattern=NO_NUL)]
Id = Annotated[int, Path(ge=1, le=2**31 - 1)]
Number = Annotated[int, Path(ge=0, le=1_000_000)]


def engine_of(request: Request) -> Engine:
    """The database of the application."""
    engine: Engine = request.app.state.engine
    return engine


def web_of(request: Request) -> Web:
    """The [web] section of the configuration."""
    web: Web = request.app.state.config.web
    return web


def signed_in(request: Request) -> Who:
    """The person behind the request. Raises HTTPException 401."""
    web = web_of(request)
    token = request.cookies.get(_cookie(web), "")
    who = find_session(engine_of(request), token, web) if token else None
    named = _proxy_name(request)
    if who is None or (named and named != who.name):
        raise HTTPException(401)
    request.state.who = who
    return who


def at_least(role: str) -> Callable[[Who], Who]:
    """A dependency: a person of this role or one above. Raises HTTPException 403."""

    def allowed(who: Annotated[Who, Depends(signed_in)]) -> Who:
        return _checked(who, role)

    return allowed


def posts_as(role: str) -> Callable[..., Who]:
    """A dependency: the same, for a form that carries the CSRF token of the person's own log-in."""

    def allowed(request: Request, who: Annotated[Who, Depends(signed_in)], csrf: Text = "") -> Who:
        if not secrets.compare_digest(csrf.encode(), who.csrf.encode()) or _foreign(request):
            say("form-refused", logging.WARNING, why="without the token of the log-in", user=who.id)
            raise HTTPException(403, "This form does not belong to your log-in. Open the page again and repeat.")
        return _checked(who, role)

    return allowed


def _checked(who: Who, role: str) -> Who:
    if not who.may(role):
        say("role-refused", logging.WARNING, user=who.id, role=who.role, wanted=role)
        raise HTTPException(403, f"This takes the role {role}; yours is {who.role}. Ask an administrator.")
    return who


Viewer = Annotated[Who, Depends(at_least("viewer"))]
Admin = Annotated[Who, Depends(at_least("admin"))]
Database = Annotated[Engine, Depends(engine_of)]


@router.get("/login")
def login_page(request: Request, engine: Database, next: Annotated[str, Query(max_length=2000)] = "/") -> Response:
    """The form; whom a listed proxy names is let in at once."""
    web, name = web_of(request), _proxy_name(request)
    if not name:
        return _form(request, next)
    with session_scope(engine) as session:
        user = proxy_user(session, name, web.proxy_role)
        if user is None:
            raise HTTPException(403, "Your account is disabled, or its name cannot be used here. Ask an administrator.")
        token = open_session(session, user, web)
        append(session, user.name, "log-in", {"by": "proxy", "from": peer_of(request.scope)})
    return with_cookie(_inside(next), token, web)


@router.post("/login")
def log_in(
    request: Request, engine: Database, name: Text = "", password: Text = "", next: Text = "/", csrf: Text = ""
) -> Response:
    """Check name and password. Refusals look the same for any name."""
    web, peer = web_of(request), peer_of(request.scope)
    held = request.cookies.get(_form_cookie(web), "")
    if not held or not secrets.compare_digest(held.encode(), csrf.encode()) or _foreign(request):
        return _form(request, next, 403, "The form ran out. Please try again.")
    key = f"{name[:128]}\0{peer}"
    attempts: tuple[Attempts, Attempts] = request.app.state.attempts
    if not (attempts[0].take(key) and attempts[1].take(peer)):
        say("log-ins-refused", logging.WARNING, why="too many", address=peer)
        answer = _form(request, next, 429, "Too many attempts. Wait 15 minutes.")
        answer.headers["Retry-After"] = "900"
        return answer
    user = check_password(engine, name, password)
    with session_scope(engine) as session:
        if user is None:
            # not the name: people type their password there
            append(session, "web", "log-in-refused", {"from": peer})
        else:
            append(session, user.name, "log-in", {"by": "password", "from": peer})
            token = open_session(session, user, web)
    if user is None:
        return _form(request, next, 401, "Name or password is wrong.")
    attempts[0].forget(key)
    return with_cookie(_inside(next), token, web)


@router.post("/logout")
def log_out(request: Request, engine: Database, who: Annotated[Who, Depends(posts_as("viewer"))]) -> Response:
    """End this log-in."""
    close_sessions(engine, login=who.session)
    with session_scope(engine) as session:
        append(session, who.name, "log-out")
    answer = RedirectResponse("/login", 303)
    answer.delete_cookie(_cookie(web_of(request)), secure=web_of(request).secure_cookies, httponly=True)
    return answer


def login_address(request: Request) -> str:
    """Where to log in, and come back from."""
    target = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    return f"/login?next={quote(target)}" if request.method == "GET" and target != "/" else "/login"


def _form(request: Request, next: str, status: int = 200, message: str = "") -> Response:
    """The form with a token of its own, which a foreign page can neither read nor set (double submit)."""
    web = web_of(request)
    token = secrets.token_urlsafe(32)
    answer = page(request, "login.html", status, next=_inside(next), form_token=token, message=message)
    answer.set_cookie(
        _form_cookie(web), token, max_age=3600, secure=web.secure_cookies, httponly=True, samesite="strict"
    )
    return answer


def with_cookie(target: str, token: str, web: Web) -> Response:
    """Go on to a page of ours with a new log-in."""
    answer = RedirectResponse(target, 303)
    answer.set_cookie(_cookie(web), token, secure=web.secure_cookies, httponly=True, samesite="strict")
    answer.delete_cookie(_form_cookie(web), secure=web.secure_cookies, httponly=True)
    return answer


def _inside(target: str) -> str:
    """The place to go on to, where it is one of ours: no way out to another host."""
    parts = urlsplit(target)
    plain = not parts.scheme and not parts.netloc and target.startswith("/")
    return target if plain and not target.startswith("//") and "\\" not in target and target.isprintable() else "/"


def _proxy_name(request: Request) -> str:
    """The user whom a listed proxy names; `security.Guard` drops the header of anybody else."""
    header = web_of(request).proxy_user_header
    return request.headers.get(header, "") if header else ""


def _foreign(request: Request) -> bool:
    """Whether a browser says that the form came from another site."""
    return request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none")


def _cookie(web: Web) -> str:
    """Browsers take a __Host- cookie only over TLS, for this host alone and all its paths."""
    return "__Host-ctguard" if web.secure_cookies else "ctguard"


def _form_cookie(web: Web) -> str:
    return f"{_cookie(web)}-form"
