"""One worker and its case folder: what leaves the house, what is held back, and a series that takes too long."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pydicom
import pytest
from sqlalchemy import Engine, select

from ctguard import io
from ctguard.core.errors import ModelError, WriteError
from ctguard.io.private import read_blocks
from ctguard.protect.keys import new_key, read_key
from ctguard.protect.record import from_blocks
from ctguard.protect.verify import verify_volume
from ctguard.serve import judging
from ctguard.serve.config import Config
from ctguard.serve.intake import SUCCESS, Intake
from ctguard.serve.judging import Judge, load_judge
from ctguard.serve.ledger import open_key
from ctguard.serve.store import queue
from ctguard.serve.store.database import open_database, session_scope
from ctguard.serve.store.models import DONE, FAILED, Alert, AuditEvent, Delivery, LedgerEntry, Series, now
from ctguard.serve.worker import work_once
from tests.serve.parts import config_for, make_patient
from tests.serve.soak import suspicious_weights

OUTSIDE = {"name": "outside", "ae_title": "OUT", "host": "127.0.0.1", "port": 1}


def node(tmp_path: Path, **forward: Any) -> tuple[Config, Judge, Engine]:
    config = config_for(
        tmp_path / "data",
        analysis={"weights": str(suspicious_weights(tmp_path / "weights"))},
        destination=[OUTSIDE],
        forward=forward,
    )
    (tmp_path / "data").mkdir()
    return config, load_judge(config), open_database(config.store.url)


def judge(made: tuple[Config, Judge, Engine], source: Path) -> Series:
    """Take a series in, and work on it."""
    config, judge, engine = made
    intake = Intake(config, engine, open_key(config.store.key_path))
    for file in sorted(source.iterdir()):
        uid = str(pydicom.dcmread(file, stop_before_pixels=True).SOPInstanceUID)
        assert intake.take(file.read_bytes(), uid, "SENDER") == SUCCESS
    assert intake.recorder.settle()
    with session_scope(engine) as session:
        assert queue.queue_quiet(session, -1) == 1
    assert work_once(judge, engine)
    assert not work_once(judge, engine)
    with session_scope(engine, read_only=True) as session:
        return session.scalars(select(Series).order_by(Series.id.desc())).first() or Series()


def rows(engine: Engine, model: Any) -> list[Any]:
    with session_scope(engine, read_only=True) as session:
        return list(session.scalars(select(model).order_by(model.id)))


def test_a_sealed_copy_leaves_the_house_after_quarantine_and_a_person_may_release_it(tmp_path: Path) -> None:
    new_key(tmp_path / "seal.key")
    forward = {"destination": "outside", "seal_key": str(tmp_path / "seal.key"), "quarantine_hours": 2.0}
    made = node(tmp_path, **forward)
    source = make_patient(tmp_path / "series", slices=5)
    series = judge(made, source)
    assert series.state == DONE and series.tampered
    copies = rows(made[2], Delivery)
    assert [(row.destination, row.kind) for row in copies] == [("outside", "image")] * 5
    assert series.quarantined_until is not None
    assert 1.9 < (series.quarantined_until - now()).total_seconds() / 3600 <= 2
    with session_scope(made[2]) as session:
        assert queue.due_deliveries(session, "outside") == []
        queue.release(session, series.id, "jane")
    with session_scope(made[2], read_only=True) as session:
        assert len(queue.due_deliveries(session, "outside")) == 5
    sealed = io.read(Path(copies[0].path).parent)
    verdict = verify_volume(sealed, read_key(tmp_path / "seal.key"), from_blocks(read_blocks(sealed), "copy"))
    assert verdict.state == "intact" and sealed.provenance.has_mark("sealed")
    kept = sorted((Path(series.folder or "") / "images").iterdir())
    assert {path.read_bytes() for path in kept} == {path.read_bytes() for path in source.iterdir()}


def test_without_a_seal_key_the_copy_is_the_image_itself(tmp_path: Path) -> None:
    made = node(tmp_path, destination="outside")
    source = make_patient(tmp_path / "series", slices=3)
    series = judge(made, source)
    assert series.quarantined_until is None
    sent = {Path(row.path).read_bytes() for row in rows(made[2], Delivery)}
    assert sent == {path.read_bytes() for path in source.iterdir()}


def test_a_synthetic_series_is_judged_and_flagged_and_never_leaves(tmp_path: Path) -> None:
    made = node(tmp_path, destination="outside")
    series = judge(made, make_patient(tmp_path / "series", slices=3, synthetic=True))
    assert series.state == DONE and series.synthetic
    assert rows(made[2], Delivery) == []
    assert "synthetic" in {alert.kind for alert in rows(made[2], Alert)}


def test_what_cannot_be_judged_fails_with_its_reason_and_is_in_the_ledger_all_the_same(tmp_path: Path) -> None:
    made = node(tmp_path)
    source = make_patient(tmp_path / "series", slices=6)
    sorted(source.iterdir())[2].unlink()
    series = judge(made, source)
    assert series.state == FAILED and series.reason
    with session_scope(made[2], read_only=True) as session:
        assert len(session.scalars(select(LedgerEntry)).all()) == 5


def test_an_analysis_that_takes_too_long_ends_its_worker_and_fails_the_series(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'node.db'}"
    engine = open_database(url)
    with session_scope(engine) as session:
        session.add(Series(study_uid="1", series_uid="2", state="queued", completed_at=now()))
    code = f"""
import time
from ctguard.serve.store.database import open_database, session_scope
from ctguard.serve.store import queue
from ctguard.serve.worker import _held
engine = open_database({url!r})
with session_scope(engine) as session:
    series = queue.claim(session, 30, 3)
with _held(engine, series, timeout_s=0.5):
    time.sleep(60)
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, timeout=120, capture_output=True)
    assert done.returncode == -signal.SIGKILL
    (series,) = rows(engine, Series)
    assert (series.state, series.reason) == (FAILED, "its analysis took longer than 0.5 s")


def test_a_detector_that_does_not_exist_stops_the_worker_with_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no detector is called"):
        load_judge(config_for(tmp_path / "data", analysis={"detector": "oracle"}))


def test_a_verdict_stays_where_dicom_results_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*_: Any) -> list[Path]:
        raise WriteError("its character set has no name", remedy="")

    monkeypatch.setattr(judging, "write_results", refuses)
    made = node(tmp_path)
    series = judge(made, make_patient(tmp_path / "series", slices=5))
    assert series.state == DONE and series.tampered
    alerts = {alert.kind: alert.details for alert in rows(made[2], Alert)}
    assert alerts["results-not-written"] == {"reason": "its character set has no name"}
    events = {event.event for event in rows(made[2], AuditEvent)}
    assert events >= {"alert-tampered", "alert-results-not-written"}
