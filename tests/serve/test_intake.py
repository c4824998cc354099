"""What the node does with one object: keeps it whole, never overwrites it, refuses what it cannot take."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable
from datetime import timedelta
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import JPEG2000Lossless
from sqlalchemy import Connection, Engine, delete, event, select, update
from sqlalchemy.exc import DataError, OperationalError

from ctguard.serve import intake as intake_module
from ctguard.serve import objects, recorder
from ctguard.serve.intake import MISMATCH, NOT_UNDERSTOOD, OUT_OF_RESOURCES, SUCCESS, Intake
from ctguard.serve.ledger import fingerprint, open_key
from ctguard.serve.recorder import Arrival
from ctguard.serve.retention import remove_old
from ctguard.serve.store import audit, queue
from ctguard.serve.store.database import session_scope
from ctguard.serve.store.models import DONE, Alert, Instance, LedgerEntry, Series, now
from tests.io.dicom_factory import ct_slice, stored_values
from tests.serve.parts import config_for
from tests.serve.test_ledger import encoded, save_to

STORED = stored_values(1, 64)[0]
UID = str(ct_slice(STORED, 0).SOPInstanceUID)


@pytest.fixture
def node(engine: Engine, tmp_path: Path) -> Intake:
    config = config_for(tmp_path / "data")
    return Intake(config, engine, open_key(tmp_path / "node.key"))


def take(node: Intake, content: bytes, uid: str, calling: str) -> int:
    """Take an object in, and wait until it is recorded."""
    status = node.take(content, uid, calling)
    assert node.recorder.settle()
    return status


def rows(engine: Engine, model: Any) -> list[Any]:
    with session_scope(engine, read_only=True) as session:
        return list(session.scalars(select(model)))


def changed() -> bytes:
    other = STORED.copy()
    other[20:30, 30:40] += 200
    return encoded(other)


def test_an_image_is_kept_to_the_byte_and_recorded(node: Intake, engine: Engine) -> None:
    assert take(node, encoded(STORED), UID, "SENDER") == SUCCESS
    (instance,), (series,) = rows(engine, Instance), rows(engine, Series)
    assert Path(instance.path).read_bytes() == encoded(STORED)
    assert (series.slices, series.state, series.modality, series.calling_ae) == (1, "receiving", "CT", "SENDER")
    assert series.description == "Lung 2.5"
    assert "MRN123" not in series.patient_id_hash and len(series.patient_id_hash) == 16
    assert [p for p in node.folder.rglob("*") if p.suffix == ".part"] == []
    assert Path(instance.path).parent.stat().st_mode & 0o077 == 0


def test_no_uid_and_no_patient_stands_in_a_file_name(node: Intake) -> None:
    take(node, encoded(STORED), UID, "SENDER")
    names = " ".join(str(path) for path in node.folder.rglob("*"))
    assert not any(word in names for word in (UID, "MRN123", "JANE"))


def test_the_same_image_again_is_a_success_and_nothing_new(node: Intake, engine: Engine) -> None:
    for content in (
        encoded(STORED),
        encoded(STORED),
        encoded(STORED, JPEG2000Lossless),
        encoded(STORED, PatientID="Z"),
    ):
        assert take(node, content, UID, "SENDER") == SUCCESS
    assert [series.slices for series in rows(engine, Series)] == [1]
    assert rows(engine, Alert) == []
    assert Path(rows(engine, Instance)[0].path).read_bytes() == encoded(STORED)


def test_other_pixels_under_a_known_uid_never_overwrite_and_raise_one_alert(node: Intake, engine: Engine) -> None:
    take(node, encoded(STORED), UID, "SENDER")
    for _ in range(3):
        assert take(node, changed(), UID, "ROGUE") == SUCCESS
    assert Path(rows(engine, Instance)[0].path).read_bytes() == encoded(STORED)
    (alert,) = rows(engine, Alert)
    assert (alert.kind, alert.sop_uid) == ("substituted", UID)
    region = alert.details["region"]
    assert region["rows"] == [11, 33] and region["columns"] == [30, 40]
    (aside,) = (node.folder.parent / "aside").rglob("*.dcm")
    assert aside.read_bytes() == changed()
    with session_scope(engine, read_only=True) as session:
        events = [row.event for row in session.scalars(select(audit.AuditEvent))]
    assert "alert-substituted" in events


def test_the_ledger_finds_a_substitution_after_the_images_were_removed(node: Intake, engine: Engine) -> None:
    take(node, encoded(STORED), UID, "SENDER")
    print_ = fingerprint(encoded(STORED), node.recorder.key)
    with session_scope(engine) as session:
        session.add(LedgerEntry(sop_uid=UID, pixel_hmac=print_.pixel_hmac, block_digest=print_.block_digest))
        session.execute(update(Series).values(state=DONE, updated_at=series_age(40)))
    config = config_for(node.folder.parent, store={"retention_days": 30})
    assert remove_old(config, engine) == 1
    assert list(node.folder.iterdir()) == []
    assert take(node, changed(), UID, "ROGUE") == SUCCESS
    assert [alert.kind for alert in rows(engine, Alert)] == ["substituted"]
    assert rows(engine, Instance)[0].path is None
    # and the image itself, when it comes again, is taken in and judged anew
    assert take(node, encoded(STORED), UID, "SENDER") == SUCCESS
    (series,) = rows(engine, Series)
    assert (series.state, series.slices) == ("receiving", 1)
    assert Path(rows(engine, Instance)[0].path).read_bytes() == encoded(STORED)


def series_age(days: int) -> Any:
    return now() - timedelta(days=days)


def test_retention_keeps_what_is_young_or_not_judged(node: Intake, engine: Engine) -> None:
    take(node, encoded(STORED), UID, "SENDER")
    config = config_for(node.folder.parent, store={"retention_days": 30})
    with session_scope(engine) as session:
        session.execute(update(Series).values(updated_at=series_age(40)))
    assert remove_old(config, engine) == 0  # it is still being received
    with session_scope(engine) as session:
        session.execute(update(Series).values(state=DONE, updated_at=series_age(20)))
    assert remove_old(config, engine) == 0
    assert Path(rows(engine, Instance)[0].path).exists()


def test_an_image_that_arrives_while_its_series_is_removed_stays(
    node: Intake, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    take(node, encoded(STORED), UID, "SENDER")
    with session_scope(engine) as session:
        session.execute(update(Series).values(state=DONE, updated_at=series_age(40)))
    removed = shutil.rmtree

    def arrives_then_removes(folder: Path) -> None:
        assert take(node, encoded(STORED), UID, "SENDER") == SUCCESS
        removed(folder)

    monkeypatch.setattr("ctguard.serve.retention.shutil.rmtree", arrives_then_removes)
    assert remove_old(config_for(node.folder.parent, store={"retention_days": 30}), engine) == 1
    assert Path(rows(engine, Instance)[0].path).read_bytes() == encoded(STORED)
    assert rows(engine, Series)[0].state == "receiving"


def test_what_a_crash_left_of_a_removal_goes(node: Intake, engine: Engine) -> None:
    take(node, encoded(STORED), UID, "SENDER")
    (folder,) = node.folder.iterdir()
    folder.rename(folder.with_name(f"{folder.name}-1.removed"))  # and no commit
    with session_scope(engine) as session:
        session.execute(update(Series).values(state=DONE, updated_at=series_age(40)))
    assert remove_old(config_for(node.folder.parent, store={"retention_days": 30}), engine) == 1
    assert list(node.folder.iterdir()) == []
    assert rows(engine, Instance)[0].path is None


def nameless(ds: Dataset) -> None:
    del ds.SeriesInstanceUID


def escaping(ds: Dataset) -> None:
    ds.SeriesInstanceUID = "../../etc/passwd"


@pytest.mark.parametrize("edit", [nameless, escaping])
def test_an_object_without_proper_uids_is_refused(node: Intake, edit: Callable[[Dataset], None]) -> None:
    ds, buffer = ct_slice(STORED, 0), BytesIO()
    edit(ds)
    save_to(ds, buffer, pydicom.uid.ExplicitVRLittleEndian)
    assert take(node, buffer.getvalue(), UID, "SENDER") == NOT_UNDERSTOOD
    assert list(node.folder.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"\0" * 500, encoded(STORED)[:200], b"\0" * 128 + b"DICM" + b"\xff" * 400])
def test_what_is_no_dicom_is_refused(node: Intake, content: bytes) -> None:
    assert take(node, content, UID, "SENDER") == NOT_UNDERSTOOD
    assert list(node.folder.iterdir()) == []


def test_another_uid_than_announced_is_refused(node: Intake) -> None:
    assert take(node, encoded(STORED), "1.2.3.4", "SENDER") == MISMATCH


def test_a_full_disk_is_out_of_resources(node: Intake, monkeypatch: pytest.MonkeyPatch, engine: Engine) -> None:
    monkeypatch.setattr(intake_module.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    for _ in range(2):
        assert take(node, encoded(STORED), UID, "SENDER") == OUT_OF_RESOURCES
    assert rows(engine, Series) == []
    assert [alert.kind for alert in rows(engine, Alert)] == ["disk-full"]


def test_an_object_over_the_limit_is_out_of_resources(engine: Engine, tmp_path: Path) -> None:
    small = config_for(tmp_path / "data", node={"max_object_mb": 0.001})
    node = Intake(small, engine, open_key(tmp_path / "node.key"))
    assert take(node, encoded(STORED), UID, "S") == OUT_OF_RESOURCES


def test_an_image_that_says_synthetic_flags_its_series(node: Intake, engine: Engine) -> None:
    take(node, encoded(STORED, SyntheticData="YES"), UID, "SENDER")
    assert [series.synthetic for series in rows(engine, Series)] == [True]


def test_a_file_that_somebody_removed_is_taken_again_and_counted_once(node: Intake, engine: Engine) -> None:
    take(node, encoded(STORED), UID, "SENDER")
    Path(rows(engine, Instance)[0].path).unlink()
    assert take(node, encoded(STORED), UID, "SENDER") == SUCCESS
    assert Path(rows(engine, Instance)[0].path).exists()
    assert [series.slices for series in rows(engine, Series)] == [1]


def second() -> tuple[bytes, str]:
    """Another image of the series, and its UID."""
    other, buffer = ct_slice(STORED, 1), BytesIO()
    save_to(other, buffer, pydicom.uid.ExplicitVRLittleEndian)
    return buffer.getvalue(), str(other.SOPInstanceUID)


def test_the_success_comes_after_the_disk(node: Intake, monkeypatch: pytest.MonkeyPatch, engine: Engine) -> None:
    """File and its name synced, then the answer; its place synced, then the row; only then the first name goes."""
    order: list[str] = []
    fsync, unlink = os.fsync, Path.unlink

    def synced(handle: int) -> None:
        order.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")
        fsync(handle)

    def removed(self: Path, missing_ok: bool = False) -> None:
        order.extend(["removed"] if "arrived" in self.parts else [])
        unlink(self, missing_ok)

    def committed(connection: Connection) -> None:
        order.extend([] if connection.get_execution_options().get("read_only") else ["rows"])

    take(node, encoded(STORED), UID, "SENDER")  # makes the folders
    monkeypatch.setattr(objects.os, "fsync", synced)
    monkeypatch.setattr(Path, "unlink", removed)
    event.listen(engine, "commit", committed)
    content, uid = second()
    assert node.take(content, uid, "SENDER") == SUCCESS
    assert order[:2] == ["file", "folder"]
    assert node.recorder.settle()
    assert order == ["file", "folder", "folder", "rows", "removed"]


def test_what_was_acknowledged_before_a_crash_is_recorded_at_the_next_start(
    node: Intake, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after the answer; after the link; after the row: one image, one row, whatever the moment."""
    crashed: list[Arrival] = []
    with monkeypatch.context() as patched:
        patched.setattr(node.recorder, "add", crashed.append)
        content, uid = second()
        assert node.take(content, uid, "SENDER") == SUCCESS
    (kept,) = node.arrived.iterdir()
    (node.arrived / f"{9:020d}-{b'S'.hex()}-00000000.dcm").write_bytes(content[:200])  # a part that nobody was promised
    linked = Path()
    for moment in ("answered", "linked", "recorded"):
        if moment == "linked":
            with session_scope(engine) as session:
                session.execute(delete(Instance))
        if moment != "answered":
            os.link(linked, kept)
        fresh = Intake(config_for(tmp_path / "data"), engine, open_key(tmp_path / "node.key"))
        assert fresh.recorder.settle()
        (instance,) = rows(engine, Instance)
        linked = Path(instance.path)
        assert linked.read_bytes() == content
        assert list(fresh.arrived.iterdir()) == []
        assert rows(engine, Alert) == []
    assert [series.calling_ae for series in rows(engine, Series)] == ["SENDER"]


