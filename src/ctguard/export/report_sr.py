"""The verdict as a Comprehensive 3D SR (PS3.3 A.35.13), TID 1500: score, threshold, model and regions.

PRELIMINARY and UNVERIFIED: no person has looked at it. It holds one group of measurements for the scan (TID 1501) and
one for each region (TID 1411), which points at its segment and bears its tracking identifier.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from highdicom import sr
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from ctguard import RESEARCH_USE_ONLY, __version__
from ctguard.core.records import Region, Verdict
from ctguard.export import codes as own
from ctguard.export.attributes import finished, identity
from ctguard.export.judged import Judged

_Group = (
    sr.MeasurementsAndQualitativeEvaluations
    | sr.VolumetricROIMeasurementsAndQualitativeEvaluations
    | sr.PlanarROIMeasurementsAndQualitativeEvaluations
)


def report_sr(of: Judged, seg: Dataset | None = None, others: Sequence[Dataset] = ()) -> Dataset:
    """The report. seg: the segmentation of the same verdict, where it has one. others: further results, as evidence."""
    context = sr.ObservationContext(observer_device_context=observer(of))
    groups: list[_Group] = [_scan(of)]
    if seg is not None:
        groups += [_region(of, number, seg) for number in range(1, len(of.verdict.regions) + 1)]
    content = sr.MeasurementReport(
        observation_context=context,
        procedure_reported=own.PROCEDURE,
        imaging_measurements=groups,
    )
    items = content[0].ContentSequence
    items.insert(len(items) - 1, _image_library(of))
    ds = sr.Comprehensive3DSR(
        evidence=[*of.instances, *([seg] if seg is not None else []), *others],
        content=content,
        is_complete=True,
        is_final=False,
        is_verified=False,
        **identity(of, "SR"),
    )
    return finished(ds, of, "tampering report")


def observer(of: Judged) -> sr.ObserverContext:
    """Who says so: this software with this model, under a UID that is theirs in every report."""
    model = replace(of.rules, digest=f"{__version__}/{of.verdict.detector}/{of.verdict.model_id}")
    return sr.ObserverContext(
        observer_type=codes.DCM.Device,
        observer_identifying_attributes=sr.DeviceObserverIdentifyingAttributes(
            uid=model.uid("device"),
            name=f"ctguard {of.verdict.detector}",
            manufacturer_name="ctguard",
            model_name="ctguard",
            serial_number=of.verdict.model_id or None,
        ),
    )


def _scan(of: Judged) -> sr.MeasurementsAndQualitativeEvaluations:
    """Score, threshold and verdict of the whole scan."""
    verdict = of.verdict
    measurements = [
        sr.Measurement(name=own.SCORE, value=float(verdict.score), unit=own.NO_UNITS),
        sr.Measurement(name=own.THRESHOLD, value=float(verdict.threshold), unit=own.NO_UNITS),
    ]
    group = sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=_tracking(of, 0),
        finding_type=own.CHECK,
        algorithm_id=_algorithm(verdict),
        measurements=measurements,
        qualitative_evaluations=[sr.QualitativeEvaluation(name=own.VERDICT, value=_words(verdict))],
    )
    said = f"{verdict.words[:1].upper()}{verdict.words[1:]}. {RESEARCH_USE_ONLY}"
    if not verdict.tampered:
        said += " No evidence does not prove that a scan is genuine."
    group[0].ContentSequence.append(_comment(said))
    return group


def _region(of: Judged, number: int, seg: Dataset) -> sr.VolumetricROIMeasurementsAndQualitativeEvaluations:
    region = of.verdict.regions[number - 1]
    voxels = int(np.count_nonzero(of.labels == number))
    segment = sr.ReferencedSegment(
        sop_class_uid=seg.SOPClassUID,
        sop_instance_uid=seg.SOPInstanceUID,
        segment_number=number,
        source_series=sr.SourceSeriesForSegmentation(of.images[0].header.SeriesInstanceUID),
    )
    group = sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=_tracking(of, number),
        referenced_segment=segment,
        finding_type=own.SUSPECTED,
        algorithm_id=_algorithm(of.verdict),
        measurements=[
            sr.Measurement(name=own.REGION_SCORE, value=round(float(region.score), 6), unit=own.NO_UNITS),
            sr.Measurement(name=own.VOLUME, value=round(voxels * of.verdict.geometry.voxel_mm3, 3), unit=own.MM3),
        ],
    )
    group[0].ContentSequence.append(_comment(_place(of, region)))
    return group


def _place(of: Judged, region: Region) -> str:
    center, extent = (", ".join(f"{v:.1f}" for v in values) for values in (region.center_lps_mm, region.extent_mm))
    plane = of.planes[round(region.center_zyx[0])]
    image = "" if plane is None else f", in {plane.words}"
    return (
        f"Centre at {center} mm (x, y, z of the patient, LPS){image}; extent {extent} mm (across slices, down rows, "
        "along columns)"
    )


def _tracking(of: Judged, number: int) -> sr.TrackingIdentifier:
    name, uid = of.tracking(number)
    return sr.TrackingIdentifier(uid=uid, identifier=name)


def _algorithm(verdict: Verdict) -> sr.AlgorithmIdentification:
    return sr.AlgorithmIdentification(
        name=f"ctguard {verdict.detector}",
        version=__version__,
        parameters=[f"model_sha256={verdict.model_id}", f"threshold={verdict.threshold:.6g}"],
        family=own.FAMILY,
        manufacturer="ctguard",
    )


def _words(verdict: Verdict) -> Code:
    if not verdict.tampered:
        return own.NO_EVIDENCE
    return own.EVIDENCE if verdict.regions else own.EVIDENCE_NOWHERE


def _comment(text: str) -> sr.TextContentItem:
    """A sentence at the end of a group: TID 1501 and 1411 are extensible, and people read sentences."""
    return sr.TextContentItem(name=own.COMMENT, value=text, relationship_type=sr.RelationshipTypeValues.CONTAINS)


def _image_library(of: Judged) -> sr.ContainerContentItem:
    """Which images were judged (TID 1600): one group, an entry for each object, no descriptors but the common ones.

    highdicom's own library repeats fifteen numbers of each slice's header, before the first line that people want.
    """
    contains, context = sr.RelationshipTypeValues.CONTAINS, sr.RelationshipTypeValues.HAS_ACQ_CONTEXT
    group = sr.ContainerContentItem(name=codes.DCM.ImageLibraryGroup, relationship_type=contains)
    modality = sr.CodeContentItem(
        name=codes.DCM.Modality, value=codes.DCM.ComputedTomography, relationship_type=context
    )
    frame = sr.UIDRefContentItem(
        name=codes.DCM.FrameOfReferenceUID,
        value=of.images[0].header.FrameOfReferenceUID,
        relationship_type=context,
    )
    images = [
        sr.ImageContentItem(
            name=own.SOURCE,
            referenced_sop_class_uid=instance.SOPClassUID,
            referenced_sop_instance_uid=instance.SOPInstanceUID,
            relationship_type=contains,
        )
        for instance in of.instances
    ]
    group.ContentSequence = sr.ContentSequence([modality, frame, *images])
    library = sr.ContainerContentItem(name=codes.DCM.ImageLibrary, relationship_type=contains)
    library.ContentSequence = sr.ContentSequence([group])
    return library
