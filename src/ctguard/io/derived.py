"""Write a Volume as a DICOM CT series: derived from its source where it has one, from scratch otherwise."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset
from pydicom.valuerep import format_number_as_ds

from ctguard.core.console import log
from ctguard.core.errors import WriteError
from ctguard.core.geometry import Geometry, index_to_lps_mm
from ctguard.core.volume import Volume
from ctguard.io import zipped
from ctguard.io.atomic import atomic_files, atomic_folder
from ctguard.io.dicom import holds_dicom, opened
from ctguard.io.dicom_pixels import rescaled
from ctguard.io.dicom_rules import Rules, inherited, patient_of, refer_to_source, rules_for, stamp
from ctguard.io.dicom_series import GRID_TOLERANCE, GRID_TOLERANCE_MM
from ctguard.io.dicom_slices import Aside, Slice, load, slices_of
from ctguard.io.dicom_values import PARSE_ERRORS, one_line, required

_LOSSY = ("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51", "1.2.840.10008.1.2.4.81", "1.2.840.10008.1.2.4.91")
_LOSSY_METHOD = dict(zip(_LOSSY, ("ISO_10918_1", "ISO_10918_1", "ISO_14495_1", "ISO_15444_1"), strict=True))


def write_dicom(volume: Volume, out: Path) -> list[Path]:
    """Write a series into folder `out` and return its files in slice order. All of it appears, or nothing.

    Where the volume was read from DICOM files that are still there, on an unchanged grid, each source slice is
    read again and only voxels that differ are pasted into its stored values, ((hu - intercept) / slope, rounded):
    the others stay bit-identical whatever slope, sign and padding. Without such a source the series is made from
    scratch: int16 with slope 1 where every value is a whole number, else uint16 with the smallest power of two as
    slope that spans the range, so that values on a binary fraction (0.5, 0.25 …) survive exactly and others to
    within half that slope (1/16 HU for CT's usual 4,096 HU).

    Transfer syntax is Explicit VR Little Endian. The attributes that marks demand are in io/dicom_rules.py.
    Raises WriteError where `out` holds DICOM already, cannot be written, or a value does not fit the stored range.
    """
    out = Path(out)
    if not np.isfinite(volume.hu).all():
        raise WriteError("the volume holds values that are no numbers", where=out, remedy="repair the step before")
    rules = rules_for(volume)
    slices = _derived(volume, rules) if has_source(volume, warn=True) else _from_scratch(volume, rules)
    with _staged(out) as stage:
        names = []
        for z, ds in enumerate(slices):
            names.append(f"{z:04d}.dcm")
            (stage / names[-1]).write_bytes(_encoded(ds, out, z))
    return [out / name for name in names]


def stored_range_hu(volume: Volume) -> tuple[float, float] | None:
    """Lowest and highest HU that `write_dicom` can store in every slice of the source; None where it has none.

    Bits, sign, slope and intercept are those of the source's headers; no pixels are read (2 to 6 ms a slice). An
    edit clipped to these ends is never refused for its values. None where the volume was not read from DICOM, its
    files are gone, or its grid is another: a series from scratch finds its own range.
    Raises ReadError where a source file is damaged, WriteError where it has changed since the volume was read.
    """
    if not has_source(volume):
        return None
    ends = []
    for original, item, _ in source_slices(volume, pixels=False):
        ends.append(sorted(value * item.slope + item.intercept for value in _stored_ends(original, item.file)))
    return max(low for low, _ in ends), min(high for _, high in ends)


def has_source(volume: Volume, warn: bool = False) -> bool:
    """Whether the volume can be pasted into the files that it was read from."""
    source, grid = volume.provenance.source, volume.geometry
    if source.format != "dicom":
        return False
    if len(source.files) != grid.shape_zyx[0]:
        return False
    gone = next((f for f in source.files if f and not (Path(f).is_file() or zipped.member_exists(f))), None)
    if gone is not None and warn:
        log.warning("%s is gone: the series is written without its source's attributes", gone)
    if gone is not None:
        return False
    ends = [z for z, file in enumerate(source.files) if file]
    return all(_on_plane(_opened(source.files[z], pixels=False)[1], grid, z) for z in (ends[0], ends[-1]))


def _opened(file: str, pixels: bool) -> tuple[FileDataset, list[Slice]]:
    with opened(file) as stream:
        ds = load(stream, file, pixels=pixels)
        slices = slices_of(ds, file, pixels=pixels)
    return ds, [] if isinstance(slices, Aside) else slices


def _on_plane(slices: list[Slice], grid: Geometry, z: int) -> Slice | None:
    """The slice that lies on plane z of the grid; None where none does."""
    at = index_to_lps_mm(grid, (z, 0, 0))
    tolerance = max(2 * GRID_TOLERANCE_MM, 0.25 * grid.spacing_zyx_mm[1], GRID_TOLERANCE * grid.spacing_zyx_mm[0])
    for item in slices:
        same_plane = (
            item.shape_yx == grid.shape_zyx[1:]
            and np.abs(np.subtract(item.spacing_yx_mm, grid.spacing_zyx_mm[1:])).max() < 1e-4
            and np.abs(np.subtract(item.axes_lps, (grid.axes_lps[2], grid.axes_lps[1]))).max() < 1e-3
        )
        if same_plane and np.linalg.norm(np.subtract(item.position_mm, at)) <= tolerance:
            return item
    return None


def source_slices(volume: Volume, pixels: bool) -> Iterator[tuple[FileDataset, Slice, bool]]:
    """For each plane the source's dataset and slice, and whether the plane has no file of its own (interpolated)."""
    source = volume.provenance.source
    name, original, slices, item = "", FileDataset("", {}), list[Slice](), None
    for z, file in enumerate(source.files):
        if file and file != name:
            original, slices = _opened(file, pixels)
            name = file
        found = _on_plane(slices, volume.geometry, z) if file else None
        if file and (found is None or found.series_uid != source.series_uid):
            raise WriteError("has changed since the scan was read", where=file, remedy="read the scan again")
        # A slice that was interpolated takes the attributes of the one before it.
        item = found or item
        if item is None:
            raise WriteError("the first slice has no source", where=name, remedy="read the scan again")
        yield original, item, found is None


def _derived(volume: Volume, rules: Rules) -> Iterator[Dataset]:
    """The source's slices with the edits pasted in."""
    for z, (original, item, interpolated) in enumerate(source_slices(volume, pixels=True)):
        multiframe = "PerFrameFunctionalGroupsSequence" in original
        ds = inherited(original, whole=not (rules.forged or multiframe))
        if multiframe:
            _flatten(ds, item, z)
            if not rules.forged:
                ds.update(patient_of(original))
        stored = _words(original, item) if not rules.forged else None
        _pixels(ds, _pasted(volume, z, original, item, stored, interpolated))
        _note_lossy(ds, original)
        if interpolated:
            _place(ds, volume.geometry, z)
        ds.SeriesNumber = int(original.get("SeriesNumber") or 0) + 9000
        stamp(ds, rules, z)
        if rules.protected:
            frame = item.frame if multiframe else None
            keywords = ("SOPClassUID", "SOPInstanceUID")
            class_uid, instance_uid = (str(required(original, keyword, item.file)) for keyword in keywords)
            refer_to_source(ds, class_uid, instance_uid, frame)
        yield ds


def _words(original: FileDataset, item: Slice) -> NDArray[Any] | None:
    """The very words of an uncompressed slice, whatever stands in their unused high bits."""
    syntax = original.file_meta.TransferSyntaxUID
    if item.stored is None or item.frame > 0 or syntax.is_encapsulated or original.BitsAllocated != 16:
        return None
    size = item.shape_yx[0] * item.shape_yx[1]
    words = np.frombuffer(original.PixelData, dtype="<u2" if syntax.is_little_endian else ">u2", count=size)
    native: NDArray[Any] = words.astype(np.uint16).view(item.stored.dtype.newbyteorder("="))
    return native.reshape(item.shape_yx)


def _pasted(
    volume: Volume, z: int, original: FileDataset, item: Slice, words: NDArray[Any] | None, interpolated: bool
) -> NDArray[Any]:
    """Stored values of plane z: the source's (its words, or decoded), with every voxel that differs replaced."""
    hu, decoded = volume.hu[z], np.asarray(item.stored)
    before = np.empty(hu.shape, dtype=np.int16 if item.whole else np.float32)
    rescaled(decoded, item.slope, item.intercept, before)
    changed = np.ones(hu.shape, dtype=bool) if interpolated else hu != before.astype(hu.dtype)
    stored = decoded.astype(decoded.dtype.newbyteorder("=")) if words is None else words
    if changed.any():
        low, high = _stored_ends(original, item.file)
        values = np.rint((hu[changed].astype(np.float64) - item.intercept) / item.slope)
        outside = int(((values < low) | (values > high)).sum())
        if outside:
            ends = sorted((low * item.slope + item.intercept, high * item.slope + item.intercept))
            raise WriteError(
                f"{outside} changed voxels of slice {z} do not fit {ends[0]:g} to {ends[1]:g} HU, which is all that "
                f"the source's {original.BitsStored} stored bits hold",
                where=item.file,
                remedy="clip the change to that range",
            )
        stored[changed] = values.astype(stored.dtype)
    return stored


def _stored_ends(original: Dataset, file: str) -> tuple[int, int]:
    """The lowest and highest stored value that the bits and the sign of a dataset allow."""
    bits, signed = int(required(original, "BitsStored", file)), int(required(original, "PixelRepresentation", file))
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


def _note_lossy(ds: Dataset, original: FileDataset) -> None:
    """Once lossy, always lossy (PS3.3 C.7.6.1.1.5): decompression must not hide it."""
    method = _LOSSY_METHOD.get(str(original.file_meta.TransferSyntaxUID))
    if method is not None and ds.get("LossyImageCompression") != "01":
        ds.LossyImageCompression = "01"
        ds.LossyImageCompressionMethod = method


def _flatten(ds: Dataset, item: Slice, z: int) -> None:
    """The attributes of one frame of an enhanced object, as a classic CT image has them."""
    ds.ImagePositionPatient = [_ds(v) for v in item.position_mm]
    ds.ImageOrientationPatient = [_ds(v) for axis in item.axes_lps for v in axis]
    ds.PixelSpacing = [_ds(v) for v in item.spacing_yx_mm]
    ds.RescaleSlope, ds.RescaleIntercept = _ds(item.slope), _ds(item.intercept)
    ds.InstanceNumber = z + 1
    if item.thickness_mm:
        ds.SliceThickness = _ds(item.thickness_mm)
    if item.kernel:
        ds.ConvolutionKernel = item.kernel.split("/")
    for keyword in ("KVP", "AcquisitionNumber", "PositionReferenceIndicator", "PatientPosition"):
        if keyword not in ds:
            setattr(ds, keyword, None if keyword == "AcquisitionNumber" else "")


def _place(ds: Dataset, grid: Geometry, z: int) -> None:
    """Put a slice that has no file of its own at its place on the grid."""
    ds.ImagePositionPatient = [_ds(v) for v in index_to_lps_mm(grid, (z, 0, 0))]
    ds.InstanceNumber = z + 1
    if "SliceLocation" in ds:
        del ds.SliceLocation


def _from_scratch(volume: Volume, rules: Rules) -> Iterator[Dataset]:
    """A series of its own: CT Image Storage (PS3.3 A.3) with the required attributes and no invented ones."""
    grid, source = volume.geometry, volume.provenance.source
    slope, intercept, dtype = _encoding(volume.hu)
    for z, plane in enumerate(volume.hu):
        ds = Dataset()
        ds.SpecificCharacterSet = "ISO_IR 100"
        ds.ImageType = ["DERIVED", "SECONDARY", "AXIAL"]
        ds.Manufacturer = "ctguard"
        ds.BodyPartExamined = "CHEST"
        ds.KVP = ds.PatientPosition = ds.PositionReferenceIndicator = ""
        ds.AcquisitionNumber = None
        ds.SliceThickness = _ds(grid.spacing_zyx_mm[0])
        kernel = source.kernel.split("/") if source.kernel else []
        if kernel and max(map(len, kernel)) <= 16:  # SH; a longer name stands in the carried record alone
            ds.ConvolutionKernel = kernel
        ds.InstanceNumber = z + 1
        ds.ImagePositionPatient = [_ds(v) for v in index_to_lps_mm(grid, (z, 0, 0))]
        ds.ImageOrientationPatient = [_ds(v) for axis in (grid.axes_lps[2], grid.axes_lps[1]) for v in axis]
        ds.PixelSpacing = [_ds(v) for v in grid.spacing_zyx_mm[1:]]
        ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
        ds.Rows, ds.Columns = plane.shape
        ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, 16, 15
        ds.PixelRepresentation = int(dtype == np.int16)
        ds.RescaleSlope, ds.RescaleIntercept, ds.RescaleType = _ds(slope), _ds(intercept), "HU"
        ds.WindowCenter, ds.WindowWidth = "-600", "1500"
        ds.LossyImageCompression = "00"
        ds.BurnedInAnnotation = "NO"
        if source.padding_hu is not None:
            padding = round((source.padding_hu - intercept) / slope)
            if np.iinfo(dtype).min <= padding <= np.iinfo(dtype).max:
                ds.add_new("PixelPaddingValue", "SS" if dtype == np.int16 else "US", padding)
        _pixels(ds, np.rint((plane.astype(np.float64) - intercept) / slope).astype(dtype))
        stamp(ds, rules, z)
        yield ds


def _encoding(hu: NDArray[Any]) -> tuple[float, float, type[np.int16] | type[np.uint16]]:
    """Slope, intercept and stored type that keep every voxel, or keep it best."""
    low, high = float(hu.min()), float(hu.max())
    if hu.dtype == np.int16 or (low >= -32768 and high <= 32767 and all((p == np.rint(p)).all() for p in hu)):
        return 1.0, 0.0, np.int16
    slope = 2.0 ** math.ceil(math.log2(max(high - low, 1.0) / 65534))
    return slope, math.floor(low / slope) * slope, np.uint16


def _pixels(ds: Dataset, stored: NDArray[Any]) -> None:
    data = stored.astype(stored.dtype.newbyteorder("<")).tobytes()
    ds.add_new("PixelData", "OW", data + b"\0" * (len(data) % 2))


def _ds(value: float) -> str:
    """A number in the 16 characters of a decimal string (PS3.5 6.2)."""
    return format_number_as_ds(float(value) + 0.0)


def _encoded(ds: Dataset, out: Path, z: int) -> bytes:
    """The bytes of a file; apart from the disk, so that each of the two errors is told as what it is."""
    buffer = BytesIO()
    try:
        ds.save_as(buffer, enforce_file_format=True)
    except PARSE_ERRORS as error:
        what = f"slice {z} cannot be encoded ({one_line(error)})"
        raise WriteError(what, where=out, remedy="repair or remove that attribute in the source") from error
    return buffer.getvalue()


def _staged(out: Path) -> AbstractContextManager[Path]:
    """A hidden folder whose files appear in `out` when the block ends well, and vanish when it does not."""
    if out.exists() and not out.is_dir():
        raise WriteError("is a file", where=out, remedy="give a new or empty folder")
    if holds_dicom(out):
        raise WriteError("holds DICOM files already", where=out, remedy="give a new or empty folder")
    empty = not out.exists() or not any(out.iterdir())
    return atomic_folder(out) if empty else atomic_files(out / "series")
