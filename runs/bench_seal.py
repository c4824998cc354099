"""How well the seal does: misses, false regions, the smallest region of the pattern, informed forgers, seconds.

    python runs/bench_seal.py SCAN [SCAN ...] --out DIR [--slices N] [--sites N] [--keys N]

SCAN: whatever ctguard reads. --slices: the middle N slices only (0: all). For each scan seal.json and seal.md are
written into DIR. `digest` judges with the ledger, `pattern` by the pattern alone at a known place.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from openjpeg.utils import decode, encode_array
from scipy import ndimage

from ctguard import io
from ctguard.core.geometry import as_int_triple
from ctguard.core.provenance import Provenance, Source
from ctguard.core.volume import Volume
from ctguard.image.lung import body_mask, lung_mask
from ctguard.image.noise import local_sd_map
from ctguard.io.manifest import peak_mb
from ctguard.protect.align import Placement
from ctguard.protect.compare import pattern_evidence, tiles_to_voxels
from ctguard.protect.evidence import FALSE_SIGMA, MISS_SIGMA, Evidence, missing_tiles
from ctguard.protect.keys import SealKey
from ctguard.protect.record import Seal
from ctguard.protect.seal import SealSettings, restore_volume, seal_volume
from ctguard.protect.verdict import regions_of
from ctguard.protect.verify import verify_volume

Array = NDArray[Any]
Box = tuple[slice, slice, slice]
SIZES_MM = (8, 12, 16, 24, 32)


def key_of(number: int) -> SealKey:
    """A key that the same number gives again; for measurements alone."""
    return SealKey(np.random.default_rng(number).bytes(32))


def jpeg2000(hu: Array, ratio: float, bits: int) -> Array:
    """Through a lossy codestream: bits 16 counts the ratio in 16-bit words, 12 in 12-bit ones (6.7:1 in the former)."""
    offset = 32768 if bits == 16 else 1024
    low, high = (-32768, 32767) if bits == 16 else (-1024, 3071)
    planes = []
    for plane in np.clip(hu, low, high):
        words = (plane.astype(np.int32) + offset).astype(np.uint16)
        planes.append(
            decode(encode_array(words, bits_stored=bits, compression_ratios=[ratio])).astype(np.int32) - offset
        )
    return np.stack(planes).astype(np.int16)


def plain(hu: Array, like: Volume) -> Volume:
    """Voxels without marks, UIDs or header."""
    return Volume(np.ascontiguousarray(hu), like.geometry, Provenance(Source("mha")))


class Bench:
    """One scan, sealed, with what is measured on it."""

    def __init__(self, original: Volume, sites: int, seed: int = 0) -> None:
        self.original, self.key = plain(original.hu, original), key_of(1)
        started = time.process_time()
        sealed, self.seal, self.price = seal_volume(self.original, self.key)
        self.seconds = {"seal": time.process_time() - started}
        self.sealed = plain(sealed.hu, original)
        self.rng = np.random.default_rng(seed)
        self.lung, self.body = lung_mask(self.original), body_mask(self.original)
        self.boxes = {size: self._boxes(size, sites) for size in SIZES_MM}

    def _boxes(self, size_mm: float, count: int) -> list[Box]:
        """Cubes that lie in the lung for the most part, apart from each other."""
        spacing, shape = self.original.geometry.spacing_zyx_mm, self.original.hu.shape
        side = [min(n, max(1, round(size_mm / mm))) for n, mm in zip(shape, spacing, strict=True)]
        free, found = np.ones(shape, dtype=bool), list[Box]()
        for center in self.rng.permutation(np.argwhere(self.lung)[:: max(1, int(self.lung.sum()) // 20000)]):
            start = [int(np.clip(c - n // 2, 0, m - n)) for c, n, m in zip(center, side, shape, strict=True)]
            box = tuple(slice(a, a + n) for a, n in zip(start, side, strict=True))
            far = tuple(slice(max(0, a - 2 * n), a + 3 * n) for a, n in zip(start, side, strict=True))
            if free[box].all() and self.lung[box].mean() > 0.7:  # type: ignore[index]
                found.append(box)  # type: ignore[arg-type]
                free[far] = False
            if len(found) == count:
                break
        return found

    def digest(self, hu: Array) -> Any:
        """What verify says with the ledger."""
        return verify_volume(plain(hu, self.original), self.key, None, [self.seal])

    def pattern(self, hu: Array, key: SealKey | None = None, seal: Seal | None = None) -> tuple[Evidence, Array]:
        """Evidence and map of the pattern alone, at the place where it was sealed."""
        volume, seal = plain(hu, self.original), seal or self.seal
        here = Placement((False, False), (0, 0), tuple(range(len(hu))), 0.0)
        evidence = pattern_evidence(volume, here, seal, key or self.key, lossy=False)
        assert evidence is not None
        tile = seal.header.tiling.tile_yx
        spacing = volume.geometry.spacing_zyx_mm
        tiles = missing_tiles(evidence, spacing, (tile[0] * spacing[1], tile[1] * spacing[2]))
        return evidence, tiles_to_voxels(tiles, volume, here, tile)

    def found_in(self, hu: Array, boxes: list[Box]) -> dict[str, Any]:
        """How many boxes each part marks in, and false regions outside."""
        digest, (evidence, pattern) = self.digest(hu).map, self.pattern(hu)
        outside = np.ones(hu.shape, dtype=bool)
        for box in boxes:
            outside[tuple(slice(max(0, s.start - 24), s.stop + 24) for s in box)] = False
        row: dict[str, Any] = {"sites": len(boxes), "gain": round(evidence.gain, 3)}
        for name, map_ in (("digest", digest), ("pattern", pattern)):
            row[name] = sum(bool(map_[box].any()) for box in boxes)
            row[f"{name}_false"] = len(regions_of((map_ * outside).astype(np.float32), self.original.geometry))
        return row


def price_table(bench: Bench) -> dict[str, Any]:
    """SD of d over local noise at the 95th percentile of voxels, by tissue."""
    d = (bench.sealed.hu.astype(np.float32) - bench.original.hu) ** 2
    spacing = bench.original.geometry.spacing_zyx_mm
    size = (1, *(max(3, round(10 / mm)) for mm in spacing[1:]))
    ratio = np.sqrt(ndimage.uniform_filter(d, size)) / np.maximum(local_sd_map(bench.original.hu, spacing), 0.5)
    hu = bench.original.hu
    tissues = {"lung": bench.lung & (hu > -950) & (hu < -500), "soft": bench.body & (hu > 0) & (hu < 150)}
    rows = {name: round(float(np.percentile(ratio[m], 95)), 3) for name, m in tissues.items() if m.any()}
    return {**bench.price.to_json(), **{f"ratio95_{name}": value for name, value in rows.items()}}


def benign_table(bench: Bench) -> dict[str, Any]:
    """States and false regions after operations that change no content."""
    hu = bench.sealed.hu
    operations: dict[str, Callable[[], Array]] = {
        "none": lambda: hu,
        "float copy": lambda: hu.astype(np.float32),
        "12-bit clip": lambda: np.clip(hu, -1024, 3071),
        "JPEG 2000 5:1 of 16 bits": lambda: jpeg2000(hu, 5, 16),
        "JPEG 2000 5:1 of 12 bits": lambda: jpeg2000(hu, 5, 12),
    }
    rows = {}
    for name, make in operations.items():
        made = make()
        verdict, (evidence, map_) = bench.digest(made), bench.pattern(made)
        alone = len(regions_of(map_, bench.original.geometry))
        rows[name] = {
            "state": verdict.state,
            "digest_false": len(verdict.regions),
            "pattern_false": alone,
            "gain": round(evidence.gain, 3),
        }
    return rows


def digest_misses(bench: Bench, add_hu: float) -> dict[str, Any]:
    """Cubes of 8 mm whose HU were moved, in the sealed file and after JPEG 2000."""
    hu = bench.sealed.hu.copy()
    for number, box in enumerate(bench.boxes[8]):
        hu[box] += np.int16(add_hu if number % 2 else -add_hu)
    hu = np.maximum(hu, -1024)
    rows = {}
    for name, made in (("written", hu), ("JPEG 2000 5:1", jpeg2000(hu, 5, 16))):
        row = bench.found_in(made, bench.boxes[8])
        rows[name] = {"sites": row["sites"], "missed": row["sites"] - row["digest"], "false": row["digest_false"]}
    return rows


def smallest_region(bench: Bench) -> dict[str, Any]:
    """Cubes of the unsealed original put back: how many the pattern finds, and whether it ought to by its evidence."""
    rows = {}
    full, _ = bench.pattern(bench.sealed.hu)
    ty, tx = bench.seal.header.tiling.tile_yx
    for size, boxes in bench.boxes.items():
        hu = bench.sealed.hu.copy()
        for box in boxes:
            hu[box] = bench.original.hu[box]
        row = bench.found_in(hu, boxes)
        voxels = full.expected.repeat(ty, 1).repeat(tx, 2) / (ty * tx)
        strength = [full.gain * float(np.sqrt(voxels[box].sum())) for box in boxes]
        predicted = sum(s >= FALSE_SIGMA + MISS_SIGMA for s in strength)
        rows[f"{size} mm"] = {
            "sites": len(boxes),
            "found": row["pattern"],
            "predicted": predicted,
            "sigmas": round(float(np.median(strength)), 1) if strength else None,
            "false": row["pattern_false"],
        }
    return rows


def forgers(bench: Bench) -> dict[str, Any]:
    """Those who know the method but not the key, at 32 mm sites. found: sites that digest and pattern mark."""
    boxes, original, sealed = bench.boxes[32], bench.original.hu, bench.sealed.hu
    d = sealed.astype(np.int32) - original
    rows: dict[str, Any] = {}

    def forge(name: str, content: Callable[[Box], Array]) -> None:
        hu = sealed.copy()
        for box in boxes:
            hu[box] = np.clip(content(box), -1024, 3071)
        rows[name] = bench.found_in(hu, boxes)

    other = np.roll(original, (0, 61, 43), (0, 1, 2))
    donor = np.roll(sealed, (0, 61, 43), (0, 1, 2))
    tile = [3 * n for n in bench.seal.header.tiling.tile_yx]
    forge("identity: content unsealed", lambda box: original[box])
    forge("additive nodule +700 HU", lambda box: sealed[box] + _ball(bench, box, 700))
    forge("additive nodule +30 HU", lambda box: sealed[box] + _ball(bench, box, 30))
    forge("copy-move", lambda box: donor[box])
    forge("copy-move by whole tiles", lambda box: np.roll(sealed, tile, (1, 2))[box])
    forge("replaced, residual put back", lambda box: _smooth(other[box]) + sealed[box] - _smooth(sealed[box]))
    forge("original and sealed known", lambda box: other[box] + d[box])
    for count in (1, 8, 64):
        planes = np.resize(np.arange(len(d)), count)
        mean = np.sign(d[planes].sum(axis=0)) * 3
        forge(f"pattern averaged over {count} slices", lambda box, m=mean: other[box] + m[box[1:]])  # type: ignore[misc]
    again = seal_volume(plain(other, bench.original), bench.key, SealSettings(seed=9))[0].hu
    forge("from another sealed scan of the key", lambda box: again[box])
    stripped = np.rint(ndimage.gaussian_filter(sealed.astype(np.float32), (0, 0.7, 0.7))).astype(np.int16)
    for name, hu in (("whole-scan strip, Gaussian 0.7", stripped), ("whole-scan strip, original known", original)):
        rows[name] = {"state": bench.digest(hu).state, "gain": round(bench.pattern(hu)[0].gain, 3)}
    older = seal_volume(bench.original, bench.key, SealSettings(seed=1))
    replayed = verify_volume(plain(older[0].hu, bench.original), bench.key, None, [older[1], bench.seal])
    rows["older sealed version replayed"] = {"state": replayed.state, "told": "later seal" in replayed.words}
    return rows


def _smooth(block: Array) -> Array:
    return np.asarray(ndimage.median_filter(block, 3)).astype(np.int32)


def _ball(bench: Bench, box: Box, add_hu: float) -> Array:
    grids = np.ogrid[tuple(slice(0, s.stop - s.start) for s in box)]
    spacing = bench.original.geometry.spacing_zyx_mm
    r2 = sum(((g - (g.size - 1) / 2) * mm) ** 2 for g, mm in zip(grids, spacing, strict=True))
    return np.rint(add_hu * np.exp(-r2 / (2 * 4.0**2))).astype(np.int32)


def null_table(bench: Bench, keys: int) -> dict[str, Any]:
    """The whole scan and single windows judged with keys that it was not sealed with."""
    few = slice(0, min(8, len(bench.sealed.hu)))
    sigmas, spread = [], []
    volume = Volume(
        bench.sealed.hu[few],
        bench.original.geometry.crop((0, 0, 0), bench.sealed.hu[few].shape),
        Provenance(Source("mha")),
    )
    here = Placement((False, False), (0, 0), tuple(range(len(volume.hu))), 0.0)
    for number in range(keys):
        evidence = pattern_evidence(volume, here, bench.seal, key_of(100 + number), lossy=False)
        assert evidence is not None
        z = evidence.found / np.sqrt(np.maximum(evidence.expected, 1e-9))
        sigmas.append(evidence.sigmas)
        spread.append(float(z[evidence.expected > 0].std()))
    return {
        "keys": keys,
        "sd_of_scan_sigmas": round(float(np.std(sigmas)), 3),
        "sd_of_tile_sigmas": round(float(np.mean(spread)), 3),
    }


def measure(path: Path, slices: int, sites: int, keys: int) -> dict[str, Any]:
    """All tables of one scan."""
    volume = io.read(path)
    if 0 < slices < len(volume.hu):
        first = (len(volume.hu) - slices) // 2
        part = np.ascontiguousarray(volume.hu[first : first + slices])
        volume = Volume(part, volume.geometry.crop((first, 0, 0), as_int_triple(part.shape)), volume.provenance)
    bench = Bench(volume, sites)
    started = time.process_time()
    touched = bench.sealed.hu.copy()
    touched[len(touched) // 2, 0, 0] += 1
    bench.digest(touched)
    bench.seconds["verify"] = time.process_time() - started
    started = time.process_time()
    exact = bool(np.array_equal(restore_volume(bench.sealed, bench.seal, bench.key).hu, bench.original.hu))
    bench.seconds["restore"] = time.process_time() - started
    return {
        "scan": path.name,
        "shape_zyx": list(volume.hu.shape),
        "spacing_zyx_mm": list(volume.geometry.spacing_zyx_mm),
        "restored_exactly": exact,
        "price": price_table(bench),
        "benign": benign_table(bench),
        "digest, 8 mm cubes moved by 30 HU": digest_misses(bench, 31),
        "pattern, smallest region": smallest_region(bench),
        "informed forgers, 32 mm sites": forgers(bench),
        "null": null_table(bench, keys),
        "processor seconds": {name: round(value, 1) for name, value in bench.seconds.items()},
        "peak_mb": peak_mb(),
    }


def markdown(result: dict[str, Any]) -> str:
    """The tables of one scan as text."""
    lines = [f"## {result['scan']}, {result['shape_zyx']} voxels of {result['spacing_zyx_mm']} mm", ""]
    for title, table in result.items():
        if not isinstance(table, dict):
            continue
        rows = table if all(isinstance(row, dict) for row in table.values()) else {"": table}
        columns = list(dict.fromkeys(name for row in rows.values() for name in row))
        lines += [f"### {title}", "", "| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
        lines += [
            f"| {name} | " + " | ".join(str(row.get(c, "")) for c in columns) + " |" for name, row in rows.items()
        ]
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scans", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--slices", type=int, default=0)
    parser.add_argument("--sites", type=int, default=40)
    parser.add_argument("--keys", type=int, default=100)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    results = []
    for scan in given.scans:
        results.append(measure(scan, given.slices, given.sites, given.keys))
        (given.out / "seal.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        (given.out / "seal.md").write_text("\n".join(map(markdown, results)), encoding="utf-8")


if __name__ == "__main__":
    main()
