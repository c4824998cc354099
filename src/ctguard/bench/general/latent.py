"""A small latent diffusion model (Rombach et al., CVPR 2022): an autoencoder, and a denoiser of what it encodes.

As published: a quarter of the side and four latent channels with a slight KL term, latents brought to unit SD, a U-Net
that predicts the noise, betas linear in their root, ancestral sampling over the whole chain. Not: its size (grey, 32 or
64 pixels, a chain of 50 steps), attention, text, and the perceptual and adversarial terms of the autoencoder.
Both parts learn at the same time, the denoiser from the latents of the moment. Networks and schedule are MONAI's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from monai.networks.nets.autoencoderkl import AutoencoderKL
from monai.networks.nets.diffusion_model_unet import DiffusionModelUNet
from monai.networks.schedulers.ddpm import DDPMScheduler
from torch import Tensor, nn

CHANNELS, SHRINK = 4, 4
CHAIN, BETAS = 50, (0.03, 0.39)
"""Rombach's 0.0015 to 0.0195 over 1,000 steps, twenty times larger over a twentieth of them."""
KL = 1e-4


class LatentDiffusion(nn.Module):
    """Trainable by train.fit. side: a multiple of 16. width: channels of both networks at their first level."""

    turns = ("autoencoder", "denoiser")

    def __init__(self, side: int = 32, width: int = 32) -> None:
        super().__init__()
        self.latent = CHANNELS * (side // SHRINK) ** 2
        groups = min(8, width)
        plain: dict[str, Any] = {"spatial_dims": 2, "norm_num_groups": groups}
        self.autoencoder = AutoencoderKL(
            **plain,
            in_channels=1,
            out_channels=1,
            num_res_blocks=(1, 1, 1),
            channels=(width, width, 2 * width),
            attention_levels=(False, False, False),
            latent_channels=CHANNELS,
            with_encoder_nonlocal_attn=False,
            with_decoder_nonlocal_attn=False,
        )
        self.scale = nn.BatchNorm2d(CHANNELS, affine=False)
        self.denoiser = DiffusionModelUNet(
            **plain,
            in_channels=CHANNELS,
            out_channels=CHANNELS,
            num_res_blocks=2,
            channels=(width, 2 * width),
            attention_levels=(False, False),
        )
        self.schedule = DDPMScheduler(
            CHAIN, "scaled_linear_beta", beta_start=BETAS[0], beta_end=BETAS[1], clip_sample=False
        )

    def optimizers(self, settings: Mapping[str, Any]) -> dict[str, torch.optim.Optimizer]:
        """One Adam per part. settings: "lr"."""
        lr = float(settings.get("lr", 1e-3))
        return {turn: torch.optim.Adam(getattr(self, turn).parameters(), lr=lr) for turn in self.turns}

    def step(self, batch: dict[str, Tensor], turn: str) -> dict[str, Tensor]:
        """Absolute error of what is decoded, or squared error of the noise. batch: x (b, 1, side, side) in -1..1."""
        x = batch["x"]
        if turn == "autoencoder":
            made, mean, sd = self.autoencoder(x)
            kl = 0.5 * (mean.square() + sd.square() - sd.square().log() - 1).sum(dim=(1, 2, 3)).mean()
            error = (made - x).abs().mean()
            return {"loss": error + KL * kl, "error": error.detach()}
        with torch.no_grad():
            latent = self.scale(self.autoencoder.encode_stage_2_inputs(x))
        noise = batch["z"].reshape(latent.shape)
        level = torch.randint(CHAIN, (len(x),)).to(x.device)
        predicted = self.denoiser(self.schedule.add_noise(latent, noise, level), level)
        return {"loss": (predicted - noise).square().mean()}

    def draw(self, z: Tensor, generator: torch.Generator) -> Tensor:
        """Pictures (b, 1, side, side) from noise z (b, latent); generator: of the chain's noise."""
        cells = round((z.shape[1] / CHANNELS) ** 0.5)
        x = z.reshape(len(z), CHANNELS, cells, cells)
        self.schedule.set_timesteps(CHAIN)
        for level in self.schedule.timesteps:
            steps = torch.full((len(x),), int(level), device=x.device)
            x = self.schedule.step(self.denoiser(x, steps), int(level), x, generator=generator)[0]
        mean, variance = self.scale.running_mean, self.scale.running_var
        assert mean is not None and variance is not None
        latent = x * (variance + self.scale.eps).sqrt()[:, None, None] + mean[:, None, None]
        made: Tensor = self.autoencoder.decode_stage_2_outputs(latent)
        return made
