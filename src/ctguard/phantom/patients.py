"""Synthetic chest CT patients: draw a patient, draw an acquisition, render it. No download, every call repeatable.

patient = draw_patient(7)
acquisition = draw_acquisition(patient, "bench", 7)
volume = render(patient, acquisition)
twin = render(patient, acquisition, nodules=False)      # same noise, no nodule
again = render(patient, replace(acquisition, kernel="sharp", dose_mas=40.0))
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from ctguard import io
from ctguard.core.errors import GeometryError, RecipeError, WriteError
from ctguard.core.geometry import FloatTriple, Geometry, IntTriple, index_to_lps_mm, lps_mm_to_index
from ctguard.core.marks import Mark
from ctguard.core.provenance import Json, Provenance, Source, Step
from ctguard.core.records import Case, Finding, Split
from ctguard.core.volume import Volume
from ctguard.io.cases import write_cases
from ctguard.parallel import map_cases
from ctguard.phantom.anatomy import Anatomy, draw_anatomy, lungs
from ctguard.phantom.nodules import Nodule, draw_nodule
from ctguard.phantom.physics import KERNELS, Kernel
from ctguard.phantom.render import Scan, image

_STYLES = (0, 1)
COLLECTION = "ctguard-phantom"
FORMATS = ("mha", "nii.gz", "nrrd", "dicom")
_TRAIN, _VALID, _WHOLE = 160, 460, 760


@dataclass(frozen=True)
class Size:
    """A volume's grid. whole: the field of view covers both lungs; otherwise it is centred near a nodule."""

    shape_zyx: IntTriple
    spacing_zyx_mm: FloatTriple
    whole: bool


SIZES: dict[str, Size] = {
    "small": Size((32, 96, 96), (1.25, 0.7, 0.7), whole=False),
    "bench": Size((64, 256, 256), (1.25, 0.7, 0.7), whole=False),
    "full": Size((128, 512, 512), (2.0, 0.72, 0.72), whole=True),
}


@dataclass(frozen=True)
class Patient:
    """One synthetic patient; everything follows from seed and style."""

    seed: int
    style: int
    anatomy: Anatomy
    nodules: tuple[Nodule, ...]

    @property
    def name(self) -> str:
        """As it stands in a case table."""
        return f"phantom-{self.seed:06d}" if self.style == 0 else f"phantom-s{self.style}-{self.seed:06d}"

    def to_json(self) -> dict[str, Json]:
        """Seed, style and nodules as plain JSON; `draw_patient(seed, style)` makes the rest."""
        return {"seed": self.seed, "style": self.style, "nodules": [nodule.to_json() for nodule in self.nodules]}


@dataclass(frozen=True)
class Acquisition:
    """How a patient is scanned. dose_mas: effective tube load at 120 kV; `dataclasses.replace` gives another one."""

    size: str
    geometry: Geometry
    dose_mas: float
    kernel: Kernel
    slice_thickness_mm: float
    seed: int
    metal: bool = False

    def __post_init__(self) -> None:
        if self.kernel not in KERNELS:
            raise RecipeError(f"there is no kernel {self.kernel!r}", remedy=f"give one of {', '.join(KERNELS)}")
        if not (self.dose_mas > 0 and self.slice_thickness_mm > 0):
            raise RecipeError(
                f"dose {self.dose_mas} mAs and slice thickness {self.slice_thickness_mm} mm must be positive"
            )

    def to_json(self) -> dict[str, Json]:
        """As plain JSON."""
        row = asdict(self)
        row["geometry"] = {k: _plain(v) for k, v in row["geometry"].items()}
        return row

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Acquisition:
        """What `to_json` made, and a phantom's provenance records."""
        return cls(**{**row, "geometry": Geometry.from_json(row["geometry"])})


def _plain(value: object) -> Json:
    return [_plain(v) for v in value] if isinstance(value, tuple) else value  # type: ignore[return-value]


