"""How much of the pattern each tile shows, and where it is missing.

For a tile with steps t on its pairs and whitened differences d between partners, c = sum(t d) has the mean
2 sum(t^2) where the pattern is there, 0 where it is not, and the variance sum(t^2) mean(d^2) where signs are random.
`found` is 2 sum(t^2) c / variance, `expected` is (2 sum(t^2))^2 / variance: over any region, sum(found) / sum(expected)
is the gain (1: all there, 0: nothing), with SD 1 / sqrt(sum(expected)). So a region can be judged once
gain * sqrt(sum(expected)) passes about 7, which is what the smallest region is predicted from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ctguard.core.geometry import FloatTriple
from ctguard.protect.pattern import PatternKey, SliceFrame
from ctguard.protect.tiles import cell_means, codes_of, eligible, other_codes

FALSE_SIGMA = 4.9
"""One-sided 5e-7 a window: about 1 false region per 100 scans of 10,000 windows that hardly overlap."""
MISS_SIGMA = 2.33
"""One-sided 1 %."""
_CLIP = 3.0
_WINDOWS_MM = (8.0, 12.0, 16.0, 24.0, 32.0)
_LOSSY_EDGE_HU = 1.5
_WHOLE_GAIN = 0.83
_COARSE_WINDOWS_MM = (16.0, 24.0, 32.0)
_LOSSY_WINDOWS_MM = (24.0, 32.0)
_NEAR_MM, _NEAR_SHARE = 16.0, 0.6
_MOST = 12.0
_MOST_SPREAD, _MOST_SPREAD_LOSSY = 1.3, 2.0
_BINS = 16


@dataclass(frozen=True, eq=False)
class Evidence:
    """float32 (z, rows, columns). found and expected are zero where a tile carries no pattern or lies outside;
    activity is the mean square of the whitened differences, HU^2.
    """

    found: NDArray[np.float32]
    expected: NDArray[np.float32]
    activity: NDArray[np.float32]

    @property
    def gain(self) -> float:
        """Of the whole scan: 1 where all of the pattern is there, 0 where nothing is."""
        return float(self.found.sum() / max(float(self.expected.sum()), 1e-9))

    @property
    def sigmas(self) -> float:
        """How far the whole scan lies from one without the pattern."""
        return float(self.found.sum() / np.sqrt(max(float(self.expected.sum()), 1e-9)))


def differences(secret: PatternKey, tiles: NDArray[Any]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Whitened differences between partners for tiles (n, 4 * cell): (n, pairs), and which of them count.

    Outliers of a tile (edges, vessels) are clipped, so that they do not count.
    """
    d = tiles[:, secret.pairs.first] - tiles[:, secret.pairs.second]
    limit = _CLIP * (np.median(np.abs(d), axis=1, keepdims=True) / 0.6745 + 1e-3)
    return np.asarray(np.clip(d, -limit, limit), dtype=np.float32), np.abs(d) < limit


