"""What a malignancy scorer says of pristine and of forged nodules (protocols.md "Malignancy check")."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ctguard import zoo
from ctguard.bench.kept import NAN, read_kept, without_nan, write_kept
from ctguard.bench.metrics import auc
from ctguard.bench.quality import Quality, forgery_quality, nodule_histogram
from ctguard.cad.network import NoisyOr3d
from ctguard.cad.propose import Box, propose
from ctguard.cad.score import score_sites
from ctguard.cohort.nodules import label_of, mask_box_lps_mm
from ctguard.core.errors import DataError, ModelError
from ctguard.core.geometry import FloatTriple, as_float_triple, lps_mm_to_index
from ctguard.core.records import Case, Split
from ctguard.core.volume import Volume
from ctguard.image.lung import lung_mask
from ctguard.io.cases import read_case, read_cases
from ctguard.io.forgeries import Forgery, read_manifest
from ctguard.parallel import map_cases
from ctguard.train.checkpoint import Card

PRISTINE = "pristine"
FOUND_MM = 10.0
"""A proposal this near to a place finds it."""

SIZE_BAND_MM = (8.0, 15.0)
"""Where size alone does not tell benign from malignant."""


@dataclass(frozen=True)
class NoduleScores:
    """Scores of pristine nodules, one row each: probability of malignancy, label, diameter."""

    score: NDArray[np.float64]
    malignant: NDArray[np.bool_]
    diameter_mm: NDArray[np.float64]

    def auc(self, low_mm: float = 0.0, high_mm: float = np.inf) -> float:
        """AUC of the score among nodules of these diameters; NaN where one label is missing."""
        return self._auc(self.score, low_mm, high_mm)

    def diameter_auc(self, low_mm: float = 0.0, high_mm: float = np.inf) -> float:
        """AUC that the diameter alone has among them."""
        return self._auc(self.diameter_mm, low_mm, high_mm)

    def _auc(self, values: NDArray[np.float64], low_mm: float, high_mm: float) -> float:
        inside = (self.diameter_mm >= low_mm) & (self.diameter_mm <= high_mm)
        return auc(values[inside & self.malignant], values[inside & ~self.malignant])


def score_batches(module: nn.Module, batches: Sequence[dict[str, Any]]) -> NDArray[np.float64]:
    """Probability of malignancy of the middle of each block, in order."""
    with torch.inference_mode():
        scores = [module(batch["hu"], batch["location"]).sigmoid() for batch in batches]
    return np.concatenate([score.numpy() for score in scores]).astype(np.float64)


def judge_scorer(scores: NoduleScores) -> dict[str, float]:
    """AUC of score and of diameter alone, over all sizes and within 8 to 15 mm; "score" is what training maximises."""
    found = {
        "auc": scores.auc(),
        "auc_8_15_mm": scores.auc(*SIZE_BAND_MM),
        "auc_of_diameter": scores.diameter_auc(),
        "auc_of_diameter_8_15_mm": scores.diameter_auc(*SIZE_BAND_MM),
    }
    known = [value for value in (found["auc"], found["auc_8_15_mm"]) if np.isfinite(value)]
    return {"score": float(np.mean(known)) if known else 0.0, **found}


def youden(scores: NoduleScores) -> tuple[float, str]:
    """The threshold with the largest sensitivity + specificity - 1, and the sentence for the card.

    It lies half-way between two neighbouring scores. Raises DataError where one label is missing.
    """
    if scores.malignant.all() or not scores.malignant.any():
        raise DataError(
            "no threshold without malignant and benign nodules", remedy="give an index with validation cases"
        )
    ranked = np.unique(scores.score)
    cuts = np.concatenate([ranked[:1], (ranked[1:] + ranked[:-1]) / 2])
    sensitivity = np.array([(scores.score[scores.malignant] >= cut).mean() for cut in cuts])
    specificity = np.array([(scores.score[~scores.malignant] < cut).mean() for cut in cuts])
    best = int(np.argmax(sensitivity + specificity))
    note = (
        f"Youden's J on {int(scores.malignant.sum())} malignant and {int((~scores.malignant).sum())} benign pristine "
        f"validation nodules: sensitivity {sensitivity[best]:.3f}, specificity {specificity[best]:.3f}"
    )
    return float(cuts[best]), note


@dataclass(frozen=True, eq=False)
class Site:
    """One place that was scored.

    kind: "pristine" or the generator. task: inject, remove, or "" for pristine nodules. diameter_mm: of the finding, or
    what the forgery reaches. score: of the place now; before: of the same place untouched. found: whether a proposal
    of the scorer lies within 10 mm of it; found_before: of the untouched place. malignant: of a pristine nodule.
    """

    scan_id: str
    patient: str
    kind: str
    task: str
    center_zyx: FloatTriple
    diameter_mm: float
    score: float
    found: bool
    before: float = NAN
    found_before: bool = False
    malignant: bool = False
    quality: Quality | None = None
    nodule: tuple[int, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As it is kept between runs; NaN becomes None."""
        return {**without_nan(vars(self)), "quality": None if self.quality is None else self.quality.to_json()}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Site:
        """What `to_json` made."""
        quality = None if row["quality"] is None else Quality.from_json(row["quality"])
        before = NAN if row["before"] is None else row["before"]
        nodule, center = tuple(row["nodule"]), tuple(row["center_zyx"])
        return cls(**{**row, "quality": quality, "before": before, "nodule": nodule, "center_zyx": center})


