"""From a volume to nodules and their malignancy. Reads voxels and geometry only: never marks, UIDs, names or steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ctguard.cad.network import STRONGEST, NoisyOr3d
from ctguard.cad.propose import Candidate, propose
from ctguard.cohort.nodules import location_of, mask_box_lps_mm
from ctguard.cohort.patches import cut_cube
from ctguard.core.errors import GeometryError, ModelError
from ctguard.core.geometry import FloatTriple, as_float_triple, index_to_lps_mm
from ctguard.core.provenance import Json
from ctguard.core.volume import Volume
from ctguard.image.lung import lung_mask

Box = tuple[FloatTriple, FloatTriple]


@dataclass(frozen=True)
class Nodule:
    """A proposal with its score.

    confidence: the detector's probability that a nodule is there. malignancy: the scorer's probability, 0..1.
    """

    center_zyx: FloatTriple
    center_lps_mm: FloatTriple
    diameter_mm: float
    confidence: float
    malignancy: float

    def to_json(self) -> dict[str, Json]:
        """As `cad --json` prints it."""
        return {
            "center_zyx": [round(v, 2) for v in self.center_zyx],
            "center_lps_mm": [round(v, 2) for v in self.center_lps_mm],
            "diameter_mm": round(self.diameter_mm, 2),
            "confidence": self.confidence,
            "malignancy": self.malignancy,
        }


@dataclass(frozen=True)
class Reading:
    """What the scorer says of a scan. case_probability: leaky noisy-or over the five most confident nodules."""

    scorer: str
    model_id: str
    threshold: float
    case_probability: float
    nodules: tuple[Nodule, ...]


def score_sites(
    volume: Volume,
    scorer: NoisyOr3d,
    centers_zyx: Sequence[FloatTriple],
    *,
    box: Box | None = None,
    device: str = "cpu",
    batch: int = 8,
) -> NDArray[np.float64]:
    """Probability of malignancy (n) of what lies at each place, indices (z, y, x).

    box: of the lungs in patient space, where the caller has it already (`lung_box`).
    Raises GeometryError for a place outside the scan and ModelError where the network gives no number.
    """
    for center in centers_zyx:
        if not volume.geometry.contains(center):
            place = ", ".join(f"{v:g}" for v in center)
            raise GeometryError(
                f"the place {place} (z, y, x) lies outside the scan of {volume.geometry.shape_zyx}",
                remedy="see `ctguard info`",
            )
    box = box or lung_box(volume)
    scorer.eval().to(device)
    scores: list[NDArray[np.float64]] = []
    for first in range(0, len(centers_zyx), batch):
        centers = [as_float_triple(center) for center in centers_zyx[first : first + batch]]
        hu = np.stack([cut_cube(volume, center, scorer.block_mm) for center in centers])[:, None]
        points = index_to_lps_mm(volume.geometry, centers)
        location = np.stack([location_of(as_float_triple(point), box) for point in points])
        location[:, 1] *= scorer.block_mm / 2
        with torch.inference_mode():
            logit = scorer(torch.from_numpy(hu).to(device), torch.from_numpy(location).to(device))
        scores.append(logit.sigmoid().cpu().double().numpy())
    found = np.concatenate(scores) if scores else np.zeros(0)
    if not np.isfinite(found).all():
        raise ModelError("the scorer gave no number", remedy="its weights are damaged, or voxels are not numbers")
    return found


def lung_box(volume: Volume) -> Box | None:
    """Lowest and highest corner (x, y, z) of the box of the lungs in patient space; None where no lung is seen."""
    return mask_box_lps_mm(volume, lung_mask(volume))


def read_volume(
    volume: Volume,
    scorer: NoisyOr3d,
    *,
    name: str,
    model_id: str,
    threshold: float,
    device: str = "cpu",
) -> Reading:
    """Nodules that the scorer finds in the lungs, the most confident first, each with its malignancy.

    name, model_id, threshold: as in the scorer's card. Nothing is found where no lung is seen.
    Raises ModelError where the network gives no numbers. Source: Liao et al., arXiv 1711.08324, sections III and IV.
    """
    mask = lung_mask(volume)
    box = mask_box_lps_mm(volume, mask)
    found = propose(volume, scorer, mask, box, device=device)
    scores = score_sites(volume, scorer, [c.center_zyx for c in found], box=box, device=device)
    nodules = tuple(_nodule(volume, candidate, float(s)) for candidate, s in zip(found, scores, strict=True))
    return Reading(name, model_id, threshold, case_probability(scorer, scores), nodules)


def score_site(
    volume: Volume,
    scorer: NoisyOr3d,
    center_zyx: FloatTriple,
    *,
    name: str,
    model_id: str,
    threshold: float,
    device: str = "cpu",
) -> Reading:
    """The score of one place, as a reading of one nodule without diameter and confidence.

    Raises GeometryError for a place outside the scan and ModelError where the network gives no number.
    """
    scores = score_sites(volume, scorer, [center_zyx], device=device)
    nodule = _nodule(volume, Candidate(center_zyx, 0.0, 1.0), float(scores[0]))
    return Reading(name, model_id, threshold, case_probability(scorer, scores), (nodule,))


def case_probability(scorer: NoisyOr3d, scores: NDArray[np.float64]) -> float:
    """Leaky noisy-or over the first five, most confident proposals; the leak alone where there is none."""
    logits = torch.logit(torch.from_numpy(scores[:STRONGEST]).double(), eps=1e-12)
    with torch.inference_mode():
        return float(scorer.case_probability(logits))


def _nodule(volume: Volume, candidate: Candidate, malignancy: float) -> Nodule:
    point = as_float_triple(index_to_lps_mm(volume.geometry, candidate.center_zyx))
    return Nodule(candidate.center_zyx, point, candidate.diameter_mm, candidate.confidence, malignancy)
