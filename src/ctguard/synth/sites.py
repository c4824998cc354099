"""Where to forge a scan: drawn by the rules of M3Dsynth's paper, or replayed from its tables.

The paper injects malignant nodules of more than 10 mm at smaller ones, or in lung near one, and removes malignant
ones (Zingarini et al., ICASSP 2024, section 2). Every generator gets the same sites. A site's seed depends on the
scan and the place alone, so that another generator or another scan in the index changes nobody's forgery.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ctguard.cohort import m3dsynth
from ctguard.core.errors import GeometryError
from ctguard.core.geometry import FloatTriple, Geometry, as_float_triple, as_int_triple, lps_mm_to_index
from ctguard.core.records import Case, Finding, Mode, Task
from ctguard.core.volume import Volume
from ctguard.image.lung import lung_mask
from ctguard.tamper.cube import CUBE_MM
from ctguard.tamper.pipeline import CORE_LIMITS_MM, CORE_MM, make_plan, plan_cube

CODES: dict[Task, str] = {"inject": "inj", "remove": "rem"}
RELEASED_NAMES = {"pix2pix": "pix2pix", "cyclegan": "cycle", "diffusion": "diffusion"}
"""Our names of the three generators, and those of the released tables."""

MALIGNANT = 4.0
NOT_LISTED = "the site tables do not have this series"
_BALL_MM = 6.0
_BALL_SHARE = 0.9
_CUBE_SHARE = 0.2
_SAMPLE = 8000
_PER_SCAN = 1000
_DONORS = 12
_DONOR_MM = 8.0


@dataclass(frozen=True)
class SiteRule:
    """Where to forge. The defaults are the paper's; the rest is for training material.

    injections: per scan; at nodules below small_mm first, then in lung within near_mm of one. near_mm None: anywhere
        in lung instead, and not at nodules.
    min_malignancy: nodules rated that or more are removed, if their diameter lies in removal_mm; None: of any rating.
    plain_sites: in a scan without known nodules, so many injections anywhere in lung, and as many removals of plain
        lung.
    """

    injections: int = 3
    near_mm: float | None = 40.0
    small_mm: float = 10.0
    min_malignancy: float | None = MALIGNANT
    removal_mm: tuple[float, float] = (8.0, CORE_LIMITS_MM[1])
    plain_sites: int = 0


@dataclass(frozen=True)
class Site:
    """One place to forge, by every generator alike.

    center_zyx: in voxels. core_mm None: the mode's own. generators: those that forge here, as the released tables
    name them; None: all. donor_zyx: where copy-move takes its tissue from.
    """

    site_id: str
    task: Task
    center_zyx: FloatTriple
    seed: int
    core_mm: float | None = None
    generators: tuple[str, ...] | None = None
    donor_zyx: FloatTriple | None = None

    def forged_by(self, generator: str) -> bool:
        """Whether this generator forges here; controls forge everywhere."""
        return self.generators is None or RELEASED_NAMES.get(generator) in (*self.generators, None)


@dataclass(frozen=True)
class Skipped:
    """A site, or a scan (site ""), that was left out, and why. generator "": for all of them."""

    scan_id: str
    site: str
    generator: str
    reason: str


Drawn = tuple[list[Site], list[Skipped]]


def draw_sites(
    volume: Volume, case: Case, rule: SiteRule, *, mode: Mode = "clean", seed: int = 0, number: int = 1
) -> Drawn:
    """The sites of one scan, and what had to be left out.

    number: of the case in its index; it begins the site's id. Donors are added by `with_donors`. No site has another
    nodule in its cube, none lies outside lung, and the masked core is inside the scan.
    """
    rng = np.random.default_rng([seed, *case.scan_id.encode()])
    scan = _Scan(volume, case, mode, rng)
    places: list[tuple[Task, FloatTriple, float | None]] = []
    for finding in (one for one in case.findings if _to_remove(one, rule)):
        core = _core_mm(finding, mode)
        if finding.diameter_mm > rule.removal_mm[1]:
            scan.skip("remove", f"a nodule of more than {rule.removal_mm[1]:g} mm is larger than the masked core")
        elif scan.accepts("remove", scan.index(finding), core, finding):
            places.append(("remove", scan.index(finding), core))
    count = rule.injections if case.findings else rule.plain_sites
    at = _injections(scan, rule, count)
    places += [("inject", center, None) for center in at]
    if not case.findings:
        places += [("remove", center, None) for center in scan.in_lung(rule.plain_sites, apart_from=at)]
    if len(at) < count:
        scan.skip("inject", f"{count - len(at)} of {count} injections: no further place by the rules")
    if not places and not scan.skipped:
        scan.skip("", "no nodule in it is known" if not case.findings else "no nodule to remove, and no place")
    sites = [
        Site(f"{CODES[task]}_{_PER_SCAN * number + k}", task, center, site_seed(seed, case, task, center), core)
        for k, (task, center, core) in enumerate(places, start=1)
    ]
    return sites, scan.skipped


def with_donors(sites: Sequence[Site], volume: Volume, case: Case, seed: int) -> list[Site]:
    """The sites with a place for each that copy-move may take its tissue from, where the scan has one."""
    scan = _Scan(volume, case, "clean", np.random.default_rng([seed, 1, *case.scan_id.encode()]))
    return [replace(site, donor_zyx=scan.donor(site)) for site in sites]


def site_seed(seed: int, case: Case, task: Task, center_zyx: FloatTriple) -> int:
    """The seed of a site: a hash of the data set's seed, the scan, the task and the place (to a tenth of a voxel)."""
    place = ",".join(f"{v:.1f}" for v in center_zyx)
    return int.from_bytes(hashlib.sha256(f"{seed}:{case.scan_id}:{task}:{place}".encode()).digest()[:4]) >> 1


