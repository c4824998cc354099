"""The suspected regions as a BINARY segmentation (PS3.3 A.51): one segment each, the one with the highest score first.

Only frames with a voxel of their segment are stored. LABELMAP would be smaller, and FRACTIONAL would hold the heat,
but viewers in use refuse them; the heat is in the parametric map.
"""

from __future__ import annotations

from highdicom import AlgorithmIdentificationSequence
from highdicom.color import CIELabColor
from highdicom.seg import (
    SegmentAlgorithmTypeValues,
    Segmentation,
    SegmentationTypeValues,
    SegmentDescription,
)
from pydicom.dataset import Dataset

from ctguard import RESEARCH_USE_ONLY, __version__
from ctguard.export.attributes import device, finished, identity, refer_to_source
from ctguard.export.codes import CATEGORY, FAMILY, SUSPECTED
from ctguard.export.judged import Judged

_COLOURS = ((255, 64, 64), (255, 200, 0), (0, 200, 255), (255, 0, 255), (0, 255, 128), (255, 128, 0))


def segmentation(of: Judged) -> Dataset | None:
    """The segmentation, on the grid of the source and frame by frame over its images.

    None where the verdict has no region on any image: a BINARY segmentation cannot be empty.
    """
    indices = of.with_image(of.labels.max(axis=(1, 2)) > 0)
    if not indices:
        return None
    ds = Segmentation(
        source_images=of.headers(indices),
        pixel_array=of.labels[indices],
        segmentation_type=SegmentationTypeValues.BINARY,
        segment_descriptions=[_segment(of, number) for number in range(1, len(of.verdict.regions) + 1)],
        content_label="SUSPECTED_REGION",
        content_description=RESEARCH_USE_ONLY,
        **identity(of, "SEG"),
        **device(of),
    )
    refer_to_source(ds, of)
    return finished(ds, of, "suspect regions")


def _segment(of: Judged, number: int) -> SegmentDescription:
    name, uid = of.tracking(number)
    return SegmentDescription(
        segment_number=number,
        segment_label=f"Region {number}, score {of.verdict.regions[number - 1].score:.3f}",
        segmented_property_category=CATEGORY,
        segmented_property_type=SUSPECTED,
        algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=AlgorithmIdentificationSequence(
            name=f"ctguard {of.verdict.detector}",
            family=FAMILY,
            version=__version__,
            source="ctguard",
            parameters={"model_sha256": of.verdict.model_id, "threshold": f"{of.verdict.threshold:.6g}"},
        ),
        tracking_uid=uid,
        tracking_id=name,
        display_color=CIELabColor.from_rgb(*_COLOURS[(number - 1) % len(_COLOURS)]),
    )
