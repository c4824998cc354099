"""What a reader of the detection tables has to know, in sentences."""

from __future__ import annotations

from collections.abc import Sequence

from ctguard.bench.calibrated import OURS
from ctguard.bench.models import Model

PANEL_NOTE = (
    "Panels: thresholds as above, whole scans (nodules: the 32 slices around them), exact intervals (Clopper-Pearson), "
    "one forgery per scan in turn. Another acquisition cannot follow a forgery, so kernel, dose, thickness and metal "
    "stand in the false-alarm panel alone; so do shorter and longer scans. 5 mm: the nearest whole number of slices."
)
SLICES_NOTE = (
    "Single slices, each with a forged site and none without: no slice-level accuracy. auc: pixels of the raw map, "
    "lung within 10 mm of the label against lung farther than 16 mm from any, per slice, averaged. hit@1: the maximum "
    "in lung of the map, smoothed by a Gaussian of 6 mm SD, lies within 16 mm of the label. mean rank and tile auc: of "
    "the tile around the label among the 32 mm tiles that are lung to a half, by the highest smoothed value. One lung "
    "mask for all methods; it holds 5 mm around each label. Intervals by scan. Both baselines are single features "
    "without training."
)


def notes_of(models: Sequence[Model], cells: Sequence[Model], split: str, scans: int) -> list[str]:
    """What a reader of the tables has to know."""
    trained = [model for model in models if model.card is not None]
    missing = [model.name for model in models if model.card is None]
    lines = [
        f"Split {split}, {scans} scans. Scores are ranked raw. Intervals: 2,000 bootstrap resamples of "
        "patients, seed 0. F1, IoU and precision: against voxels that changed inside the nominal 32 mm cube, map at "
        '0.5; "f1 of cube" against the whole cube. "f1" is averaged over forged scans, "f1 pooled" counts the '
        "voxels of all of them together.",
        *(f"Threshold of {model.label}: {model.threshold}, {model.threshold_note}." for model in trained),
        *(f"{model.label} learned from: {model.card.data}." for model in trained if model.card),
        "A size in brackets is the size of the recipe: cpu is a network of reduced width, trained from scratch.",
    ]
    if missing:
        lines.append(f"Not trained, so without figures: {', '.join(missing)}.")
    if cells:
        absent = [cell.name for cell in cells if cell.card is None]
        lines.append(
            "The paper's figures are of networks of full width, from public weights, on M3Dsynth's scans: the data "
            "differ, so compare the pattern, not the digits."
        )
        lines += [f"Cells without a checkpoint: {', '.join(absent)}."] if absent else []
    if not any(model.detector == OURS for model in trained):
        lines.append(f"{OURS} was not judged, so its gain over the best of the others is not stated.")
    return lines
