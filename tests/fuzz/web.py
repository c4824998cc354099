"""Requests that nobody would send, to a running review page, by somebody who may do everything."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import socket
import threading
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from select import select as readable
from typing import Any
from urllib.parse import quote

import httpx
import numpy as np

from ctguard.serve.config import Config
from ctguard.serve.web.app import create_app
from tests.fuzz import mutate
from tests.fuzz.mutate import one_of
from tests.fuzz.report import CLOCK_S, LIMIT_S, Report, cpu_s
from tests.serve.parts import free_port, listens, wait_for
from tests.serve.web.node import PASSWORD, hidden, make_node

MOST_MB = 400
"""By which the page's process may grow; the hash of a password takes 64."""
_BAD_EVENTS = ("page-failed", "case-unreadable", "internal-error", "cannot-run")
_INSIDE = re.compile(r"Traceback \(most recent|File \"/")
_ROOTS = (
    "",
    "cases",
    "cases/1",
    "cases/1/ct",
    "studies",
    "admin",
    "admin/users",
    "static",
    "login",
    "alerts",
    "metrics",
)
_FORMS = (
    *("/cases/1/readings", "/cases/1/release", "/alerts/1/acknowledge", "/studies", "/studies/1/1"),
    *("/admin/users", "/admin/users/2", "/login"),
)
_FIELDS = (
    "verdict",
    "confidence",
    "note",
    "shown",
    "series",
    "readers",
    "seed",
    "name",
    "role",
    "password",
    "disabled",
)
_TYPES = ("application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "application/json", "text/xml", "")
_WORDS = (
    "1",
    "0",
    "-1",
    "lung",
    "map",
    "ct",
    "..",
    "%2e%2e",
    "'--",
    "{{7*7}}",
    "tampered",
    "\x00",
    "9" * 400,
    "\u202e",
)


def serve(settings_json: str, log: str) -> None:
    """The review page in a process of its own."""
    from ctguard.serve.logs import start_log
    from ctguard.serve.supervisor import run_web

    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    config = Config.model_validate_json(settings_json)
    start_log("web", config.log)
    run_web(config, None, threading.Event())


@dataclass
class Page:
    """The running page, and a browser that is logged in."""

    config: Config
    pid: int
    http: httpx.Client
    report: Report
    csrf: str = ""

    def log_in(self) -> None:
        """As an administrator."""
        fields = {"name": "ada", "password": PASSWORD, "csrf": hidden(self.http.get("/login").text, "csrf")}
        assert self.http.post("/login", data=fields).status_code == 303
        self.cookies = dict(self.http.cookies)
        self.csrf = hidden(self.http.get("/").text, "csrf")

    def ask(self, kind: str, number: int, method: str, url: str, **more: Any) -> None:
        """Send one request and look at the answer."""
        self.http.cookies.clear()
        self.http.cookies.update(self.cookies)
        at, used = time.monotonic(), cpu_s(self.pid)
        try:
            answer = self.http.request(method, url, **more)
        except (httpx.InvalidURL, httpx.LocalProtocolError, UnicodeEncodeError):  # it cannot be sent at all
            self.report.add(kind, "not sent")
            return
        except httpx.HTTPError as error:
            self.report.add(kind, type(error).__name__, time.monotonic() - at)
            self.report.found(number, f"{type(error).__name__}: {error}", f"{method} {url} {more}".encode())
            return
        self.report.add(kind, str(answer.status_code), time.monotonic() - at)
        if cpu_s(self.pid) - used > LIMIT_S:
            self.report.found(number, f"{method} {url}: took more than {LIMIT_S:g} s", f"{more}".encode())
        said = f"{method} {url} {more}\n{answer.status_code}\n{answer.text[:5000]}".encode(errors="replace")
        if answer.status_code >= 500 or _INSIDE.search(answer.text):
            self.report.found(number, f"{method} {url}: status {answer.status_code}", said)
        if "default-src 'none'" not in answer.headers.get("content-security-policy", ""):
            self.report.found(number, f"{method} {url}: an answer without a content security policy", said)

    def ask_raw(self, number: int, request: bytes) -> None:
        """Send bytes that may be no HTTP."""
        at, got = time.monotonic(), b""
        with socket.create_connection(("127.0.0.1", self.config.web.port), timeout=CLOCK_S) as client:
            try:
                client.sendall(request)
                if not readable([client], [], [], 0.5)[0]:  # it waits for the rest
                    client.shutdown(socket.SHUT_WR)
                while piece := client.recv(1 << 16):
                    got += piece
            except TimeoutError:
                self.report.found(number, f"no answer in {CLOCK_S:g} s", request)
            except OSError:  # it closed, with bytes of ours unread
                pass
        status = re.match(rb"HTTP/1\.1 (\d{3})", got)
        self.report.add("bytes", status[1].decode() if status else "closed", time.monotonic() - at)
        if _INSIDE.search(got.decode("latin-1")) or (status and status[1] >= b"500"):
            self.report.found(number, f"an answer to bytes: {got[:200]!r}", request)


def from_schema(config: Config, count: int, seed: int) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """About as many requests that schemathesis draws from the application's own description of its routes."""
    import schemathesis  # seconds, which the page's process need not wait for
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import seed as seeded

    application: Any = create_app(config)
    operations = [result.ok() for result in schemathesis.openapi.from_dict(application.openapi()).get_all_operations()]
    operations = [one for one in operations if one.path != "/logout"]
    operations = operations[:: max(1, len(operations) // max(1, count))]
    drawn: list[dict[str, Any]] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for operation in operations:
            rule = settings(
                max_examples=max(1, count // len(operations)),
                deadline=None,
                database=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )

            @seeded(seed)
            @rule
            @given(case=operation.as_strategy())
            def draw(case: Any) -> None:
                drawn.append(case.as_transport_kwargs(base_url=f"http://127.0.0.1:{config.web.port}"))

            draw()
    for arguments in drawn:
        for unknown in ("cookies", "verify", "timeout", "cert", "stream", "auth"):
            arguments.pop(unknown, None)
        yield arguments.pop("method"), arguments.pop("url"), arguments


def own(rng: np.random.Generator, csrf: str) -> tuple[str, str, str, dict[str, Any]]:
    """A kind, and a request of it: an address, a form, or bytes as a form."""

    def word() -> str:
        return str(one_of(rng, _WORDS)) if rng.random() < 0.7 else rng.bytes(rng.integers(0, 40)).decode("latin-1")

    how = rng.integers(3)
    if how == 0:
        parts = [quote(word(), safe="%.") for _ in range(rng.integers(5))]
        query = {str(one_of(rng, ("q", "page", "show", "next", "event", "actor"))): word() for _ in range(2)}
        return "address", "GET", "/".join(["", one_of(rng, _ROOTS), *parts]), {"params": query}
    token = {"csrf": csrf} if rng.random() < 0.9 else {}
    if how == 1:
        fields = {str(one_of(rng, _FIELDS)): word() for _ in range(rng.integers(8))}
        return "form", "POST", one_of(rng, _FORMS), {"data": {**fields, **token}}
    body = mutate.mutated(rng, f"csrf={csrf}&verdict=tampered&confidence=50&note=x".encode(), (mutate.words,))
    body *= int(one_of(rng, (1, 1, 1, 3000)))
    return "body", "POST", one_of(rng, _FORMS), {"content": body, "headers": {"Content-Type": one_of(rng, _TYPES)}}


def raw(rng: np.random.Generator, page: Page) -> bytes:
    """A damaged HTTP request."""
    cookie = "; ".join(f"{name}={value}" for name, value in page.cookies.items())
    head = f"Host: 127.0.0.1\r\nCookie: {cookie}\r\nConnection: close\r\n"
    form = f"csrf={page.csrf}&verdict=clear&confidence=50"
    good = (
        f"GET /cases/1 HTTP/1.1\r\n{head}\r\n",
        f"POST /cases/1/readings HTTP/1.1\r\n{head}Content-Length: {len(form)}\r\n\r\n{form}",
        f"POST /login HTTP/1.1\r\n{head}Transfer-Encoding: chunked\r\n\r\n5\r\nname=\r\n0\r\n\r\n",
    )
    return mutate.mutated(rng, one_of(rng, good).encode(), (mutate.words,))


def fuzz_web(out: Path, count: int, seed: int) -> Report:
    """`count` requests: of schemathesis, half; of our own, a third; the rest is bytes that are hardly HTTP."""
    report, started = Report("web", out / "findings"), time.monotonic()
    config = make_node(out / "node", port=free_port()).config
    context = multiprocessing.get_context("spawn")
    log = out / "web.log"
    process = context.Process(target=serve, args=(config.model_dump_json(), str(log)), daemon=True)
    process.start()
    try:
        wait_for(lambda: listens(config.web.port), 120, "the page's start")
        with httpx.Client(base_url=f"http://127.0.0.1:{config.web.port}", timeout=CLOCK_S) as http:
            page = Page(config, process.pid or 0, http, report)
            page.log_in()
            _ask_all(page, count, seed)
            if page.http.get("/admin/users").status_code != 200:
                report.found(count, "the page is not there at the end", log)
        for line in log.read_text(encoding="utf-8").splitlines():
            if not line.startswith("{") or json.loads(line)["event"] in _BAD_EVENTS:
                report.found(count, f"in its log: {line[:500]}", log)
    finally:
        process.terminate()
        process.join(30)
    report.seconds = time.monotonic() - started
    return report


def _memory_mb(pid: int) -> float:
    return int(Path(f"/proc/{pid}/status").read_text().partition("VmHWM:")[2].split()[0]) / 1000


def _ask_all(page: Page, count: int, seed: int) -> None:
    for path in ("view", "report.html"):  # what is loaded once
        page.http.get(f"/cases/1/{path}")
    before = _memory_mb(page.pid)
    number = 0
    for method, url, more in islice(from_schema(page.config, count // 2, seed), count):
        page.ask("schema", number, method, url, **more)
        number += 1
    while number < count:
        rng = np.random.default_rng([seed, 3, number])
        if rng.random() < 1 / 3:
            page.ask_raw(number, raw(rng, page))
        else:
            kind, method, url, more = own(rng, page.csrf)
            page.ask(kind, number, method, url, **more)
        number += 1
    page.report.memory_mb = _memory_mb(page.pid)
    if page.report.memory_mb - before > MOST_MB:
        page.report.found(count, f"the page grew by {page.report.memory_mb - before:.0f} MB", b"")
