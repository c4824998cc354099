"""A page server on loopback, and Debian's Chromium to look at it."""

from __future__ import annotations

import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import uvicorn

from ctguard.serve.web.app import create_app
from tests.serve.web.node import PASSWORD, Node

CHROMIUM = shutil.which("chromium")
FLAGS = (
    *("--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--no-sandbox", "--disable-quic"),
    *("--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
LAPTOP, PHONE = {"width": 1366, "height": 768}, {"width": 390, "height": 844}


@contextmanager
def served(node: Node) -> Iterator[str]:
    """The node's page at an address, while the block runs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options: dict[str, Any] = {"host": "127.0.0.1", "port": port, "log_level": "warning", "proxy_headers": False}
    server = uvicorn.Server(uvicorn.Config(create_app(node.config, node.engine), **options))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            thread.join(0.02)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


@contextmanager
def browser() -> Iterator[Any]:
    """Chromium; the test skips, visibly, where it is absent."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    if CHROMIUM is None:
        pytest.skip("needs chromium (Debian package)")
    with playwright.sync_playwright() as engine:
        started = engine.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield started
        started.close()


def log_in(page: Any, address: str, name: str) -> None:
    """By the form, as a person does."""
    page.goto(address)
    page.get_by_label("Name").fill(name)
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Log in").click()
    page.wait_for_url(f"{address}/")