def replay_sites(folder: Path, volume: Volume, case: Case, *, mode: Mode = "clean", seed: int = 0) -> Drawn:
    """The sites that the tables in `folder` have for this scan, where they have them; none where they do not know it.

    Nothing is asked of a released place but that its core lies inside the scan.
    """
    tables = tables_of(folder)
    entry = entry_of(tables, case, volume.geometry)
    if entry is None:
        return [], [Skipped(case.scan_id, "", "", NOT_LISTED)]
    sites: list[Site] = []
    skipped: list[Skipped] = []
    for known in tables.of_entry(entry):
        try:
            center = as_float_triple(m3dsynth.place(known, volume.geometry).center_zyx)
            plan_cube(volume.geometry, make_plan(known.task, "", center, mode=mode, core_mm=None, seed=0))
        except GeometryError as error:
            skipped.append(Skipped(case.scan_id, known.site_id, "", error.what))
            continue
        value = site_seed(seed, case, known.task, center)
        sites.append(Site(known.site_id, known.task, center, value, None, tuple(known.generators)))
    return sites, skipped


@lru_cache(maxsize=2)
def tables_of(folder: Path) -> m3dsynth.Tables:
    """The tables in a folder, read once per process."""
    return m3dsynth.read_tables(folder)


def entry_of(tables: m3dsynth.Tables, case: Case, geometry: Geometry | None = None) -> m3dsynth.SeriesEntry | None:
    """The row of LIDC.csv for a case: the same patient, and the end of the same SeriesInstanceUID.

    A volume file whose patient nobody told is found by the end of its UID and its pixel spacing alone.
    """
    uid = case.series_uid.partition("#")[0]
    ends = [entry for entry in tables.series if uid and uid.endswith(entry.uid_end)]
    same = [entry for entry in ends if entry.patient == case.patient]
    if not same and case.patient == case.series_uid and geometry is not None:
        pixel = geometry.spacing_zyx_mm[1:]
        same = [entry for entry in ends if np.allclose(entry.spacing_zyx_mm[1:], pixel, atol=1e-4)]
    return same[0] if len(same) == 1 else None


def _to_remove(finding: Finding, rule: SiteRule) -> bool:
    rated = rule.min_malignancy is None or (finding.malignancy or 0.0) >= rule.min_malignancy
    return rated and finding.diameter_mm >= rule.removal_mm[0]


def _core_mm(finding: Finding, mode: Mode) -> float | None:
    """In clean mode a core that holds the nodule, with a millimetre around it; else the mode's own."""
    if mode != "clean":
        return None
    return float(np.clip(np.ceil(finding.diameter_mm + 2.0), *CORE_LIMITS_MM))


def _injections(scan: _Scan, rule: SiteRule, count: int) -> list[FloatTriple]:
    """Places to inject at: smaller nodules in random order, then lung near them (near any, where none is small)."""
    if rule.near_mm is None or not scan.case.findings:
        return scan.in_lung(count)
    small = [f for f in scan.case.findings if f.diameter_mm < rule.small_mm and (f.malignancy or 0.0) < MALIGNANT]
    order = scan.rng.permutation(len(small))
    chosen = [small[k] for k in order if scan.accepts("inject", scan.index(small[k]), None, small[k])][:count]
    places = [scan.index(finding) for finding in chosen]
    around = [scan.index(finding) for finding in small or scan.case.findings]
    return places + scan.in_lung(count - len(places), around, rule.near_mm, places)


@lru_cache(maxsize=1)
def _lung(volume: Volume) -> NDArray[np.bool_]:
    """It takes seconds, and is asked for when sites are drawn and again for donors."""
    return lung_mask(volume)


