"""What `verify` answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ctguard.core.geometry import Geometry, as_float_triple, index_to_lps_mm
from ctguard.core.provenance import Json
from ctguard.core.records import Region

SealState = Literal[
    "intact",
    "broken",
    "resampled",
    "missing",
    "wrong-key",
    "never-sealed",
    "geometry-changed",
    "not-checked",
]

WORDS: dict[SealState, str] = {
    "intact": "the seal is intact",
    "broken": "the seal is broken",
    "resampled": "resampled or filtered since it was sealed, which no seal survives",
    "missing": "sealed once, but its pattern is gone",
    "wrong-key": "sealed with another key",
    "never-sealed": "no seal of this key was found",
    "geometry-changed": "sealed once, but not in this place, order or grid",
    "not-checked": "its seal was not checked: no key was given",
}
ALARMS: tuple[SealState, ...] = ("broken", "missing", "geometry-changed")
"""What `verify --fail-if-broken` ends with exit code 3 for."""


@dataclass(frozen=True, eq=False)
class SealVerdict:
    """The state of a seal. map: float32 (z, y, x), 1 where the content was changed, on the received grid; None where
    nothing could be compared. regions: connected parts of it, the largest first. notes: for people, one sentence each.
    gain: share of the pattern that was found, None where it was not looked for. nonce: of the seal that was found.
    """

    state: SealState
    key_id: str | None = None
    map: NDArray[np.float32] | None = None
    geometry: Geometry | None = None
    regions: tuple[Region, ...] = ()
    notes: tuple[str, ...] = ()
    gain: float | None = None
    nonce: str | None = None
    facts: dict[str, Json] = field(default_factory=dict)

    @property
    def words(self) -> str:
        """The verdict for people; an intact seal never says "authentic"."""
        where = f" in {len(self.regions)} region{'s' if len(self.regions) != 1 else ''}" if self.regions else ""
        return "; ".join([WORDS[self.state] + where, *self.notes])

    def to_json(self) -> dict[str, Any]:
        """As `verify --json` prints it."""
        return {
            "seal": self.state,
            "key_id": self.key_id,
            "regions": [region.to_json() for region in self.regions],
            "notes": list(self.notes),
            "gain": None if self.gain is None else round(self.gain, 3),
            **self.facts,
        }


def regions_of(map_: NDArray[np.float32], geometry: Geometry) -> tuple[Region, ...]:
    """Connected parts (26 neighbours) of what is above 0.5, the largest first. score: its volume in cm3."""
    labels, count = ndimage.label(map_ > 0.5, np.ones((3, 3, 3)))
    found = []
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    for number, box in enumerate(ndimage.find_objects(labels), start=1):
        center = as_float_triple([(s.start + s.stop - 1) / 2 for s in box])
        extent = [(s.stop - s.start) * mm for s, mm in zip(box, geometry.spacing_zyx_mm, strict=True)]
        volume = float(sizes[number]) * geometry.voxel_mm3 / 1000
        place = as_float_triple(index_to_lps_mm(geometry, center))
        found.append(Region(center, place, as_float_triple(extent), round(volume, 3)))
    return tuple(sorted(found, key=lambda region: -region.score))
