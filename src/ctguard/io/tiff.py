"""M3Dsynth TIFF stacks: a folder of slideNNNN.tiff, uint16 with LZMA, from the head down (M3Dsynth, repository).

A pixel is the Hounsfield unit plus one offset per scan. M3Dsynth shifts by the scan's minimum, which it expects to be
one of 0, 512, 1024, 2000 or 2048 below zero; we take the smallest of these that keeps every voxel, and the exact
minimum where none does, so that nothing is clipped. M3Dsynth's own releases hold *stored* DICOM values plus that
shift, without spacing: their offset is the shift minus the RescaleIntercept of the original, and has to be given.

What we write says all of it twice: ctguard.json beside the slices, and the description of every slice.
"""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from ctguard.core.carried import Carried, from_text, to_text
from ctguard.core.errors import GeometryError, ReadError, WriteError
from ctguard.core.geometry import FloatTriple, Geometry, as_int_triple
from ctguard.core.marks import SERIES_DESCRIPTION
from ctguard.core.provenance import Source
from ctguard.core.volume import Volume
from ctguard.io.atomic import atomic_folder
from ctguard.io.dicom_values import one_line
from ctguard.io.grid import hushed

SIDECAR = "ctguard.json"
OFFSETS = (0, 512, 1024, 2000, 2048)

_SLICE = re.compile(r"slide(\d{4,})\.tiff", re.IGNORECASE)
_DAMAGE = (OSError, ValueError, RuntimeError, IndexError, KeyError, TypeError, struct.error)
"""What tifffile and its decoders raise for damaged files."""

_AGAIN = "copy it again from where it came"
_LIMIT = 65535
_MAX_MATRIX = 8192


def read_tiff(path: str | Path, *, spacing_zyx_mm: FloatTriple | None = None, offset: int | None = None) -> Volume:
    """Read a stack; voxels are pixel minus offset, in int16 where they fit, else float32.

    A stack that we wrote needs no parameters. One that carries no description (M3Dsynth's releases) needs both: its
    grid is taken as axial, the voxel at the feet end of the first column and row at (0, 0, 0) mm.
    spacing_zyx_mm: distance of slices, rows and columns. offset: what was added to the Hounsfield units.

    Raises ReadError for a missing, damaged or unequal slice, and where the description and what is asked differ.
    """
    folder = Path(path)
    files = _slice_files(folder)
    record = _record(folder, files)
    if record is None:
        if spacing_zyx_mm is None or offset is None:
            raise ReadError(
                "it says neither its spacing nor its offset",
                where=folder,
                remedy="give both, from the header of the original series (read_tiff: spacing_zyx_mm, offset)",
            )
        stack = _stack(files)
        geometry, carried = Geometry(as_int_triple(stack.shape), spacing_zyx_mm), Carried()
    else:
        geometry, carried = _geometry(record, folder), from_text(record["carried"], str(folder))
        if spacing_zyx_mm is not None and not np.allclose(spacing_zyx_mm, geometry.spacing_zyx_mm, atol=1e-4):
            raise ReadError(f"its spacing is {geometry.spacing_zyx_mm} mm", where=folder, remedy="leave spacing out")
        if offset is not None and offset != record["offset"]:
            raise ReadError(f"its offset is {record['offset']}", where=folder, remedy="leave offset out")
        offset = int(record["offset"])
        stack = _stack(files)
        if stack.shape != geometry.shape_zyx:
            raise ReadError(f"its slices have shape {stack.shape}, not {geometry.shape_zyx}", where=folder)
    values = _head_down(stack, geometry).astype(np.int32) - offset
    limits = np.iinfo(np.int16)
    fits = limits.min <= values.min() and values.max() <= limits.max
    hu = values.astype(np.int16 if fits else np.float32)
    return Volume(hu, geometry, carried.onto(Source("tiff", (str(folder),))))


