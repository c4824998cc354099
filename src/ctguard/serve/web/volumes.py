"""What the viewer shows of a judged series: scan and map as compressed NIfTI, and any slice of them at once.

Both files are one gzip stream with a flush point before each slice, so that the same bytes go to a browser as a
whole volume and give one slice in milliseconds. They are made once, at the end of an analysis or when a case is first
opened, and hold voxels, grid and marks alone: no name, no UID.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
from imagecodecs import png_encode
from numpy.typing import NDArray

from ctguard.core.carried import Carried, from_text, to_text
from ctguard.core.errors import ReadError
from ctguard.core.geometry import Geometry, as_float_triple, as_int_triple
from ctguard.core.provenance import Source
from ctguard.core.records import Verdict
from ctguard.core.volume import Volume
from ctguard.detect.regions import label_regions
from ctguard.io.atomic import atomic_folder
from ctguard.io.grid import affine_xyz
from ctguard.report.planes import PLANES, View

FOLDER, FACTS = "view", "view.json"
Name = Literal["ct", "map", "ct-small", "map-small"]
SMALL = 256
"""The small volumes have at most so many voxels along an axis: for phones, and browsers that draw without a GPU."""
WINDOWS_HU = {"lung": (-1350.0, 150.0), "mediastinum": (-160.0, 240.0)}
"""As in the reports: centre -600, width 1,500 HU; centre 40, width 400 HU."""

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_MAP_STEPS = 250
"""The map is shown in steps of 1/250."""
_RAW_DEFLATE, _GZIP = -15, 31
_TYPES: dict[Name, str] = {"ct": "<i2", "map": "|u1"}


@dataclass(frozen=True)
class Slices:
    """The facts of a prepared case (view.json) and the folder that holds its volumes."""

    folder: Path
    facts: dict[str, Any]

    def file(self, name: Name) -> Path:
        """The whole volume as .nii.gz."""
        return self.folder / f"{name}.nii.gz"

    @property
    def geometry(self) -> Geometry:
        """The grid of the scan."""
        return Geometry.from_json(self.facts["geometry"])

    @property
    def carried(self) -> Carried:
        """Marks, steps and kernel of the scan."""
        return from_text(self.facts["carried"], str(self.folder))

    @property
    def picture_size(self) -> tuple[int, int]:
        """Width and height of a slice as it is shown, in pixels of the width's spacing."""
        row, column = self.facts["rows"][0], self.facts["columns"][0]
        shape, spacing = self.geometry.shape_zyx, self.geometry.spacing_zyx_mm
        return shape[column], round(shape[row] * spacing[row] / spacing[column])

    def box(self, region: dict[str, Any]) -> tuple[float, float, float, float]:
        """Left, top, width and height of a region (as in verdict.json) on its slices, in percent of the picture."""
        shape, spacing = self.geometry.shape_zyx, self.geometry.spacing_zyx_mm
        found = []
        for axis, flipped in (self.facts["columns"], self.facts["rows"]):
            size = region["extent_mm"][axis] / spacing[axis] / shape[axis]
            center = (region["center_zyx"][axis] + 0.5) / shape[axis]
            found.append((100 * ((1 - center if flipped else center) - size / 2), 100 * size))
        (left, width), (top, height) = found
        return left, top, width, height

    def __getitem__(self, at: tuple[Name, int]) -> NDArray[Any]:
        """Slice k (y, x): HU, or the map in steps of 1/250.

        Raises IndexError beyond the grid, ReadError where the file is damaged.
        """
        name, k = at
        count, ny, nx = self.geometry.shape_zyx
        if not 0 <= k < count:
            raise IndexError(k)
        start, stop = self.facts["offsets"][name][k : k + 2]
        with self.file(name).open("rb") as stream:
            stream.seek(start)
            packed = stream.read(stop - start)
        try:
            plane = zlib.decompressobj(_RAW_DEFLATE).decompress(packed)
            return np.frombuffer(plane, _TYPES[name]).reshape(ny, nx)
        except (zlib.error, ValueError) as error:
            remedy = f"remove the folder {FOLDER}; it is made anew"
            raise ReadError(f"slice {k} is damaged ({error})", where=self.file(name), remedy=remedy) from error


