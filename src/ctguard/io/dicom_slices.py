"""One DICOM object -> its slices: pixels as stored, rescale, position. Shared by the reader and the writer."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset, FileDataset
from pydicom.multival import MultiValue
from pydicom.uid import (
    CTImageStorage,
    EnhancedCTImageStorage,
    LegacyConvertedEnhancedCTImageStorage,
    ParametricMapStorage,
    SecondaryCaptureImageStorage,
)

from ctguard.core.carried import Carried
from ctguard.core.errors import ReadError
from ctguard.core.geometry import FloatTriple, as_float_triple
from ctguard.core.marks import Mark
from ctguard.io.bounded import Bounded
from ctguard.io.dicom_marks import read_carried
from ctguard.io.dicom_pixels import decoded, fits_int16
from ctguard.io.dicom_values import (
    PARSE_ERRORS,
    REWRITE,
    missing,
    one_line,
    required,
    tag_text,
    texts,
    texts_of,
    value_of,
)

_MULTIFRAME = (EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage)
_NO_SLICES = (SecondaryCaptureImageStorage, ParametricMapStorage)
_COMPANIONS = frozenset({"SR", "PR", "KO", "SEG", "RTSTRUCT", "RTPLAN", "RTDOSE", "REG", "DOC", "PLAN"})


@dataclass(frozen=True, eq=False)
class Slice:
    """One CT slice as its file states it.

    axes_lps: unit vectors along which the column index (x) and the row index (y) grow, as in
        ImageOrientationPatient. position_mm: ImagePositionPatient, the centre of the first voxel.
    kernel, deidentified: what the attributes say, or the carried record where they are absent.
    stored: (y, x) stored values, sign extended; None where only the header was read.
    whole: slope and intercept are whole numbers and every value fits int16 Hounsfield units.
    """

    file: str
    frame: int
    series_uid: str
    modality: str
    kernel: str | None
    shape_yx: tuple[int, int]
    spacing_yx_mm: tuple[float, float]
    axes_lps: tuple[FloatTriple, FloatTriple]
    position_mm: FloatTriple
    slope: float
    intercept: float
    padding: int | None
    thickness_mm: float | None
    acquisition: int | None
    patient_id: str | None
    deidentified: bool
    carried: Carried
    stored: NDArray[Any] | None
    whole: bool

    @property
    def marks(self) -> tuple[Mark, ...]:
        """The marks that its file carries."""
        return self.carried.marks

    @property
    def normal(self) -> NDArray[np.float64]:
        """Unit vector across the slice: x cross y."""
        return np.cross(self.axes_lps[0], self.axes_lps[1])


@dataclass(frozen=True)
class Aside:
    """A DICOM object that is no slice of a volume (scout, report, directory): what it is, in one word."""

    file: str
    what: str


def load(stream: BinaryIO, file: str, pixels: bool = True) -> FileDataset:
    """The dataset of an open DICOM file. Raises ReadError where it is damaged."""
    try:
        with warnings.catch_warnings():
            # pydicom only warns of a file that ends too early.
            warnings.filterwarnings("error", message="End of file reached")
            return dcmread(Bounded(stream), stop_before_pixels=not pixels)
    except PARSE_ERRORS as error:
        raise ReadError(f"is damaged or truncated ({one_line(error)})", where=file, remedy=REWRITE) from error


def slices_of(ds: FileDataset, file: str, pixels: bool = True) -> list[Slice] | Aside:
    """The slices of one dataset (several for enhanced multi-frame CT, PS3.3 A.38), or why it holds none.

    Raises ReadError naming file and tag where it cannot be read whole; MissingExtraError where its
    compression needs ctguard[gdcm].
    """
    try:
        return _slices_of(ds, file, pixels)
    except PARSE_ERRORS as error:
        raise ReadError(f"is damaged ({one_line(error)})", where=file, remedy=REWRITE) from error


def _slices_of(ds: FileDataset, file: str, pixels: bool) -> list[Slice] | Aside:
    modality = str(value_of(ds, "Modality") or "")
    sop_class = value_of(ds, "SOPClassUID") or ds.file_meta.get("MediaStorageSOPClassUID")
    if modality in _COMPANIONS or sop_class in _NO_SLICES or "DirectoryRecordSequence" in ds:
        return Aside(file, modality or "DICOMDIR")
    if not modality and "Rows" not in ds and "SeriesInstanceUID" not in ds:
        raise ReadError("ends before its image begins: the file is truncated", where=file, remedy=REWRITE)
    if modality != "CT":
        # A series of another modality takes part in the choice of series, then is refused there; no pixels needed.
        return [_foreign(ds, file, modality)]
    if "LOCALIZER" in texts(ds, "ImageType"):
        return Aside(file, "LOCALIZER")
    if sop_class in _MULTIFRAME:
        return _frames(ds, file, pixels)
    if int(value_of(ds, "NumberOfFrames") or 1) != 1:
        raise ReadError(
            f"holds several frames but is no enhanced CT (SOP class {one_line(str(sop_class))})",
            where=file,
            remedy=f"convert it to {CTImageStorage.name} files",
        )
    stored = next(decoded(ds, file, 1)) if pixels else None
    return [_slice(ds, [ds], file, 0, stored)]


def _foreign(ds: Dataset, file: str, modality: str) -> Slice:
    axes: tuple[FloatTriple, FloatTriple] = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0))
    shape = (int(ds.get("Rows", 1) or 1), int(ds.get("Columns", 1) or 1))
    uid = str(ds.get("SeriesInstanceUID", "") or "")
    zero = (0.0, 0.0, 0.0)
    return Slice(
        file, 0, uid, modality or "no modality", None, shape, (1.0, 1.0), axes, zero, 1.0, 0.0, None, None,
        None, None, False, Carried(), None, True,
    )  # fmt: skip


def _frames(ds: FileDataset, file: str, pixels: bool) -> list[Slice] | Aside:
    """Slices of an enhanced multi-frame object: shared and per-frame functional groups (PS3.3 C.7.6.16)."""
    per_frame = ds.get("PerFrameFunctionalGroupsSequence") or []
    shared = (ds.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
    count = int(required(ds, "NumberOfFrames", file))
    if len(per_frame) != count:
        raise ReadError(
            f"has {count} frames but positions for {len(per_frame)} (PerFrameFunctionalGroupsSequence)",
            where=file,
            remedy=REWRITE,
        )
    arrays = decoded(ds, file, count) if pixels else iter([None] * count)
    slices = []
    for index, (group, stored) in enumerate(zip(per_frame, arrays, strict=True)):
        items = [ds, *_items(shared), *_items(group)]
        if "LOCALIZER" not in texts(_merged(items, ["FrameType"]), "FrameType"):
            slices.append(_slice(ds, items[::-1], file, index, stored))
    return slices or Aside(file, "LOCALIZER")


def _items(group: Dataset) -> list[Dataset]:
    """The one item of each functional group macro."""
    return [element.value[0] for element in group if element.VR == "SQ" and len(element.value) > 0]


def _merged(items: Sequence[Dataset], keywords: Sequence[str]) -> Dataset:
    merged = Dataset()
    for item in items:
        for keyword in keywords:
            if keyword in item:
                merged[keyword] = item[keyword]
    return merged


def _slice(ds: FileDataset, items: Sequence[Dataset], file: str, frame: int, stored: NDArray[Any] | None) -> Slice:
    """One slice; `items` are the datasets to search, the most specific first."""

    def find(keyword: str) -> Any:
        for item in items:
            value = value_of(item, keyword)
            if value is not None:
                return value
        return None

    def need(keyword: str, count: int) -> list[float]:
        value = find(keyword)
        if value is None:
            raise missing(keyword, file)
        numbers = [float(v) for v in value] if isinstance(value, MultiValue | list | tuple) else [float(value)]
        if len(numbers) != count or not np.isfinite(numbers).all():
            what = f"{keyword} {tag_text(keyword)} is {one_line(str(value))}, not {count} numbers"
            raise ReadError(what, where=file, remedy=REWRITE)
        return numbers

    orientation = np.array(need("ImageOrientationPatient", 6)).reshape(2, 3)
    lengths = np.linalg.norm(orientation, axis=1)
    if np.abs(lengths - 1).max() > 1e-2 or abs(orientation[0] @ orientation[1]) > 1e-2:
        raise ReadError(
            "ImageOrientationPatient (0020,0037) is not a pair of orthogonal unit vectors", where=file, remedy=REWRITE
        )
    x_axis = orientation[0] / lengths[0]
    y_axis = orientation[1] - (orientation[1] @ x_axis) * x_axis
    y_axis /= np.linalg.norm(y_axis)
    spacing = need("PixelSpacing", 2)
    slope, intercept = need("RescaleSlope", 1)[0], need("RescaleIntercept", 1)[0]
    if slope == 0 or min(spacing) <= 0:
        raise ReadError(f"RescaleSlope {slope:g} or PixelSpacing {spacing} is not usable", where=file, remedy=REWRITE)
    kernel = find("ConvolutionKernel")
    thickness = find("SliceThickness") or find("SpacingBetweenSlices")
    acquisition = find("FrameAcquisitionNumber") or find("AcquisitionNumber")
    carried = read_carried(ds, file)
    removed = value_of(ds, "PatientIdentityRemoved")
    return Slice(
        file=file,
        frame=frame,
        series_uid=str(required(ds, "SeriesInstanceUID", file)),
        modality="CT",
        kernel=carried.kernel if kernel is None else "/".join(texts_of(kernel)),
        shape_yx=(int(required(ds, "Rows", file)), int(required(ds, "Columns", file))),
        spacing_yx_mm=(spacing[0], spacing[1]),
        axes_lps=(as_float_triple(x_axis), as_float_triple(y_axis)),
        position_mm=as_float_triple(need("ImagePositionPatient", 3)),
        slope=slope,
        intercept=intercept,
        padding=_padding(ds),
        thickness_mm=abs(float(thickness)) if thickness else None,
        acquisition=int(acquisition) if acquisition else None,
        patient_id=str(ds.get("PatientID") or "") or None,
        deidentified=carried.deidentified if removed is None else removed == "YES",
        carried=carried,
        stored=stored,
        whole=stored is None or fits_int16(stored, slope, intercept),
    )


def _padding(ds: Dataset) -> int | None:
    value = ds.get("PixelPaddingValue")
    if value is None or value == "":
        return None
    number = int(value)
    # Some writers state the bit pattern of a signed value as unsigned.
    signed = value_of(ds, "PixelRepresentation") == 1
    return number - 65536 if signed and number > 32767 else number
