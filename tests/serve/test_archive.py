"""A real archive over DICOMweb: images are pulled from it, and it is audited against the ledger."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pydicom
import pytest
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, generate_uid
from sqlalchemy import Engine, select

from ctguard.core.errors import DataError, ReadError, RefusedError
from ctguard.protect.keys import new_key
from ctguard.serve.archive import audit_archive, over_web
from ctguard.serve.dicomweb import pull_once
from ctguard.serve.intake import Intake
from ctguard.serve.ledger import fingerprint, open_key, sub_keys
from ctguard.serve.store import audit
from ctguard.serve.store.database import open_database, session_scope
from ctguard.serve.store.models import DONE, AuditEvent, Instance, LedgerEntry, Series
from tests.cli.runner import run
from tests.io.dicom_factory import ct_slice, stored_values
from tests.serve.parts import Orthanc, config_for, free_port, needs_orthanc, orthanc
from tests.serve.test_ledger import save_to

pytestmark = needs_orthanc
IMAGES = 100


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    with orthanc(tmp_path_factory.mktemp("archive") / "orthanc", "ARCHIVE") as started:
        yield started


@pytest.fixture
def empty(archive: Orthanc) -> Orthanc:
    for patient in httpx.get(f"http://127.0.0.1:{archive.web}/patients").json():
        httpx.delete(f"http://127.0.0.1:{archive.web}/patients/{patient}")
    return archive


def image(number: int, stored: np.ndarray, syntax: Any = ExplicitVRLittleEndian, today: str = "20010203") -> bytes:
    ds, buffer = ct_slice(stored, number), BytesIO()
    ds.SOPInstanceUID = generate_uid(entropy_srcs=["archive", str(number)])
    ds.StudyDate, ds.StudyInstanceUID = today, generate_uid(entropy_srcs=["study of", today])
    save_to(ds, buffer, syntax)
    return buffer.getvalue()


def upload(archive: Orthanc, contents: list[bytes]) -> None:
    with httpx.Client(base_url=f"http://127.0.0.1:{archive.web}") as http:
        for content in contents:
            http.post("/instances", content=content).raise_for_status()


def make_ledger(folder: Path, images: int = IMAGES) -> tuple[Path, Path, np.ndarray]:
    """A database with the fingerprints of images and their series, the key, and their stored values."""
    key = sub_keys(new_key(folder / "node.key"))
    engine = open_database(f"sqlite:///{folder / 'node.db'}")
    stored = stored_values(images, 40)
    with session_scope(engine) as session:
        audit.append(session, "node", audit.STARTED, {"key": key.key_id})
        for number, plane in enumerate(stored):
            content = image(number, plane)
            print_, ds = fingerprint(content, key), pydicom.dcmread(BytesIO(content))
            uid = str(ds.SOPInstanceUID)
            session.add(LedgerEntry(sop_uid=uid, pixel_hmac=print_.pixel_hmac, block_digest=print_.block_digest))
            if number == 0:
                series = Series(study_uid=str(ds.StudyInstanceUID), series_uid=str(ds.SeriesInstanceUID), state=DONE)
                session.add(series)
                session.flush()
            session.add(Instance(series_id=series.id, sop_uid=uid, path=None, bytes=1, transfer_syntax="1.2"))
    engine.dispose()
    return folder / "node.db", folder / "node.key", stored


@pytest.fixture
def ledger(tmp_path: Path) -> tuple[Path, Path, np.ndarray]:
    """Of a hundred images."""
    return make_ledger(tmp_path)


def test_a_hundred_of_a_hundred_substituted_slices_are_found(
    empty: Orthanc, ledger: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    database, key, stored = ledger
    changed = stored.copy()
    changed[:, 20:25, 20:25] += 40
    upload(empty, [image(number, plane) for number, plane in enumerate(changed)])
    arguments = ["--ledger", str(database), "--key", str(key), "--url", empty.url, "--json", "--fail-if-substituted"]
    done = run(capfd, "audit", *arguments)
    assert done.code == 3
    facts = done.json
    assert (facts["compared"], len(facts["substituted"]), facts["missing"]) == (IMAGES, IMAGES, [])
    assert all(region["rows"] == [11, 33] and region["columns"] == [20, 30] for region in facts["substituted"].values())


def test_lossless_transcoding_and_an_archive_that_is_whole_raise_none(empty: Orthanc, ledger: Any) -> None:
    database, key, stored = ledger
    syntaxes = [ExplicitVRLittleEndian, JPEG2000Lossless]
    upload(empty, [image(number, plane, syntaxes[number % 2]) for number, plane in enumerate(stored[:60])])
    found = audit_archive(f"sqlite:///{database}", key, over_web(empty.url), sample=IMAGES)
    assert (found.compared, found.substituted, len(found.missing), found.unreadable) == (60, {}, 40, [])
    with session_scope(open_database(f"sqlite:///{database}"), read_only=True) as session:
        event = session.scalars(select(AuditEvent).where(AuditEvent.event == "archive-audited")).one()
    assert event.details == {"compared": 60, "substituted": 0, "missing": 40, "unreadable": 0}


def test_a_sample_is_the_same_for_the_same_seed(empty: Orthanc, ledger: Any) -> None:
    database, key, _ = ledger

    def missing(seed: int) -> list[str]:
        return audit_archive(f"sqlite:///{database}", key, over_web(empty.url), sample=5, seed=seed).missing

    found = [missing(seed) for seed in (1, 1, 2)]
    assert found[0] == found[1] != found[2]
    assert len(found[0]) == 5


def test_a_wrong_key_an_empty_ledger_and_no_archive_are_clear_errors(ledger: Any, tmp_path: Path) -> None:
    database, key, _ = ledger
    url = f"http://127.0.0.1:{free_port()}/dicom-web"
    with pytest.raises(ReadError, match="does not answer"):
        audit_archive(f"sqlite:///{database}", key, over_web(url), sample=1)
    new_key(tmp_path / "other.key")
    with pytest.raises(RefusedError, match="another key"):
        audit_archive(f"sqlite:///{database}", tmp_path / "other.key", over_web(url), sample=1)
    with pytest.raises(DataError, match="no image"):
        audit_archive(f"sqlite:///{tmp_path / 'new.db'}", key, over_web(url), sample=1)


def test_new_series_are_pulled_once_as_they_are_stored(empty: Orthanc, tmp_path: Path) -> None:
    today = f"{date.today():%Y%m%d}"
    contents = [image(n, plane, JPEG2000Lossless, today) for n, plane in enumerate(stored_values(4, 40))]
    upload(empty, [*contents, image(99, stored_values(1, 40)[0])])  # the last is of another day
    config = config_for(tmp_path / "data", pull={"url": empty.url})
    engine: Engine = open_database(f"sqlite:///{tmp_path / 'node.db'}")
    intake = Intake(config, engine, open_key(tmp_path / "node.key"))
    assert pull_once(config.pull, engine, intake) == 4
    assert pull_once(config.pull, engine, intake) == 0
    with session_scope(engine, read_only=True) as session:
        (series,) = session.scalars(select(Series)).all()
        kept = [pydicom.dcmread(path) for path in session.scalars(select(Instance.path))]
    assert (series.slices, series.calling_ae) == (4, "DICOMWEB")
    assert {ds.file_meta.TransferSyntaxUID for ds in kept} == {JPEG2000Lossless}
    originals = {ds.SOPInstanceUID: ds.PixelData for ds in map(pydicom.dcmread, map(BytesIO, contents))}
    assert {ds.SOPInstanceUID: ds.PixelData for ds in kept} == originals
