"""Which attributes a written DICOM object carries: of its source, of its marks, and of ctguard itself.

Forged (and any object without a source) starts from an allow-list: what is not named here does not get in, so
no name, date, UID or free text of a patient does (PS3.15 Annex E, basic profile). Protected and unmarked copies
stay in their patient's study and keep the source's attributes, except those that the new pixels make stale.
Every UID is derived from the content (2.25 root, PS3.5 B.2), and no clock is read: same volume, same bytes.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterable
from copy import copy
from dataclasses import dataclass

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian

from ctguard import __version__
from ctguard.core.carried import to_text
from ctguard.core.errors import ReadError
from ctguard.core.marks import SERIES_DESCRIPTION, MarkKind, has, is_synthetic
from ctguard.core.volume import Volume
from ctguard.io.dicom_marks import records_of, without_records
from ctguard.io.dicom_values import PARSE_ERRORS, REWRITE, one_line, tag_text

_IMPLEMENTATION_UID = UID("2.25.194318226083257931226541364519274317725")


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_IMAGE = _words(
    """
    SpecificCharacterSet Modality Manufacturer ManufacturerModelName SoftwareVersions BodyPartExamined Laterality
    ScanOptions SliceThickness KVP SpacingBetweenSlices DataCollectionDiameter ReconstructionDiameter
    DistanceSourceToDetector DistanceSourceToPatient GantryDetectorTilt TableHeight RotationDirection ExposureTime
    XRayTubeCurrent Exposure FilterType GeneratorPower FocalSpots ConvolutionKernel PatientPosition RevolutionTime
    SingleCollimationWidth TotalCollimationWidth TableSpeed TableFeedPerRotation SpiralPitchFactor
    ExposureModulationType CTDIvol DataCollectionCenterPatient ReconstructionTargetCenterPatient AcquisitionNumber
    InstanceNumber ImagePositionPatient ImageOrientationPatient PositionReferenceIndicator SliceLocation
    SamplesPerPixel PhotometricInterpretation Rows Columns PixelSpacing BitsAllocated BitsStored HighBit
    PixelRepresentation PixelPaddingValue PixelPaddingRangeLimit RescaleIntercept RescaleSlope RescaleType
    WindowCenter WindowWidth LossyImageCompression LossyImageCompressionRatio LossyImageCompressionMethod
    BurnedInAnnotation SyntheticData ContentQualification
    """
)
"""Of the acquisition and the image; none of them identifies a patient (absent from PS3.15 Table E.1-1)."""

_PATIENT = _words(
    """
    PatientName PatientID IssuerOfPatientID PatientBirthDate PatientSex PatientAge PatientSize PatientWeight
    PatientIdentityRemoved DeidentificationMethod DeidentificationMethodCodeSequence
    LongitudinalTemporalInformationModified StudyInstanceUID StudyDate StudyTime StudyID StudyDescription
    AccessionNumber ReferringPhysicianName SeriesDescription ProtocolName FrameOfReferenceUID
    ContributingEquipmentSequence
    """
)
"""Of patient, study and series: what a copy of an enhanced multi-frame object keeps besides the image."""

_STALE = _words(
    """
    DigitalSignaturesSequence MACParametersSequence IconImageSequence SmallestImagePixelValue LargestImagePixelValue
    SmallestPixelValueInSeries LargestPixelValueInSeries DataSetTrailingPadding SourceImageSequence
    PixelDataProviderURL ExtendedOffsetTable ExtendedOffsetTableLengths
    """
)
"""What new pixels in a new object make untrue."""

_MAY_BE_EMPTY = _words("Manufacturer SliceThickness KVP AcquisitionNumber PatientPosition PositionReferenceIndicator")
"""Type 2 of the CT image: must stand there, with a value or without."""

_DEIDENTIFIED = _words(
    """
    PatientIdentityRemoved DeidentificationMethod DeidentificationMethodCodeSequence
    LongitudinalTemporalInformationModified
    """
)


@dataclass(frozen=True)
class Rules:
    """What the marks of one volume demand of every slice written from it.

    record: what core/carried.py writes of it. digest: SHA-256 of all that it is.
    """

    volume: Volume
    record: str
    digest: str

    @property
    def forged(self) -> bool:
        """Whether the volume carries the mark of a forgery, alone or among others."""
        return has(self.volume.provenance.marks, "forged")

    @property
    def protected(self) -> bool:
        """Whether it is a copy with protection added, and no forgery."""
        marks = self.volume.provenance.marks
        return not self.forged and (has(marks, "protected") or has(marks, "sealed"))

    def uid(self, what: str, index: int = 0) -> UID:
        """A UID that depends on the content and on what it names alone (PS3.5 B.2, version 8 of RFC 9562)."""
        raw = bytearray(hashlib.sha256(f"{self.digest}/{what}/{index}".encode()).digest()[:16])
        raw[6], raw[8] = raw[6] & 0x0F | 0x80, raw[8] & 0x3F | 0x80
        return UID(f"2.25.{uuid.UUID(bytes=bytes(raw)).int}")


def rules_for(volume: Volume) -> Rules:
    """The rules for a volume, with the digest that its UIDs derive from.

    Raises WriteError where its provenance holds what must not travel (core/carried.py).
    """
    geometry, source = volume.geometry, volume.provenance.source
    record = to_text(volume.provenance)
    head = json.dumps(
        [
            [geometry.shape_zyx, geometry.spacing_zyx_mm, geometry.origin_lps_mm, geometry.axes_lps],
            [str(volume.hu.dtype), source.series_uid, source.patient_id],
            record,
        ]
    )
    digest = hashlib.sha256(head.encode())
    for plane in volume.hu:
        digest.update(np.ascontiguousarray(plane).data)
    return Rules(volume, record, digest.hexdigest())


def inherited(source: Dataset, whole: bool) -> Dataset:
    """What a copy takes over from its source: all but the stale (whole), or the allow-list of image attributes."""
    if whole:
        ds = Dataset()
        for element in source:
            if element.keyword not in _STALE and element.keyword != "PixelData":
                ds[element.tag] = copy(element)
        return _without_signatures(ds)
    ds = _taken(source, _IMAGE)
    for keyword in _MAY_BE_EMPTY:
        if keyword not in ds:
            setattr(ds, keyword, None)
    if "BodyPartExamined" not in ds and "Laterality" not in ds:
        ds.Laterality = ""
    return ds


def patient_of(source: Dataset) -> Dataset:
    """Patient, study and series attributes alone."""
    return _taken(source, _PATIENT)


def _taken(source: Dataset, keywords: Iterable[str]) -> Dataset:
    """Copies of elements: an element that two datasets share would change in both. Raises ReadError."""
    ds = Dataset()
    for keyword in keywords:
        try:
            if keyword in source:
                ds[keyword] = copy(source[keyword])
        except PARSE_ERRORS as error:
            what = f"its {keyword} {tag_text(keyword)} is damaged ({one_line(error)})"
            raise ReadError(what, remedy=REWRITE) from error
    return ds


def _without_signatures(ds: Dataset) -> Dataset:
    """Signatures may also stand inside sequence items (PS3.3 C.12.1.1.3)."""
    for element in ds:
        if element.VR == "SQ":
            for item in element.value:
                for keyword in ("DigitalSignaturesSequence", "MACParametersSequence"):
                    if keyword in item:
                        delattr(item, keyword)
                _without_signatures(item)
    return ds


def stamp(ds: Dataset, rules: Rules, z: int) -> None:
    """Make `ds` slice z of the written series: class, UIDs, identity, marks, derivation and equipment."""
    provenance = rules.volume.provenance
    ds.SOPClassUID = CTImageStorage
    ds.SOPInstanceUID = rules.uid("instance", z)
    ds.SeriesInstanceUID = rules.uid("series")
    ds.Modality = "CT"
    if rules.forged:
        _research_identity(ds, rules, "FORGED")
    elif "StudyInstanceUID" not in ds:
        _own_study(ds, rules)
    # Value 3 on (AXIAL, HELIX …) describes the geometry, which is the source's own.
    rest = [str(v) for v in ds.get("ImageType") or []][2:] or ["AXIAL"]
    ds.ImageType = ["DERIVED", "SECONDARY", *(["AXIAL"] if rules.forged else rest)]
    ds.SeriesDescription = _series_description(ds, rules)
    ds.DerivationDescription = _derivation(rules)
    if is_synthetic(provenance.marks):
        ds.SyntheticData = "YES"
        ds.ContentQualification = "RESEARCH"
    _add_equipment(ds, rules)
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID = CTImageStorage
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.ImplementationClassUID = _IMPLEMENTATION_UID
    ds.file_meta.ImplementationVersionName = f"CTGUARD_{__version__}"[:16]


def refer_to_source(ds: Dataset, source_class: str, source_instance: str, frame: int | None) -> None:
    """Name the source image of a protected slice (PS3.3 C.7.6.1.1.4; PS3.16 CID 7202)."""
    item = Dataset()
    item.ReferencedSOPClassUID = source_class
    item.ReferencedSOPInstanceUID = source_instance
    if frame is not None:
        item.ReferencedFrameNumber = frame + 1
    item.PurposeOfReferenceCodeSequence = [_code("121322", "Source image for image processing operation")]
    item.SpatialLocationsPreserved = "YES"
    ds.SourceImageSequence = [item]


def _research_identity(ds: Dataset, rules: Rules, name: str) -> None:
    """A patient and a study that exist nowhere; only the manifest of the run knows the source."""
    ds.StudyInstanceUID = rules.uid("study")
    ds.FrameOfReferenceUID = rules.uid("frame of reference")
    ds.PatientName = f"CTGUARD^{name}"
    ds.PatientID = f"CTGUARD-{rules.digest[:16].upper()}"
    ds.PatientBirthDate = ds.PatientSex = ds.AccessionNumber = ds.ReferringPhysicianName = ""
    # A date that is plainly none: some archives refuse a study without one.
    ds.StudyDate, ds.StudyTime, ds.StudyID = "19000101", "000000", "CTGUARD"
    ds.SeriesNumber = 1
    ds.PatientIdentityRemoved = "YES"
    ds.DeidentificationMethod = "ctguard: allow-list of attributes"
    ds.DeidentificationMethodCodeSequence = [_code("113100", "Basic Application Confidentiality Profile")]
    ds.LongitudinalTemporalInformationModified = "REMOVED"


def _own_study(ds: Dataset, rules: Rules) -> None:
    """A study for a volume that has none: a phantom, or one from a format without a patient module."""
    source = rules.volume.provenance.source
    phantom = rules.volume.provenance.has_mark("phantom")
    _research_identity(ds, rules, "PHANTOM")
    if source.patient_id:
        ds.PatientID = source.patient_id[:64]
    elif not phantom:
        ds.PatientID = ""
    if not phantom:
        ds.PatientName = ""
        if not source.deidentified:
            for keyword in _DEIDENTIFIED:
                delattr(ds, keyword)


def _series_description(ds: Dataset, rules: Rules) -> str:
    """The words that viewers show, the strongest first (LO: 64 characters)."""
    marks = rules.volume.provenance.marks
    order: tuple[MarkKind, ...] = ("forged", "phantom", "protected", "sealed")
    words = [SERIES_DESCRIPTION[kind] for kind in order if has(marks, kind)]
    if not words:
        own = str(ds.get("SeriesDescription") or "")
        words = [own[:49], "derived copy"] if own else ["derived copy"]
    return "; ".join(dict.fromkeys(words))[:64]


def _derivation(rules: Rules) -> str:
    """What was done, by what and how strongly (ST: 1024 characters)."""
    provenance = rules.volume.provenance
    parts = [f"{mark.kind}: {mark.detail}" for mark in provenance.marks]
    steps = ", ".join(step.name for step in provenance.steps)
    parts.append(f"steps: {steps}" if steps else "copied without change of values")
    text = f"ctguard {__version__}; " + "; ".join(parts) + "; research use only"
    return text.encode("ascii", errors="replace").decode()[:1024]


def _add_equipment(ds: Dataset, rules: Rules) -> None:
    """Name ctguard, its version and its models as processing equipment (PS3.3 C.12.1)."""
    hashes = dict.fromkeys(
        str(step.params["model_sha256"]) for step in rules.volume.provenance.steps if step.params.get("model_sha256")
    )
    item = Dataset()
    item.Manufacturer = "ctguard"
    item.ManufacturerModelName = "ctguard"
    item.SoftwareVersions = __version__
    item.ContributionDescription = "; ".join(["research use only", *(f"model sha256 {h}" for h in hashes)])[:1024]
    item.PurposeOfReferenceCodeSequence = [_code("109102", "Processing Equipment")]
    kept = [] if rules.forged else without_records(ds.get("ContributingEquipmentSequence") or [])
    others = (other for other in kept if other != item)
    ds.ContributingEquipmentSequence = [*others, item, *records_of(rules.record, item)]


def _code(value: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue = value
    item.CodingSchemeDesignator = "DCM"
    item.CodeMeaning = meaning
    return item
