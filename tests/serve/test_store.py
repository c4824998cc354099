"""What the node remembers, on SQLite and on PostgreSQL."""

from __future__ import annotations

import threading
from datetime import timedelta
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Engine, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError

from ctguard.core.errors import DataError
from ctguard.serve.store import audit, queue
from ctguard.serve.store.database import open_database, session_scope
from ctguard.serve.store.models import (
    ANALYSING,
    DONE,
    FAILED,
    PENDING,
    QUEUED,
    RECEIVING,
    SENT,
    Alert,
    AuditEvent,
    Base,
    Delivery,
    Instance,
    Series,
    now,
)


def add_series(engine: Engine, uid: str = "1.2.3", images: int = 3) -> int:
    with session_scope(engine) as session:
        series = Series(study_uid="1.2", series_uid=uid)
        session.add(series)
        session.flush()
        add_images(session, series.id, uid, range(images))
        return series.id


def add_images(session: Any, series_id: int, uid: str, numbers: Any, synthetic: bool = False) -> None:
    rows = [{"sop_uid": f"{uid}.{n}", "path": f"{n}.dcm", "bytes": 9, "transfer_syntax": "1.2"} for n in numbers]
    queue.add_instances(session, series_id, rows, "folder", synthetic)


def state_of(engine: Engine, series_id: int) -> str:
    with session_scope(engine, read_only=True) as session:
        return session.get_one(Series, series_id).state


def queued(engine: Engine, uid: str = "1.2.3") -> int:
    series_id = add_series(engine, uid)
    with session_scope(engine) as session:
        assert queue.queue_quiet(session, quiet_s=-1) == 1
    return series_id


def claim(engine: Engine, lease_s: float = 60, attempts: int = 3) -> Series | None:
    with session_scope(engine) as session:
        return queue.claim(session, lease_s, attempts)


def outcome(*uids: str, **values: Any) -> queue.Outcome:
    parcels = [queue.Parcel("security", "sr", f"{uid}.dcm", uid, now()) for uid in uids]
    return queue.Outcome({"score": 0.9, "tampered": True, **values}, parcels, [("tampered", {"score": 0.9})])


def finish(engine: Engine, held: Series, result: queue.Outcome) -> bool:
    with session_scope(engine) as session:
        return queue.finish(session, held, result)


def test_the_migrations_make_the_tables_of_the_models(engine: Engine) -> None:
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []


def test_a_database_opens_again_and_a_newer_one_is_refused(url: str) -> None:
    first = open_database(url)
    series_id = add_series(first)
    first.dispose()
    again = open_database(url)
    assert state_of(again, series_id) == RECEIVING
    with session_scope(again) as session:
        session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    again.dispose()
    with pytest.raises(DataError, match="does not fit this version"):
        open_database(url)


def test_a_place_that_holds_no_database_is_one_clear_error() -> None:
    with pytest.raises(DataError, match="cannot be opened"):
        open_database("sqlite:////nowhere/at/all/node.db")
    with pytest.raises(DataError, match="cannot be opened"):
        open_database("no url")


def test_times_come_back_aware_and_in_utc(engine: Engine) -> None:
    series_id = add_series(engine)
    with session_scope(engine, read_only=True) as session:
        at = session.get_one(Series, series_id).updated_at
    assert at.utcoffset() == timedelta(0)
    assert abs((now() - at).total_seconds()) < 60


def test_a_series_is_complete_only_after_its_quiet_time(engine: Engine) -> None:
    series_id = add_series(engine)
    with session_scope(engine) as session:
        assert queue.queue_quiet(session, quiet_s=60) == 0
    assert state_of(engine, series_id) == RECEIVING
    with session_scope(engine) as session:
        session.get_one(Series, series_id).updated_at = now() - timedelta(seconds=61)
    with session_scope(engine) as session:
        queue.touch_receiving(session)  # the node was away: that is not quiet
        assert queue.queue_quiet(session, quiet_s=60) == 0
    with session_scope(engine) as session:
        assert queue.queue_quiet(session, quiet_s=-1) == 1
    assert state_of(engine, series_id) == QUEUED


