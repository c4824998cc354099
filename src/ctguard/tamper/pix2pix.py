"""3-D Pix2Pix: CT-GAN's conditional GAN (Mirsky et al., USENIX Security 2019), one model per task.

Layers, order and losses follow the released trainer: 4^3 convolutions, convolution - activation - normalisation,
a 3-D U-Net of five levels, a PatchGAN of 2^3, least squares GAN loss + 100 x MAE over the whole cube. `width` is the
first level's channels: 100 is published (162.6 M parameters), 12 fits a laptop. With width 100 and the defaults
below the parameter counts are CT-GAN's. Ours, and off by default: `noise_sd` lets the Plan's noise vary the result,
white for texture or smooth for shapes; `mae_hu` weighs an error in HU too, for in the equalised scale soft tissue is
squeezed into little and comes out blotched.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ctguard.core.shapes import CubeNorm
from ctguard.tamper.blocks import Down, SameConv3d, Up, UpConv3d, smooth_noise
from ctguard.tamper.intensity import Equaliser


class UNet3d(nn.Module):
    """CT-GAN's generator: (b, 1, 32, 32, 32) to the same, tanh."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        w = width
        self.down = nn.ModuleList(
            [Down(1, w, norm=False), Down(w, 2 * w), Down(2 * w, 4 * w), Down(4 * w, 8 * w), Down(8 * w, 8 * w)]
        )
        self.up = nn.ModuleList(
            [Up(8 * w, 8 * w, dropout), Up(16 * w, 4 * w, dropout), Up(8 * w, 2 * w, dropout), Up(4 * w, w, dropout)]
        )
        self.out = UpConv3d(2 * w, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Skips join each up-sampled level with the encoder's."""
        levels = []
        for down in self.down:
            x = down(x)
            levels.append(x)
        for up, skip in zip(self.up, reversed(levels[:-1]), strict=True):
            x = up(x, skip)
        return torch.tanh(self.out(x).float())


class PatchDiscriminator3d(nn.Module):
    """CT-GAN's discriminator on candidate and masked cube: (b, 2, 32, 32, 32) to (b, 1, 2, 2, 2)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        w = width
        self.layers = nn.Sequential(
            Down(2, w, norm=False), Down(w, 2 * w), Down(2 * w, 4 * w), Down(4 * w, 8 * w), SameConv3d(8 * w, 1)
        )

    def forward(self, candidate: Tensor, masked: Tensor) -> Tensor:
        """Least squares score of each patch: 0 real, 1 fake, as in the release."""
        score: Tensor = self.layers(torch.cat([candidate, masked], dim=1)).float()
        return score


class Pix2Pix(nn.Module):
    """Generator, discriminator and equaliser of one task. Trainable by train.fit; only the generator is shipped.

    width: first level's channels. mae, adversarial: weights of the two losses. noise_sd, smooth: of the noise in the
    core. mae_hu: weight of the mean absolute error in 1,000 HU. soft_share: of the equaliser.
    """

    turns = ("discriminator", "generator")
    makes_tissue = True

    def __init__(
        self,
        width: int = 100,
        dropout: float = 0.5,
        noise_sd: float = 0.0,
        mae: float = 100.0,
        adversarial: float = 1.0,
        smooth: bool = False,
        mae_hu: float = 0.0,
        soft_share: float = 0.0,
    ) -> None:
        super().__init__()
        self.noise_sd, self.mae, self.adversarial = noise_sd, mae, adversarial
        self.smooth, self.mae_hu = smooth, mae_hu
        self.generator = UNet3d(width, dropout)
        self.discriminator = PatchDiscriminator3d(width)
        self.equaliser = Equaliser(soft_share)
        for part in (self.generator, self.discriminator):  # half as fast again on a CPU
            part.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]

    def forward(self, cube_norm: CubeNorm, mask: CubeNorm, noise: CubeNorm) -> CubeNorm:
        """Fill the masked core (mask = 1) of cubes in network range; noise is used only where noise_sd > 0."""
        grains = smooth_noise(noise) if self.smooth else noise
        masked = cube_norm * (1 - mask) + self.noise_sd * grains * mask
        made: Tensor = self.generator(masked)
        return made

    def optimizers(self, settings: Mapping[str, Any]) -> dict[str, torch.optim.Optimizer]:
        """One Adam per turn, beta1 0.5. settings: "lr_generator" (released 2e-4), "lr_discriminator" (1e-6)."""
        rates = {
            "discriminator": settings.get("lr_discriminator", 1e-6),
            "generator": settings.get("lr_generator", 2e-4),
        }
        return {
            turn: torch.optim.Adam(getattr(self, turn).parameters(), lr=float(rate), betas=(0.5, 0.999))
            for turn, rate in rates.items()
        }

    def step(self, batch: dict[str, Tensor], turn: str) -> dict[str, Tensor]:
        """Losses of one turn. batch: hu (b, 1, 32, 32, 32) of wanted tissue, mask and noise of the same shape.

        given_hu: what the generator sees around the core where that is not the wanted tissue (ours): a remover then
        learns to clear what of a lesion reaches out of the core.
        """
        real = self.equaliser(batch["hu"])
        given = self.equaliser(batch["given_hu"]) if "given_hu" in batch else real
        masked = given * (1 - batch["mask"])
        if turn == "discriminator":
            with torch.no_grad():
                fake = self(given, batch["mask"], batch["noise"])
            on_real, on_fake = self.discriminator(real, masked), self.discriminator(fake, masked)
            return {"loss": 0.5 * (on_real.square().mean() + (on_fake - 1).square().mean())}
        fake = self(given, batch["mask"], batch["noise"])
        adversarial = self.discriminator(fake, masked).square().mean()
        mae = (fake - real).abs().mean()
        loss = self.adversarial * adversarial + self.mae * mae
        parts = {"adversarial": adversarial.detach(), "mae": mae.detach()}
        if self.mae_hu > 0:
            error = (self.equaliser.inverse(fake) - self.equaliser.inverse(real)).abs().mean() / 1000
            loss = loss + self.mae_hu * error
            parts["mae_hu"] = error.detach()
        return {"loss": loss, **parts}