def draw_patient(seed: int, style: int = 0) -> Patient:
    """A patient at random: anatomy and one to three nodules; about half have a malignant one of 10 mm or more.

    style: 0, or 1 for other distributions of shape, texture and vessels (for a scorer that must not share its
        training material with a generator). Raises RecipeError for another style.
    """
    if style not in _STYLES:
        raise RecipeError(f"there is no phantom style {style}", remedy="give 0 or 1")
    rng = np.random.default_rng([seed, style, 101])
    anatomy = draw_anatomy(rng, style)
    nodules: tuple[Nodule, ...] = ()
    count = int(rng.choice([1, 2, 3], p=[0.4, 0.38, 0.22]))
    for k in range(count):
        malignant = bool(rng.random() < (0.62 if k == 0 else 0.22))
        nodules = (*nodules, draw_nodule(anatomy, rng, malignant, nodules))
    return Patient(seed, style, anatomy, nodules)


def draw_acquisition(patient: Patient, size: str, seed: int, slice_mm: float | None = None) -> Acquisition:
    """An acquisition at random; its field of view holds at least one nodule, with 20 mm around it where it can.

    slice_mm: spacing and thickness of slices instead of the size's spacing and a drawn thickness; their number changes,
        the field of view stays. Raises RecipeError for an unknown size, or slices too thick to make a volume of.
    """
    if size not in SIZES:
        raise RecipeError(f"there is no phantom size {size!r}", remedy=f"give one of {', '.join(SIZES)}")
    rng = np.random.default_rng([patient.seed, patient.style, seed, 211])
    chosen = SIZES[size]
    kernel = KERNELS[int(rng.choice(3, p=[0.25, 0.5, 0.25]))]
    dose = float(np.exp(rng.uniform(np.log(40), np.log(240))))
    thickness = chosen.spacing_zyx_mm[0] * float(rng.choice([1.0, 1.25, 1.6, 2.0]))
    origin = _origin(patient, chosen, rng)
    shape, spacing = chosen.shape_zyx, chosen.spacing_zyx_mm
    if slice_mm is not None:
        count = round(shape[0] * spacing[0] / slice_mm) if slice_mm > 0 else 0
        if count < 4:
            raise RecipeError(f"slices of {slice_mm} mm make no volume of this size", remedy="give thinner ones")
        shape, spacing, thickness = (count, *shape[1:]), (slice_mm, *spacing[1:]), slice_mm
    geometry = Geometry(shape, spacing, origin)
    return Acquisition(size, geometry, round(dose, 1), kernel, thickness, int(rng.integers(2**31)))


def _origin(patient: Patient, size: Size, rng: np.random.Generator) -> FloatTriple:
    extent = np.array([(n - 1) * s for n, s in zip(size.shape_zyx, size.spacing_zyx_mm, strict=True)])[::-1]
    a = patient.anatomy
    if size.whole:
        center = np.array([0.0, 6.0, a.apex_z + 12.0 - extent[2] / 2])
    else:
        nodule = max(patient.nodules, key=lambda one: one.diameter_mm)
        at = np.asarray(nodule.center_lps_mm)
        free = np.maximum(extent / 2 - 20.0, 0.0)
        middle = np.array([np.sign(at[0]) * 0.53 * a.half_width, 6.0, at[2]])
        pull = middle + rng.uniform(-1, 1, 3) * np.array([6.0, 6.0, 0.8 * free[2]])
        center = np.clip(pull, at - free, at + free)
    x, y, z = (round(float(v), 1) for v in center - extent / 2)
    return x, y, z


def _chosen(patient: Patient, nodules: bool | tuple[int, ...]) -> tuple[Nodule, ...]:
    if isinstance(nodules, bool):
        return patient.nodules if nodules else ()
    return tuple(patient.nodules[k] for k in nodules)


