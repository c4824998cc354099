"""Many senders, and kill -9 of node and worker while they send: is every series judged, whole, once, and delivered?"""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import select

from ctguard import zoo
from ctguard.serve.store import audit
from ctguard.serve.store.database import open_database, session_scope
from ctguard.serve.store.models import DONE, SENT, AuditEvent, Delivery, Series
from tests.serve.parts import Orthanc, Running, config_for, listens, make_patient, storescu, wait_for


@dataclass
class Result:
    """What a soak found. wrong: each sentence is a failure."""

    series: int
    kills: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    reopened: int = 0
    objects: int = 0
    wrong: list[str] = field(default_factory=list)


def suspicious_weights(folder: Path) -> Path:
    """The shipped detector with a threshold that every series reaches, so that each gets a segmentation, too."""
    shipped = zoo.find("unet", "detector").weights_path
    assert shipped is not None
    folder.mkdir(parents=True, exist_ok=True)
    card = json.loads(shipped.with_suffix(".json").read_text())
    card |= {"threshold": 1e-9, "threshold_tail": 0.0}
    (folder / "copy.json").write_text(json.dumps(card))
    return Path(shutil.copy(shipped, folder / "copy.safetensors"))


def archive_section(archive: Orthanc, name: str = "security", **more: Any) -> dict[str, Any]:
    """A destination that is this archive, by DICOM."""
    return {"name": name, "ae_title": archive.title, "host": "127.0.0.1", "port": archive.dicom, **more}


def soak(folder: Path, archive: Orthanc, series: int, senders: int, kills: int, slices: int, side: int) -> Result:
    """Send `series` series from `senders` parallel senders while processes are killed at random moments."""
    config = config_for(
        folder / "data",
        node={"quiet_s": 20.0},  # longer than a sender needs to come back after the node was killed
        analysis={"weights": str(suspicious_weights(folder / "weights")), "attempts": 2 * kills + 3},
        destination=[archive_section(archive)],
    )
    sources = [make_patient(folder / "series" / f"{n:03d}", slices, side, seed=n) for n in range(series)]
    result, started = Result(series), time.monotonic()
    node = Running(config, folder / "log")
    try:
        node.start()
        _send_and_kill(node, sources, senders, kills, result)
        engine = open_database(config.store.url)
        wait_for(lambda: _settled(engine, series), seconds=1800, what="the end of all analyses and deliveries")
        result.seconds = time.monotonic() - started
        _check(engine, archive, series, slices, result)
    finally:
        node.stop()
    return result


def _send_and_kill(node: Running, sources: list[Path], senders: int, kills: int, result: Result) -> None:
    left = list(sources)
    lock = threading.Lock()

    def send() -> None:
        """As senders do: again and again until the node has said success to all of it."""
        while True:
            with lock:
                if not left:
                    return
                source = left.pop(0)
            while storescu(node.config.node.port, source).returncode != 0:
                time.sleep(0.5)

    threads = [threading.Thread(target=send) for _ in range(senders)]
    for thread in threads:
        thread.start()
    rng = np.random.default_rng(0)
    while sum(result.kills.values()) < kills:
        time.sleep(float(rng.uniform(0.5, 6.0)))
        role = str(rng.choice(["node", "worker"]))
        if role == "node" and not listens(node.config.node.port):
            continue  # it is on its way up: let it come
        started = [line["child"] for line in node.lines("process-started") if line["role"] == "worker"]
        if role == "worker" and started[-1] not in [line["pid"] for line in node.lines("worker-ready")]:
            continue
        result.kills[role] += node.kill(role)
    for thread in threads:
        thread.join()


def _settled(engine: Any, series: int) -> bool:
    with session_scope(engine, read_only=True) as session:
        states = Counter(session.scalars(select(Series.state)))
        sent = Counter(session.scalars(select(Delivery.state)))
    return states == {DONE: series} and set(sent) == {SENT}


def _check(engine: Any, archive: Orthanc, series: int, slices: int, result: Result) -> None:
    with session_scope(engine, read_only=True) as session:
        rows = session.scalars(select(Series)).all()
        deliveries = session.scalars(select(Delivery)).all()
        events = session.scalars(select(AuditEvent)).all()
        chain = audit.check_chain(session)
    result.reopened = sum(event.event == "series-reopened" for event in events)
    judged = Counter(event.details["series"] for event in events if event.event == "series-judged")
    wrong = result.wrong
    wrong += [f"series {row.id} has {row.slices} of {slices} images" for row in rows if row.slices != slices]
    wrong += [f"series {row}: judged {count} times" for row, count in judged.items() if count != 1]
    if len(judged) != series:
        wrong.append(f"{len(judged)} of {series} series were judged")
    per_series = Counter((row.series_id, row.kind) for row in deliveries)
    wrong += [f"series {row}: {count} {kind} delivered" for (row, kind), count in per_series.items() if count != 1]
    kinds = Counter(row.kind for row in deliveries)
    wrong += [
        f"{kinds[kind]} of {series} {kind} delivered" for kind in ("seg", "map", "sr", "key") if kinds[kind] != series
    ]
    there = Counter(archive.instances())
    result.objects = len(there)
    if there != Counter(row.sop_uid for row in deliveries):
        wrong.append(f"the archive holds {sum(there.values())} objects, {len(deliveries)} were delivered")
    if chain.broken_at is not None:
        wrong.append(f"the audit chain is broken at {chain.broken_at}")
