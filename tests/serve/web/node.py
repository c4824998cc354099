"""A node with users and a few series, one of them a judged phantom with an asymmetric map, and clients of its page."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
from fastapi.testclient import TestClient
from httpx import Response
from numpy.typing import NDArray
from sqlalchemy import Engine

from ctguard import io
from ctguard.core.geometry import Geometry
from ctguard.core.marks import Mark
from ctguard.core.provenance import Provenance, Source
from ctguard.core.records import Verdict
from ctguard.core.volume import Volume
from ctguard.detect.regions import find_regions
from ctguard.serve.config import Config, make_config
from ctguard.serve.store.database import open_database, session_scope
from ctguard.serve.store.models import Alert, Delivery, Instance, Series, now
from ctguard.serve.web.app import create_app
from ctguard.serve.web.users import add_user
from ctguard.serve.web.volumes import prepare
from tests.io.dicom_factory import make_series

PASSWORD = "correct horse battery"
UID = "1.2.826.0.1.3680043.8.498.1234567890"
HOT_ZYX = (14, 40, 70)


def phantom(shape_zyx: tuple[int, int, int] = (20, 96, 96), seed: int = 0) -> Volume:
    """A body with two lungs and a bright spine at the back: no two directions look alike."""
    _, ny, nx = shape_zyx
    y, x = np.ogrid[-1 : 1 : ny * 1j, -1 : 1 : nx * 1j]
    plane = np.where(np.hypot(x, y / 0.75) < 0.95, 40.0, -1000.0)
    for side in (-1, 1):
        plane = np.where(np.hypot((x - 0.42 * side) / 0.33, y / 0.55) < 1, -820.0, plane)
    plane = np.where(np.hypot(x, y - 0.55) < 0.1, 700.0, plane)
    hu = np.random.default_rng(seed).normal(plane, 20, shape_zyx).round().clip(-1024, 3071).astype(np.int16)
    marks = (Mark("phantom", "made for a test"),)
    spacing = (2.5, 300 / ny, 300 / nx)
    return Volume(hu, Geometry(shape_zyx, spacing, (-150.0, -150.0, -90.0)), Provenance(Source("phantom"), marks=marks))


def hot_map(volume: Volume, center_zyx: tuple[int, int, int] = HOT_ZYX, sigma_mm: float = 9.0) -> NDArray[np.float32]:
    """0.97 at one place, falling off around it."""
    grid = np.ogrid[tuple(slice(n) for n in volume.hu.shape)]
    parts = zip(grid, center_zyx, volume.geometry.spacing_zyx_mm, strict=True)
    distance = sum(((axis - at) * mm) ** 2 for axis, at, mm in parts)
    return np.asarray(0.97 * np.exp(-distance / (2 * sigma_mm**2)), dtype=np.float32)


def write_case(
    folder: Path, volume: Volume, map_: NDArray[np.float32], *, tampered: bool, ready: bool = True
) -> Verdict:
    """What an analysis leaves: verdict.json, map.nii.gz, worst.png, and what the viewer shows."""
    regions = find_regions(map_, volume.geometry, 0.5) if tampered else ()
    verdict = Verdict("unet", "ab" * 32, 0.9996 if tampered else 0.31, 0.95, map_, volume.geometry, regions)
    folder.mkdir(parents=True, exist_ok=True)
    names = ("detector", "model_id", "score", "threshold", "tampered")
    facts: dict[str, Any] = {name: getattr(verdict, name) for name in names}
    facts["regions"] = [region.to_json() for region in regions]
    (folder / "verdict.json").write_text(json.dumps(facts))
    io.write(Volume(map_, volume.geometry, volume.provenance), folder / "map.nii.gz")
    if ready:
        prepare(volume, verdict, folder)
    return verdict


def add_series(engine: Engine, case: Path | None, number: int, **facts: Any) -> int:
    """A row of the work list; returns its id."""
    row = Series(
        series_uid=f"{UID}.{number}",
        study_uid=f"{UID}.9",
        patient_id_hash=f"{number:064x}",
        modality="CT",
        slices=20,
        folder=None if case is None else str(case),
        verdict_path=None if case is None else str(case / "verdict.json"),
        received_at=now() - timedelta(hours=number),
        completed_at=now() - timedelta(hours=number),
        **{"description": f"Chest {number}", "calling_ae": "CT01", "state": "done", **facts},
    )
    with session_scope(engine) as session:
        session.add(row)
    return row.id


JUDGED = {"score": 0.9996, "threshold": 0.95, "tampered": True}
CLEAR = {"score": 0.31, "threshold": 0.95, "tampered": False}


@dataclass(frozen=True)
class Node:
    """The application, its database, and the series: 1 tampered, 2 clear, 3 failed, 4 done but not prepared."""

    config: Config
    engine: Engine
    folder: Path

    def client(self, name: str = "", **options: Any) -> Person:
        """A browser, logged in where a name is given."""
        person = Person(TestClient(create_app(self.config, self.engine), follow_redirects=False, **options))
        if name:
            assert person.log_in(name).status_code == 303
        return person


@dataclass(frozen=True)
class Person:
    """Somebody at a browser."""

    http: TestClient

    def log_in(self, name: str, password: str = PASSWORD) -> Response:
        """Open the form and send it."""
        token = hidden(self.http.get("/login").text, "csrf")
        return self.http.post("/login", data={"name": name, "password": password, "csrf": token})

    def get(self, path: str, **options: Any) -> Response:
        """A page."""
        return self.http.get(path, **options)

    def send(self, page: str, action: str, **fields: Any) -> Response:
        """Send a form of a page with its hidden fields."""
        text = self.http.get(page).text
        found = {name: hidden(text, name) for name in ("csrf", "shown") if f'name="{name}"' in text}
        return self.http.post(action, data={**found, **fields})


def hidden(page: str, name: str) -> str:
    """The value of a hidden field."""
    found = re.search(rf'type="hidden" name="{name}" value="([^"]*)"', page)
    assert found, f"no {name} in the page"
    return found.group(1)


def make_node(folder: Path, url: str = "", **web: Any) -> Node:
    """A fresh node in a folder. url: of its database; web: settings of [web] that differ."""
    given = {"store": {"folder": str(folder), "database": url}, "web": {"secure_cookies": False, **web}}
    folder.mkdir(parents=True, exist_ok=True)
    config = make_config(given)
    engine = open_database(config.store.url)
    for name, role in (("vera", "viewer"), ("rita", "reviewer"), ("rob", "reviewer"), ("ada", "admin")):
        add_user(engine, name, role, PASSWORD)
    volume = phantom()
    write_case(folder / "1", volume, hot_map(volume), tampered=True)
    first = add_series(engine, folder / "1", 1, synthetic=True, seal_state="broken", signature_state="absent", **JUDGED)
    write_case(folder / "2", phantom(seed=2), hot_map(volume) * np.float32(0.2), tampered=False)
    add_series(engine, folder / "2", 2, seal_state="intact", signature_state="valid", **CLEAR)
    add_series(engine, None, 3, state="failed", reason="a 2.5 mm gap after slice 41")
    stored = np.random.default_rng(1).integers(0, 900, (6, 24, 36))
    images = make_series(folder / "4" / "images", stored)
    series = io.read(images)
    write_case(folder / "4", series, np.zeros(stored.shape, np.float32), tampered=False, ready=False)
    fourth = add_series(engine, folder / "4", 4, **CLEAR)
    with session_scope(engine) as session:
        for path in sorted(images.iterdir()):
            session.add(
                Instance(
                    series_id=fourth, sop_uid=path.name, path=str(path), bytes=1, transfer_syntax="1.2.840.10008.1.2.1"
                )
            )
        session.add(Alert(series_id=first, kind="seal", details={"regions": 1}))
        session.add(
            Delivery(series_id=first, destination="security", kind="sr", path="x", sop_uid="1.2.3", state="sent")
        )
    return Node(config, engine, folder)
