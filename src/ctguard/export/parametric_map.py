"""The heat of the detector as a parametric map (PS3.3 A.75): float32, 0 to 1, on the grid of the source."""

from __future__ import annotations

import numpy as np
from highdicom import VOILUTTransformation
from highdicom.pm import DerivedPixelContrastValues, ImageFlavorValues, ParametricMap, RealWorldValueMapping
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from ctguard import RESEARCH_USE_ONLY
from ctguard.export.attributes import code_item, device, finished, identity, refer_to_source
from ctguard.export.codes import CHEST, ENTIRE_BODY, MAP, NO_UNITS
from ctguard.export.judged import Judged


def parametric_map(of: Judged) -> Dataset | None:
    """The map, one frame per image that the detector looked at, values bit for bit those of the verdict.

    None where the map is 0 all over, as of a detector that does not say where: such a map would read as a clean one.
    """
    indices = of.with_image(of.verdict.map.max(axis=(1, 2)) > 0)
    if not indices:
        return None
    mapping = RealWorldValueMapping(
        lut_label="TAMPERING_MAP",
        lut_explanation="0: no trace of tampering, 1: looks generated or pasted",
        unit=NO_UNITS,
        value_range=(0.0, 1.0),
        slope=1.0,
        intercept=0.0,
        quantity_definition=MAP,
    )
    ds = ParametricMap(
        source_images=of.headers(indices),
        # A run of planes is a view: a copy of the heat of a large series is hundreds of megabytes.
        pixel_array=_planes(of.verdict.map, indices),
        contains_recognizable_visual_features=False,
        real_world_value_mappings=[mapping],
        voi_lut_transformations=[VOILUTTransformation(window_center=0.5, window_width=1.0)],
        image_flavor=ImageFlavorValues.VOLUME,
        derived_pixel_contrast=DerivedPixelContrastValues.QUANTITY,
        content_label="TAMPERING_MAP",
        content_description=RESEARCH_USE_ONLY,
        **identity(of, "OT"),
        **device(of),
    )
    _add_anatomy(ds, str(of.images[0].header.get("BodyPartExamined") or "CHEST"))
    refer_to_source(ds, of)
    return finished(ds, of, "tampering map")


def _planes(map_: NDArray[np.float32], indices: list[int]) -> NDArray[np.float32]:
    first, last = indices[0], indices[-1] + 1
    return map_[first:last] if len(indices) == last - first else map_[indices]


def _add_anatomy(ds: Dataset, body_part: str) -> None:
    """The frame anatomy macro is mandatory here (PS3.3 A.75.5); highdicom leaves it out."""
    chest = any(word in body_part for word in ("CHEST", "LUNG", "THORAX"))
    item = Dataset()
    item.FrameLaterality = "U"
    item.AnatomicRegionSequence = [code_item(CHEST if chest else ENTIRE_BODY)]
    ds.SharedFunctionalGroupsSequence[0].FrameAnatomySequence = [item]
    ds.BodyPartExamined = body_part
