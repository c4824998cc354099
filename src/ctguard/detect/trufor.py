"""TruFor (Guillaro et al., CVPR 2023): where image and noise residual disagree, how sure that is, and one score."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from ctguard.core.errors import RecipeError
from ctguard.detect.detector import Batch, Detector, expect_prior
from ctguard.detect.losses import counted_pixels, dice_loss, pixel_loss
from ctguard.detect.residual import CTResidual
from ctguard.detect.trufor_encoder import Decoder, Encoder

MULTIPLE = 32
CELL = 4
"""Maps are decided at a quarter of the resolution."""
PIXEL_WEIGHTS = (0.5, 2.5)
DICE_SHARE = 0.7
SCORE_WEIGHT = 0.5
LEFT_OUT = -30.0
"""Logarithm of the weight of a pixel that does not count; finite, so that an image with none that counts has a mean."""


class TruFor(Detector):
    """A two-stream SegFormer on the slice and on a residual of its noise, an anomaly map, a confidence map, a score.

    width: channels of the first scale, eight times as many at the last and in the decoders; 64 is the published network
        (SegFormer-B2; 68 M parameters), 8 the CPU size (1.2 M, 2.3 MB in fp16).
    depths: transformer blocks of the four scales.
    extractor_width, extractor_depth: of the frozen residual extractor, which must be those of its weights.
    window_hu: lung and soft tissue, scaled to -1..1.

    Training follows the published stages. The extractor is trained before, by itself (recipe `residual`), and frozen.
    The turn "map" trains encoder and anomaly map; the turn "score" trains confidence and score on features from which
    no gradient goes back, so that the second stage can run beside the first one in a single recipe.

    Differs from the paper. The extractor is a residual of CT noise (`ctguard.detect.residual`), because Noiseprint++ is
    a fingerprint of cameras. One channel of HU replaces RGB, the residual goes in once instead of three times, and both
    streams start from scratch instead of ImageNet. AdamW replaces SGD. The score's loss has no class weights, for half
    of the patches are forged. Raises RecipeError where a parameter makes no network.
    """

    turns: tuple[str, ...] = ("map", "score")
    starts_from: ClassVar[Mapping[str, tuple[str, str]]] = {"extractor": ("ct-residual", "extractor")}

    def __init__(
        self,
        width: int = 64,
        depths: Sequence[int] = (3, 4, 6, 3),
        extractor_width: int = 64,
        extractor_depth: int = 17,
        window_hu: tuple[float, float] = (-1150.0, 350.0),
    ) -> None:
        super().__init__()
        if width < 1 or len(depths) != 4 or min(depths) < 1 or window_hu[0] >= window_hu[1]:
            raise RecipeError(
                f"no TruFor has width {width}, depths {list(depths)} and window {window_hu} HU",
                remedy="give a width >= 1, four depths >= 1 and a window (low, high)",
            )
        self.dims: Literal[2, 3] = 2
        self.window_hu = (float(window_hu[0]), float(window_hu[1]))
        self.extractor = CTResidual(extractor_width, extractor_depth).requires_grad_(False).eval()
        self.encoder = Encoder(width, depths)
        self.anomaly = Decoder(self.encoder.channels, 8 * width, 2)
        self.confidence = Decoder(self.encoder.channels, 8 * width, 1)
        self.integrity = nn.Sequential(nn.Linear(8, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, 1))
        for module in chain(self.encoder.modules(), self.anomaly.modules(), self.confidence.modules()):
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Conv2d):
                fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
                nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.normal_(self.anomaly.predict.weight, std=0.01)
        expect_prior(self.anomaly.predict)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """HU (b, 1, y, x), any size, to the integrity score's logit (b) and the anomaly map's logit (b, 1, y, x)."""
        features = self.features(x)
        coarse = self.coarse_logit(features)
        confidence = self.confidence(features)
        cells = tuple(-(-int(side) // CELL) for side in x.shape[-2:])
        inside = (..., slice(cells[0]), slice(cells[1]))
        return self.score_logit(coarse[inside], confidence[inside]), _enlarged(coarse, x)

    def features(self, x: Tensor) -> list[Tensor]:
        """HU (b, 1, y, x), padded at the bottom and at the right to multiples of 32, to the four fused scales."""
        tall, wide = (-int(side) % MULTIPLE for side in x.shape[-2:])
        if tall or wide:
            mode = "reflect" if tall < x.shape[-2] and wide < x.shape[-1] else "replicate"
            x = F.pad(x, (0, wide, 0, tall), mode=mode)
        low, high = self.window_hu
        norm = x.clamp(low, high).sub(low).mul(2 / (high - low)).sub(1)  # HU -> -1..1
        fused: list[Tensor] = self.encoder(norm, self.extractor(x))
        return fused

    def coarse_logit(self, features: Sequence[Tensor]) -> Tensor:
        """Logit (b, 1, y / 4, x / 4) of being forged: the difference of the two classes' logits."""
        classes: Tensor = self.anomaly(features)
        return classes[:, 1:] - classes[:, :1]

    def confidence_map(self, x: Tensor) -> Tensor:
        """HU (b, 1, y, x) to how far the map can be trusted in each pixel (b, 1, y, x), 0..1."""
        return _enlarged(self.confidence(self.features(x)), x).sigmoid()

    def score_logit(self, coarse: Tensor, confidence: Tensor, ignore: Tensor | None = None) -> Tensor:
        """Anomaly and confidence logits, and what does not count, all (b, 1, h, w), to the score's logit (b)."""
        left_out = torch.zeros_like(confidence) if ignore is None else (ignore > 0) * LEFT_OUT
        plain = pooled(confidence.float(), left_out.float())
        weighted = pooled(coarse.float(), F.logsigmoid(confidence.float()) + left_out)
        score: Tensor = self.integrity(torch.cat((plain, weighted), dim=1))
        return score[:, 0]

    def optimizers(self, settings: Mapping[str, Any]) -> dict[str, torch.optim.Optimizer]:
        """AdamW for encoder and anomaly map, and another one for confidence and score; the extractor is in neither.

        settings: "lr", and "weight_decay" (0.01). Raises RecipeError without a learning rate.
        """
        if "lr" not in settings:
            raise RecipeError("no learning rate", where="recipe", remedy="set lr, for example lr = 1e-3")
        parts = {"map": (self.encoder, self.anomaly), "score": (self.confidence, self.integrity)}
        return {
            turn: torch.optim.AdamW(
                [parameter for module in modules for parameter in module.parameters()],
                lr=float(settings["lr"]),
                weight_decay=float(settings.get("weight_decay", 0.01)),
            )
            for turn, modules in parts.items()
        }

    def step(self, batch: Batch, turn: str) -> dict[str, Tensor]:
        """map: 0.3 weighted cross-entropy + 0.7 Dice. score: confidence against the true class's probability (mean
        square) + 0.5 cross-entropy of the score. Ignored pixels count in none of them.

        Raises RecipeError for a turn that the network does not have.
        """
        if turn not in self.turns:
            raise RecipeError(f"TruFor has no turn {turn!r}", remedy=f"use one of {self.turns}")
        x, mask = batch["x"], batch["mask"].float()
        counted = counted_pixels(mask, batch.get("ignore"))
        if turn == "map":
            logit = _enlarged(self.coarse_logit(self.features(x)), x)
            bce, dice = pixel_loss(logit, mask, counted, PIXEL_WEIGHTS), dice_loss(logit, mask, counted)
            return {"loss": (1 - DICE_SHARE) * bce + DICE_SHARE * dice, "bce": bce, "dice": dice}
        with torch.no_grad():
            features = self.features(x)
            coarse = self.coarse_logit(features)
            forged = _enlarged(coarse, x).float().sigmoid()
            right = torch.where(mask > 0, forged, 1 - forged)
        confidence = self.confidence(features)
        error = (_enlarged(confidence, x).float().sigmoid() - right).square()
        sure = (error * counted).sum() / counted.sum().clamp(min=1)
        ignore = F.max_pool2d(1 - counted, CELL, ceil_mode=True)
        inside = (..., slice(ignore.shape[-2]), slice(ignore.shape[-1]))
        score = self.score_logit(coarse[inside], confidence[inside], ignore)
        seen = counted.flatten(1).amax(dim=1)  # an image with nothing to look at has no label
        each = F.binary_cross_entropy_with_logits(score.float(), batch["label"].float(), reduction="none")
        detection = (each * seen).sum() / seen.sum().clamp(min=1)
        return {"loss": sure + SCORE_WEIGHT * detection, "confidence": sure, "detection": detection}


def pooled(values: Tensor, log_weight: Tensor) -> Tensor:
    """Soft minimum, soft maximum, mean and mean square (b, 4) of an image (b, 1, h, w), weighted (section 3.4)."""
    x, weight = values.flatten(1), log_weight.flatten(1).log_softmax(dim=1)
    share = weight.exp()
    return torch.stack(
        (
            -(weight - x).logsumexp(dim=1),
            (weight + x).logsumexp(dim=1),
            (share * x).sum(dim=1),
            (share * x.square()).sum(dim=1),
        ),
        dim=1,
    )


def _enlarged(coarse: Tensor, like: Tensor) -> Tensor:
    """A map at a quarter of the resolution, bilinear, cropped to the size of the slices."""
    full = F.interpolate(coarse, scale_factor=CELL, mode="bilinear", align_corners=False)
    return full[..., : like.shape[-2], : like.shape[-1]]