def measure_folder(
    folder: Path, work: Path, *, split: Split = "test", weights: Path | None = None, jobs: int = 1
) -> tuple[list[Site], Card]:
    """Score every nodule and every forgery of a split of a data set (`ctguard synth --format plan`), and its quality.

    work: a folder that keeps the rows of finished scans, so that a killed run goes on; rows of other weights or of
    other forgeries are measured anew. Raises DataError where the split is empty, ReadError and ModelError.
    """
    index, forgeries = read_manifest(folder)
    cases = [case for case in read_cases(index) if case.split == split]
    by_scan: dict[str, list[Forgery]] = {}
    for forgery in forgeries:
        by_scan.setdefault(forgery.scan_id, []).append(forgery)
    wanted = [(case, by_scan.get(case.scan_id, [])) for case in cases if case.findings or case.scan_id in by_scan]
    if not wanted:
        raise DataError(f"no {split} scan has a nodule or a forgery", where=folder, remedy="give --split, or more data")
    _, card = _scorer(weights)
    work.mkdir(parents=True, exist_ok=True)
    measure = partial(_measure_case, index=index, work=work, weights=weights)
    rows: list[Site] = []
    for result in map_cases(measure, wanted, jobs=jobs, label="scans"):
        rows += result.unwrap()
    return rows, card


@lru_cache(maxsize=1)
def _scorer(weights: Path | None) -> tuple[NoisyOr3d, Card]:
    torch.set_num_threads(1)
    scorer, card = zoo.load(zoo.find("noisy-or", "scorer"), weights)
    if card.threshold is None:
        raise ModelError("its card has no threshold", where=card.name, remedy="train it with validation cases")
    return scorer, card


def _measure_case(item: tuple[Case, list[Forgery]], index: Path, work: Path, weights: Path | None) -> list[Site]:
    """Rows of one scan, from `work` where they are there already."""
    case, forgeries = item
    scorer, card = _scorer(weights)
    digest = hashlib.sha256(card.sha256.encode())
    for forgery in forgeries:
        digest.update(forgery.name.encode())
        digest.update(np.ascontiguousarray(forgery.block).tobytes())
    kept = work / f"{case.scan_id}.json"
    stored = read_kept(kept, digest.hexdigest())
    if stored is not None:
        return [Site.from_json(row) for row in stored]
    volume = read_case(index, case)
    lung = lung_mask(volume)
    rows = [*_pristine_sites(case, volume, scorer, lung), *_forged_sites(case, forgeries, volume, scorer, lung)]
    write_kept(kept, digest.hexdigest(), [row.to_json() for row in rows])
    return rows


def _pristine_sites(case: Case, volume: Volume, scorer: NoisyOr3d, lung: NDArray[np.bool_]) -> list[Site]:
    labelled = []
    for finding in case.findings:
        center = as_float_triple(lps_mm_to_index(volume.geometry, finding.center_lps_mm))
        if label_of(finding.malignancy) is not None and volume.geometry.contains(center):
            labelled.append((finding, center))
    box = mask_box_lps_mm(volume, lung)
    scores = score_sites(volume, scorer, [center for _, center in labelled], box=box)
    return [
        Site(
            case.scan_id,
            case.patient,
            PRISTINE,
            "",
            center,
            finding.diameter_mm,
            float(score),
            is_found(volume, scorer, lung, box, center),
            malignant=bool(label_of(finding.malignancy)),
            nodule=tuple(int(v) for v in nodule_histogram(volume, lung, center)),
        )
        for (finding, center), score in zip(labelled, scores, strict=True)
    ]


def _forged_sites(
    case: Case, forgeries: Sequence[Forgery], volume: Volume, scorer: NoisyOr3d, lung: NDArray[np.bool_]
) -> list[Site]:
    rows = []
    box = mask_box_lps_mm(volume, lung)
    untouched: dict[FloatTriple, tuple[float, bool]] = {}
    for forgery in forgeries:
        edit = forgery.edit
        center = edit.center_zyx
        if center not in untouched:
            before = float(score_sites(volume, scorer, [center], box=box)[0])
            untouched[center] = (before, is_found(volume, scorer, lung, box, center))
        forged = Volume(forgery.paste(volume.hu), volume.geometry, volume.provenance)
        quality = forgery_quality(volume, forged.hu, edit, lung)
        rows.append(
            Site(
                case.scan_id,
                case.patient,
                edit.generator,
                edit.task,
                center,
                quality.diameter_mm,
                float(score_sites(forged, scorer, [center], box=box)[0]),
                is_found(forged, scorer, lung, box, center),
                before=untouched[center][0],
                found_before=untouched[center][1],
                quality=quality,
            )
        )
    return rows


def is_found(
    volume: Volume, scorer: NoisyOr3d, lung: NDArray[np.bool_], box: Box | None, center_zyx: FloatTriple
) -> bool:
    """Whether one of the scorer's proposals lies within 10 mm of a place. Only its neighbourhood is looked at."""
    spacing = np.asarray(volume.geometry.spacing_zyx_mm)
    near = np.zeros(lung.shape, dtype=bool)
    reach = FOUND_MM / spacing
    window = tuple(
        slice(max(0, int(np.ceil(c - r))), min(n, int(np.floor(c + r)) + 1))
        for c, r, n in zip(center_zyx, reach, lung.shape, strict=True)
    )
    near[window] = True
    found = propose(volume, scorer, near, box, quiet=True)
    return any(np.linalg.norm(np.subtract(one.center_zyx, center_zyx) * spacing) <= FOUND_MM for one in found)