def test_a_series_is_claimed_once_by_many_at_once(engine: Engine) -> None:
    expected = [queued(engine, f"1.2.{n}") for n in range(6)]
    taken: list[int] = []

    def work() -> None:
        while (held := claim(engine)) is not None:
            taken.append(held.id)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == expected


def test_the_oldest_series_comes_first(engine: Engine) -> None:
    ids = [queued(engine, f"1.2.{n}") for n in range(3)]
    assert [held.id for held in (claim(engine), claim(engine), claim(engine)) if held] == ids


def test_a_killed_workers_series_goes_to_another_and_its_late_result_is_not_taken(engine: Engine) -> None:
    queued(engine)
    dead = claim(engine, lease_s=-1)
    assert dead is not None
    alive = claim(engine)
    assert alive is not None and alive.id == dead.id
    with session_scope(engine) as session:
        assert not queue.renew(session, dead.id, dead.claim or "", 60)
        assert queue.renew(session, alive.id, alive.claim or "", 60)
    assert not finish(engine, dead, outcome("1.9"))
    assert finish(engine, alive, outcome("1.9"))
    with session_scope(engine, read_only=True) as session:
        assert len(session.scalars(select(Delivery)).all()) == 1
        assert len(session.scalars(select(Alert)).all()) == 1
    assert claim(engine) is None


def test_a_series_that_ends_its_worker_each_time_is_failed(engine: Engine) -> None:
    series_id = queued(engine)
    for _ in range(3):
        assert claim(engine, lease_s=-1) is not None
    assert claim(engine) is None
    with session_scope(engine, read_only=True) as session:
        series = session.get_one(Series, series_id)
    assert series.state == FAILED
    assert series.reason == "its analysis ended the worker 3 times"


def test_an_image_that_comes_during_the_analysis_voids_its_result(engine: Engine) -> None:
    series_id = queued(engine)
    held = claim(engine)
    assert held is not None
    with session_scope(engine) as session:
        add_images(session, series_id, "1.2.3", [7])
    assert state_of(engine, series_id) == ANALYSING
    assert not finish(engine, held, outcome("1.9"))
    assert state_of(engine, series_id) == RECEIVING
    with session_scope(engine, read_only=True) as session:
        assert session.scalars(select(Delivery)).all() == []
        assert session.get_one(Series, series_id).slices == 4


def test_an_image_that_comes_after_the_verdict_opens_the_series_and_holds_back_what_is_not_sent(
    engine: Engine,
) -> None:
    series_id = queued(engine)
    held = claim(engine)
    assert held is not None
    assert finish(engine, held, outcome("1.8", "1.9"))
    with session_scope(engine) as session:
        first, _ = queue.due_deliveries(session, "security")
        queue.sent(session, first.id)
        add_images(session, series_id, "1.2.3", [7], synthetic=True)
    assert state_of(engine, series_id) == RECEIVING
    with session_scope(engine) as session:
        assert queue.due_deliveries(session, "security") == []
        assert queue.queue_quiet(session, quiet_s=-1) == 1
    held = claim(engine)
    assert held is not None and held.synthetic
    assert finish(engine, held, outcome("1.10"))
    with session_scope(engine, read_only=True) as session:
        assert [row.sop_uid for row in queue.due_deliveries(session, "security")] == ["1.10"]
        states = dict(session.execute(select(Delivery.sop_uid, Delivery.state)).all())
    assert states == {"1.8": SENT, "1.10": PENDING}


def test_nothing_is_delivered_twice_to_one_destination(engine: Engine) -> None:
    series_id = queued(engine)
    held = claim(engine)
    assert held is not None
    assert finish(engine, held, outcome("1.9"))
    with pytest.raises(IntegrityError), session_scope(engine) as session:
        session.add(Delivery(series_id=series_id, destination="security", kind="sr", path="x", sop_uid="1.9"))


