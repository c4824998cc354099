"""One sealed scan without its header, places in its lungs, and what `verify` says of changed copies of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ctguard.core.errors import RecipeError
from ctguard.core.geometry import FloatTriple, Geometry, as_float_triple
from ctguard.core.provenance import Provenance, Source
from ctguard.core.volume import Volume
from ctguard.image.lung import lung_mask
from ctguard.protect.align import Placement
from ctguard.protect.compare import pattern_evidence, tiles_to_voxels
from ctguard.protect.evidence import Evidence, missing_tiles
from ctguard.protect.keys import SealKey
from ctguard.protect.record import Seal
from ctguard.protect.seal import SealSettings, seal_volume
from ctguard.protect.verdict import SealVerdict, regions_of
from ctguard.protect.verify import verify_volume

Judge = Literal["with the ledger", "key alone"]
JUDGES: tuple[Judge, ...] = ("with the ledger", "key alone")
"""Digest and pattern, by what the ledger keeps; and the pattern alone, for files that lost their header."""
Box = tuple[slice, slice, slice]
Voxels = NDArray[Any]
GAP_MM = 16.0
"""Between sites, and around them where false regions are looked for: half of the pattern's largest window."""
_IN_LUNG = 0.7
_STARTS = 20_000


def numbered_key(number: int) -> SealKey:
    """A key that the same number gives again; for measurements alone."""
    return SealKey(np.random.default_rng(number).bytes(32))


def bare(hu: Voxels, geometry: Geometry) -> Volume:
    """Voxels without marks, UIDs or header."""
    return Volume(np.ascontiguousarray(hu), geometry, Provenance(Source("mha")))


@dataclass(frozen=True)
class Found:
    """Of `sites` changed places how many the map marks, connected regions away from all of them, and the state."""

    sites: int
    found: int
    outside: int
    state: str


@dataclass(frozen=True, eq=False)
class SealScene:
    """A scan, the same scan sealed, its seal, and the lungs in it. Both scans are bare."""

    original: Volume
    sealed: Volume
    seal: Seal
    key: SealKey
    lung: NDArray[np.bool_]
    seed: int

    @property
    def spacing_zyx_mm(self) -> FloatTriple:
        """Voxel spacing of both scans, mm (z, y, x)."""
        return self.original.geometry.spacing_zyx_mm

    def boxes(self, size_mm: float, count: int) -> list[Box]:
        """Up to `count` cubes that lie in the lungs for the most part, GAP_MM apart, the same for the same seed."""
        shape = self.original.hu.shape
        side = [min(n, max(1, round(size_mm / mm))) for n, mm in zip(shape, self.spacing_zyx_mm, strict=True)]
        gap = [round(GAP_MM / mm) for mm in self.spacing_zyx_mm]
        free, found = np.ones(shape, dtype=bool), list[Box]()
        starts = np.argwhere(self.lung)
        rng = np.random.default_rng([self.seed, round(size_mm)])
        for center in rng.permutation(starts[:: max(1, len(starts) // _STARTS)]):
            start = [int(np.clip(c - n // 2, 0, m - n)) for c, n, m in zip(center, side, shape, strict=True)]
            z, y, x = (slice(a, a + n) for a, n in zip(start, side, strict=True))
            if free[z, y, x].all() and self.lung[z, y, x].mean() > _IN_LUNG:
                found.append((z, y, x))
                free[tuple(slice(max(0, a - g), a + n + g) for a, n, g in zip(start, side, gap, strict=True))] = False
            if len(found) == count:
                break
        return found

    def center_zyx(self, box: Box) -> FloatTriple:
        """The middle of a box, in voxels."""
        return as_float_triple([(s.start + s.stop - 1) / 2 for s in box])

    def verdict(self, volume: Volume, judge: Judge) -> SealVerdict:
        """What `verify` says of a scan without header."""
        return verify_volume(volume, self.key, None, [self.seal] if judge == JUDGES[0] else [])

    def found(self, hu: Voxels, boxes: Sequence[Box], judge: Judge) -> Found:
        """`verify` on changed voxels of the sealed scan."""
        verdict = self.verdict(bare(hu, self.sealed.geometry), judge)
        map_ = np.zeros(hu.shape, np.float32) if verdict.map is None else verdict.map
        return self.counted(map_, boxes, verdict.state)

    def counted(self, map_: NDArray[np.float32], boxes: Sequence[Box], state: str = "") -> Found:
        """A map against the places that were changed."""
        gap = [round(GAP_MM / mm) for mm in self.spacing_zyx_mm]
        outside = map_.copy()
        for box in boxes:
            outside[tuple(slice(max(0, s.start - g), s.stop + g) for s, g in zip(box, gap, strict=True))] = 0
        found = sum(bool((map_[box] > 0.5).any()) for box in boxes)
        return Found(len(boxes), found, len(regions_of(outside, self.sealed.geometry)), state)

    def evidence(self, hu: Voxels) -> tuple[Evidence, NDArray[np.float32]]:
        """The pattern where it was sealed, without the digest, and the map of where it is missing.

        Raises RecipeError for a seal without a pattern.
        """
        volume = bare(hu, self.sealed.geometry)
        here = Placement((False, False), (0, 0), tuple(range(len(hu))), 0.0)
        evidence = pattern_evidence(volume, here, self.seal, self.key, lossy=False)
        if evidence is None:
            raise RecipeError("the digest alone has no pattern to look for", remedy="seal with at least 1 HU")
        tile = self.seal.header.tiling.tile_yx
        _, y_mm, x_mm = self.spacing_zyx_mm
        absent = missing_tiles(evidence, self.spacing_zyx_mm, (tile[0] * y_mm, tile[1] * x_mm))
        return evidence, tiles_to_voxels(absent, volume, here, tile)

    def resealed(self, number: int, part: slice) -> SealScene:
        """Some slices of the original, sealed with another key."""
        hu = np.ascontiguousarray(self.original.hu[part])
        z, y, x = hu.shape
        geometry = self.original.geometry.crop((part.start, 0, 0), (z, y, x))
        key = numbered_key(number)
        sealed, seal, _ = seal_volume(bare(hu, geometry), key)
        made = replace(self, original=bare(hu, geometry), sealed=bare(sealed.hu, geometry), seal=seal, key=key)
        return replace(made, lung=self.lung[part])


def set_seal_scene(volume: Volume, settings: SealSettings | None = None, seed: int = 0) -> SealScene:
    """Seal a volume with a key drawn from the seed. Raises as `seal_volume` and `lung_mask` do."""
    original, key = bare(volume.hu, volume.geometry), numbered_key(seed)
    sealed, seal, _ = seal_volume(original, key, settings)
    return SealScene(original, bare(sealed.hu, volume.geometry), seal, key, lung_mask(original), seed)
