"""M3Dsynth's released tables: which sites were forged, by which generators, in which split.

Zingarini et al., ICASSP 2024 (arXiv 2309.07973). The tables carry a non-profit research licence and are not part of
this package: give the folder that holds data.csv, sets.csv, LIDC.csv and centers.csv.

Two things differ from the rest of this package: M3Dsynth counts slices from the head (see `place`), and centers.csv
names only what the authors tested, so joining the tables on it would drop every training and validation row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

from ctguard.cohort.headers import Series
from ctguard.cohort.tables import Row, read_table
from ctguard.core.errors import DataError, GeometryError
from ctguard.core.geometry import FloatTriple, Geometry, IntTriple, as_float_triple, index_to_lps_mm
from ctguard.core.records import Split, Task

Generator = Literal["pix2pix", "cycle", "diffusion"]
GENERATORS: tuple[Generator, ...] = get_args(Generator)
CONTROLS = ("identity", "copy-move", "twin")
"""What `ctguard synth` adds to a data set of this layout; the release has none."""

_TASKS: Mapping[str, Task] = {"inj": "inject", "rem": "remove"}
_SPLITS: Mapping[str, Split] = {"train": "train", "valid": "valid", "test": "test"}
_REAL = "real"


@dataclass(frozen=True)
class SeriesEntry:
    """One pristine series. spacing_zyx_mm as published: z is SliceThickness, not the distance of slices.

    uid_end: the last five digits of SeriesInstanceUID, as The Cancer Imaging Archive names its folders.
    """

    patient: str
    series_number: str
    spacing_zyx_mm: FloatTriple
    folder: str
    uid_end: str


@dataclass(frozen=True)
class Site:
    """One place that was forged. index_from_head_zyx: voxels as published; generators: those that forged it."""

    site_id: str
    task: Task
    patient: str
    series_number: str
    split: Split
    index_from_head_zyx: IntTriple
    generators: tuple[str, ...]


@dataclass(frozen=True)
class PlacedSite:
    """A site on the grid of its series: slices counted from the feet, and patient space."""

    site: Site
    center_zyx: IntTriple
    center_lps_mm: FloatTriple


@dataclass(frozen=True)
class Tables:
    """The four tables, joined without loss.

    test_centers: (site_id, generator or "real") to the centre (z from the head, y, x) of the slab that the authors
        tested, for some test rows only. problems: rows that belong to nothing, left out.
    """

    sites: tuple[Site, ...]
    series: tuple[SeriesEntry, ...]
    splits: Mapping[str, Split]
    test_centers: Mapping[tuple[str, str], FloatTriple]
    problems: tuple[str, ...]

    def of_series(self, series: Series) -> tuple[Site, ...]:
        """The sites of one DICOM series; none where M3Dsynth does not use it."""
        entry = self.entry_of(series)
        return () if entry is None else self.of_entry(entry)

    def of_entry(self, entry: SeriesEntry) -> tuple[Site, ...]:
        """The sites of one row of LIDC.csv."""
        return self._by_series.get(_series_key(entry), ())

    @cached_property
    def _by_series(self) -> dict[tuple[str, str], tuple[Site, ...]]:
        found: dict[tuple[str, str], tuple[Site, ...]] = {}
        for site in self.sites:
            found[_series_key(site)] = (*found.get(_series_key(site), ()), site)
        return found

    def entry_of(self, series: Series) -> SeriesEntry | None:
        """The row of LIDC.csv that names this DICOM series: same PatientID, same end of SeriesInstanceUID."""
        same = (e for e in self.series if e.patient == series.patient and series.series_uid.endswith(e.uid_end))
        return next(same, None)


@dataclass(frozen=True)
class Counts:
    """What the tables hold. by_generator: (generator or "real", task, split) to the number of scans."""

    manipulated: int
    sites: int
    patients: int
    series: int
    by_task: Mapping[Task, int]
    by_generator: Mapping[tuple[str, Task, Split], int]
    patients_by_split: Mapping[Split, int]
    series_by_split: Mapping[Split, int]
    sites_by_generators: Mapping[tuple[str, ...], int]


def read_tables(folder: str | Path) -> Tables:
    """Read data.csv, sets.csv, LIDC.csv and centers.csv.

    Raises DataError naming file, line and column where a table is incomplete, or where the rows of one site
    disagree on its place.
    """
    folder = Path(folder)
    splits: dict[str, Split] = {}
    for row in read_table(folder / "sets.csv", ("orig_id", "set")):
        name, patient = row.text("set"), row.text("orig_id")
        if name not in _SPLITS:
            raise row.error("set", f"holds {name!r}, not train, valid or test")
        if splits.setdefault(patient, _SPLITS[name]) != _SPLITS[name]:
            raise row.error("set", f"puts patient {patient} into a second split")
    series = tuple(_entry(row) for row in read_table(folder / "LIDC.csv", _LIDC_COLUMNS))
    sites = _sites(folder / "data.csv", splits, {_series_key(entry) for entry in series})
    centers, strangers = _test_centers(folder / "centers.csv", {site.site_id for site in sites})
    problems = tuple(
        f"{folder / 'centers.csv'}: {n} rows of {name}, which data.csv does not have, left out"
        for name, n in sorted(strangers.items())
    )
    return Tables(tuple(sites), series, splits, centers, problems)


_LIDC_COLUMNS = ("orig_id", "sdir_id", "spacing_z", "spacing_y", "spacing_x", "dicom")
_DATA_COLUMNS = ("img_id", "ty", "mod", "orig_id", "sdir_id", "coord_z", "coord_y", "coord_x")
_CENTER_COLUMNS = ("img_id", "mod", "center_test_z", "center_test_y", "center_test_x")


def _entry(row: Row) -> SeriesEntry:
    folder = row.text("dicom")
    spacing = (row.number("spacing_z"), row.number("spacing_y"), row.number("spacing_x"))
    return SeriesEntry(row.text("orig_id"), row.text("sdir_id"), spacing, folder, folder.rpartition("-")[2])


def _series_key(item: Site | SeriesEntry) -> tuple[str, str]:
    return item.patient, item.series_number


def _sites(path: Path, splits: Mapping[str, Split], known: set[tuple[str, str]]) -> list[Site]:
    """One Site per img_id, in the table's order; its rows must agree on everything but the generator."""
    made: dict[str, Site] = {}
    generators: dict[str, set[str]] = {}
    for row in read_table(path, _DATA_COLUMNS):
        name, task, patient = row.text("img_id"), row.text("ty"), row.text("orig_id")
        if task not in _TASKS:
            raise row.error("ty", f"holds {task!r}, not inj or rem")
        if row.text("mod") not in (*GENERATORS, *CONTROLS, _REAL):
            raise row.error("mod", f"names the unknown generator {row.text('mod')!r}")
        if patient not in splits:
            raise row.error("orig_id", f"names {patient}, which sets.csv does not have")
        index = (row.integer("coord_z"), row.integer("coord_y"), row.integer("coord_x"))
        site = Site(name, _TASKS[task], patient, row.text("sdir_id"), splits[patient], index, ())
        if _series_key(site) not in known:
            raise row.error("sdir_id", f"names series {site.series_number} of {patient}, which LIDC.csv does not have")
        if made.setdefault(name, site) != site:
            raise row.error("img_id", f"gives {name} another place than a row before")
        if row.text("mod") in generators.setdefault(name, set()):
            raise row.error("mod", f"names {row.text('mod')} twice for {name}")
        generators[name].add(row.text("mod"))
    return [
        Site(s.site_id, s.task, s.patient, s.series_number, s.split, s.index_from_head_zyx, _ordered(generators[name]))
        for name, s in made.items()
    ]


