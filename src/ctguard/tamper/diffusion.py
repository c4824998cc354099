"""3-D DDPM: M3Dsynth's diffusion generator (Zingarini et al., ICASSP 2024, section 2.1), one model per task.

Ho et al., NeurIPS 2020, with a 3-D U-Net denoiser after Dorjsembe et al., MIDL 2022: 2,000 linear steps, prediction
of the noise, the masked cube as an extra input channel. The paper leaves the rest open; chosen here:

- betas 5e-5 to 0.01: Ho's 1e-4 to 0.02 were for 1,000 steps, and half of each over twice the steps ends at the same
  noise level (sqrt of alpha-bar 0.006), where unchanged ones would spend 1,000 steps on pure noise.
- the mask is a further channel: a masked voxel (0) and the mean equalised grey are the same number.
- the whole cube is noised, and noise in the shell counts `shell_weight` in the loss, for it is only read off the
  masked cube. At sampling the shell is the network's own, or re-imposed (Sampler.reimpose).
- the network's output F gives the noise as sqrt(1 - a) x + sqrt(a) F, so that it need not copy its input at high
  noise. `weighting` "simple" is Ho's loss on the noise; "velocity" divides it by a (Salimans and Ho, ICLR 2022),
  which makes short trainings learn a core's large structures sooner.
- sampling is DDIM in 50 steps unless a Plan says otherwise. MONAI's schedulers give the betas and the noising; the
  step is ours, for MONAI's DDIM visits linspace(T - 1, 0, n) but computes each step as if T // n apart.
- `temperature` scales all noise that sampling draws (ours, off at 1): what a short training left undecided comes out
  as blotches in a lesion, and less noise at the start leaves fewer of them.
- `patch` 2 folds 2^3 voxels into channels before the U-Net and unfolds them after it: 8 times fewer positions. On one
  core of a CPU (AMX) MONAI's U-Net at 32^3, channels (16, 32, 64, 64), takes 0.46 s a cube and training step; folded,
  (32, 48, 64), 0.06 s.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
from einops import rearrange
from monai.networks.nets.diffusion_model_unet import DiffusionModelUNet
from monai.networks.schedulers.ddpm import DDPMScheduler
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ctguard.core.errors import RecipeError
from ctguard.core.shapes import CubeNorm
from ctguard.tamper.intensity import Equaliser
from ctguard.tamper.pipeline import Sampler

SCALE = math.sqrt(12.0)
"""Network range is uniform on -0.5 .. 0.5; the diffusion works on unit variance."""
BETAS = (5e-5, 0.01)


class Diffusion(nn.Module):
    """Denoiser, noise schedule, sampler and equaliser of one task. Trainable by train.fit.

    channels, attention: of the U-Net's levels, one residual block each; its group normalisation has as many groups as
    divide all channels, 32 at most. patch, weighting, shell_weight, temperature: see the module. steps: of the
    trained chain. soft_share: of the equaliser.
    """

    turns = ("denoiser",)
    makes_tissue = True

    def __init__(
        self,
        channels: Sequence[int] = (64, 128, 192, 256),
        attention: Sequence[bool] = (False, True, False, False),
        patch: int = 1,
        weighting: Literal["simple", "velocity"] = "simple",
        shell_weight: float = 1.0,
        steps: int = 2000,
        soft_share: float = 0.0,
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        if weighting not in ("simple", "velocity"):
            raise RecipeError(f"weighting {weighting!r} is unknown", remedy="choose simple or velocity")
        self.patch, self.weighting, self.shell_weight = patch, weighting, shell_weight
        self.denoiser = DiffusionModelUNet(
            spatial_dims=3,
            in_channels=3 * patch**3,
            out_channels=patch**3,
            num_res_blocks=1,
            channels=tuple(channels),
            attention_levels=tuple(attention),
            norm_num_groups=min(32, math.gcd(*channels)),
            num_head_channels=tuple(channels),
            use_flash_attention=True,
        )
        self.schedule = DDPMScheduler(steps, "linear_beta", beta_start=BETAS[0], beta_end=BETAS[1])
        self.temperature = temperature
        self.equaliser = Equaliser(soft_share)
        self.sampler = Sampler()

    def with_sampler(self, sampler: Sampler) -> Diffusion:
        """The same weights, sampled another way. Raises RecipeError for more steps than were trained."""
        if sampler.steps > self.schedule.num_train_timesteps:
            raise RecipeError(
                f"{sampler.steps} sampling steps, but the model was trained on {self.schedule.num_train_timesteps}",
                remedy="choose fewer",
            )
        twin = copy.copy(self)
        twin.sampler = sampler
        return twin

    def forward(self, cube_norm: CubeNorm, mask: CubeNorm, noise: CubeNorm) -> CubeNorm:
        """Sample the masked core (mask = 1), from `noise` (standard normal), by `self.sampler`.

        Where gradients are wanted, each step is computed again on the way back (checkpointing), so that 50 steps
        need the memory of one.
        """
        mask = mask.expand_as(cube_norm)
        noise = noise.expand_as(cube_norm)
        known = SCALE * cube_norm * (1 - mask)
        draws = [_generator_of(one) for one in noise] if self.sampler.name == "ddpm" else []
        noise = self.temperature * noise
        x = noise
        for now, then in pairwise([*timesteps(self.schedule.num_train_timesteps, self.sampler.steps), -1]):
            fresh = self.temperature * _fresh(draws, x) if draws and then >= 0 else None
            if torch.is_grad_enabled() and known.requires_grad:
                x = checkpoint(self._step, x, known, mask, noise, fresh, now, then, use_reentrant=False)
            else:
                x = self._step(x, known, mask, noise, fresh, now, then)
        made = x / SCALE
        return torch.where(mask > 0, made, cube_norm) if self.sampler.reimpose else made

    def _step(
        self, x: Tensor, known: Tensor, mask: Tensor, noise: Tensor, fresh: Tensor | None, now: int, then: int
    ) -> Tensor:
        """From step `now` to the less noisy `then` (-1: none left): Song et al., ICLR 2021, equations 12 and 16.

        Without fresh noise this is DDIM; with it (eta = 1) and all steps, Ho's ancestral sampling with posterior
        variances. The estimate of the clean cube is clipped to its range, as Ho does.
        """
        a, b = self._alpha_bar(now), self._alpha_bar(then)
        if self.sampler.reimpose:
            x = torch.where(mask > 0, x, math.sqrt(a) * known + math.sqrt(1 - a) * noise)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.sampler.precision == "bfloat16"):
            predicted = self._noise(x, known, mask, torch.full((len(x),), now, device=x.device))
        clean = ((x - math.sqrt(1 - a) * predicted) / math.sqrt(a)).clamp(-SCALE / 2, SCALE / 2)
        direction = (x - math.sqrt(a) * clean) / math.sqrt(1 - a)
        variance = 0.0 if fresh is None else (1 - b) / (1 - a) * (1 - a / b)
        x = math.sqrt(b) * clean + math.sqrt(1 - b - variance) * direction
        return x if fresh is None else x + math.sqrt(variance) * fresh

    def _alpha_bar(self, step: int) -> float:
        return float(self.schedule.alphas_cumprod[step]) if step >= 0 else 1.0

    def _noise(self, x: Tensor, known: Tensor, mask: Tensor, step: Tensor) -> Tensor:
        """The noise that the network sees in x (b, 1, 32, 32, 32), at step (b,)."""
        count = len(x)
        folded = fold(torch.cat([x, known, mask], dim=1), self.patch)
        if count == 1 and x.device.type == "cpu" and not torch.is_autocast_enabled("cpu"):
            # torch convolves a single small float32 cube by another routine, four times slower: give it two
            output = self.denoiser(folded.expand(2, -1, -1, -1, -1), step.expand(2))[:1]
        else:
            output = self.denoiser(folded, step)
        a = self.schedule.alphas_cumprod.to(x.device)[step].reshape(-1, 1, 1, 1, 1)
        noise: Tensor = (1 - a).sqrt() * x + a.sqrt() * unfold(output.to(x.dtype), self.patch)
        return noise

    def optimizers(self, settings: Mapping[str, Any]) -> dict[str, torch.optim.Optimizer]:
        """One Adam. settings: "lr" (Dorjsembe's 1e-5)."""
        return {"denoiser": torch.optim.Adam(self.denoiser.parameters(), lr=float(settings.get("lr", 1e-5)))}

    def step(self, batch: dict[str, Tensor], turn: str) -> dict[str, Tensor]:
        """Error of the predicted noise. batch: hu (b, 1, 32, 32, 32) of wanted tissue, mask and noise of that shape.

        Steps are spread evenly over the chain within a batch (Kingma et al., NeurIPS 2021, appendix I), from a
        random start. given_hu: what stands around the core where that is not the wanted tissue, so that a remover
        learns to clear what of a lesion reaches out of it. "core": the plain squared error of the noise in the core,
        whatever the weighting.
        """
        clean, mask, noise = SCALE * self.equaliser(batch["hu"]), batch["mask"], batch["noise"]
        given = SCALE * self.equaliser(batch["given_hu"]) if "given_hu" in batch else clean
        count, last = len(clean), self.schedule.num_train_timesteps
        places = (torch.rand(()) + torch.arange(count) / count) % 1
        step = (places * last).long().to(clean.device)
        x = self.schedule.add_noise(clean, noise, step)
        error = (self._noise(x, given * (1 - mask), mask, step) - noise).square()
        core = (error * mask).sum() / mask.sum()
        if self.weighting == "velocity":
            error = error / self.schedule.alphas_cumprod.to(clean.device)[step].reshape(-1, 1, 1, 1, 1)
        weight = mask + self.shell_weight * (1 - mask)
        return {"loss": (error * weight).sum() / weight.sum(), "core": core.detach()}


def timesteps(trained: int, chosen: int) -> list[int]:
    """`chosen` of the steps trained - 1 .. 0, falling, the noisiest always among them.

    Spaced quadratically (Song et al., ICLR 2021, appendix D.2), for texture is decided in the last steps: of Gaussian
    texture with an SD of 0.1 (unit variance), 50 such steps keep 94 %, 50 even ones 74 %.
    """
    return [max(round(trained * (k / chosen) ** 2), k) - 1 for k in range(chosen, 0, -1)]


def fold(x: Tensor, patch: int) -> Tensor:
    """(b, c, z, y, x) to (b, c * patch^3, z / patch, ...): space to depth."""
    return rearrange(x, "b c (z i) (y j) (x k) -> b (c i j k) z y x", i=patch, j=patch, k=patch)


def unfold(x: Tensor, patch: int) -> Tensor:
    """The inverse of `fold`."""
    return rearrange(x, "b (c i j k) z y x -> b c (z i) (y j) (x k)", i=patch, j=patch, k=patch)


def _generator_of(noise: Tensor) -> torch.Generator:
    """A generator seeded by one cube's initial noise, so that a Plan's seed decides every step's noise."""
    digest = hashlib.sha256(noise.detach().cpu().contiguous().numpy().tobytes()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def _fresh(draws: Sequence[torch.Generator], like: Tensor) -> Tensor:
    return torch.stack([torch.randn(like.shape[1:], generator=draw) for draw in draws]).to(like.device)