def render(
    patient: Patient, acquisition: Acquisition, *, nodules: bool | tuple[int, ...] = True, noise: bool = True
) -> Volume:
    """The CT volume, int16 HU in [-1024, 3071], marked as a phantom.

    nodules: all, none, or the indices of those to render; noise does not depend on it, so that two calls make twins.
    """
    scan = _scan(acquisition, acquisition.geometry, acquisition.seed)
    hu = image(patient.anatomy, _chosen(patient, nodules), scan, noise)
    params: dict[str, Json] = {
        "patient": patient.seed,
        "style": patient.style,
        "acquisition": acquisition.to_json(),
        "nodules": nodules if isinstance(nodules, bool) else list(nodules),
        "noise": noise,
    }
    return _volume(patient, acquisition, hu, acquisition.geometry, params)


def render_block(
    patient: Patient,
    acquisition: Acquisition,
    center_lps_mm: FloatTriple,
    shape_zyx: IntTriple,
    spacing_zyx_mm: FloatTriple,
    *,
    nodules: bool | tuple[int, ...] = True,
    noise_seed: int | None = None,
) -> Volume:
    """A block around a point, with the dose, kernel and thickness of `acquisition`.

    Its noise is a realisation of its own, of the right variance and spectrum; `noise_seed` draws another one.
    """
    offset = [(n - 1) / 2 * s for n, s in zip(shape_zyx, spacing_zyx_mm, strict=True)]
    x, y, z = (float(c - o) for c, o in zip(center_lps_mm, offset[::-1], strict=True))
    geometry = Geometry(shape_zyx, spacing_zyx_mm, (x, y, z))
    seed = acquisition.seed if noise_seed is None else noise_seed
    with threadpool_limits(1, user_api="blas"):  # products this small lose more by being shared than they gain
        hu = image(patient.anatomy, _chosen(patient, nodules), _scan(acquisition, geometry, seed), True)
    taken = replace(acquisition, geometry=geometry, seed=seed)
    params: dict[str, Json] = {
        "patient": patient.seed,
        "style": patient.style,
        "acquisition": taken.to_json(),
        "nodules": nodules if isinstance(nodules, bool) else list(nodules),
        "noise": True,
    }
    return _volume(patient, acquisition, hu, geometry, params)


def _scan(acquisition: Acquisition, geometry: Geometry, seed: int) -> Scan:
    return Scan(
        geometry, acquisition.dose_mas, acquisition.kernel, acquisition.slice_thickness_mm, seed, acquisition.metal
    )


def _volume(
    patient: Patient, acquisition: Acquisition, hu: np.ndarray, geometry: Geometry, params: dict[str, Json]
) -> Volume:
    voxels = np.clip(np.rint(hu), -1024, 3071).astype(np.int16)
    source = Source("phantom", patient_id=patient.name, kernel=acquisition.kernel, deidentified=True)
    mark = Mark("phantom", f"synthetic chest CT, patient seed {patient.seed}, style {patient.style}; no person")
    return Volume(voxels, geometry, Provenance(source).then(Step("phantom", params), mark))


def findings(patient: Patient, geometry: Geometry) -> tuple[Finding, ...]:
    """The nodules whose centres lie on a grid; malignancy 1 benign, 5 malignant."""
    return tuple(
        Finding(one.center_lps_mm, one.diameter_mm, 5.0 if one.malignant else 1.0, "phantom")
        for one in patient.nodules
        if geometry.contains(lps_mm_to_index(geometry, one.center_lps_mm))
    )


def draw_lung_site(
    patient: Patient,
    acquisition: Acquisition,
    rng: np.random.Generator,
    margin_mm: float = 10.0,
    *,
    clear_mm: float = 32.0,
) -> FloatTriple:
    """A random place (LPS mm) in healthy lung, `margin_mm` inside the pleura and from the edge of the grid.

    clear_mm: side of the cube around it that holds no nodule; 0 asks for none.
    Raises GeometryError where the field of view holds no such place.
    """
    geometry = acquisition.geometry
    index = rng.uniform(0, 1, (4000, 3)) * (np.asarray(geometry.shape_zyx) - 1)
    points = index_to_lps_mm(geometry, index)
    edge = np.minimum(index, np.asarray(geometry.shape_zyx) - 1 - index) * np.asarray(geometry.spacing_zyx_mm)
    good = (lungs(patient.anatomy, points[:, 0], points[:, 1], points[:, 2]) < -margin_mm) & (edge.min(1) >= margin_mm)
    for one in patient.nodules if clear_mm > 0 else ():
        reach = clear_mm / 2 + 0.8 * one.diameter_mm
        good &= np.abs(points - np.asarray(one.center_lps_mm)).max(1) > reach
    if not good.any():
        raise GeometryError("the field of view holds no healthy lung", remedy="take a smaller margin or a larger size")
    x, y, z = (float(v) for v in points[np.flatnonzero(good)[0]])
    return x, y, z


