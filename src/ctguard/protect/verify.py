"""Judge the seal of a scan: with its header, with a ledger, or with the key alone.

Header and ledger say what was sealed; without either, the pattern itself is looked for (protect/sync.py). Voxels and
geometry decide; names, UIDs and marks are never read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ctguard.core.geometry import Geometry, index_to_lps_mm
from ctguard.core.provenance import Json
from ctguard.core.volume import Volume
from ctguard.protect.align import Means, Placement, place
from ctguard.protect.compare import compare, pattern_evidence, tiles_to_voxels
from ctguard.protect.digest import decoded, grid_shape
from ctguard.protect.evidence import Evidence, missing_tiles
from ctguard.protect.keys import SealKey
from ctguard.protect.record import Seal, SealHeader, authentic
from ctguard.protect.seal import sha256_slice
from ctguard.protect.verdict import SealState, SealVerdict, regions_of

_GONE_GAIN = 0.2
_ENOUGH_SIGMAS = 10.0
_SPACING_TOLERANCE = 1e-3
_PLACE_TOLERANCE = 0.25  # of a voxel


def verify_volume(
    volume: Volume, key: SealKey | None, header_seal: Seal | None = None, ledger: Sequence[Seal] = ()
) -> SealVerdict:
    """What the seal of a volume says.

    key: None answers `not-checked`. header_seal: what its private blocks hold (record.from_blocks), None where they are
    gone. ledger: the seals of this key, oldest first; its copy of a seal is preferred to the header's.
    """
    if key is None:
        return SealVerdict("not-checked", None if header_seal is None else header_seal.header.key_id)
    notes: list[str] = []
    seals = [seal for seal in ledger if seal.header.key_id == key.key_id]
    if header_seal is not None and header_seal.header.key_id == key.key_id:
        nonce = header_seal.header.nonce
        seals = [seal for seal in seals if seal.header.nonce == nonce] or [header_seal]
    tampered = False
    best: tuple[Placement, Seal] | None = None
    for seal in seals:
        checked = _authentic_part(seal, key)
        tampered |= len(checked.slices) < len(seal.slices)
        if checked.slices:
            found = place(volume.hu, _means(checked, key), checked.header.tiling)
            if found is not None and (best is None or found.median_hu < best[0].median_hu):
                best = (found, checked)
    if tampered:
        notes.append("records of the seal were altered: their MAC does not hold")
    if best is not None:
        verdict = _judged(volume, best[0], best[1], key, header_seal, tampered)
        return replace(verdict, notes=(*verdict.notes, *notes, *_later(best[1], ledger)))
    if tampered:
        return SealVerdict("broken", key.key_id, notes=tuple(notes))
    if header_seal is not None:
        return _unplaced(volume, header_seal, key)
    from ctguard.protect.sync import verify_blind

    return verify_blind(volume, key)


def _authentic_part(seal: Seal, key: SealKey) -> Seal:
    kept = {z: record for z, record in seal.slices.items() if record.z == z and authentic(seal.header, record, key)}
    return Seal(seal.header, kept)


def _means(seal: Seal, key: SealKey) -> Means:
    header = seal.header
    means = np.full((header.geometry.shape_zyx[0], *grid_shape(header.tiling)), np.nan, dtype=np.float32)
    for z, record in seal.slices.items():
        means[z] = decoded(record.digest, key, header.nonce_bytes, z, header.tiling)[..., 0]
    return means


def _unplaced(volume: Volume, header_seal: Seal, key: SealKey) -> SealVerdict:
    """The header names a seal, and its content is nowhere in the scan."""
    header = header_seal.header
    if header.key_id != key.key_id:
        return SealVerdict("wrong-key", header.key_id, notes=(f"it names key {header.key_id}, not {key.key_id}",))
    if not _same_grid(volume.geometry, header.geometry):
        note = "the grid is not the one that was sealed, so that nothing can be compared; that does not say forged"
        return SealVerdict("geometry-changed", key.key_id, notes=(note,), nonce=header.nonce)
    map_ = np.ones(volume.hu.shape, dtype=np.float32)
    note = "nothing of what was sealed is in it"
    return SealVerdict(
        "broken", key.key_id, map_, volume.geometry, regions_of(map_, volume.geometry), (note,), nonce=header.nonce
    )


def _same_grid(one: Geometry, other: Geometry) -> bool:
    return bool(
        one.shape_zyx == other.shape_zyx
        and np.abs(np.subtract(one.spacing_zyx_mm, other.spacing_zyx_mm)).max() < _SPACING_TOLERANCE
    )


def _judged(
    volume: Volume, placement: Placement, seal: Seal, key: SealKey, header_seal: Seal | None, tampered: bool
) -> SealVerdict:
    """The verdict on a scan whose place in the sealed one is known."""
    header = seal.header
    mapping, moved = _mapping(volume.geometry, placement, header.geometry)
    facts: dict[str, Json] = {"placement": mapping}
    common = SealVerdict(
        "intact", key.key_id, np.zeros(volume.hu.shape, np.float32), volume.geometry, nonce=header.nonce, facts=facts
    )
    if not tampered and not moved and _untouched(volume, placement, seal):
        return replace(common, notes=_extent(placement, header))
    comparison = compare(volume, placement, seal, key)
    evidence = pattern_evidence(volume, placement, seal, key, lossy=comparison.lossy)
    changed = comparison.changed.copy()
    gone = _gone(evidence)
    if evidence is not None and not gone and not comparison.lossy:
        tile_mm = tuple(n * mm for n, mm in zip(header.tiling.tile_yx, header.geometry.spacing_zyx_mm[1:], strict=True))
        absent = missing_tiles(evidence, header.geometry.spacing_zyx_mm, (tile_mm[0], tile_mm[1]))
        changed[:, : absent.shape[1], : absent.shape[2]] |= absent
    map_ = tiles_to_voxels(changed, volume, placement, header.tiling.tile_yx)
    foreign = [i for i, z in enumerate(placement.slices) if z is None or z not in seal.slices]
    map_[foreign] = 1
    regions = regions_of(map_, volume.geometry)
    state: SealState = "intact"
    if comparison.resampled:
        state = "resampled"
    elif regions or tampered:
        state = "broken"
    elif gone:
        state = "missing"
    elif moved:
        state = "geometry-changed"
    notes = [*moved, *_extent(placement, header)]
    if comparison.lossy and not comparison.resampled:
        notes.append(
            f"its voxels differ by little all over (SD {comparison.spread_hu[1]:.1f} HU), as lossy coding does"
        )
    if header_seal is None:
        notes.append("its header is gone; the ledger knows it")
    gain = None if evidence is None else evidence.gain
    return replace(common, state=state, map=map_, regions=regions, notes=tuple(notes), gain=gain)


def _gone(evidence: Evidence | None) -> bool:
    """Whether there is no pattern where enough of it would be to tell."""
    if evidence is None:
        return False
    enough = np.sqrt(float(evidence.expected.sum())) * _GONE_GAIN > _ENOUGH_SIGMAS / 3
    return bool(enough and evidence.gain < _GONE_GAIN)


def _untouched(volume: Volume, placement: Placement, seal: Seal) -> bool:
    """Whether every received slice is, to the bit, the sealed one that it claims to be."""
    whole = volume.hu.shape[1:] == seal.header.tiling.shape_yx and placement.shift_yx == (0, 0)
    if not whole or placement.flip_yx != (False, False):
        return False
    for i, z in enumerate(placement.slices):
        if (
            z is None
            or z not in seal.slices
            or sha256_slice(seal.slices[z], volume.hu[i]) != seal.slices[z].sha256_sealed
        ):
            return False
    return True


def _mapping(grid: Geometry, placement: Placement, sealed: Geometry) -> tuple[Json, list[str]]:
    """The placement as JSON, and what about it differs from the sealed scan's place in the patient."""
    moved = []
    if any(placement.flip_yx):
        moved.append("its slices are mirrored")
    numbers = [z for z in placement.slices if z is not None]
    steps = set(np.diff(numbers).tolist())
    if len(numbers) > 1 and steps == {-1}:
        moved.append("its slices run the other way")
    elif len(numbers) > 1 and not steps <= {1}:
        missing = sorted(set(range(min(numbers), max(numbers))) - set(numbers))
        some = f"slices are missing ({', '.join(map(str, missing[:8]))})" if missing else "slices are in another order"
        moved.append(some)
    if np.abs(np.subtract(grid.spacing_zyx_mm, sealed.spacing_zyx_mm)).max() > _SPACING_TOLERANCE:
        moved.append("its spacing is another")
    elif not moved and placement.found:
        i, z = placement.found[0]
        here = index_to_lps_mm(grid, (i, 0, 0))
        there = index_to_lps_mm(sealed, (z, *placement.shift_yx))
        gap = float(np.linalg.norm(here - there))
        if gap > _PLACE_TOLERANCE * min(sealed.spacing_zyx_mm) or not np.allclose(
            grid.axes_lps, sealed.axes_lps, atol=1e-3
        ):
            moved.append(f"it lies {gap:.1f} mm from where it was sealed")
    slices: list[Json] = [*placement.slices]
    plain = numbers == list(range(len(numbers))) and len(numbers) == len(placement.slices)
    shift: list[Json] = [*placement.shift_yx]
    flips: list[Json] = [*placement.flip_yx]
    return {"flip_yx": flips, "shift_yx": shift, "slices": "in order" if plain else slices}, moved


def _extent(placement: Placement, header: SealHeader) -> tuple[str, ...]:
    count = header.geometry.shape_zyx[0]
    found = len({z for z in placement.slices if z is not None})
    return () if found == count else (f"{found} of the {count} sealed slices",)


def _later(seal: Seal, ledger: Sequence[Seal]) -> tuple[str, ...]:
    """A note where the ledger holds a later seal of the same series: an older version may have been put back."""
    same = [other.header.nonce for other in ledger if other.header.subject == seal.header.subject]
    if seal.header.nonce in same and same[-1] != seal.header.nonce:
        return ("the ledger holds a later seal of this series: an older version may have been put back",)
    return ()