def test_an_image_that_no_database_takes_is_put_aside_and_stops_nothing(
    node: Intake, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    content, uid = second()
    add = queue.add_instances

    def refuses(session: Any, series_id: int, new: Any, *more: Any) -> None:
        if any(row["sop_uid"] == UID for row in new):
            raise DataError("INSERT", {}, Exception("NUL"))
        add(session, series_id, new, *more)

    monkeypatch.setattr(queue, "add_instances", refuses)
    assert node.take(encoded(STORED), UID, "SENDER") == SUCCESS
    assert take(node, content, uid, "SENDER") == SUCCESS
    assert [row.sop_uid for row in rows(engine, Instance)] == [uid]
    (aside,) = (node.folder.parent / "aside").iterdir()
    assert aside.read_bytes() == encoded(STORED)
    assert [(alert.kind, alert.details["kept"]) for alert in rows(engine, Alert)] == [("not-recorded", aside.name)]
    assert list(node.arrived.iterdir()) == []


def test_a_database_that_is_away_delays_and_loses_nothing(
    node: Intake, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    add = queue.add_instances

    def refuses_twice(*args: Any) -> None:
        calls.append(1)
        if len(calls) < 3:
            raise OperationalError("INSERT", {}, Exception("disk I/O error"))
        add(*args)

    monkeypatch.setattr(recorder, "_PAUSE_S", 0.01)
    monkeypatch.setattr(queue, "add_instances", refuses_twice)
    assert take(node, encoded(STORED), UID, "SENDER") == SUCCESS
    assert len(calls) == 3
    assert [Path(row.path).read_bytes() for row in rows(engine, Instance)] == [encoded(STORED)]