def test_a_delivery_is_put_off_and_given_up_with_an_alert(engine: Engine) -> None:
    queued(engine)
    held = claim(engine)
    assert held is not None
    finish(engine, held, outcome("1.9"))
    with session_scope(engine) as session:
        (row,) = queue.due_deliveries(session, "security")
        queue.put_off(session, row.id, "not there", wait_s=60)
    with session_scope(engine) as session:
        assert queue.due_deliveries(session, "security") == []
        queue.give_up(session, row.id, "not there", "dead/1.dcm")
    with session_scope(engine, read_only=True) as session:
        assert queue.counts(session)["deliveries"] == {"dead": 1}
        assert queue.counts(session)["alerts"] == {"tampered": 1, "dead-letter": 1}


def test_the_counters_count(engine: Engine) -> None:
    queued_id = queued(engine, "1.2.9")
    add_series(engine, "1.2.8", images=4)
    with session_scope(engine, read_only=True) as session:
        assert queue.counts(session)["series"] == {"receiving": 1, "queued": 1}
        totals = queue.totals(session)
    assert totals["images"] == 7
    assert totals["bytes"] == 63
    assert 0 <= totals["oldest_queued_s"] < 60
    assert state_of(engine, queued_id) == QUEUED


def test_the_audit_chain_shows_where_it_was_broken(engine: Engine) -> None:
    with session_scope(engine) as session:
        rows = [audit.append(session, "jane", "looked", {"n": n, "share": 0.1 * n}) for n in range(5)]
    with session_scope(engine, read_only=True) as session:
        chain = audit.check_chain(session)
    assert (chain.length, chain.head, chain.broken_at) == (5, rows[-1].hash, None)
    assert rows[0].previous_hash == audit.GENESIS
    with engine.begin() as connection:  # as somebody does who may change the tables themselves
        for trigger in ("audit_event_UPDATE", "audit_event_guard"):
            where = " ON audit_event" if engine.dialect.name == "postgresql" else ""
            connection.execute(text(f'DROP TRIGGER IF EXISTS "{trigger}"{where}'))
        connection.execute(text("UPDATE audit_event SET actor = 'john' WHERE id = :id"), {"id": rows[2].id})
    with session_scope(engine, read_only=True) as session:
        assert audit.check_chain(session).broken_at == rows[2].id


@pytest.mark.parametrize("statement", ["UPDATE audit_event SET actor = 'x'", "DELETE FROM audit_event"])
def test_the_database_refuses_to_change_the_audit_trail(engine: Engine, statement: str) -> None:
    with session_scope(engine) as session:
        audit.append(session, "jane", "looked")
    with pytest.raises(DBAPIError, match="append-only"), session_scope(engine) as session:
        session.execute(text(statement))


def test_many_append_to_one_chain(engine: Engine) -> None:
    def write() -> None:
        for _ in range(10):
            with session_scope(engine) as session:
                audit.append(session, "many", "wrote")

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with session_scope(engine, read_only=True) as session:
        assert audit.check_chain(session).length == 40
        assert audit.check_chain(session).broken_at is None
        assert len(set(session.scalars(select(AuditEvent.previous_hash)))) == 40


def test_what_fails_leaves_no_trace(engine: Engine) -> None:
    with pytest.raises(RuntimeError), session_scope(engine) as session:
        audit.append(session, "jane", "looked")
        session.add(Instance(series_id=add_none(session), sop_uid="1", path="p", bytes=1, transfer_syntax="1"))
        raise RuntimeError
    with session_scope(engine, read_only=True) as session:
        assert session.scalars(select(AuditEvent)).all() == []
        assert session.scalars(select(Series)).all() == []


def add_none(session: Any) -> int:
    series = Series(study_uid="1", series_uid="2")
    session.add(series)
    session.flush()
    return series.id


def test_done_is_done(engine: Engine) -> None:
    series_id = queued(engine)
    held = claim(engine)
    assert held is not None
    assert finish(engine, held, outcome())
    assert state_of(engine, series_id) == DONE
    with session_scope(engine) as session:
        assert not queue.fail(session, held, "too late")
