"""Single slices that somebody else forged: how well maps point at the labelled site (protocols.md "ctgan-slices").

A folder holds labels.csv (type, uuid, slice, x, y; FB a cancer removed, FM one injected) and UUID/SLICE.dcm, as in
"Deepfakes: Medical Image Tamper Detection" (UCI 520). Of the headers, only PixelSpacing and the rescale values are
read, and what decodes the pixels: the rest is a template. Every slice holds a forged site, so there is no slice-level
accuracy.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.errors import InvalidDicomError
from scipy import ndimage

from ctguard.bench.detection import Measuring
from ctguard.bench.judging import Judge
from ctguard.bench.kept import NAN, read_kept, with_nan, without_nan, write_kept
from ctguard.bench.metrics import auc
from ctguard.bench.models import Model, load_detector
from ctguard.bench.resampling import Patients, interval
from ctguard.bench.slice_baselines import BASELINES
from ctguard.core.errors import DataError, ReadError
from ctguard.core.geometry import Geometry
from ctguard.core.provenance import Provenance, Source
from ctguard.core.records import Table
from ctguard.core.volume import Volume
from ctguard.image.lung import lung_mask
from ctguard.io.dicom_pixels import decoded
from ctguard.io.manifest import sha256_file
from ctguard.parallel import map_cases

LABELS = "labels.csv"
TASKS = {"FB": "removals", "FM": "injections"}
COLUMNS = ("type", "uuid", "slice", "x", "y")
NEAR_MM, FAR_MM, HIT_MM, SMOOTH_MM, TILE_MM, SITE_MM = 10.0, 16.0, 16.0, 6.0, 32.0, 5.0
"""Positives within NEAR, negatives beyond FAR, a hit within HIT; SMOOTH: SD of the Gaussian before maxima are taken;
TILE: side; SITE: radius around a label that belongs to the lung mask whatever the mask says."""
GUESS = "uniform guess"
FIGURES = ("auc", "hit@1", "mean rank", "tile auc")

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Label:
    """One forged site: pixel centre (y, x) of a slice of a scan."""

    task: str
    scan: str
    number: str
    site_yx: tuple[float, float]

    def path(self, folder: Path) -> Path:
        """Where its slice lies."""
        return folder / self.scan / f"{self.number}.dcm"


@dataclass(frozen=True)
class SliceScore:
    """How well one map points at one label. auc: pixels; rank and tile_auc: of the site's tile among `tiles`."""

    method: str
    task: str
    scan: str
    number: str
    auc: float = NAN
    hit: float = NAN
    rank: float = NAN
    tile_auc: float = NAN
    tiles: int = 0

    def to_json(self) -> dict[str, Any]:
        """As it is kept between runs; NaN becomes None."""
        return without_nan(vars(self))

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> SliceScore:
        """What `to_json` made."""
        return cls(**with_nan(row))


def is_slices(folder: Path) -> bool:
    """Whether a folder is one of labelled slices."""
    return (folder / LABELS).is_file()


def read_labels(folder: Path) -> list[Label]:
    """The labels, in the order of the file. Raises DataError for missing columns, unknown types and no row at all."""
    path = folder / LABELS
    with path.open(newline="", encoding="utf-8-sig") as stream:
        reader = csv.DictReader(stream)
        missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
        if missing:
            raise DataError(f"column {', '.join(missing)} is missing", where=path, remedy=f"give {','.join(COLUMNS)}")
        rows = list(reader)
    labels = []
    for number, row in enumerate(rows, start=1):
        if row["type"] not in TASKS:
            what = f"row {number} is of type {row['type']!r}"
            raise DataError(what, where=path, remedy="keep the forged ones: FB and FM")
        try:
            site = (float(row["y"]), float(row["x"]))
        except ValueError as error:
            raise DataError(f"row {number} has no pixel centre ({error})", where=path, remedy="give x and y") from error
        labels.append(Label(TASKS[row["type"]], row["uuid"], row["slice"], site))
    if not labels:
        raise DataError("it lists no slice", where=path, remedy="give one row per forged site")
    return labels


