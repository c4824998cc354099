"""A series goes in by DCMTK, and what was found comes out in Orthanc; by DICOM and by DICOMweb."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydicom
import pytest
from sqlalchemy import select

from ctguard.serve.store import audit
from ctguard.serve.store.database import open_database, session_scope
from ctguard.serve.store.models import DONE, FAILED, Alert, Delivery, Series
from tests.serve.parts import (
    Orthanc,
    Running,
    config_for,
    free_port,
    make_patient,
    needs_orthanc,
    needs_storescu,
    orthanc,
    running,
    storescu,
    wait_for,
)
from tests.serve.soak import archive_section, suspicious_weights

pytestmark = [needs_orthanc, needs_storescu]


@dataclass
class Hospital:
    """The node and its archives: security by DICOM, web by DICOMweb with opt-in, clinical without opt-in."""

    node: Running
    security: Orthanc
    web: Orthanc
    clinical: Orthanc
    engine: Any
    folder: Path

    def send(self, source: Path, state: str = DONE) -> Series:
        """Send a series, and wait for its verdict."""
        assert storescu(self.node.config.node.port, source).returncode == 0
        uid = str(pydicom.dcmread(next(source.iterdir()), stop_before_pixels=True).SeriesInstanceUID)

        def judged() -> Series | None:
            with session_scope(self.engine, read_only=True) as session:
                return session.scalar(select(Series).where(Series.series_uid == uid, Series.state == state))

        found: Series = wait_for(judged, 300, f"the series to be {state}")
        return found

    def rows(self, model: Any, series: Series) -> list[Any]:
        """Rows of a series."""
        with session_scope(self.engine, read_only=True) as session:
            return list(session.scalars(select(model).where(model.series_id == series.id)))


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hospital]:
    folder = tmp_path_factory.mktemp("hospital")
    with (
        orthanc(folder / "security") as security,
        orthanc(folder / "web", "WEB") as web,
        orthanc(folder / "clinical", "CLINICAL") as clinical,
    ):
        destinations = [
            archive_section(security),
            {"name": "research", "url": web.url, "results": True, "kinds": ["seg", "sr"]},
            archive_section(clinical, "clinical"),
            {"name": "down", "ae_title": "DOWN", "host": "127.0.0.1", "port": free_port(), "results": True},
        ]
        config = config_for(
            folder / "data",
            analysis={"weights": str(suspicious_weights(folder / "weights"))},
            delivery={"attempts": 2},
            destination=destinations,
        )
        with running(config, folder / "log") as node:
            engine = open_database(config.store.url)
            yield Hospital(node, security, web, clinical, engine, folder)


def test_seg_and_sr_arrive_by_dicom_and_by_dicomweb_and_only_where_they_may(hospital: Hospital) -> None:
    source = make_patient(hospital.folder / "first", slices=8, side=64, seed=1, synthetic=True)
    series = hospital.send(source)
    assert series.tampered and series.synthetic and series.slices == 8
    wait_for(lambda: hospital.security.modalities() == ["KO", "OT", "SEG", "SR"], 60, "four objects by C-STORE")
    wait_for(lambda: hospital.web.modalities() == ["SEG", "SR"], 60, "two objects by STOW-RS")
    assert hospital.clinical.modalities() == []
    study = str(pydicom.dcmread(next(source.iterdir()), stop_before_pixels=True).StudyInstanceUID)
    assert len(hospital.security.qido("series", StudyInstanceUID=study, Modality="SR")) == 1
    assert {alert.kind for alert in hospital.rows(Alert, series)} >= {"tampered", "synthetic"}


def test_the_case_folder_holds_all_of_it_and_no_patient(hospital: Hospital) -> None:
    series = hospital.send(make_patient(hospital.folder / "second", seed=2))
    case = Path(series.verdict_path or "").parent
    names = {path.name for path in case.iterdir()}
    assert names >= {"verdict.json", "map.nii.gz", "report.html", "seg.dcm", "map.dcm", "sr.dcm", "key.dcm"}
    facts = json.loads((case / "verdict.json").read_text())
    assert facts["score"] == series.score and facts["regions"]
    for name in ("verdict.json", "report.html"):
        text = (case / name).read_text()
        assert not any(word in text for word in ("MRN00002", "JANE", str(hospital.folder)))


def test_an_archive_that_is_down_holds_up_no_other_and_ends_in_the_dead_letters(hospital: Hospital) -> None:
    series = hospital.send(make_patient(hospital.folder / "third", seed=3))

    def states(destination: str) -> set[str]:
        return {row.state for row in hospital.rows(Delivery, series) if row.destination == destination}

    wait_for(lambda: states("security") == {"sent"}, 60, "the delivery")
    wait_for(lambda: states("down") == {"dead"}, 60, "giving up")
    letters = list((hospital.node.config.store.folder / "dead-letter" / "down").glob(f"{series.id}-*.dcm"))
    assert {pydicom.dcmread(letter).Modality for letter in letters} == {"SEG", "SR", "OT", "KO"}
    assert "dead-letter" in {alert.kind for alert in hospital.rows(Alert, series)}


def test_a_series_that_cannot_be_judged_says_why_and_stops_nothing(hospital: Hospital) -> None:
    source = make_patient(hospital.folder / "gap", slices=6, seed=4)
    sorted(source.iterdir())[2].unlink()
    series = hospital.send(source, FAILED)
    assert "gap" in (series.reason or "") or "missing" in (series.reason or "")
    assert hospital.send(make_patient(hospital.folder / "next", seed=5)).state == DONE


def test_a_late_image_opens_the_series_again_and_one_result_of_all_images_remains(hospital: Hospital) -> None:
    source = make_patient(hospital.folder / "late", slices=7, seed=6)
    late = sorted(source.iterdir())[-1].rename(hospital.folder / "late.dcm")
    first = hospital.send(source)
    assert first.slices == 6
    rest = hospital.folder / "rest"
    rest.mkdir()
    late.rename(rest / "late.dcm")
    assert storescu(hospital.node.config.node.port, rest).returncode == 0

    def again() -> bool:
        with session_scope(hospital.engine, read_only=True) as session:
            row = session.get_one(Series, first.id)
            return row.state == DONE and row.verdict_path != first.verdict_path

    wait_for(again, 120, "the second verdict")
    with session_scope(hospital.engine, read_only=True) as session:
        assert session.get_one(Series, first.id).slices == 7


def test_nothing_of_a_patient_is_in_the_log_and_the_audit_chain_is_whole(hospital: Hospital) -> None:
    for seed in (21, 22, 23):
        hospital.send(make_patient(hospital.folder / f"told-{seed}", seed=seed))
    text = hospital.node.log.read_text()
    assert not any(word in text for word in ("MRN0", "JANE", "Traceback"))
    with session_scope(hospital.engine, read_only=True) as session:
        assert audit.check_chain(session).broken_at is None
        assert audit.check_chain(session).length > 20
    assert hospital.node.lines("process-ended") == []


def test_the_worker_has_nothing_that_forges_in_memory() -> None:
    code = "import sys, ctguard.serve.worker, ctguard.serve.supervisor, ctguard.serve.node, ctguard.serve.deliver;"
    code += "bad = [m for m in sys.modules if m.startswith(('ctguard.tamper', 'ctguard.synth', 'ctguard.defence'))];"
    code += "sys.exit(bool(bad))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
