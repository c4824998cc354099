"""Case, Edit, Verdict and Table: what flows between the layers besides volumes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ctguard.core.geometry import FloatTriple, Geometry, IntTriple, as_float_triple
from ctguard.core.provenance import Json

Task = Literal["inject", "remove"]
Mode = Literal["clean", "m3dsynth", "ctgan"]
Split = Literal["train", "valid", "test"]


@dataclass(frozen=True)
class Finding:
    """A nodule. malignancy: a mean rating 1..5 of readers, or 1 and 5 for a phantom's benign and malignant."""

    center_lps_mm: FloatTriple
    diameter_mm: float
    malignancy: float | None = None
    source: str = ""


@dataclass(frozen=True)
class Case:
    """One scan of an index. `path` is relative to the index file; `patient` decides the split."""

    scan_id: str
    patient: str
    path: str
    collection: str = ""
    series_uid: str = ""
    split: Split | None = None
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True, eq=False)
class Edit:
    """Ground truth of one manipulation, measured on the int16 voxels.

    box_start_zyx, mask: the changed voxels (holes filled) inside their bounding box, bool (z, y, x).
    strong: the same box, |change| > 0.5 local SD.
    center_zyx: the requested site. outside_cube: changed voxels beyond the nominal 32 mm cube.
    plan: what replays it.
    """

    task: Task
    generator: str
    mode: Mode
    seed: int
    center_zyx: FloatTriple
    box_start_zyx: IntTriple
    mask: NDArray[np.bool_]
    strong: NDArray[np.bool_]
    outside_cube: int
    plan: dict[str, Json]

    def full_mask(self, shape_zyx: IntTriple) -> NDArray[np.bool_]:
        """The mask on the whole grid."""
        full = np.zeros(shape_zyx, dtype=bool)
        full[tuple(slice(a, a + n) for a, n in zip(self.box_start_zyx, self.mask.shape, strict=True))] = self.mask
        return full


@dataclass(frozen=True)
class Region:
    """A connected part of a verdict's map above its threshold."""

    center_zyx: FloatTriple
    center_lps_mm: FloatTriple
    extent_mm: FloatTriple
    score: float

    def to_json(self) -> dict[str, Json]:
        """As `detect --json` prints it."""
        return {
            "center_zyx": list(self.center_zyx),
            "center_lps_mm": list(self.center_lps_mm),
            "extent_mm": list(self.extent_mm),
            "score": self.score,
        }

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Region:
        """What `to_json` made."""
        center, point, extent = (as_float_triple(row[name]) for name in ("center_zyx", "center_lps_mm", "extent_mm"))
        return cls(center, point, extent, row["score"])


@dataclass(frozen=True, eq=False)
class Verdict:
    """What a detector says of a volume. map: float32 (z, y, x) in 0..1 on `geometry`, the volume's own grid."""

    detector: str
    model_id: str
    score: float
    threshold: float
    map: NDArray[np.float32]
    geometry: Geometry
    regions: tuple[Region, ...] = ()

    @classmethod
    def from_json(cls, facts: Mapping[str, Any], map_: NDArray[Any], geometry: Geometry) -> Verdict:
        """A verdict out of verdict.json and its map, (z, y, x) in 0..1 on `geometry`."""
        regions = tuple(Region.from_json(row) for row in facts["regions"])
        head = (facts["detector"], facts["model_id"], facts["score"], facts["threshold"])
        return cls(*head, map_.astype(np.float32), geometry, regions)

    @property
    def tampered(self) -> bool:
        """Score at or above the threshold."""
        return self.score >= self.threshold

    @property
    def says_where(self) -> bool:
        """Whether the detector gave a map: one that does not localise leaves it 0."""
        return bool(self.map.any())

    @property
    def words(self) -> str:
        """The verdict for people; a clean one never says "authentic"."""
        if self.tampered and not self.regions:
            return "evidence of tampering; this detector does not say where"
        if self.tampered:
            return f"evidence of tampering in {len(self.regions)} region{'s' if len(self.regions) != 1 else ''}"
        return "no evidence of tampering found"


@dataclass(frozen=True)
class Table:
    """A benchmark result. rows: one mapping per row; n: what was counted (patients, scans, sites)."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[dict[str, Any], ...]
    n: dict[str, int]
    run_id: str
    checkpoints: dict[str, str] = field(default_factory=dict)