def write_tiff(volume: Volume, out: str | Path, *, offset: int | None = None) -> None:
    """Write a stack into the new folder `out`, with what the volume carries.

    offset: see `offset_for`, which also gives the default; scans to be compared must share one.
    Raises WriteError where voxels are no whole numbers or do not fit 16 bits, and where `out` cannot be written.
    """
    folder = Path(out)
    hu = np.asarray(volume.hu)
    low = float(hu.min())
    if hu.dtype.kind == "f" and not (np.isfinite(hu.max() - low) and np.array_equal(hu, np.rint(hu))):
        raise WriteError(
            "TIFF stacks hold whole numbers and this volume does not", where=folder, remedy="write .mha or .nii.gz"
        )
    offset = offset_for(low) if offset is None else offset
    if low + offset < 0 or float(hu.max()) + offset > _LIMIT:
        raise WriteError(f"values from {low:g} to {hu.max():g} do not fit 16 bits", where=folder, remedy="write .mha")
    geometry = volume.geometry
    record = {
        "ctguard_tiff": 1,
        "notice": "; ".join(dict.fromkeys(SERIES_DESCRIPTION[mark.kind] for mark in volume.provenance.marks)),
        "hu": "pixel - offset",
        "offset": offset,
        "slices": "from the head down; the geometry is that of the volume, whose slice 0 is the last file",
        "shape_zyx": list(geometry.shape_zyx),
        "spacing_zyx_mm": list(geometry.spacing_zyx_mm),
        "origin_lps_mm": list(geometry.origin_lps_mm),
        "axes_lps": [list(axis) for axis in geometry.axes_lps],
        "carried": to_text(volume.provenance),
    }
    if not _reversed(geometry):
        record["slices"] = "from the head down; slice 0 of the volume is the first file"
    with atomic_folder(folder) as stage:
        (stage / SIDECAR).write_text(json.dumps(record, indent=1) + "\n", encoding="ascii")
        for number, plane in enumerate(_head_down(hu, geometry)):
            pixels = (plane.astype(np.int32) + offset).astype(np.uint16)
            _write_slice(stage, number, pixels, json.dumps({"slice": number, **record}))


def offset_for(lowest_hu: float) -> int:
    """What has to be added to Hounsfield units from this one on: M3Dsynth's smallest offset that keeps all of them."""
    return next((shift for shift in OFFSETS if lowest_hu + shift >= 0), -int(np.floor(lowest_hu)))


def write_label_stack(mask: NDArray[np.bool_], out: str | Path, geometry: Geometry | None = None) -> None:
    """Write a mask (z, y, x) as the binary stack that M3Dsynth keeps beside a scan: uint8, 1 where changed.

    geometry: that of the scan; without it the slices are taken to run from the feet up, as in every axial volume.
    Raises WriteError where `out` cannot be written.
    """
    folder = Path(out)
    if mask.dtype != np.bool_ or mask.ndim != 3:
        raise WriteError(f"labels of type {mask.dtype} and shape {mask.shape}", where=folder, remedy="give a 3-D mask")
    planes = mask[::-1] if geometry is None else _head_down(mask, geometry)
    with atomic_folder(folder) as stage:
        for number, plane in enumerate(planes):
            _write_slice(stage, number, plane.astype(np.uint8), json.dumps({"slice": number, "ctguard_labels": 1}))


def read_label_stack(path: str | Path, geometry: Geometry | None = None) -> NDArray[np.bool_]:
    """The mask (z, y, x) of a label stack; every pixel other than 0 counts. Raises ReadError as `read_tiff`."""
    stack = _stack(_slice_files(Path(path)), (np.dtype(np.uint8), np.dtype(np.uint16), np.dtype(np.bool_)))
    planes = stack[::-1] if geometry is None else _head_down(stack, geometry)
    return np.ascontiguousarray(planes != 0)


def _write_slice(folder: Path, number: int, pixels: NDArray[Any], description: str) -> None:
    tifffile.imwrite(
        folder / f"slide{number:04d}.tiff",
        pixels,
        compression="lzma",
        compressionargs={"level": 1},  # half the time of the default for 9 % more bytes
        photometric="minisblack",
        description=description,
        metadata=None,
        software="ctguard",
    )


def _reversed(geometry: Geometry) -> bool:
    """Whether the last slice lies nearest the head, as in every axial series that is not turned over."""
    return geometry.axes_lps[0][2] >= 0