def split_of(order: int, patients: int) -> Split:
    """Split of the patient at `order` (0-based) among `patients`: 160 train, 300 valid and 300 test in every 760."""
    place = order * _WHOLE / patients
    if place < _TRAIN:
        return "train"
    return "valid" if place < _VALID else "test"


@dataclass(frozen=True)
class CohortPlan:
    """How the scans of a cohort are made. format: one of FORMATS; style and slice_mm: see the functions that draw.

    Raises RecipeError for a size or format that does not exist.
    """

    size: str = "bench"
    style: int = 0
    format: str = "mha"
    slice_mm: float | None = None

    def __post_init__(self) -> None:
        if self.size not in SIZES:
            raise RecipeError(f"there is no phantom size {self.size!r}", remedy=f"give one of {', '.join(SIZES)}")
        if self.format not in FORMATS:
            raise RecipeError(f"there is no cohort format {self.format!r}", remedy=f"give one of {', '.join(FORMATS)}")


def write_cohort(
    out: Path, patients: int, plan: CohortPlan, *, first_seed: int = 0, jobs: int = 1, split: Split | None = None
) -> Path:
    """Render patients of seeds first_seed, first_seed + 1, … into `out` and write index.csv; return its path.

    Scans that are already there are kept, so that a killed run goes on where it stopped; the same seed gives the
    same bytes. Findings have malignancy 1 (benign) or 5. split: of all patients, instead of `split_of`.

    Raises RecipeError for wrong arguments and WriteError where `out` holds a cohort made with others.
    """
    if patients < 1:
        raise RecipeError(f"a cohort of {patients} patients", remedy="give 1 or more")
    out = Path(out)
    _claim(out, plan, first_seed)
    seeds = range(first_seed, first_seed + patients)
    cases = []
    for order, result in enumerate(
        map_cases(partial(_make_case, out=out, plan=plan), seeds, jobs=jobs, label="phantom")
    ):
        case = result.unwrap()
        cases.append(Case(**{**vars(case), "split": split or split_of(order, patients)}))
    write_cases(cases, out / "index.csv")
    return out / "index.csv"


def _claim(out: Path, plan: CohortPlan, first_seed: int) -> None:
    """Write down how the cohort in `out` is made; refuse a folder that holds another one."""
    record = out / "phantom.json"
    settings: dict[str, Json] = {
        "size": plan.size,
        "style": plan.style,
        "format": plan.format,
        "first_seed": first_seed,
    }
    if plan.slice_mm is not None:
        settings["slice_mm"] = plan.slice_mm
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not record.exists():
            record.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
        found = record.read_text(encoding="utf-8")
    except OSError as error:
        raise WriteError(f"cannot be written ({error.strerror})", where=out, remedy="check its permissions") from error
    if found != json.dumps(settings, indent=1) + "\n":
        raise WriteError("it holds a cohort made with other settings", where=record, remedy="give another folder")


def _make_case(seed: int, out: Path, plan: CohortPlan) -> Case:
    patient = draw_patient(seed, plan.style)
    acquisition = draw_acquisition(patient, plan.size, seed, plan.slice_mm)
    name = patient.name if plan.format == "dicom" else f"{patient.name}.{plan.format}"
    if not (out / name).exists():
        io.write(render(patient, acquisition), out / name)
    return Case(patient.name, patient.name, name, COLLECTION, findings=findings(patient, acquisition.geometry))
