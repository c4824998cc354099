"""Start node, workers, delivery and review page as processes of one group, and start again what ends."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from ctguard.core.errors import CtguardError
from ctguard.serve.config import Config
from ctguard.serve.ledger import open_key
from ctguard.serve.logs import say, start_log
from ctguard.serve.objects import make_folder
from ctguard.serve.store import audit, queue
from ctguard.serve.store.database import open_database, session_scope

Run = Callable[[Config, Any, threading.Event], None]

ROLES = {
    "node": "ctguard.serve.node:run_node",
    "worker": "ctguard.serve.worker:run_worker",
    "deliver": "ctguard.serve.deliver:run_deliver",
    "web": "ctguard.serve.supervisor:run_web",
}
_LONGEST_WAIT_S = 60.0
_HEALTHY_S = 60.0
_END_S = 15.0
_POLL_S = 0.2


@dataclass
class _Child:
    role: str
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    restarts: int = 0
    next_start: float = 0.0


def serve(config: Config) -> None:
    """Serve until SIGTERM or SIGINT. Raises what opening the key or the database raises."""
    start_log("supervisor", config.log)
    make_folder(config.store.folder.absolute())
    key = open_key(config.store.key_path)
    engine = open_database(config.store.url)
    with session_scope(engine) as session:
        audit.append(session, queue.NODE, audit.STARTED, {"key": key.key_id})
    children = [_Child("node"), *(_Child("worker") for _ in range(config.analysis.workers)), _Child("deliver")]
    if config.web.enabled:
        children.append(_Child("web"))
    stopping = _stop_on_signals()
    while not stopping.is_set():
        for child in children:
            _keep_running(child, config)
        stopping.wait(_POLL_S)
    _end(children)
    with session_scope(engine) as session:
        audit.append(session, queue.NODE, "stopped")


def _keep_running(child: _Child, config: Config) -> None:
    """Start a child that does not run; one that ends at once, later and later."""
    at = time.monotonic()
    if child.process is not None:
        code = child.process.poll()
        if code is None:
            return
        child.process = None
        child.restarts = 0 if at - child.started > _HEALTHY_S else child.restarts + 1
        wait_s = min(2.0 ** (child.restarts - 1) / 2, _LONGEST_WAIT_S) if child.restarts else 0.0
        child.next_start = at + wait_s
        say("process-ended", logging.ERROR, role=child.role, code=code, restart_in_s=wait_s)
    if at >= child.next_start:
        child.process = subprocess.Popen([sys.executable, "-m", __name__, child.role], stdin=subprocess.PIPE)
        with child.process.stdin as stream:  # type: ignore[union-attr]
            stream.write(json.dumps([os.getpid(), config.model_dump(mode="json")]).encode())
        child.started = at
        say("process-started", role=child.role, child=child.process.pid)


def _end(children: list[_Child]) -> None:
    running = [child.process for child in children if child.process is not None]
    for process in running:
        process.terminate()
    deadline = time.monotonic() + _END_S
    for process in running:
        try:
            process.wait(max(deadline - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            process.kill()
    say("stopped")


def run_child() -> None:
    """What a child does. Its role is the argument; parent and configuration, which may hold secrets, are on stdin."""
    role = sys.argv[1]
    parent, settings = json.load(sys.stdin)
    config = Config.model_validate(settings)
    start_log(role, config.log)
    stopping = _stop_on_signals()
    broken = _stop_on_faults(stopping)
    threading.Thread(target=_stop_with, args=(parent, stopping), name="parent", daemon=True).start()
    module, _, name = ROLES[role].partition(":")
    run: Run = getattr(import_module(module), name)
    try:
        run(config, open_database(config.store.url), stopping)
    except (CtguardError, OSError) as error:
        say("cannot-run", logging.ERROR, why=str(error))
        raise SystemExit(1) from None
    if broken.is_set():
        raise SystemExit(1)


def _stop_with(parent: int, stopping: threading.Event) -> None:
    """A child does not outlive the supervisor, however that ended."""
    while os.getppid() == parent:
        time.sleep(1)
    stopping.set()
    time.sleep(_END_S)
    os.kill(os.getpid(), signal.SIGKILL)


def _stop_on_faults(stopping: threading.Event) -> threading.Event:
    """Set where one of our own threads died: the process ends then, and is started again, not half alive.

    Threads without a name of ours are those of connections, which a peer could end.
    """
    broken, report = threading.Event(), threading.excepthook

    def died(args: Any) -> None:
        report(args)
        if args.thread is not None and not args.thread.name.startswith(("AcceptorThread", "Thread-")):
            broken.set()
            stopping.set()

    threading.excepthook = died
    return broken


def _stop_on_signals() -> threading.Event:
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    return stopping


def run_web(config: Config, engine: Any, stopping: threading.Event) -> None:
    """The review page, by uvicorn."""
    import uvicorn

    from ctguard.serve.web.app import create_app

    web = config.web
    tls = {} if web.certificate is None else {"ssl_certfile": str(web.certificate), "ssl_keyfile": str(web.key)}
    settings: dict[str, Any] = {"log_config": None, "server_header": False, "proxy_headers": False, **tls}
    settings["access_log"] = False  # what people search for may be a name
    server = uvicorn.Server(uvicorn.Config(create_app(config), host=web.host, port=web.port, **settings))

    def stop() -> None:
        stopping.wait()
        server.should_exit = True

    threading.Thread(target=stop, name="stop", daemon=True).start()
    server.run()


if __name__ == "__main__":
    run_child()
