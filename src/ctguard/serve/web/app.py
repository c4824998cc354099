"""The review page as one application: routes, static files, error pages."""

from __future__ import annotations

import logging
import traceback
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from sqlalchemy import Engine
from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Scope

from ctguard.core.errors import CtguardError
from ctguard.serve.config import Config
from ctguard.serve.logs import say
from ctguard.serve.store.database import open_database
from ctguard.serve.web import account, admin, auth, case, health, readings, study_pages, worklist
from ctguard.serve.web.auth import TRIES_PER_ADDRESS, TRIES_PER_NAME, login_address
from ctguard.serve.web.pages import STATIC, page
from ctguard.serve.web.security import Guard
from ctguard.serve.web.users import Attempts

_MEANING = {
    400: "This request was not understood.",
    403: "You may not see this.",
    404: "There is no such page.",
    405: "There is no such page.",
    413: "This request is too large.",
    429: "Too many attempts. Wait 15 minutes.",
}


class App(FastAPI):
    """FastAPI whose every answer goes through `Guard`: that for a failure too, which middleware would not see."""

    def build_middleware_stack(self) -> ASGIApp:
        """Called once, before the first request."""
        return Guard(super().build_middleware_stack(), self.state.config.web)


class _Static(StaticFiles):
    """Our own files. Their addresses change with their content (pages.py), so a browser may keep them."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        answer = await super().get_response(path, scope)
        answer.headers["Cache-Control"] = "public, max-age=31536000, immutable"
        return answer


def create_app(config: Config, engine: Engine | None = None) -> FastAPI:
    """The review page over the node's database; `engine` in place of the one that the configuration names.

    Run it with uvicorn without proxy_headers: the address at the other end of the connection is what counts.
    Raises DataError where the database cannot be opened.
    """
    app = App(title="ctguard", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.config = config
    app.state.engine = engine or open_database(config.store.url)
    app.state.attempts = (Attempts(TRIES_PER_NAME), Attempts(TRIES_PER_ADDRESS))
    for part in (auth, account, worklist, readings, case, admin, study_pages, health):
        app.include_router(part.router)
    app.mount("/static", _Static(directory=STATIC))
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(RequestValidationError, _not_understood)
    app.add_exception_handler(CtguardError, _unreadable)
    app.add_exception_handler(Exception, _failed)
    return app


def _refused(request: Request, error: Any) -> Response:
    status: int = error.status_code
    if status == 401:
        return RedirectResponse(login_address(request), 303)
    if status not in (404, 409, 503):
        say("request-refused", logging.WARNING, method=request.method, path=request.url.path[:200], status=status)
    own = error.detail != HTTPStatus(status).phrase
    said = str(error.detail) if own else _MEANING.get(status, "This cannot be done now.")
    answer = page(request, "error.html", status, said=said, status=status)
    for name, value in (error.headers or {}).items():
        answer.headers[name] = value
    return answer


def _not_understood(request: Request, error: Any) -> Response:
    """What was asked or sent does not fit. A number in a path that is none is a page that does not exist."""
    places = [one["loc"] for one in error.errors()]
    if any(place and place[0] == "path" for place in places):
        return page(request, "error.html", 404, said=_MEANING[404], status=404)
    fields = ", ".join(sorted({str(place[-1]) for place in places}))
    return page(request, "error.html", 400, said=f"This does not fit: {fields[:200]}.", status=400)


def _unreadable(request: Request, error: Any) -> Response:
    """A case whose files cannot be read. The reason may name UIDs, so that it is logged only where UIDs may be."""
    say("case-unreadable", logging.ERROR, path=request.url.path, kind=type(error).__name__, why_uid=str(error))
    said = "The files of this case cannot be read. The node's log says why."
    return page(request, "error.html", 500, said=said, status=500)


def _failed(request: Request, error: Any) -> Response:
    """Never a traceback for the client; the log has the kind and the place."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    say("page-failed", logging.ERROR, kind=type(error).__name__, place=f"{place.filename}:{place.lineno}")
    return page(request, "error.html", 500, said="Something went wrong. The node's log says what.", status=500)