def read_slice(path: Path) -> Volume:
    """One slice in HU, from its PixelSpacing, rescale values and voxels alone. The grid is 1 mm deep: none is known.

    Raises ReadError where the file is missing or one of these is.
    """
    try:
        ds = pydicom.dcmread(path)
        y_mm, x_mm = (float(mm) for mm in ds.PixelSpacing)
        slope, intercept = float(ds.RescaleSlope), float(ds.RescaleIntercept)
    except (OSError, InvalidDicomError, AttributeError, TypeError, ValueError) as error:
        raise ReadError(f"no CT slice ({error})", where=path, remedy="check the folder against labels.csv") from error
    stored = next(decoded(ds, str(path), 1)).astype(np.float64)
    hu = np.clip(np.rint(stored * slope + intercept), -32768, 32767).astype(np.int16)[None]
    return Volume(hu, Geometry(hu.shape, (1.0, y_mm, x_mm)), Provenance(Source("dicom")))


@dataclass(frozen=True, eq=False)
class Ground:
    """One slice and what counts in it, the same for all methods. lung: with the labelled sites; (y, x)."""

    volume: Volume
    lung: Mask
    distance_mm: NDArray[np.float64]
    label: Label
    others: Mask

    @property
    def near(self) -> Mask:
        """Positives: lung within 10 mm of the label."""
        return self.lung & (self.distance_mm <= NEAR_MM)

    @property
    def far(self) -> Mask:
        """Negatives: lung farther than 16 mm from any label."""
        return self.lung & (self.distance_mm > FAR_MM) & ~self.others


def ground_of(label: Label, labels: Sequence[Label], folder: Path) -> Ground:
    """Read a label's slice and find its lung once."""
    volume = read_slice(label.path(folder))
    shape, spacing = volume.hu.shape[1:], volume.geometry.spacing_zyx_mm[1:]
    same = [one for one in labels if (one.scan, one.number) == (label.scan, label.number)]
    distances = {one: _distance_mm(shape, one.site_yx, spacing) for one in same}
    lung = lung_mask(volume)[0]
    others = np.zeros(shape, dtype=bool)
    for one, distance in distances.items():
        lung = lung | (distance <= SITE_MM)
        if one is not label:
            others |= distance <= FAR_MM
    return Ground(volume, lung, distances[label], label, others)


def _distance_mm(shape: Sequence[int], at_yx: tuple[float, float], spacing: Sequence[float]) -> NDArray[np.float64]:
    y, x = ((np.arange(n) - c) * mm for n, c, mm in zip(shape, at_yx, spacing, strict=True))
    distance: NDArray[np.float64] = np.hypot(y[:, None], x[None, :])
    return distance


def score_map(map_: NDArray[np.float32], ground: Ground, method: str) -> SliceScore:
    """How well a map (y, x) points at the label. Ties count one half; of several maxima the first in row order hits."""
    label, lung = ground.label, ground.lung
    smooth = _smoothed(map_.astype(np.float64), ground)
    peak = np.unravel_index(int(np.argmax(np.where(lung, smooth, -np.inf))), lung.shape)
    tiles = [smooth[tile & lung].max() for tile in tiles_of(ground)]
    site, rest = tiles[0], np.array(tiles[1:])
    above, level = int((rest > site).sum()), int((rest == site).sum())
    return SliceScore(
        method,
        label.task,
        label.scan,
        label.number,
        auc=auc(map_[ground.near], map_[ground.far]),
        hit=float(ground.distance_mm[peak] <= HIT_MM),
        rank=1 + above + level / 2,
        tile_auc=(len(rest) - above - level / 2) / len(rest) if len(rest) else NAN,
        tiles=len(tiles),
    )


def _smoothed(map_: NDArray[np.float64], ground: Ground) -> NDArray[np.float64]:
    """A Gaussian of 6 mm SD over the lung alone, so that its rim is not drawn down."""
    sigma = [SMOOTH_MM / mm for mm in ground.volume.geometry.spacing_zyx_mm[1:]]
    weight = ndimage.gaussian_filter(ground.lung.astype(np.float64), sigma, mode="constant")
    total = ndimage.gaussian_filter(np.where(ground.lung, map_, 0.0), sigma, mode="constant")
    smooth = np.zeros(map_.shape)
    np.divide(total, weight, out=smooth, where=weight > 1e-6)
    return smooth