class _Scan:
    """One scan while its sites are drawn: its lung, its nodules, and what was left out."""

    def __init__(self, volume: Volume, case: Case, mode: Mode, rng: np.random.Generator) -> None:
        self.volume, self.case, self.mode, self.rng = volume, case, mode, rng
        self.spacing = np.asarray(volume.geometry.spacing_zyx_mm)
        self.skipped: list[Skipped] = []
        self._plain: list[FloatTriple] | None = None

    @property
    def lung(self) -> NDArray[np.bool_]:
        """Of the whole scan."""
        return _lung(self.volume)

    def index(self, finding: Finding) -> FloatTriple:
        """Where a finding lies, in voxels."""
        return as_float_triple(lps_mm_to_index(self.volume.geometry, finding.center_lps_mm))

    def skip(self, what: str, reason: str) -> None:
        """Note what was left out."""
        self.skipped.append(Skipped(self.case.scan_id, what, "", reason))

    def accepts(self, task: Task, center: FloatTriple, core_mm: float | None, own: Finding) -> bool:
        """Whether a known nodule is a site; where not, says why."""
        name = f"{task} at {', '.join(f'{v:.0f}' for v in center)}"
        if not self.fits(center, core_mm):
            self.skip(name, "the core leaves the scan")
        elif not self.alone(center, [f for f in self.case.findings if f is not own]):
            self.skip(name, "another nodule lies in the cube")
        elif self._lung_share(center, CUBE_MM / 2, ball=False) < _CUBE_SHARE:
            self.skip(name, "it lies outside lung")
        else:
            return True
        return False

    def fits(self, center: FloatTriple, core_mm: float | None) -> bool:
        """Whether the masked core lies inside the scan."""
        try:
            plan_cube(self.volume.geometry, make_plan("inject", "", center, mode=self.mode, core_mm=core_mm, seed=0))
        except GeometryError:
            return False
        return True

    def alone(self, center: FloatTriple, others: Iterable[Finding]) -> bool:
        """Whether none of these nodules reaches into the cube at `center`."""
        return all(self.apart_mm(center, self.index(other)) >= CUBE_MM / 2 + other.diameter_mm / 2 for other in others)

    def apart_mm(self, a: FloatTriple, b: FloatTriple) -> float:
        """The largest distance along an axis: cubes of that side at both places do not meet."""
        return float(np.abs(np.subtract(a, b) * self.spacing).max())

    def in_lung(
        self,
        count: int,
        around: Sequence[FloatTriple] = (),
        near_mm: float = 0.0,
        apart_from: Sequence[FloatTriple] = (),
    ) -> list[FloatTriple]:
        """Up to `count` voxels in lung, all equally likely, with lung around them and no nodule in their cube.

        around: within near_mm of one of these places. No two of them, or of apart_from, share their core.
        """
        inside = np.flatnonzero(self.lung) if count else np.empty(0, np.int64)
        chosen: list[FloatTriple] = []
        if len(inside) == 0:
            return chosen
        tried = self.rng.choice(inside, size=min(_SAMPLE, len(inside)), replace=False)
        for index in np.stack(np.unravel_index(tried, self.lung.shape), axis=1):
            if len(chosen) == count:
                break
            place = as_float_triple(index)
            close = not around or min(self._distance_mm(place, one) for one in around) <= near_mm
            free = all(self.apart_mm(place, one) >= CORE_MM[self.mode] for one in (*apart_from, *chosen))
            if not (close and free and self.alone(place, self.case.findings)):
                continue
            if self._lung_share(place, _BALL_MM, ball=True) >= _BALL_SHARE and self.fits(place, None):
                chosen.append(place)
        return chosen

    def donor(self, site: Site) -> FloatTriple | None:
        """Where copy-move takes tissue from: the worst, largest nodule to inject; plain lung to remove.

        Its cube does not meet the site's. None where the scan has no such place.
        """
        if site.task == "inject":
            large = [finding for finding in self.case.findings if finding.diameter_mm >= _DONOR_MM]
            places = [self.index(f) for f in sorted(large, key=lambda f: (-(f.malignancy or 0.0), -f.diameter_mm))]
        else:
            places = self._plain_lung()
        fit = (p for p in places if self.apart_mm(p, site.center_zyx) >= CUBE_MM and self.fits(p, site.core_mm))
        return next(fit, None)

    def _plain_lung(self) -> list[FloatTriple]:
        if self._plain is None:
            self._plain = self.in_lung(_DONORS)
        return self._plain

    def _distance_mm(self, a: FloatTriple, b: FloatTriple) -> float:
        return float(np.linalg.norm(np.subtract(a, b) * self.spacing))

    def _lung_share(self, center: FloatTriple, reach_mm: float, *, ball: bool) -> float:
        """Share of lung in the ball or cube of that radius; what lies beyond the scan does not count."""
        low = np.ceil(np.asarray(center) - reach_mm / self.spacing)
        high = np.floor(np.asarray(center) + reach_mm / self.spacing) + 1
        start, stop = as_int_triple(np.maximum(low, 0)), as_int_triple(np.minimum(high, self.lung.shape))
        part = self.lung[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))]
        if not ball or part.size == 0:
            return float(part.mean()) if part.size else 0.0
        axes = [(np.arange(a, b) - c) * mm for a, b, c, mm in zip(start, stop, center, self.spacing, strict=True)]
        square = axes[0][:, None, None] ** 2 + axes[1][None, :, None] ** 2 + axes[2][None, None, :] ** 2
        return float(part[square <= reach_mm**2].mean())
