"""What is measured on one sealed scan: rows of figures, one list for each table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ctguard.bench.codecs import jpeg2000
from ctguard.bench.operations import sixteen_bits
from ctguard.bench.protection_damage import rmse
from ctguard.bench.protection_price import PERCENTILE, noise_share, tissues
from ctguard.bench.protection_scene import Forger
from ctguard.bench.seal.forgers import SITE_MM, contents, foreign_contents, from_elsewhere, generated, put
from ctguard.bench.seal.scene import JUDGES, Box, Found, SealScene, Voxels, bare, numbered_key
from ctguard.core.volume import Volume
from ctguard.image.lung import body_mask
from ctguard.protect.evidence import FALSE_SIGMA, MISS_SIGMA
from ctguard.protect.seal import SealSettings, restore_volume, seal_volume
from ctguard.protect.verify import verify_volume

SMALL_MM = 8.0
MOVED_HU = 31
SIZES_MM = (8, 12, 16, 24, 32)
QUERIES = 8
"""Of a forger who bisects how much of his change `verify` lets pass."""
NULL_SLICES = 16
OTHER_KEYS = 1000
JPEG_RATIO, HARDER_RATIO = 5.0, 6.7
"""Of 16-bit words; the harder one is 5:1 of 12-bit words."""
Cells = Mapping[str, float | str]


@dataclass(frozen=True)
class Row:
    """Figures of one line of one table on one scan."""

    table: str
    name: str
    judge: str
    values: Cells


def _row(table: str, name: str, judge: str, found: Found) -> Row:
    return Row(table, name, judge, vars(found))


def digest_rows(scene: SealScene, sites: int) -> Iterator[Row]:
    """Cubes of 8 mm, every second one 31 HU up, the others down: as written, and after JPEG 2000."""
    boxes = scene.boxes(SMALL_MM, sites)
    hu = scene.sealed.hu.copy()
    for number, box in enumerate(boxes):
        hu[box] += np.int16(MOVED_HU if number % 2 else -MOVED_HU)
    hu = np.maximum(hu, min(-1024, int(scene.sealed.hu.min())))
    for name, made in (("as written", hu), (f"JPEG 2000, {JPEG_RATIO:g}:1", jpeg2000(hu, JPEG_RATIO))):
        yield _row("digest", name, JUDGES[0], scene.found(made, boxes, JUDGES[0]))


def benign_rows(scene: SealScene) -> Iterator[Row]:
    """What changes no content: states, regions and gain by both judges."""
    sealed = scene.sealed
    operations: dict[str, Callable[[], Voxels]] = {
        "none": lambda: sealed.hu,
        "one voxel of air changed by 1 HU": lambda: touched(sealed.hu),
        "saved as floating point": lambda: sealed.hu.astype(np.float32),
        "clipped to 12 bits": lambda: np.clip(sealed.hu, -1024, 3071),
        "16-bit resave": lambda: sixteen_bits(sealed).hu,
        "JPEG 2000, lossless": lambda: jpeg2000(sealed.hu),
        f"JPEG 2000, {JPEG_RATIO:g}:1": lambda: jpeg2000(sealed.hu, JPEG_RATIO),
        f"JPEG 2000, {HARDER_RATIO:g}:1": lambda: jpeg2000(sealed.hu, HARDER_RATIO),
    }
    for name, make in operations.items():
        made = make()
        for judge in JUDGES:
            verdict = scene.verdict(bare(made, sealed.geometry), judge)
            gain = float("nan") if verdict.gain is None else verdict.gain
            yield Row("benign", name, judge, {"state": verdict.state, "outside": len(verdict.regions), "gain": gain})


def touched(hu: NDArray[np.int16]) -> NDArray[np.int16]:
    """One corner voxel one HU up, so that no hash excuses the scan from being compared."""
    out = hu.copy()
    out[len(out) // 2, 0, 0] += 1
    return out


def size_rows(scene: SealScene, sites: int) -> Iterator[Row]:
    """Cubes of the unsealed original put back: how many the pattern misses, and whether its evidence predicts it.

    "at its place": judged where and as strongly as it was sealed, without the digest. predicted: cubes whose evidence
    passes both limits of a decision, which grows as SNR times the root of the voxels.
    """
    full, _ = scene.evidence(scene.sealed.hu)
    ty, tx = scene.seal.header.tiling.tile_yx
    voxels = full.expected.repeat(ty, 1).repeat(tx, 2) / (ty * tx)
    for size in SIZES_MM:
        boxes = scene.boxes(size, sites)
        hu = put(scene, boxes, lambda box: scene.original.hu[box])
        strength = [full.gain * float(np.sqrt(voxels[box].sum())) for box in boxes]
        predicted = sum(sigma >= FALSE_SIGMA + MISS_SIGMA for sigma in strength)
        sigmas = float(np.median(strength)) if strength else float("nan")
        at_place = scene.counted(scene.evidence(hu)[1], boxes)
        for judge, found in (("at its place", at_place), (JUDGES[1], scene.found(hu, boxes, JUDGES[1]))):
            yield Row("size", f"{size} mm", judge, {**vars(found), "predicted": predicted, "sigmas": sigmas})


def generator_rows(scene: SealScene, sites: int, forgers: Sequence[Forger]) -> Iterator[Row]:
    """Generators and controls at sites of 32 mm, by both judges."""
    boxes = scene.boxes(SITE_MM, sites)
    for name, hu in generated(scene, boxes, forgers) if boxes else ():
        yield from _forged_rows(scene, "generators", name, hu, boxes)


def informed_rows(scene: SealScene, sites: int) -> Iterator[Row]:
    """Forgers who know the method, at sites of 32 mm, by both judges; with other sealed scans, at the first site."""
    boxes = scene.boxes(SITE_MM, sites)
    for name, content in contents(scene).items() if boxes else ():
        yield from _forged_rows(scene, "informed", name, put(scene, boxes, content), boxes)
    for name, content in foreign_contents(scene, boxes[0]) if boxes else ():
        yield from _forged_rows(scene, "informed", name, put(scene, boxes[:1], content), boxes[:1])


def _forged_rows(scene: SealScene, table: str, name: str, hu: Voxels, boxes: Sequence[Box]) -> Iterator[Row]:
    for judge in JUDGES:
        yield _row(table, name, judge, scene.found(hu, boxes, judge))


def oracle_rows(scene: SealScene, sites: int) -> Iterator[Row]:
    """A forger who asks `verify` after each try: the largest share of other tissue at a site that passes as intact.

    passed: RMSE of that change within the site, HU; wanted: RMSE of all of it.
    """
    boxes = scene.boxes(SITE_MM, sites)
    other = from_elsewhere(scene.original.hu).astype(np.float32)
    for judge in JUDGES if boxes else ():
        low, high = np.zeros(len(boxes)), np.ones(len(boxes))
        passed = np.zeros(len(boxes))
        for _ in range(QUERIES):
            share = (low + high) / 2
            hu = scene.sealed.hu.copy()
            for box, part in zip(boxes, share, strict=True):
                hu[box] = np.rint(hu[box] + part * (other[box] - hu[box]))
            map_ = scene.verdict(bare(hu, scene.sealed.geometry), judge).map
            for k, box in enumerate(boxes):
                if map_ is not None and (map_[box] > 0.5).any():
                    high[k] = share[k]
                else:
                    low[k], passed[k] = share[k], rmse(hu[box], scene.sealed.hu[box])
        wanted = [rmse(other[box], scene.sealed.hu[box]) for box in boxes]
        cells = {"passed": float(passed.mean()), "most": float(passed.max()), "wanted": float(np.mean(wanted))}
        yield Row("oracle", f"{QUERIES} queries", judge, {"sites": len(boxes), **cells})


def whole_rows(scene: SealScene) -> Iterator[Row]:
    """What is done to whole scans: stripped, moved, cut, an older version, another key, never sealed."""
    sealed, geometry = scene.sealed.hu, scene.sealed.geometry
    boxes = scene.boxes(SITE_MM, 1)
    swapped = np.arange(len(sealed))
    middle = len(sealed) // 2
    swapped[[middle, middle + 1]] = swapped[[middle + 1, middle]]
    changes: dict[str, Callable[[Voxels], Volume]] = {
        "shifted by one voxel in the slices": lambda hu: bare(np.roll(hu, (1, 1), (1, 2)), geometry),
        "shifted by one slice": lambda hu: bare(np.roll(hu, 1, 0), geometry),
        "mirrored": lambda hu: bare(hu[:, :, ::-1], geometry),
        "one slice dropped": lambda hu: _sliced(scene, np.delete(hu, middle, 0)),
        "two slices exchanged": lambda hu: bare(hu[swapped], geometry),
        "cropped to the middle": lambda hu: _cropped(scene, hu),
        "the middle half of the slices": lambda hu: _part(scene, hu),
    }
    for name, change in changes.items():
        for judge in JUDGES:
            clean = scene.verdict(change(sealed), judge).state
            forged = scene.verdict(change(put(scene, boxes, lambda box: from_elsewhere(sealed)[box])), judge)
            told = forged.state if boxes else ""
            yield Row("whole", name, judge, {"state": clean, "forged": told})
    stripped = np.rint(ndimage.gaussian_filter(sealed.astype(np.float32), (0, 0.7, 0.7))).astype(np.int16)
    plain: dict[str, Voxels] = {"pattern stripped: Gaussian of 0.7 voxels": stripped, "the original": scene.original.hu}
    for name, hu in plain.items():
        for judge in JUDGES:
            yield Row("whole", name, judge, {"state": scene.verdict(bare(hu, geometry), judge).state})
    yield from _other_seals(scene)


def _other_seals(scene: SealScene) -> Iterator[Row]:
    sealed, original = scene.sealed, scene.original
    older, seal, _ = seal_volume(original, scene.key, SealSettings(seed=1))
    verdict = verify_volume(bare(older.hu, sealed.geometry), scene.key, None, [seal, scene.seal])
    told = "later seal told" if any("later seal" in note for note in verdict.notes) else "not told"
    yield Row("whole", "an older sealed version put back", JUDGES[0], {"state": f"{verdict.state}, {told}"})
    key = numbered_key(OTHER_KEYS)
    for name, volume in (("another key asked for", sealed), ("never sealed", original)):
        yield Row("whole", name, JUDGES[1], {"state": verify_volume(volume, key).state})
    with_header = verify_volume(bare(touched(sealed.hu), sealed.geometry), key, scene.seal)
    yield Row("whole", "another key asked for, header there", "with the header", {"state": with_header.state})


def _sliced(scene: SealScene, hu: Voxels) -> Volume:
    z, y, x = hu.shape
    return bare(hu, scene.sealed.geometry.crop((0, 0, 0), (z, y, x)))


def _cropped(scene: SealScene, hu: Voxels) -> Volume:
    n, y, x = hu.shape
    cut = hu[:, y // 8 : -(y // 8), x // 8 : -(x // 8)]
    return bare(cut, scene.sealed.geometry.crop((0, y // 8, x // 8), (n, cut.shape[1], cut.shape[2])))


def _part(scene: SealScene, hu: Voxels) -> Volume:
    n, y, x = hu.shape
    return bare(hu[n // 4 : n - n // 4], scene.sealed.geometry.crop((n // 4, 0, 0), (n - 2 * (n // 4), y, x)))


def null_rows(scene: SealScene, keys: int) -> Iterator[Row]:
    """The scan sealed again with other keys: false regions, and evidence by keys that it was not sealed with.

    On the middle NULL_SLICES slices, one voxel of air changed. share: of the scan's slices.
    """
    count = min(NULL_SLICES, len(scene.original.hu))
    first = (len(scene.original.hu) - count) // 2
    part = slice(first, first + count)
    for number in range(keys):
        again = scene.resealed(OTHER_KEYS + 1 + number, part)
        hu = touched(again.sealed.hu)
        for judge in JUDGES:
            found = again.found(hu, [], judge)
            cells: dict[str, float | str] = {
                "state": found.state,
                "outside": found.outside,
                "share": count / len(scene.original.hu),
            }
            yield Row("null", "sealed again", judge, cells)
        stranger = replace(again, key=numbered_key(OTHER_KEYS)).evidence(again.sealed.hu)[0]
        z = stranger.found / np.sqrt(np.maximum(stranger.expected, 1e-9))
        spread = float(z[stranger.expected > 0].std())
        yield Row("null", "by another key", "at its place", {"sigmas": stranger.sigmas, "tile sd": spread})


def price_rows(scene: SealScene) -> Iterator[Row]:
    """max |d| and SD in HU, the 95th percentile of local SD of d over local noise by tissue, and whether all of it
    can be taken off again."""
    original = scene.original.hu
    d = scene.sealed.hu.astype(np.float32) - original
    ratio = noise_share(d, original.astype(np.float32), scene.spacing_zyx_mm)
    masks = tissues(original, body_mask(scene.original), scene.lung)
    cells: dict[str, float | str] = {"max": float(np.abs(d).max()), "sd": float(d[d != 0].std())}
    cells |= {name: float(np.percentile(ratio[mask], PERCENTILE)) for name, mask in masks.items() if mask.any()}
    back = restore_volume(scene.sealed, scene.seal, scene.key).hu
    yield Row("price", "seal", "", {**cells, "restored": float(np.array_equal(back, original))})
