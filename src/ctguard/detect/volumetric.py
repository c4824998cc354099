"""Ours: two networks that err in different places, one made for CT noise in 3-D and one that sees tissue."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ctguard.core.errors import RecipeError
from ctguard.detect.detector import Batch, Detector
from ctguard.detect.losses import counted_pixels, dice_loss, maximum_score, maximum_score_loss, pixel_loss
from ctguard.detect.noise_stream import NoiseStream
from ctguard.detect.unet import UNet2d

_SLICES = 4
"""Slices that the tissue's network takes at a time."""


class Volumetric(Detector):
    """The mean of two maps' logits: of a 3-D network on noise (`NoiseStream`), and of the U-Net on HU, slice by slice.

    What misleads one in untouched lung (a vessel's end, another kernel, a seal) seldom misleads the other, while both
    see what was forged: the mean of their logits falls in the one and stays in the other. Blocks of any depth in, down
    to a single slice.

    width: of the noise stream; 32 is the shipped size.
    tissue_width: of the U-Net, which is trained before, by itself, and frozen here; trained together, the two would
        learn to err together.
    smooth: side, in pixels, of the mean that the map of each slice passes before its maximum becomes the score.
    score_weight: weight of the cross-entropy of the noise stream's score beside its map's losses.

    Raises RecipeError where a parameter makes no network.
    """

    starts_from: ClassVar[Mapping[str, tuple[str, str]]] = {"tissue": ("unet", "detector")}

    def __init__(self, width: int = 32, tissue_width: int = 16, smooth: int = 9, score_weight: float = 0.1) -> None:
        super().__init__()
        if width < 1 or smooth < 1 or smooth % 2 == 0:
            raise RecipeError(
                f"no volumetric detector has width {width} and smooth {smooth}",
                remedy="give a width >= 1 and an odd smooth",
            )
        self.dims: Literal[2, 3] = 3
        self.smooth = smooth
        self.score_weight = score_weight
        self.noise = NoiseStream(width)
        self.tissue = UNet2d(tissue_width).requires_grad_(False).eval()
        self.window_hu = self.tissue.window_hu

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """HU (b, 1, z, y, x) of any size to the score's logit (b) and the map's logit (b, 1, z, y, x)."""
        map_logit = self.map_logit(x)
        return self.score_logit(map_logit), map_logit

    def map_logit(self, x: Tensor) -> Tensor:
        """HU (b, 1, z, y, x) to the logit (b, 1, z, y, x) of each voxel being forged."""
        noise: Tensor = self.noise(x)
        return (noise + self.tissue_logit(x)) / 2

    def tissue_logit(self, x: Tensor) -> Tensor:
        """What the tissue's network says of each slice, (b, 1, z, y, x)."""
        b, _, z, rows, columns = x.shape
        planes = x.transpose(1, 2).reshape(b * z, 1, rows, columns)
        logit = torch.cat([self.tissue.map_logit(some) for some in torch.split(planes, _SLICES)])
        return logit.reshape(b, z, 1, rows, columns).transpose(1, 2)

    def score_logit(self, map_logit: Tensor, ignore: Tensor | None = None) -> Tensor:
        """The maximum (b) of the map smoothed in each slice, over the voxels that are not ignored."""
        # slices stand where a 2-D detector has its one channel: means run within each, the maximum over all
        return maximum_score(map_logit[:, 0], self.smooth, None if ignore is None else ignore[:, 0])

    def step(self, batch: Batch, turn: str) -> dict[str, Tensor]:
        """Losses of the noise stream alone: cross-entropy and Dice of its map, and cross-entropy of its block's score.

        Ignored voxels count in none. Raises RecipeError for a turn that the detector does not have.
        """
        if turn not in self.turns:
            raise RecipeError(f"the volumetric detector has no turn {turn!r}", remedy=f"use one of {self.turns}")
        logit, mask = self.noise(batch["x"]), batch["mask"].float()
        counted = counted_pixels(mask, batch.get("ignore"))
        bce, dice = pixel_loss(logit, mask, counted), dice_loss(logit, mask, counted)
        score = maximum_score_loss(logit[:, 0], self.smooth, batch["label"].float(), counted[:, 0])
        return {"loss": bce + dice + self.score_weight * score, "bce": bce, "dice": dice, "score": score}