def _ordered(names: set[str]) -> tuple[str, ...]:
    return tuple(one for one in (*GENERATORS, *CONTROLS) if one in names)


def _test_centers(path: Path, known: set[str]) -> tuple[dict[tuple[str, str], FloatTriple], Counter[str]]:
    centers: dict[tuple[str, str], FloatTriple] = {}
    strangers: Counter[str] = Counter()
    for row in read_table(path, _CENTER_COLUMNS):
        name = row.text("img_id")
        if name in known:
            center = (row.number("center_test_z"), row.number("center_test_y"), row.number("center_test_x"))
            centers[name, row.text("mod")] = center
        else:
            strangers[name] += 1
    return centers, strangers


def count_sites(tables: Tables) -> Counts:
    """The counts that the paper and its tables imply: 8,577 manipulated scans at 3,251 sites of 738 patients."""
    sites = tables.sites
    by_generator: Counter[tuple[str, Task, Split]] = Counter()
    for site in sites:
        for name in (_REAL, *site.generators):
            by_generator[name, site.task, site.split] += 1
    series = {_series_key(site): site.split for site in sites}
    return Counts(
        manipulated=sum(len(site.generators) for site in sites),
        sites=len(sites),
        patients=len({site.patient for site in sites}),
        series=len(series),
        by_task=Counter(site.task for site in sites),
        by_generator=by_generator,
        patients_by_split=Counter({site.patient: site.split for site in sites}.values()),
        series_by_split=Counter(series.values()),
        sites_by_generators=Counter(site.generators for site in sites),
    )


def place(site: Site, geometry: Geometry) -> PlacedSite:
    """A site on the grid of its whole series: z from the feet = N - z.

    The published z counts from 1 at the head, while y and x count from 0. Measured on all 1,016 removal sites against
    the outlines of LIDC's readers: N - 1 - z lies 0.98 slices below the nodules on average, N - z 0.02; in y and x
    the mean is -0.02 pixels. (Half of the sites are a second one at z + 1 or z - 1 of the same nodule.) Slices of a
    released stack are not touched by this: they are found by the label stack beside it.

    geometry: that of the series as io.read gives it; a crop would shift the slices.
    Raises GeometryError where the site lies outside the grid.
    """
    from_head, y, x = site.index_from_head_zyx
    center = (geometry.shape_zyx[0] - from_head, y, x)
    if not geometry.contains(center):
        raise GeometryError(
            f"site {site.site_id} at slice {from_head} from the head, row {y}, column {x} lies outside a grid of "
            f"shape {geometry.shape_zyx}",
            where=f"patient {site.patient}",
            remedy=f"give the whole series {site.series_number}",
        )
    return PlacedSite(site, center, as_float_triple(index_to_lps_mm(geometry, center)))


def place_all(sites: Iterable[Site], series: Series) -> list[PlacedSite]:
    """Sites of one series, placed by its headers alone. Raises GeometryError as `place` does."""
    return [place(site, series.geometry) for site in sites]


def released_scan(root: str | Path, site: Site, generator: str) -> tuple[Path, Path]:
    """Folders of a released scan and its label under the download: TIFF stacks, one file per slice.

    Raises DataError where the generator did not forge the site.
    """
    if generator not in site.generators:
        raise DataError(f"{generator} did not forge {site.site_id}", remedy=f"it has {', '.join(site.generators)}")
    return Path(root) / generator / "scan" / site.site_id, Path(root) / generator / "label" / site.site_id