def scores(
    steps_hu: NDArray[Any], d: NDArray[np.float32], counts: NDArray[np.bool_]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """found and expected (n,) for steps and differences (n, pairs), over the pairs that count.

    No tile expects more than _MOST: one that is oddly quiet would otherwise decide for a whole window.
    """
    steps = steps_hu.astype(np.float32) * counts
    energy = 2 * np.einsum("np,np->n", steps, steps)
    # of all pairs that count: where few of them carry a step, their own differences may all be small by chance
    square = np.einsum("np,np->n", np.square(d), counts) / np.maximum(counts.sum(axis=1), 1)
    variance = energy / 2 * square + 1e-3
    expected = energy * energy / variance
    weight = np.minimum(_MOST / np.maximum(expected, 1e-9), 1)
    return weight * energy * np.einsum("np,np->n", steps, d) / variance, weight * expected


def bound_steps(
    secret: PatternKey,
    nonce: bytes,
    frame: SliceFrame,
    codes: NDArray[np.int16],
    place: NDArray[np.int16],
) -> NDArray[np.float32]:
    """Steps in HU (n, bound pairs) that tiles of these contents and places (n, 2) ought to carry."""
    signs, eighths = secret.bound_signs(codes, nonce, frame.z, place)
    strength = frame.strength[place[:, 0], place[:, 1]]
    whole = np.floor(strength)
    share = np.floor(8 * (strength**2 - whole**2) / (2 * whole + 1))
    steps = whole[:, None] + (eighths < share[:, None])
    return np.asarray(signs * steps * frame.lattice.quantum_hu, dtype=np.float32)


def slice_evidence(
    secret: PatternKey,
    nonce: bytes,
    frame: SliceFrame,
    plane: NDArray[Any],
    error: NDArray[np.float32],
    *,
    covered: NDArray[np.bool_] | None = None,
    lossy: bool = False,
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """found, expected and activity (rows, columns) of one slice, in the place that it was sealed in.

    plane: HU (y, x); error: the same, whitened; covered: tiles (rows, columns) that the scan shows whole. lossy: where
    a cell's content lies within 1.5 HU of a step, its neighbouring code counts too, whichever fits better.
    """
    tiling = secret.tiling
    tiles = tiling.cut(plane)
    lattice = frame.lattice
    means = cell_means(tiles, frame.limits[0] * lattice.quantum_hu + lattice.offset_hu)
    at = eligible(means) & (frame.strength > 0)
    if covered is not None:
        at &= covered
    found, expected, activity = (np.zeros((tiling.rows, tiling.columns), dtype=np.float32) for _ in range(3))
    if not at.any():
        return found, expected, activity
    place = np.argwhere(at).astype(np.int16)
    n, bound = len(place), ~secret.pairs.beacon
    every, unclipped = differences(secret, tiling.cut(error)[at].reshape(n, -1))
    d, counts = every[:, bound], unclipped[:, bound]
    counts = counts & _unbounded(secret, frame, tiles[at].reshape(n, -1))[:, bound]
    first = bound_steps(secret, nonce, frame, codes_of(means[at], secret.dither_hu), place)
    f, e = scores(first, d, counts)
    if lossy:
        codes, distance = other_codes(means[at], secret.dither_hu)
        near = np.flatnonzero(distance < _LOSSY_EDGE_HU)
        if len(near):
            g, h = scores(bound_steps(secret, nonce, frame, codes[near], place[near]), d[near], counts[near])
            better = g * np.sqrt(e[near] / np.maximum(h, 1e-9)) > f[near]
            f[near[better]], e[near[better]] = g[better], h[better]
    found[at], expected[at], activity[at] = f, e, np.einsum("np,np->n", d, d) / d.shape[1]
    return found, expected, activity


def _unbounded(secret: PatternKey, frame: SliceFrame, chosen: NDArray[Any]) -> NDArray[np.bool_]:
    """Pairs of tiles (n, 4 * cell) in HU that no limit of the stored values kept from being moved."""
    quantum, offset = frame.lattice.quantum_hu, frame.lattice.offset_hu
    low, high = ((limit * quantum + offset) for limit in frame.limits)
    reach = frame.reach * quantum
    inside = (chosen >= low + reach) & (chosen <= high - reach)
    free: NDArray[np.bool_] = inside[:, secret.pairs.first] & inside[:, secret.pairs.second]
    return free


def local_gain(evidence: Evidence) -> NDArray[np.float32]:
    """The gain that an intact tile of this scan shows, (z, rows, columns).

    Lossy coding takes more of the pattern where the image is smooth, and clipped edges show less of it: so it is the
    gain of all tiles of this scan with like activity, but at least half of the scan's, so that a forgery that is
    smoother than all the rest does not excuse itself.
    """
    gain = np.ones(evidence.found.shape, dtype=np.float32)
    at = evidence.expected > 0
    if not at.any():
        return gain
    activity = evidence.activity[at]
    edges = np.quantile(activity, np.linspace(0, 1, _BINS + 1)[1:-1])
    bins = np.searchsorted(edges, activity)
    f, e = (np.bincount(bins, a[at], _BINS) for a in (evidence.found, evidence.expected))
    gain[at] = np.clip(f / np.maximum(e, 1e-9), max(evidence.gain, 0) / 2, 1).astype(np.float32)[bins]
    return gain


def missing_tiles(
    evidence: Evidence, spacing_zyx_mm: FloatTriple, tile_mm: tuple[float, float], *, coarse: bool = False
) -> NDArray[np.bool_]:
    """Tiles (z, rows, columns) that lie in a window without the pattern, of the smallest size that can be judged.

    A window is flagged where it lies FALSE_SIGMA below what an intact one shows, and below half of that; it is judged
    only where it holds so much evidence that one without the pattern falls MISS_SIGMA below that mark. Sigmas are those
    of the scan's own windows of that size, which scatter more than the noise of their pairs says. After lossy coding,
    or where strengths are an estimate (coarse), small windows are not judged (after both, 32 mm alone), and only what
    is two thirds gone counts.
    """
    gain = local_gain(evidence)
    found, expected = gain * evidence.found, gain**2 * evidence.expected
    flagged = np.zeros(found.shape, dtype=bool)
    lossy = _typical_gain(evidence, spacing_zyx_mm, tile_mm) < _WHOLE_GAIN
    share = 1 / 3 if coarse or lossy else 1 / 2
    near_found, near_expected = _windows((found, expected), _NEAR_MM, (spacing_zyx_mm[0], *tile_mm))
    # a window between two forged places lacks the pattern of both, but not the tile in its middle
    lacking = (evidence.expected > 0) & (near_found < _NEAR_SHARE * near_expected)
    windows_mm = _LOSSY_WINDOWS_MM[coarse:] if lossy else _COARSE_WINDOWS_MM if coarse else _WINDOWS_MM
    for window_mm in windows_mm:
        f, e = _windows((found, expected), window_mm, (spacing_zyx_mm[0], *tile_mm))
        sigma = np.sqrt(np.maximum(e, 1e-9))
        judged = sigma >= FALSE_SIGMA + MISS_SIGMA
        limit = FALSE_SIGMA * min(_spread((f / sigma - sigma)[judged]), _MOST_SPREAD_LOSSY if lossy else _MOST_SPREAD)
        enough = sigma >= limit + MISS_SIGMA
        flagged |= enough & lacking & (f / sigma < np.minimum(sigma - limit, sigma * share))
    return flagged


def _spread(off: NDArray[np.floating[Any]]) -> float:
    """Robust SD of how far windows lie from what is expected, at least 1."""
    return max(1.0, float(np.median(np.abs(off - np.median(off)))) / 0.6745) if len(off) else 1.0


def _windows(
    arrays: tuple[NDArray[np.float32], NDArray[np.float32]], window_mm: float, tile_mm: FloatTriple
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Sums over the window around each tile."""
    size = tuple(max(1, round(window_mm / mm)) for mm in tile_mm)
    count = int(np.prod(size))
    one, other = (ndimage.uniform_filter(a, size, mode="constant") * count for a in arrays)
    return one, other


def _typical_gain(evidence: Evidence, spacing_zyx_mm: FloatTriple, tile_mm: tuple[float, float]) -> float:
    """The median over large windows: what lossy coding lowers, and forged places do not."""
    f, e = _windows((evidence.found, evidence.expected), _LOSSY_WINDOWS_MM[0], (spacing_zyx_mm[0], *tile_mm))
    enough = e >= (FALSE_SIGMA + MISS_SIGMA) ** 2
    return float(np.median(f[enough] / e[enough])) if enough.any() else evidence.gain
