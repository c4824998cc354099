"""Seal a volume, and take the pattern off again.

A seal is a digest (protect/digest.py) and, unless it is left out, a pattern (protect/pattern.py). Sealing makes sure
that there is a way back: a pattern that could not be taken off again is an error.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctguard.core.errors import DataError, GeometryError, ReadError, RecipeError, RefusedError
from ctguard.core.marks import Mark
from ctguard.core.provenance import Json, Provenance, Step
from ctguard.core.volume import Volume
from ctguard.protect.digest import encoded, secret_images, tile_numbers
from ctguard.protect.keys import SealKey
from ctguard.protect.lattice import Ints, Lattice, find_lattice
from ctguard.protect.pattern import SLICE_BITS, PatternKey, embed, erase
from ctguard.protect.record import STEP, Seal, SealHeader, SliceSeal, authentic, tagged
from ctguard.protect.strength import USUAL_MOST_HU, USUAL_SHARE, strength_of
from ctguard.protect.tiles import FLOOR_HU, tiling_for

_INT16 = (-32768.0, 32767.0)


@dataclass(frozen=True)
class SealSettings:
    """max_hu bounds |d| and is the cap of its SD; 0: the digest alone, which changes no pixel.

    share: SD of the pattern over local noise. seed: tells seals of the same scan under the same key apart.
    """

    max_hu: float = USUAL_MOST_HU
    share: float = USUAL_SHARE
    seed: int = 0

    def __post_init__(self) -> None:
        if not (self.max_hu == 0 or self.max_hu >= 1) or not 0 < self.share <= 1:
            raise RecipeError(
                f"a pattern of at most {self.max_hu:g} HU and {self.share:g} of the noise is none",
                remedy="give at least 1 HU, or 0 for the digest alone",
            )


@dataclass(frozen=True)
class SealPrice:
    """What the pattern added: max |d| and SD in HU, where there is any, and the share of voxels that changed."""

    max_hu: float
    sd_hu: float
    changed_share: float

    def to_json(self) -> dict[str, Json]:
        """Plain JSON values."""
        return {"max_hu": self.max_hu, "sd_hu": self.sd_hu, "changed_share": self.changed_share}


def seal_volume(
    volume: Volume,
    key: SealKey,
    settings: SealSettings | None = None,
    *,
    stored_range_hu: tuple[float, float] | None = None,
) -> tuple[Volume, Seal, SealPrice]:
    """A sealed copy, its seal, and what it cost.

    stored_range_hu: what the stored values of the source can hold (io.derived.stored_range_hu); int16 where None.
    Raises RefusedError for a volume that is forged or sealed already, DataError where its HU are no stored numbers or
    it has more slices than the pattern can count.
    """
    settings = settings or SealSettings()
    for kind in ("forged", "sealed"):
        if volume.provenance.has_mark(kind):
            raise RefusedError(f"this scan is marked {kind}", remedy="seal the original series (MISUSE.md)")
    if len(volume.hu) >= 1 << SLICE_BITS:
        raise DataError(f"{len(volume.hu)} slices are more than a seal counts", remedy="seal parts of it")
    tiling = tiling_for(volume.geometry.shape_zyx, volume.geometry.spacing_zyx_mm)
    lattices = [find_lattice(plane) for plane in volume.hu]
    hashes = [_sha256(lattice, lattice.ints(plane)) for lattice, plane in zip(lattices, volume.hu, strict=True)]
    strength = strength_of(volume, tiling, settings.share, settings.max_hu) if settings.max_hu else None
    header = SealHeader(
        key_id=key.key_id,
        nonce=_nonce(key, volume, hashes, settings),
        subject=key.derive("subject", (volume.provenance.source.series_uid or "").encode(), 8).hex(),
        geometry=volume.geometry,
        cell_yx=tiling.cell_yx,
        max_hu=settings.max_hu,
        strength=strength,
    )
    bounds = stored_range_hu or _INT16
    hu = np.empty_like(volume.hu)
    records = {}
    for z, (lattice, plane) in enumerate(zip(lattices, volume.hu, strict=True)):
        record = _plain(volume, z, lattice, hashes[z], bounds)
        hu[z], records[z] = _sealed_slice(header, record, plane, key)
    price = _price(volume, hu)
    params: dict[str, Json] = {"key_id": header.key_id, "nonce": header.nonce, **price.to_json()}
    detail = f"key {header.key_id}: max {price.max_hu:.0f} HU, SD {price.sd_hu:.2f} HU added"
    return volume.changed(hu, Step(STEP, params), Mark("sealed", detail)), Seal(header, records), price


def restore_volume(sealed: Volume, seal: Seal, key: SealKey) -> Volume:
    """The volume before it was sealed, bit for bit, each slice checked against its SHA-256.

    Raises RefusedError for another key, ReadError where the seal is incomplete or altered or a slice was changed.
    """
    header = seal.header
    check_key(header, key)
    if sealed.geometry.shape_zyx != header.geometry.shape_zyx or not seal.whole:
        raise GeometryError(
            f"a scan of shape {sealed.geometry.shape_zyx} with the seal of {len(seal.slices)} slices of "
            f"{header.geometry.shape_zyx}",
            remedy="restore from the whole sealed series",
        )
    secret = PatternKey(key, header.tiling)
    hu = np.empty_like(sealed.hu)
    for z, record in sorted(seal.slices.items()):
        if not authentic(header, record, key):
            raise ReadError(f"the seal of slice {z} was altered", remedy="restore with the ledger's copy of the seal")
        hu[z] = _restored_slice(header, record, sealed.hu[z], secret)
    provenance = sealed.provenance
    marks = tuple(mark for mark in provenance.marks if mark.kind != "sealed")
    steps = tuple(step for step in provenance.steps if step.name != STEP)
    return Volume(hu, sealed.geometry, Provenance(provenance.source, steps, marks))


def check_key(header: SealHeader, key: SealKey) -> None:
    """Raise RefusedError where a seal was made with another key."""
    if header.key_id != key.key_id:
        raise RefusedError(f"it was sealed with key {header.key_id}, not {key.key_id}", remedy="give that key's file")


def sha256_slice(record: SliceSeal, plane: NDArray[Any]) -> str:
    """SHA-256 of a slice (y, x) in HU as `SliceSeal.sha256_sealed` states it."""
    return _sha256(record.lattice, record.lattice.ints(plane))


def _plain(volume: Volume, z: int, lattice: Lattice, sha256: str, bounds_hu: tuple[float, float]) -> SliceSeal:
    """The record of slice z before its pattern and digest."""
    # The pattern reaches neither below air, which some viewers take for padding, nor beyond what can be stored.
    low, high = max(bounds_hu[0], FLOOR_HU), bounds_hu[1]
    least = int(np.ceil((low - lattice.offset_hu) / lattice.quantum_hu - 1e-6))
    most = int(np.floor((high - lattice.offset_hu) / lattice.quantum_hu + 1e-6))
    if least * lattice.quantum_hu + lattice.offset_hu < FLOOR_HU:
        least += 1
    padding = volume.provenance.source.padding_hu
    barred = () if padding is None else (round((padding - lattice.offset_hu) / lattice.quantum_hu),)
    return SliceSeal(z, lattice.quantum_hu, lattice.offset_hu, (least, most), barred, sha256, "", b"", b"")


def _sealed_slice(
    header: SealHeader, record: SliceSeal, plane: NDArray[Any], key: SealKey
) -> tuple[NDArray[Any], SliceSeal]:
    lattice, secret = record.lattice, PatternKey(key, header.tiling)
    before = lattice.ints(plane)
    after, skips = before, b""
    frame = record.frame(header)
    if header.strength is not None and frame.strength.any():
        after, skips = embed(secret, header.nonce_bytes, frame, before)
    hu = np.where(after == before, plane, lattice.hu(after, plane.dtype))
    if not np.array_equal(lattice.ints(hu), after):
        raise DataError(f"slice {record.z} cannot hold the pattern", remedy="seal the original DICOM series")
    images = secret_images(key, header.nonce_bytes, record.z, header.tiling.shape_yx)
    digest = encoded(tile_numbers(hu, images, header.tiling), key, header.nonce_bytes, record.z)
    done = replace(record, sha256_sealed=_sha256(lattice, after), skips=skips, digest=digest)
    return hu, tagged(header, done, key)


def _restored_slice(header: SealHeader, record: SliceSeal, plane: NDArray[Any], secret: PatternKey) -> NDArray[Any]:
    lattice = record.lattice
    sealed = lattice.ints(plane)
    remedy = "restore from an unchanged copy"
    if _sha256(lattice, sealed) != record.sha256_sealed:
        raise ReadError(f"slice {record.z} was changed after it was sealed", remedy=remedy)
    frame = record.frame(header)
    if header.strength is None or not frame.strength.any():
        return plane.copy()
    original = erase(secret, header.nonce_bytes, frame, sealed, record.skips)
    if _sha256(lattice, original) != record.sha256_original:
        raise ReadError(f"slice {record.z} does not restore to its SHA-256", remedy=remedy)
    return np.asarray(np.where(original == sealed, plane, lattice.hu(original, plane.dtype)))


def _sha256(lattice: Lattice, ints: Ints) -> str:
    head = json.dumps([lattice.quantum_hu, lattice.offset_hu, list(ints.shape)]).encode()
    return hashlib.sha256(head + np.ascontiguousarray(ints, dtype="<i4").tobytes()).hexdigest()


def _nonce(key: SealKey, volume: Volume, hashes: list[str], settings: SealSettings) -> str:
    """Unlike for every content, place and setting, and the same for the same: no two seals share a key stream."""
    grid = volume.geometry
    place = [grid.shape_zyx, grid.spacing_zyx_mm, grid.origin_lps_mm, grid.axes_lps]
    uid = volume.provenance.source.series_uid
    text = json.dumps([place, hashes, uid, settings.max_hu, settings.share, settings.seed])
    return key.derive("nonce", hashlib.sha256(text.encode()).digest(), 8).hex()


def _price(volume: Volume, hu: NDArray[Any]) -> SealPrice:
    most, total, square, count = 0.0, 0.0, 0.0, 0
    for before, after in zip(volume.hu, hu, strict=True):
        changed = before != after
        d = after[changed].astype(np.float64) - before[changed]
        if len(d):
            most = max(most, float(np.abs(d).max()))
        total, square, count = total + float(d.sum()), square + float((d * d).sum()), count + len(d)
    mean = total / max(count, 1)
    sd = float(np.sqrt(square / max(count, 1) - mean * mean))
    return SealPrice(round(most, 3), sd, count / hu.size)
