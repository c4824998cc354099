"""What every result has in common: identity, dates, marks, equipment, and references to the source.

highdicom lays out the objects; here stand this house's rules for them. Patient and study are those of the source. No
clock is read. Marks of the source go into each object, in SeriesDescription, in SyntheticData and as the carried
record (io/dicom_marks.py), so that the result of a forged scan is never taken for that of a patient's.
"""

from __future__ import annotations

import re
from copy import copy
from typing import Any

from pydicom.dataset import Dataset
from pydicom.sr.coding import Code

from ctguard import RESEARCH_USE_ONLY, __version__
from ctguard.core.marks import SERIES_DESCRIPTION, MarkKind, has, is_synthetic
from ctguard.export.codes import PROCESSING, scheme
from ctguard.export.judged import Judged
from ctguard.io.dicom_marks import records_of

NO_DATE, NO_TIME = "19000101", "000000"
"""A date that is plainly none, as io/dicom_rules.py writes it, where the study has none."""
_SERIES_NUMBERS = {"SEG": 9101, "OT": 9102, "SR": 9103, "KO": 9104}
_LONG_STRING = 64


def identity(of: Judged, modality: str) -> dict[str, Any]:
    """UIDs and numbers of a new object, alone in a series of its own, as highdicom takes them."""
    date, time = _moment(of)
    return {
        "series_instance_uid": of.rules.uid(f"{modality} series"),
        "series_number": int(of.images[0].header.get("SeriesNumber") or 0) + _SERIES_NUMBERS[modality],
        "sop_instance_uid": of.rules.uid(f"{modality} instance"),
        "instance_number": 1,
        "manufacturer": "ctguard",
        "content_date": date,
        "content_time": time,
    }


def device(of: Judged) -> dict[str, Any]:
    """The enhanced equipment module (PS3.3 C.7.5.2): the model's hash is the serial number of what judged."""
    return {
        "manufacturer_model_name": "ctguard",
        "software_versions": __version__,
        "device_serial_number": of.verdict.model_id[:_LONG_STRING] or "none",
    }


def finished(ds: Dataset, of: Judged, name: str) -> Dataset:
    """An object of highdicom's with what all of ours carry. Changes it, and returns it.

    name: what it is, for SeriesDescription, after the marks of the source.
    """
    for element in of.patient:
        ds[element.tag] = copy(element)
    for keyword in ("InstanceCreationDate", "InstanceCreationTime"):  # highdicom reads the clock
        if keyword in ds:
            del ds[keyword]
    ds.SeriesDescription = _series_description(of, name)
    ds.ManufacturerModelName = "ctguard"
    ds.SoftwareVersions = __version__
    ds.CodingSchemeIdentificationSequence = [scheme()]
    if is_synthetic(of.rules.volume.provenance.marks):
        ds.SyntheticData = "YES"
    item = Dataset()
    item.Manufacturer = item.ManufacturerModelName = "ctguard"
    item.SoftwareVersions = __version__
    item.ContributionDescription = (
        f"{RESEARCH_USE_ONLY} Detector {of.verdict.detector}, model sha256 {of.verdict.model_id}"
    )
    item.PurposeOfReferenceCodeSequence = [code_item(PROCESSING)]
    before = ds.get("ContributingEquipmentSequence") or []
    for other in before:
        if "ContributionDateTime" in other:
            del other.ContributionDateTime
    ds.ContributingEquipmentSequence = [*before, item, *records_of(of.rules.record, item)]
    return ds


def refer_to_source(ds: Dataset, of: Judged) -> None:
    """Make a segmentation or map point at the objects of the archive, all of the series, and at frames by number.

    highdicom was told of single images, and only of those below a frame of the result. It also draws the UID of the
    frames' order at random.
    """
    order = of.rules.uid(f"{ds.Modality} dimensions")
    for item in (*ds.DimensionOrganizationSequence, *ds.DimensionIndexSequence):
        item.DimensionOrganizationUID = order
    by_uid = {plane.header.SOPInstanceUID: plane for plane in of.images}
    for group in ds.PerFrameFunctionalGroupsSequence:
        for derivation in group.DerivationImageSequence:
            for item in derivation.SourceImageSequence:
                plane = by_uid.get(item.ReferencedSOPInstanceUID)
                if plane is not None and plane.frame is not None:  # None: a segment before has turned it already
                    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = plane.class_uid, plane.instance_uid
                    item.ReferencedFrameNumber = plane.frame
    ds.SourceImageSequence = [reference(instance) for instance in of.instances]
    ds.ReferencedSeriesSequence[0].ReferencedInstanceSequence = [reference(instance) for instance in of.instances]


def reference(instance: Dataset) -> Dataset:
    """An item that refers to an object (PS3.3 10.8)."""
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = instance.SOPClassUID, instance.SOPInstanceUID
    return item


def code_item(code: Code) -> Dataset:
    """A code as an item (PS3.3 8.8)."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code.value, code.scheme_designator, code.meaning
    return item


def _moment(of: Judged) -> tuple[str, str]:
    """ContentDate and ContentTime."""
    if of.made is not None:
        return of.made.strftime("%Y%m%d"), of.made.strftime("%H%M%S")
    date, time = str(of.patient.get("StudyDate") or ""), str(of.patient.get("StudyTime") or "")
    return (
        date if re.fullmatch(r"\d{8}", date) else NO_DATE,
        time if re.fullmatch(r"\d{6}(\.\d{1,6})?", time) else NO_TIME,
    )


def _series_description(of: Judged, name: str) -> str:
    """Marks of synthetic data first, because viewers show no other attribute (LO: 64 characters)."""
    marks = of.rules.volume.provenance.marks
    kinds: tuple[MarkKind, ...] = ("forged", "phantom")
    text = "; ".join([*(SERIES_DESCRIPTION[kind] for kind in kinds if has(marks, kind)), f"ctguard {name}"])
    said = f"{text}; research use only"
    return said if len(said) <= _LONG_STRING else text[:_LONG_STRING]