def prepare(volume: Volume, verdict: Verdict, folder: Path) -> Slices:
    """Make what the viewer shows of a verdict in `folder`/view; all or nothing.

    Raises GeometryError where verdict and volume do not belong together, WriteError where the folder cannot be
    written.
    """
    labels = label_regions(verdict)
    sizes = np.bincount(labels.ravel(), minlength=len(verdict.regions) + 1)[1:]
    worst = verdict.regions[0].center_zyx[0] if verdict.regions else np.argmax(verdict.map.max(axis=(1, 2)))
    across, rows, columns = _plane(volume.geometry)
    facts: dict[str, Any] = {
        "geometry": asdict(volume.geometry),
        "plane": PLANES[across].name,
        "edges": PLANES[across].edges,
        "rows": rows,
        "columns": columns,
        "worst": round(float(worst)),
        "region_mm3": [round(float(n) * volume.geometry.voxel_mm3, 1) for n in sizes],
        "carried": to_text(volume.provenance),
    }
    hu = volume.hu if volume.hu.dtype == np.int16 else volume.hu.round().clip(-32768, 32767).astype(np.int16)
    made: dict[Name, NDArray[Any]] = {"ct": hu, "map": (verdict.map * _MAP_STEPS).round().astype(np.uint8)}
    strides = [-(-n // SMALL) for n in hu.shape]
    with atomic_folder(folder / FOLDER) as stage:
        facts["offsets"] = {name: _write(made[name], volume.geometry, stage / f"{name}.nii.gz") for name in made}
        for name, values in made.items():
            few, grid = _thinned(values, volume.geometry, strides)
            _write(few, grid, stage / f"{name}-small.nii.gz")
        (stage / FACTS).write_text(json.dumps(facts), encoding="utf-8")
    return Slices(folder / FOLDER, facts)


def open_slices(folder: Path) -> Slices | None:
    """What `prepare` made in `folder`, or None. Raises ReadError where it is damaged."""
    path = folder / FOLDER / FACTS
    try:
        return Slices(folder / FOLDER, json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ReadError(f"it is damaged ({error})", where=path, remedy="remove the folder; it is made anew") from error


def volume_of(slices: Slices, series_uid: str) -> Volume:
    """The scan again, on its grid and with what it carries, in whole HU."""
    geometry = slices.geometry
    hu = np.stack([slices["ct", k] for k in range(geometry.shape_zyx[0])])
    return Volume(hu, geometry, slices.carried.onto(Source("dicom", series_uid=series_uid)))


def scan_png(slices: Slices, k: int, window: str) -> bytes:
    """Slice k of the scan in a window, 8 bits, turned as a reader expects it."""
    low, high = WINDOWS_HU[window]
    grey = ((slices["ct", k].astype(np.float32) - low) * (255 / (high - low))).clip(0, 255)
    return _png(_turned(grey.astype(np.uint8), slices.facts))


def map_png(slices: Slices, k: int) -> bytes:
    """Slice k of the map, from yellow (low) to red (high), the clearer the lower: to be laid over `scan_png`."""
    return _png(_HEAT_RGBA[_turned(slices["map", k], slices.facts)])


def _heat() -> NDArray[np.uint8]:
    """The colours of the reports' figures, one for each step of the map."""
    t = np.clip(np.arange(256) / _MAP_STEPS, 0, 1)
    rgba = np.stack([np.ones(256), 0.85 * (1 - t), np.zeros(256), np.minimum(1, 1.5 * t)], axis=-1)
    return np.asarray((rgba * 255).round(), dtype=np.uint8)


_HEAT_RGBA = _heat()


def _png(image: NDArray[np.uint8]) -> bytes:
    return bytes(png_encode(np.ascontiguousarray(image), level=1))


def _plane(geometry: Geometry) -> tuple[int, list[Any], list[Any]]:
    """How the slices of an array lie: the plane's number, and (array axis, flipped) of a picture's rows and columns."""
    view = View.of(geometry)
    across = view.order.index(0)
    (r, row), (c, column) = ((axis, view.order[axis]) for axis in range(3) if axis != across)
    # feet-head rows run upwards, but a picture's run downwards
    return across, [row, bool(view.flipped[r]) != (r == 0)], [column, bool(view.flipped[c])]


def _turned(plane: NDArray[Any], facts: dict[str, Any]) -> NDArray[Any]:
    """A slice (y, x) with the patient's right on the left, or the head up."""
    (row, rows_flipped), (_, columns_flipped) = facts["rows"], facts["columns"]
    seen = plane if row == 1 else plane.T
    return seen[:: -1 if rows_flipped else 1, :: -1 if columns_flipped else 1]


def _thinned(values: NDArray[Any], geometry: Geometry, strides: list[int]) -> tuple[NDArray[Any], Geometry]:
    """Every n-th voxel along each axis."""
    few = values[tuple(slice(None, None, stride) for stride in strides)]
    spacing = as_float_triple(np.multiply(geometry.spacing_zyx_mm, strides))
    return few, Geometry(as_int_triple(few.shape), spacing, geometry.origin_lps_mm, geometry.axes_lps)


def _write(values: NDArray[Any], geometry: Geometry, path: Path) -> list[int]:
    """NIfTI-1 as one gzip stream; where in the file each slice starts, and the last one ends."""
    offsets = []
    with path.open("wb") as out:
        packer = zlib.compressobj(1, zlib.DEFLATED, _GZIP)
        for part in _parts(values, geometry):
            out.write(packer.compress(part) + packer.flush(zlib.Z_FULL_FLUSH))
            offsets.append(out.tell())
        out.write(packer.flush())
        out.flush()
        os.fsync(out.fileno())
    return offsets


def _parts(values: NDArray[Any], geometry: Geometry) -> Iterator[bytes]:
    header = nib.Nifti1Header()
    header.set_data_dtype(values.dtype)
    header.set_data_shape(values.shape[::-1])
    affine = _LPS_TO_RAS @ affine_xyz(geometry)
    header.set_qform(affine, code=1)
    header.set_sform(affine, code=1)
    header.set_xyzt_units("mm")
    header["magic"], header["vox_offset"] = b"n+1", 352
    header["scl_slope"], header["scl_inter"] = 1.0 if values.dtype == np.int16 else 1 / _MAP_STEPS, 0.0
    yield header.binaryblock + bytes(4)
    for plane in values:
        yield np.ascontiguousarray(plane).tobytes()
