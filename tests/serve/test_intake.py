"""What the node does with one object: keeps it whole, never overwrites it, refuses what it cannot take."""

from __future__ import annotations

import os
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
from sqlalchemy import Engine, select, update

from ctguard.serve import intake as intake_module
from ctguard.serve import objects, recorder
from ctguard.serve.intake import MISMATCH, NOT_UNDERSTOOD, OUT_OF_RESOURCES, SUCCESS, Intake
from ctguard.serve.ledger import fingerprint, open_key
from ctguard.serve.retention import remove_old
from ctguard.serve.store import audit
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


def rows(engine: Engine, model: Any) -> list[Any]:
    with session_scope(engine, read_only=True) as session:
        return list(session.scalars(select(model)))


def changed() -> bytes:
    other = STORED.copy()
    other[20:30, 30:40] += 200
    return encoded(other)


def test_an_image_is_kept_to_the_byte_and_recorded(node: Intake, engine: Engine) -> None:
    assert node.take(encoded(STORED), UID, "SENDER") == SUCCESS
    (instance,), (series,) = rows(engine, Instance), rows(engine, Series)
    assert Path(instance.path).read_bytes() == encoded(STORED)
    assert (series.slices, series.state, series.modality, series.calling_ae) == (1, "receiving", "CT", "SENDER")
    assert series.description == "Lung 2.5"
    assert "MRN123" not in series.patient_id_hash and len(series.patient_id_hash) == 16
    assert [p for p in node.folder.rglob("*") if p.suffix == ".part"] == []
    assert Path(instance.path).parent.stat().st_mode & 0o077 == 0


def test_no_uid_and_no_patient_stands_in_a_file_name(node: Intake) -> None:
    node.take(encoded(STORED), UID, "SENDER")
    names = " ".join(str(path) for path in node.folder.rglob("*"))
    assert not any(word in names for word in (UID, "MRN123", "JANE"))


def test_the_same_image_again_is_a_success_and_nothing_new(node: Intake, engine: Engine) -> None:
    for content in (
        encoded(STORED),
        encoded(STORED),
        encoded(STORED, JPEG2000Lossless),
        encoded(STORED, PatientID="Z"),
    ):
        assert node.take(content, UID, "SENDER") == SUCCESS
    assert [series.slices for series in rows(engine, Series)] == [1]
    assert rows(engine, Alert) == []
    assert Path(rows(engine, Instance)[0].path).read_bytes() == encoded(STORED)


def test_other_pixels_under_a_known_uid_never_overwrite_and_raise_one_alert(node: Intake, engine: Engine) -> None:
    node.take(encoded(STORED), UID, "SENDER")
    for _ in range(3):
        assert node.take(changed(), UID, "ROGUE") == SUCCESS
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
    node.take(encoded(STORED), UID, "SENDER")
    print_ = fingerprint(encoded(STORED), node.key)
    with session_scope(engine) as session:
        session.add(LedgerEntry(sop_uid=UID, pixel_hmac=print_.pixel_hmac, block_digest=print_.block_digest))
        session.execute(update(Series).values(state=DONE, updated_at=series_age(40)))
    config = config_for(node.folder.parent, store={"retention_days": 30})
    assert remove_old(config, engine) == 1
    assert list(node.folder.iterdir()) == []
    assert node.take(changed(), UID, "ROGUE") == SUCCESS
    assert [alert.kind for alert in rows(engine, Alert)] == ["substituted"]
    assert rows(engine, Instance)[0].path is None
    # and the image itself, when it comes again, is taken in and judged anew
    assert node.take(encoded(STORED), UID, "SENDER") == SUCCESS
    (series,) = rows(engine, Series)
    assert (series.state, series.slices) == ("receiving", 1)
    assert Path(rows(engine, Instance)[0].path).read_bytes() == encoded(STORED)


def series_age(days: int) -> Any:
    return now() - timedelta(days=days)


