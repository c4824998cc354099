"""Losses of maps and scores that several detectors share. All take logits; the sigmoid is inside, once."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812


def counted_pixels(mask: Tensor, ignore: Tensor | None) -> Tensor:
    """1 where a pixel counts and 0 where it is ignored, float32 in the shape of the mask."""
    return torch.ones_like(mask, dtype=torch.float32) if ignore is None else (ignore <= 0).float()


def pixel_loss(logit: Tensor, mask: Tensor, counted: Tensor, weights: tuple[float, float] = (1.0, 1.0)) -> Tensor:
    """Cross-entropy over counted pixels, weighted mean; weights: of a pristine and of a forged pixel."""
    weight = counted * (weights[0] + (weights[1] - weights[0]) * mask)
    pixel = F.binary_cross_entropy_with_logits(logit.float(), mask, reduction="none")
    return (pixel * weight).sum() / weight.sum().clamp(min=1)


def dice_loss(logit: Tensor, mask: Tensor, counted: Tensor) -> Tensor:
    """1 - Dice (Milletari et al., 3DV 2016) over the whole batch, for most patches hold no forged pixel."""
    forged, truth = logit.float().sigmoid() * counted, mask * counted
    return 1 - (2 * (forged * truth).sum() + 1) / (forged.sum() + truth.sum() + 1)


def maximum_score(map_logit: Tensor, smooth: int, ignore: Tensor | None = None) -> Tensor:
    """The maximum (b) of the map after a mean of `smooth` (odd) pixels, over the pixels that are not ignored."""
    mean = F.avg_pool2d(map_logit, smooth, stride=1, padding=smooth // 2, count_include_pad=False)
    if ignore is not None:
        mean = mean.masked_fill(ignore > 0, -math.inf)
    return mean.flatten(1).amax(dim=1)


def maximum_score_loss(map_logit: Tensor, smooth: int, label: Tensor, counted: Tensor) -> Tensor:
    """Cross-entropy of `maximum_score` against the labels (b) of the images that have a counted pixel; else 0."""
    seen = counted.flatten(1).amax(dim=1) > 0
    if not bool(seen.any()):
        return map_logit.sum() * 0.0
    score = maximum_score(map_logit[seen], smooth, 1 - counted[seen])
    return F.binary_cross_entropy_with_logits(score.float(), label[seen])