def _head_down(planes: NDArray[Any], geometry: Geometry) -> NDArray[Any]:
    return planes[::-1] if _reversed(geometry) else planes


def _slice_files(folder: Path) -> list[Path]:
    try:
        found = {int(match[1]): file for file in folder.iterdir() if (match := _SLICE.fullmatch(file.name))}
    except OSError as error:
        raise ReadError(f"cannot be read ({error.strerror or error})", where=folder, remedy="check the path") from error
    if not found:
        raise ReadError("it holds no slideNNNN.tiff", where=folder, remedy="give the folder of an M3Dsynth stack")
    for number in range(len(found)):
        if number not in found:
            raise ReadError(f"slide{number:04d}.tiff is missing", where=folder, remedy=_AGAIN)
    return [found[number] for number in range(len(found))]


def _stack(files: list[Path], types: tuple[np.dtype[Any], ...] = (np.dtype(np.uint16),)) -> NDArray[Any]:
    """Pixels (file, y, x)."""
    planes: list[NDArray[Any]] = []
    for file in files:
        try:
            with hushed("tifffile"):
                plane = _plane(file)
        except _DAMAGE as error:
            raise ReadError(f"the slice cannot be read ({one_line(error)})", where=file, remedy=_AGAIN) from error
        if plane.ndim != 2 or plane.dtype not in types:
            what = f"a slice of shape {plane.shape} and type {plane.dtype}"
            raise ReadError(what, where=file, remedy="give a stack of uint16 grey slices")
        if planes and plane.shape != planes[0].shape:
            raise ReadError(f"its shape {plane.shape} is not that of the first slice", where=file, remedy=_AGAIN)
        planes.append(plane)
    return np.stack(planes)


def _plane(file: Path) -> NDArray[Any]:
    with tifffile.TiffFile(file) as tiff:
        first, count = tiff.pages.first, len(tiff.pages)
        if count > 1 or max(first.shape) > _MAX_MATRIX:  # before room is made for what a damaged header asks
            raise ValueError(f"{count} pages of shape {first.shape}")
        return np.asarray(first.asarray())


def _record(folder: Path, files: list[Path]) -> dict[str, Any] | None:
    """What sidecar and descriptions say, after testing that they say the same; None where all of them are silent."""
    records = [_described(file) for file in files]
    sidecar = folder / SIDECAR
    told = _parsed(sidecar.read_text(encoding="utf-8", errors="replace"), sidecar) if sidecar.is_file() else None
    if told is None and all(record is None for record in records):
        return None
    if told is None:
        told = {key: value for key, value in (records[0] or {}).items() if key != "slice"}
    for number, (file, record) in enumerate(zip(files, records, strict=True)):
        if record != {"slice": number, **told}:
            what = "its description is not that of this slice of this stack"
            raise ReadError(what, where=file, remedy="read the file that the stack was made from")
    return told


def _described(file: Path) -> dict[str, Any] | None:
    try:
        with hushed("tifffile"), tifffile.TiffFile(file) as tiff:
            text = tiff.pages.first.description
    except _DAMAGE as error:
        raise ReadError(f"the slice cannot be read ({one_line(error)})", where=file, remedy=_AGAIN) from error
    return _parsed(text, file) if "ctguard_tiff" in text else None


def _parsed(text: str, where: Path) -> dict[str, Any]:
    try:
        record = json.loads(text)
    except ValueError as error:
        raise ReadError(f"its ctguard record is damaged ({one_line(error)})", where=where, remedy=_AGAIN) from error
    if not isinstance(record, dict) or record.get("ctguard_tiff") != 1:
        raise ReadError("its ctguard record is damaged or newer", where=where, remedy="update ctguard or copy it again")
    return record


def _geometry(record: dict[str, Any], folder: Path) -> Geometry:
    try:
        int(record["offset"]), str(record["carried"])
        return Geometry.from_json(record)
    except (KeyError, TypeError, ValueError, GeometryError) as error:
        raise ReadError(f"its ctguard record is damaged ({one_line(error)})", where=folder, remedy=_AGAIN) from error
