"""A judged series as the pages need it: its verdict, and the pictures of scan and map."""

from __future__ import annotations

import json
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fastapi import HTTPException
from sqlalchemy import Engine, select
from starlette.responses import FileResponse, Response

from ctguard import io
from ctguard.core.errors import ReadError
from ctguard.core.records import Verdict
from ctguard.serve.store.database import session_scope
from ctguard.serve.store.models import Instance, Series
from ctguard.serve.web.volumes import SMALL, WINDOWS_HU, Name, Slices, map_png, open_slices, prepare, scan_png

GONE = "The images of this series were removed when their retention period ended."
MAP = "map.nii.gz"
_PREPARING = threading.Lock()
"""One case at a time: it takes up to a gigabyte."""


@dataclass(frozen=True)
class CaseFiles:
    """The folder of a judged series and the facts of its verdict.json."""

    folder: Path
    verdict: dict[str, Any]

    @classmethod
    def of(cls, series: Series) -> CaseFiles | None:
        """None where there is no verdict, or retention removed it. Raises ReadError where it is damaged."""
        if series.verdict_path is None:
            return None
        path = Path(series.verdict_path)
        try:
            return cls(path.parent, json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise ReadError(f"it is damaged ({error})", where=path, remedy="analyse the series again") from error

    @property
    def slices(self) -> Slices | None:
        """What the viewer shows, where it was prepared."""
        return open_slices(self.folder)

    def whole_verdict(self, map_: Any, geometry: Any) -> Verdict:
        """The verdict with a map (z, y, x) in 0..1."""
        return Verdict.from_json(self.verdict, map_, geometry)


def series_of(engine: Engine, series_id: int) -> Series:
    """Raises HTTPException 404."""
    with session_scope(engine, read_only=True) as session:
        series = session.get(Series, series_id)
    if series is None:
        raise HTTPException(404)
    return series


def case_files(series: Series) -> CaseFiles:
    """Raises HTTPException: 409 where the series is not judged yet, 410 where its files are gone."""
    files = CaseFiles.of(series)
    if files is None:
        raise HTTPException(*((409, "This series has no verdict yet.") if series.tampered is None else (410, GONE)))
    return files


def prepared(engine: Engine, series: Series, allow_gaps: bool) -> Slices:
    """What the viewer shows of a series; made now where the analysis did not leave it.

    Raises what `case_files` raises, HTTPException 503 while another case is being made, and CtguardError where the
    images cannot be read.
    """
    files = case_files(series)
    found = files.slices
    if found is not None:
        return found
    if not _PREPARING.acquire(blocking=False):
        raise HTTPException(503, "Another case is being prepared.", {"Retry-After": "2"})
    try:
        with session_scope(engine, read_only=True) as session:
            paths = session.scalars(select(Instance.path).where(Instance.series_id == series.id)).all()
        if not paths or None in paths:
            raise HTTPException(410, GONE)
        map_ = io.read(files.folder / MAP)
        with TemporaryDirectory(dir=files.folder, prefix=".images-") as links:
            for path in paths:  # the series' folder holds results, too
                os.link(str(path), Path(links) / Path(str(path)).name)
            volume = io.read(links, allow_gaps=allow_gaps)
        return files.slices or prepare(volume, files.whole_verdict(map_.hu, map_.geometry), files.folder)
    finally:
        _PREPARING.release()


def picture(slices: Slices, k: int, window: str) -> Response:
    """Slice k of the scan in a window, or of the map (window "map"), as PNG. Raises HTTPException 404."""
    if window != "map" and window not in WINDOWS_HU:
        raise HTTPException(404)
    try:
        png = map_png(slices, k) if window == "map" else scan_png(slices, k, window)
    except IndexError:
        raise HTTPException(404) from None
    return Response(png, media_type="image/png")


def nifti(slices: Slices, name: Name) -> Response:
    """A whole volume. The browser takes it apart: it is sent as .nii with its compression as Content-Encoding."""
    return FileResponse(slices.file(name), media_type="application/octet-stream", headers={"Content-Encoding": "gzip"})


def viewer_facts(slices: Slices, regions: list[dict[str, Any]]) -> dict[str, Any]:
    """What the template of the viewer needs. regions: as in verdict.json; none for a blinded reader."""
    shown = []
    for number, region in enumerate(regions, start=1):
        thick = slices.geometry.spacing_zyx_mm[0]
        middle, half = region["center_zyx"][0], region["extent_mm"][0] / thick / 2
        x, y, z = region["center_lps_mm"]
        shown.append(
            {
                **region,
                "number": number,
                "mm3": slices.facts["region_mm3"][number - 1],
                "slice": round(middle),
                "first": max(0, round(middle - half)),
                "last": round(middle + half),
                "ras": [-x, -y, z],
                "box": [round(v, 2) for v in slices.box(region)],
            }
        )
    width, height = slices.picture_size
    shape = slices.geometry.shape_zyx
    return {
        "regions": shown,
        "count": shape[0],
        "worst": slices.facts["worst"],
        "width": width,
        "height": height,
        "edges": slices.facts["edges"],
        "plane": slices.facts["plane"],
        "voxels": shape[0] * shape[1] * shape[2],
        "thinned": max(shape) > SMALL,
    }
