"""The worst slice as a key object selection (PS3.3 A.35.4, TID 2010), which archives show as a flagged image."""

from __future__ import annotations

from highdicom.ko import KeyObjectSelection, KeyObjectSelectionDocument
from pydicom.dataset import Dataset

from ctguard import RESEARCH_USE_ONLY
from ctguard.export.attributes import finished, identity
from ctguard.export.codes import OF_INTEREST
from ctguard.export.judged import Judged, Plane
from ctguard.export.report_sr import observer


def key_object(of: Judged) -> Dataset | None:
    """The image with the highest value of the map in region 1, titled "Of Interest".

    The title is on purpose none of those that make an archive hide the image (IHE IOCM: Rejected for Quality Reasons).
    None where the verdict has no region.
    """
    plane = _worst(of)
    if plane is None:
        return None
    instance = next(one for one in of.instances if plane.instance_uid == one.SOPInstanceUID)
    verdict = of.verdict
    content = KeyObjectSelection(
        document_title=OF_INTEREST,
        referenced_objects=[instance],
        observer_device_context=observer(of),
        description=(
            f"Suspected tampering: {plane.words} has the highest value of the map in region 1, whose score is "
            f"{verdict.regions[0].score:.3f} (detector {verdict.detector}, threshold {verdict.threshold:.3f}). "
            f"{RESEARCH_USE_ONLY}"
        ),
    )
    if plane.frame is not None:
        content[0].ContentSequence[-1].ReferencedSOPSequence[0].ReferencedFrameNumber = plane.frame
    ds = KeyObjectSelectionDocument(evidence=[instance], content=content, **identity(of, "KO"))
    return finished(ds, of, "worst slice")


def _worst(of: Judged) -> Plane | None:
    """The image with the highest value inside region 1."""
    found: tuple[float, Plane] | None = None
    for plane, labels, heat in zip(of.planes, of.labels, of.verdict.map, strict=True):
        inside = labels == 1
        if plane is not None and inside.any() and (found is None or heat[inside].max() > found[0]):
            found = float(heat[inside].max()), plane
    return None if found is None else found[1]
