"""ResNet-50 without early down-sampling: whether a picture comes out of a generator, of whatever it shows.

Gragnaniello et al., "Are GAN generated images easy to detect? A critical analysis of the state-of-the-art", ICME 2021,
section 4: He et al.'s ResNet-50 whose first convolution and first pooling keep every pixel, so that the traces that
up-sampling leaves between neighbours reach the residual blocks. M3Dsynth's slides cite it for the matrix of general and
CT pictures. It is not of the zoo: it judges patches whose place is known, not scans.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from monai.networks.nets.resnet import ResNet, ResNetBottleneck
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from ctguard.core.errors import RecipeError

PUBLISHED_WIDTH = 64
BLOCKS = [3, 4, 6, 3]
MEAN, SD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's channels: what the published network is fed."""


class GeneralDetector(nn.Module):
    """Patches in, one logit each out. Trainable by train.fit.

    width: channels of the first convolution; the others keep ResNet-50's proportions. 64 is the published network
        (23.5 M parameters), 8 the CPU size (0.37 M).
    A patch is (b, c, y, x) in 0..1: three channels, or one that stands for all three (CT, grey photographs).
    Differs from the paper in that it starts from random weights and learns without blur and JPEG.
    Raises RecipeError for a width below 1.
    """

    turns = ("detector",)
    mean: Tensor
    sd: Tensor

    def __init__(self, width: int = PUBLISHED_WIDTH) -> None:
        super().__init__()
        if width < 1:
            raise RecipeError(f"no ResNet has width {width}", remedy="give 1 or more; 64 is the published one")
        self.network = ResNet(
            ResNetBottleneck,
            BLOCKS,
            [width, 2 * width, 4 * width, 8 * width],
            spatial_dims=2,
            conv1_t_size=7,
            conv1_t_stride=1,
            num_classes=1,
            bias_downsample=False,
        )
        self.network.maxpool = nn.MaxPool2d(3, stride=1, padding=1)  # MONAI's halves
        self.register_buffer("mean", torch.tensor(MEAN).reshape(3, 1, 1), persistent=False)
        self.register_buffer("sd", torch.tensor(SD).reshape(3, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(b, 1 or 3, y, x) in 0..1, any size, to the logit (b) of being generated."""
        logits: Tensor = self.network((x - self.mean) / self.sd)
        return logits.float().flatten()

    def optimizers(self, settings: Mapping[str, Any]) -> dict[str, torch.optim.Optimizer]:
        """One Adam. settings: "lr" (1e-4 as published for a network that starts from ImageNet)."""
        return {"detector": torch.optim.Adam(self.parameters(), lr=float(settings.get("lr", 1e-4)))}

    def step(self, batch: dict[str, Tensor], turn: str) -> dict[str, Tensor]:
        """Cross-entropy. batch: x (b, c, y, x) in 0..1, label (b): 1 where generated."""
        return {"loss": F.binary_cross_entropy_with_logits(self(batch["x"]), batch["label"])}