def tiles_of(ground: Ground) -> list[Mask]:
    """32 mm tiles of the slice that are lung to a half, (y, x): the one around the label first, whatever it holds.

    The grid hangs on the label. Tiles that meet another label are left out.
    """
    shape, spacing = ground.lung.shape, ground.volume.geometry.spacing_zyx_mm[1:]
    rows, columns = (
        np.floor((np.arange(n) - c) * mm / TILE_MM + 0.5).astype(int)
        for n, c, mm in zip(shape, ground.label.site_yx, spacing, strict=True)
    )
    full = TILE_MM**2 / float(np.prod(spacing))
    tiles: list[Mask] = []
    for row in np.unique(rows):
        for column in np.unique(columns):
            tile = (rows == row)[:, None] & (columns == column)[None, :]
            own = row == 0 and column == 0
            if own:
                tiles.insert(0, tile)
            elif (tile & ground.lung).sum() >= full / 2 and not (tile & ground.others).any():
                tiles.append(tile)
    return tiles


def score_slices(folder: Path, models: Sequence[Model], how: Measuring) -> list[SliceScore]:
    """Rows of every label, for the baselines, a uniform guess and every trained detector that says where."""
    labels = read_labels(folder)
    trained = [model for model in models if model.card is not None]
    how.work.mkdir(parents=True, exist_ok=True)
    measure = partial(_score_label, labels=labels, folder=folder, models=trained, how=how)
    results = map_cases(measure, labels, jobs=how.jobs, label="slices", quiet=how.quiet)
    return [row for result in results for row in result.unwrap()]


def _score_label(
    label: Label, labels: Sequence[Label], folder: Path, models: Sequence[Model], how: Measuring
) -> list[SliceScore]:
    y, x = label.site_yx
    kept = how.work / f"{label.scan}_{label.number}_{y:g}_{x:g}.json"
    head = f"{label} {sha256_file(label.path(folder))} {[(model.name, model.sha256) for model in models]}"
    key = hashlib.sha256(head.encode()).hexdigest()
    stored = read_kept(kept, key)
    if stored is not None:
        return [SliceScore.from_json(row) for row in stored]
    ground = ground_of(label, labels, folder)
    hu, spacing = ground.volume.hu[0].astype(np.float32), ground.volume.geometry.spacing_zyx_mm[1:]
    rows = [_guess(ground)]
    rows += [score_map(made(hu, ground.lung, spacing), ground, name) for name, made in BASELINES.items()]
    for model in models:
        if model.weights is None:
            continue
        judge = Judge(load_detector(model.detector, model.weights), device=how.device)
        if judge.detector.localises:
            rows.append(score_map(judge.slab(ground.volume, slice(0, 1))[1][0], ground, model.label))
    write_kept(kept, key, [row.to_json() for row in rows])
    return rows


def _guess(ground: Ground) -> SliceScore:
    """What pointing anywhere in the lung would give, on average."""
    label, tiles = ground.label, len(tiles_of(ground))
    hit = float((ground.lung & (ground.distance_mm <= HIT_MM)).sum() / ground.lung.sum())
    return SliceScore(GUESS, label.task, label.scan, label.number, 0.5, hit, (tiles + 1) / 2, 0.5, tiles)


def slices_table(models: Sequence[Model], rows: Sequence[SliceScore], run_id: str) -> Table:
    """A row per method and task: pixel AUC, hit@1, mean rank among lung tiles, tile AUC; intervals by scan."""
    scans = Patients(row.scan for row in rows)
    methods = list(dict.fromkeys(row.method for row in rows))
    out: list[dict[str, Any]] = []
    for task in TASKS.values():
        for method in methods:
            chosen = [row for row in rows if (row.method, row.task) == (method, task)]
            if not chosen:
                continue
            names = [row.scan for row in chosen]
            values = ("auc", "hit", "rank", "tile_auc")
            figures = [interval(scans.mean(names, [getattr(row, value) for row in chosen])) for value in values]
            cells = dict(zip(FIGURES, figures, strict=True))
            tiles = f"{np.mean([row.tiles for row in chosen]):.1f}"
            out.append({"method": method, "forgery": task, "n": len(chosen), **cells, "tiles": tiles})
    for model in models:
        if model.label not in methods:
            words = "not trained" if model.card is None else "does not say where"
            out.append({"method": model.label, "forgery": words})
    n = {"scans": len({row.scan for row in rows}), "slices": len({(row.scan, row.number) for row in rows})}
    n["sites"] = sum(row.method == GUESS for row in rows)
    hashes = {model.name: model.sha256 for model in models if model.card is not None}
    columns = ("method", "forgery", "n", *FIGURES, "tiles")
    return Table("Forged slices of others: where", columns, tuple(out), n, run_id, hashes)
