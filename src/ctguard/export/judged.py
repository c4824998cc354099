"""A verdict together with the images in the archive that it is about."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from datetime import datetime

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import UID, CTImageStorage
from pydicom.valuerep import format_number_as_ds

from ctguard import __version__
from ctguard.core.errors import GeometryError, WriteError
from ctguard.core.records import Verdict
from ctguard.core.volume import Volume
from ctguard.detect.regions import label_regions
from ctguard.io.derived import has_source, source_slices
from ctguard.io.dicom_rules import Rules, patient_of, rules_for
from ctguard.io.dicom_slices import Slice
from ctguard.io.dicom_values import required, texts

_EMPTY = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID"),
    *("AccessionNumber", "ReferringPhysicianName"),
)
"""Type 2 of patient and study: in every object, with a value or without."""
_OF_THE_SERIES = ("SeriesDescription", "ProtocolName", "FrameOfReferenceUID", "ContributingEquipmentSequence")
_KEPT = (
    *("StudyInstanceUID", "SeriesInstanceUID", "SeriesNumber", "FrameOfReferenceUID"),
    *("PositionReferenceIndicator", "BodyPartExamined", "InstanceNumber"),
    *("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod"),
)
_PLACE = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")


@dataclass(frozen=True)
class Plane:
    """One slice of the volume, as it lies in the archive.

    header: what highdicom needs to know of it, as of a single-frame CT image, whatever it is.
    class_uid, instance_uid, frame: what results refer to; frame counts from 1, and is None for a single-frame image.
    """

    header: Dataset
    class_uid: str
    instance_uid: str
    frame: int | None

    @property
    def words(self) -> str:
        """What a reader calls it: the number that viewers show."""
        return f"image {self.header.get('InstanceNumber') or '?'}" if self.frame is None else f"frame {self.frame}"


@dataclass(frozen=True, eq=False)
class Judged:
    """A verdict and its images.

    planes: one per slice of the volume; None where it was interpolated, so that there is no image to point at.
    instances: a header for each object of the source, in slice order; several planes may be frames of one.
    labels: uint16 (z, y, x), n in the n-th region. patient: patient and study attributes, character for character.
    rules: the marks of the source, and UIDs from the content of series and verdict. made: as `judged` was told.
    """

    verdict: Verdict
    planes: tuple[Plane | None, ...]
    instances: tuple[Dataset, ...]
    labels: NDArray[np.uint16]
    patient: Dataset
    rules: Rules
    made: datetime | None

    @property
    def images(self) -> list[Plane]:
        """The planes that have an image, in slice order."""
        return [plane for plane in self.planes if plane is not None]

    def with_image(self, wanted: NDArray[np.bool_]) -> list[int]:
        """Indices of the planes that are wanted (bool, one per plane) and have an image."""
        return [int(z) for z in np.flatnonzero(wanted) if self.planes[z] is not None]

    def headers(self, indices: Sequence[int]) -> list[Dataset]:
        """Headers of these planes."""
        return [plane.header for plane in (self.planes[z] for z in indices) if plane is not None]

    def tracking(self, number: int = 0) -> tuple[str, UID]:
        """Tracking identifier and UID of a region, counted from 1, or of the scan (0)."""
        return f"ctguard region {number}" if number else "ctguard scan", self.rules.uid("tracking", number)


def judged(volume: Volume, verdict: Verdict, *, made: datetime | None = None) -> Judged:
    """Join a verdict to the DICOM series that the volume was read from. Headers are read again, pixels are not.

    made: date and time that the results carry. Without it they carry those of the study, no clock is read, and the
    same series and verdict give the same bytes. UIDs depend on it.
    Raises GeometryError where the verdict is of another grid; WriteError where the volume was not read from DICOM,
    its files are gone or have changed, or the series is not of one study and one frame of reference.
    """
    if not verdict.geometry.agrees(volume.geometry):
        raise GeometryError("the verdict is of another grid than the scan", remedy="judge this scan itself")
    if not has_source(volume):
        what = "a segmentation, a map and a report in DICOM need a DICOM series to refer to, and this scan is none"
        if volume.provenance.source.format == "dicom":
            what = "the DICOM series that the scan was read from is gone, or lies on another grid"
        raise WriteError(what, remedy="judge the DICOM series itself")
    base = rules_for(volume)
    planes: list[Plane | None] = []
    patient = Dataset()
    for z, (original, item, interpolated) in enumerate(source_slices(volume, pixels=False)):
        patient = patient if planes else _patient(original)
        planes.append(None if interpolated else _plane(original, item, volume, base.uid("plane", z)))
    images = [plane for plane in planes if plane is not None]
    _check_series(images)
    rules = replace(base, digest=_digest(base, planes, verdict, made))
    return Judged(verdict, tuple(planes), _instances(images), label_regions(verdict), patient, rules, made)


def _digest(base: Rules, planes: Sequence[Plane | None], verdict: Verdict, made: datetime | None) -> str:
    """All that decides the content of the results, and so their UIDs."""
    names = [None if plane is None else (plane.instance_uid, plane.frame) for plane in planes]
    regions = [region.to_json() for region in verdict.regions]
    head = (base.digest, names, verdict.detector, verdict.model_id, verdict.score, verdict.threshold, regions)
    digest = hashlib.sha256(json.dumps([*head, None if made is None else made.isoformat(), __version__]).encode())
    digest.update(np.ascontiguousarray(verdict.map).data)
    return digest.hexdigest()


def _patient(original: Dataset) -> Dataset:
    ds = patient_of(original)
    if "SpecificCharacterSet" in original:  # highdicom, which adds ASCII alone, refuses some that are in use
        ds["SpecificCharacterSet"] = copy(original["SpecificCharacterSet"])
    for keyword in _OF_THE_SERIES:
        if keyword in ds:
            del ds[keyword]
    for keyword in _EMPTY:
        if keyword not in ds:
            setattr(ds, keyword, "")
    return ds


def _plane(original: Dataset, item: Slice, volume: Volume, placeholder: UID) -> Plane:
    """A slice as highdicom wants to be told of it. A frame gets a UID of its own; `refer_to_source` takes it out."""
    header = Dataset()
    for keyword in _KEPT:
        if keyword in original:
            header[keyword] = copy(original[keyword])
    for keyword in _EMPTY:
        setattr(header, keyword, "")
    class_uid, instance_uid = (str(required(original, k, item.file)) for k in ("SOPClassUID", "SOPInstanceUID"))
    multiframe = "PerFrameFunctionalGroupsSequence" in original
    header.SOPClassUID, header.SOPInstanceUID = CTImageStorage, placeholder if multiframe else instance_uid
    header.Modality = "CT"
    header.Rows, header.Columns = item.shape_yx
    place = (item.position_mm, [v for axis in item.axes_lps for v in axis], item.spacing_yx_mm)
    for keyword, values in zip(_PLACE, place, strict=True):
        if multiframe or keyword not in original:
            setattr(header, keyword, [_ds(v) for v in values])
        else:
            header[keyword] = copy(original[keyword])
    header.SliceThickness = _ds(item.thickness_mm or volume.geometry.spacing_zyx_mm[0])
    header.SpacingBetweenSlices = _ds(volume.geometry.spacing_zyx_mm[0])
    return Plane(header, class_uid, instance_uid, item.frame + 1 if multiframe else None)


def _instances(planes: Sequence[Plane]) -> tuple[Dataset, ...]:
    """The header of the first plane of each object, under the object's own UID."""
    found: dict[str, Dataset] = {}
    for plane in planes:
        if plane.frame is None:
            found[plane.instance_uid] = plane.header
        elif plane.instance_uid not in found:
            header = found[plane.instance_uid] = Dataset()
            for element in plane.header:
                header[element.tag] = copy(element)
            header.SOPClassUID, header.SOPInstanceUID = plane.class_uid, plane.instance_uid
    return tuple(found.values())


def _check_series(planes: Sequence[Plane]) -> None:
    """One study and one frame of reference: highdicom does not refuse others. One orientation, to the last digit."""
    first = planes[0].header
    for plane in planes:
        for keyword in ("StudyInstanceUID", "FrameOfReferenceUID"):
            if not texts(plane.header, keyword):
                raise WriteError(f"this image has no {keyword}", where=plane.instance_uid, remedy="repair the series")
            if texts(plane.header, keyword) != texts(first, keyword):
                what = f"this image has another {keyword} than the first one of its series"
                raise WriteError(what, where=plane.instance_uid, remedy="give one series of one study")
        # The reader has seen to it that these differ by rounding alone, but highdicom takes no difference at all.
        for keyword in ("ImageOrientationPatient", "PixelSpacing", "SliceThickness"):
            plane.header[keyword] = first[keyword]


def _ds(value: float) -> str:
    """A number in the 16 characters of a decimal string (PS3.5 6.2)."""
    return format_number_as_ds(float(value) + 0.0)