def test_retention_keeps_what_is_young_or_not_judged(node: Intake, engine: Engine) -> None:
    node.take(encoded(STORED), UID, "SENDER")
    config = config_for(node.folder.parent, store={"retention_days": 30})
    with session_scope(engine) as session:
        session.execute(update(Series).values(updated_at=series_age(40)))
    assert remove_old(config, engine) == 0  # it is still being received
    with session_scope(engine) as session:
        session.execute(update(Series).values(state=DONE, updated_at=series_age(20)))
    assert remove_old(config, engine) == 0
    assert Path(rows(engine, Instance)[0].path).exists()


def nameless(ds: Dataset) -> None:
    del ds.SeriesInstanceUID


def escaping(ds: Dataset) -> None:
    ds.SeriesInstanceUID = "../../etc/passwd"


@pytest.mark.parametrize("edit", [nameless, escaping])
def test_an_object_without_proper_uids_is_refused(node: Intake, edit: Callable[[Dataset], None]) -> None:
    ds, buffer = ct_slice(STORED, 0), BytesIO()
    edit(ds)
    save_to(ds, buffer, pydicom.uid.ExplicitVRLittleEndian)
    assert node.take(buffer.getvalue(), UID, "SENDER") == NOT_UNDERSTOOD
    assert list(node.folder.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"\0" * 500, encoded(STORED)[:200], b"\0" * 128 + b"DICM" + b"\xff" * 400])
def test_what_is_no_dicom_is_refused(node: Intake, content: bytes) -> None:
    assert node.take(content, UID, "SENDER") == NOT_UNDERSTOOD
    assert list(node.folder.iterdir()) == []


def test_another_uid_than_announced_is_refused(node: Intake) -> None:
    assert node.take(encoded(STORED), "1.2.3.4", "SENDER") == MISMATCH


def test_a_full_disk_is_out_of_resources(node: Intake, monkeypatch: pytest.MonkeyPatch, engine: Engine) -> None:
    monkeypatch.setattr(intake_module.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    assert node.take(encoded(STORED), UID, "SENDER") == OUT_OF_RESOURCES
    assert rows(engine, Series) == []


def test_an_object_over_the_limit_is_out_of_resources(engine: Engine, tmp_path: Path) -> None:
    small = config_for(tmp_path / "data", node={"max_object_mb": 0.001})
    assert Intake(small, engine, open_key(tmp_path / "node.key")).take(encoded(STORED), UID, "S") == OUT_OF_RESOURCES


def test_an_image_that_says_synthetic_flags_its_series(node: Intake, engine: Engine) -> None:
    node.take(encoded(STORED, SyntheticData="YES"), UID, "SENDER")
    assert [series.synthetic for series in rows(engine, Series)] == [True]


def test_a_file_that_somebody_removed_is_taken_again_and_counted_once(node: Intake, engine: Engine) -> None:
    node.take(encoded(STORED), UID, "SENDER")
    Path(rows(engine, Instance)[0].path).unlink()
    assert node.take(encoded(STORED), UID, "SENDER") == SUCCESS
    assert Path(rows(engine, Instance)[0].path).exists()
    assert [series.slices for series in rows(engine, Series)] == [1]


def test_the_success_comes_after_the_disk(node: Intake, monkeypatch: pytest.MonkeyPatch, engine: Engine) -> None:
    """File synced, then named, then its folder synced, then the row committed."""
    order: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def synced(handle: int) -> None:
        order.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")
        fsync(handle)

    def named(self: Path, target: Path) -> Path:
        order.append("rename")
        return replace(self, target)

    def committed(self: Any, arrival: Any) -> None:
        order.append("commit")
        record(self, arrival)

    record = recorder.Recorder.record
    node.take(encoded(STORED), UID, "SENDER")  # makes the folders
    monkeypatch.setattr(objects.os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", named)
    monkeypatch.setattr(recorder.Recorder, "record", committed)
    other = ct_slice(STORED, 1)
    buffer = BytesIO()
    save_to(other, buffer, pydicom.uid.ExplicitVRLittleEndian)
    assert node.take(buffer.getvalue(), str(other.SOPInstanceUID), "SENDER") == SUCCESS
    assert order == ["file", "rename", "folder", "commit"]
