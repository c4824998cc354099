"""Rejected associations: all are in the audit trail, and however many there are, their rows are few."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pynetdicom import AE
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]
from sqlalchemy import Engine, event, select
from sqlalchemy.exc import SQLAlchemyError

from ctguard.serve.node import run_node
from ctguard.serve.rejections import NAMED, OTHERS, PER_MINUTE, PER_PEER, Rejections
from ctguard.serve.store import audit
from ctguard.serve.store.database import open_database, session_scope
from ctguard.serve.store.models import AuditEvent
from tests.serve.parts import config_for, listens, logged, wait_for


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that pass where a test says so."""
    at = [1000.0]
    monkeypatch.setattr("ctguard.serve.rejections.time", SimpleNamespace(monotonic=lambda: at[0]))
    return at


def rows(engine: Engine) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Details of the rows of single rejections, and of summaries; the chain is whole."""
    with session_scope(engine, read_only=True) as session:
        assert audit.check_chain(session).broken_at is None
        events = session.scalars(select(AuditEvent).order_by(AuditEvent.id)).all()
    return (
        [one.details for one in events if one.event == "association-rejected"],
        [one.details for one in events if one.event == "associations-rejected"],
    )


def reject(made: Rejections, peer: str, times: int = 1) -> None:
    for _ in range(times):
        made.record({"address": peer, "calling_ae": "SCAN", "called_ae": "ANY-SCP"})


def test_ten_thousand_rejections_make_few_rows_and_their_sum_is_exact(engine: Engine, clock: list[float]) -> None:
    made = Rejections(engine)
    for minute in range(4):
        for peer in ("10.0.0.1", "10.0.0.2"):
            reject(made, peer, 1250)
        clock[0] += 60 + minute
        made.summarise()
    alone, summaries = rows(engine)
    assert Counter(one["address"] for one in alone) == {"10.0.0.1": 4 * PER_PEER, "10.0.0.2": 4 * PER_PEER}
    assert len(summaries) == 4
    assert sum(one["count"] for one in summaries) + len(alone) == 10_000
    each = 1250 - PER_PEER
    assert all(one["by_address"] == {"10.0.0.1": each, "10.0.0.2": each} for one in summaries)


def test_a_thousand_addresses_make_no_more_rows_and_no_longer_summary(engine: Engine, clock: list[float]) -> None:
    made = Rejections(engine)
    for number in range(2000):
        reject(made, f"10.0.{number % 1000 // 250}.{number % 250}")
    made.summarise(early=True)
    alone, (summary,) = rows(engine)
    assert len(alone) == PER_MINUTE
    assert summary["count"] == 2000 - PER_MINUTE == sum(summary["by_address"].values())
    assert len(summary["by_address"]) == NAMED + 1 and OTHERS in summary["by_address"]


def test_threads_at_once_are_counted_exactly(tmp_path: Path) -> None:
    engine = open_database(f"sqlite:///{tmp_path / 'node.db'}")
    made = Rejections(engine)
    threads = [threading.Thread(target=reject, args=(made, f"10.0.0.{n}", 500)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    made.summarise(early=True)
    alone, (summary,) = rows(engine)
    assert (len(alone), summary["count"]) == (4 * PER_PEER, 2000 - 4 * PER_PEER)


def test_a_minute_without_more_than_a_few_has_no_summary(engine: Engine, clock: list[float]) -> None:
    made = Rejections(engine)
    reject(made, "10.0.0.1", PER_PEER)
    clock[0] += 61
    made.summarise()
    assert [len(found) for found in rows(engine)] == [PER_PEER, 0]
    reject(made, "10.0.0.1")
    assert [len(found) for found in rows(engine)] == [PER_PEER + 1, 0]


def test_what_could_not_be_written_is_written_later(tmp_path: Path, clock: list[float]) -> None:
    engine = open_database(f"sqlite:///{tmp_path / 'node.db'}")
    made = Rejections(engine)
    reject(made, "10.0.0.1", 100)

    def fails(*_: Any) -> None:
        raise SQLAlchemyError("disk full")

    event.listen(engine, "commit", fails)
    with pytest.raises(SQLAlchemyError):
        made.summarise(early=True)
    event.remove(engine, "commit", fails)
    made.summarise(early=True)
    assert [one["count"] for one in rows(engine)[1]] == [100 - PER_PEER]


def test_a_node_that_stops_has_written_all_that_it_rejected(tmp_path: Path) -> None:
    config = config_for(tmp_path / "data", node={"calling_ae_titles": ["SCANNER"]})
    config.store.folder.mkdir()
    engine, stopping = open_database(config.store.url), threading.Event()
    ae = AE("ROGUE")
    ae.add_requested_context(Verification)
    with logged(config):
        node = threading.Thread(target=run_node, args=(config, engine, stopping))
        node.start()
        wait_for(lambda: listens(config.node.port), what="the node's start")
        for _ in range(30):
            assert ae.associate("127.0.0.1", config.node.port, ae_title="CTGUARD").is_rejected
        wait_for(lambda: not any("Acceptor" in one.name for one in threading.enumerate()), what="the last rejection")
        stopping.set()
        node.join()
    alone, summaries = rows(engine)
    assert len(alone) + sum(one["count"] for one in summaries) == 30
    assert len(alone) == PER_PEER and len(summaries) == 1
