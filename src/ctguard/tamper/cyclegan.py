"""3-D CycleGAN of M3Dsynth (Zingarini et al., ICASSP 2024): masked cube to wanted tissue, one model per task.

Stated there: "based on 3D CycleGAN, adapted to operate on 3D cubes", and that only the translation from masked cubes
to tissue is used. Everything else is chosen here, from Zhu et al. (ICCV 2017) where it can be: two generators and two
patch discriminators learn from unpaired cubes; least squares GAN loss, cycle and identity loss, a buffer of 50 made
cubes for each discriminator (Shrivastava et al., CVPR 2017), Adam with beta1 0.5, batches of few. L1 terms are divided
by the voxels of the core, since the rest passes untouched: the default weights of 4 and 2 are Zhu's 10 and 5 on whole
cubes of twice the range. Short trainings want less of both: the reverse generator learns to hide the tissue in the
core, and tissue made of what is hidden there, not of a masked cube, is what the cycle then teaches.

Ours:
- Domain A is a masked cube whose core holds zeros, as published, or smooth noise of `noise_sd`; domain B is tissue.
  With noise, two seeds give two tissues, but the cycle makes the noise a code of the tissue: where an injector's noise
  is dark, its nodule is hollow. With zeros, one place gets one nodule, whatever the seed.
- The generator is Zhu's residual network without its two 7^2 layers at full resolution, which in 3-D would cost more
  than all the rest. Its result is added, before tanh, to the shell as it came and to a smooth continuation of the shell
  into the core (backwards: to an empty core), and is faded out within FADE_MM of the core, as `clean` mode does. So the
  rest of the shell passes untouched, the grey level in the core begins as that of the tissue around it, the
  discriminator judges the seam, and what reaches out of the core can be finished (inject) or tidied up (remove). This
  is what cycle and identity loss ask of the shell, given by construction. The mask is a second input channel: cores
  differ in size.
- Instance normalisation stands inside the residual branches alone: on the trunk it would remove, together with what a
  blanked core does to the mean, the grey level of the cube. Discriminators have spectral normalisation (Miyato et al.,
  ICLR 2018) in its place, and so see grey levels too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool1d, leaky_relu, max_pool1d, relu
from torch.nn.utils.parametrizations import spectral_norm

from ctguard.core.errors import RecipeError
from ctguard.core.shapes import CubeNorm
from ctguard.tamper.blocks import UpConv3d, smooth_noise
from ctguard.tamper.cube import CUBE_VOXELS
from ctguard.tamper.intensity import Equaliser
from ctguard.tamper.touchup import FADE_MM

POOL_IMAGES = 50
_LEVEL_SD_MM = 4.0
_SLOPE = 0.2
_OUT_SCALE = 0.2
"""Of the last layer: else one step of Adam on its 64 taps a channel would move the cube by a fifth of its range."""


class ResidualBlock(nn.Module):
    """x + conv(relu(norm(conv(relu(x))))): the trunk itself is never normalised, so that levels pass."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(channels, channels, 3, padding=1)
        self.norm = nn.InstanceNorm3d(channels, affine=True)
        self.conv2 = nn.Conv3d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(b, channels, z, y, x) to the same."""
        y: Tensor = self.conv2(relu(self.norm(self.conv1(relu(x)))))
        return x + y


class ResNet3d(nn.Module):
    """Zhu's generator in 3-D: two strided convolutions, residual blocks at 8^3, two up-sampling convolutions.

    width: Zhu's first layer's channels; 2 x width at 16^3 and 4 x width at 8^3. blocks: at 8^3; one more at 16^3.
    continues: whether the core begins as a continuation of the shell (towards tissue) or at 0 (towards noise).
    """

    blur: Tensor

    def __init__(self, width: int, blocks: int, continues: bool) -> None:
        super().__init__()
        self.continues = continues
        self.down1 = nn.Conv3d(2, 2 * width, 4, stride=2, padding=1)
        self.down2 = nn.Conv3d(2 * width, 4 * width, 3, stride=2, padding=1)
        self.blocks = nn.Sequential(*(ResidualBlock(4 * width) for _ in range(blocks)))
        self.up = UpConv3d(4 * width, 2 * width)
        self.refine = ResidualBlock(2 * width)
        self.out = UpConv3d(2 * width, 1)
        self.register_buffer("blur", _blur_matrix(), persistent=False)
        _keep_variance(self)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(b, 1, 32, 32, 32) in network range to the same; mask (1 in the core) says where to make anew."""
        y = torch.cat([2 * x, mask], dim=1).contiguous(memory_format=torch.channels_last_3d)
        y = leaky_relu(self.down1(y), _SLOPE)
        y = self.blocks(leaky_relu(self.down2(y), _SLOPE))
        y = self.refine(leaky_relu(self.up(y), _SLOPE))
        y = _OUT_SCALE * self.out(leaky_relu(y, _SLOPE)).float()
        with torch.autocast(x.device.type, enabled=False):  # what is kept is kept exactly
            begun = self._begun(x.float(), mask.float()).clamp(-0.99, 0.99)
            return torch.tanh(torch.atanh(begun) + _reach(mask.float()) * y)

    def _begun(self, x: Tensor, mask: Tensor) -> Tensor:
        """The shell, and in the core 0 or the shell's mean by Gaussian distance (normalised convolution)."""
        total, weight = x * (1 - mask), 1 - mask
        if not self.continues:
            return total
        for _ in range(3):  # each axis in turn
            total, weight = ((t @ self.blur).movedim(-1, -3) for t in (total, weight))
        return x * (1 - mask) + mask * total / weight.clamp_min(1e-6)


class PatchDiscriminator3d(nn.Sequential):
    """Zhu's PatchGAN for 32^3: (b, 1, 32, 32, 32) to (b, 1, 6, 6, 6); each score sees 34 voxels a side."""

    def __init__(self, width: int) -> None:
        layers: list[nn.Module] = []
        for inputs, outputs, stride in ((1, width, 2), (width, 2 * width, 2), (2 * width, 4 * width, 1)):
            layers += [spectral_norm(nn.Conv3d(inputs, outputs, 4, stride, padding=1)), nn.LeakyReLU(_SLOPE)]
        super().__init__(*layers, spectral_norm(nn.Conv3d(4 * width, 1, 4, padding=1)))


class ImagePool(nn.Module):
    """The last-made cubes that a discriminator is shown (Shrivastava et al., CVPR 2017, section 2.3; Zhu's use).

    Its state is in buffers and its choices follow from the count of cubes seen, so that a resumed run goes on alike.
    """

    images: Tensor
    seen: Tensor

    def __init__(self, size: int = POOL_IMAGES, seed: int = 0) -> None:
        super().__init__()
        self.seed = seed
        self.register_buffer("images", torch.zeros((size, 1, CUBE_VOXELS, CUBE_VOXELS, CUBE_VOXELS)))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def exchange(self, made: Tensor) -> Tensor:
        """Cubes to show for those just made: each until the pool is full; then an older one in half of the cases."""
        shown = made.detach().clone()
        for i, cube in enumerate(shown.clone()):
            seen = int(self.seen)
            rng = torch.Generator().manual_seed(1_000_003 * self.seed + seen)
            if seen < len(self.images):
                self.images[seen] = cube
            elif float(torch.rand((), generator=rng)) < 0.5:
                place = int(torch.randint(len(self.images), (), generator=rng))
                shown[i] = self.images[place]
                self.images[place] = cube
            self.seen += 1
        return shown


class CycleGAN(nn.Module):
    """Generators, discriminators and equaliser of one task. Trainable by train.fit; the forward generator is shipped.

    width, blocks: of the forward generator (Zhu: 64 and 9); the reverse one, whose task is easier, has half the blocks.
    noise_sd: of the core's noise, in network range; smooth for shapes, else white for texture.
    cycle, cycle_masked, identity: weights of the L1 losses, of tissue made anew, of a masked cube made anew, and of
    what needs no translation (0: not computed).
    discriminator_width: channels of the discriminators' first layer (Zhu: 64).
    """

    turns = ("generators", "discriminators")
    makes_tissue = True

    def __init__(
        self,
        width: int = 64,
        blocks: int = 9,
        noise_sd: float = 0.0,
        smooth: bool = True,
        cycle: float = 4.0,
        cycle_masked: float = 4.0,
        identity: float = 2.0,
        discriminator_width: int = 64,
    ) -> None:
        super().__init__()
        self.noise_sd, self.smooth = noise_sd, smooth
        self.cycle, self.cycle_masked, self.identity = cycle, cycle_masked, identity
        self.generator = ResNet3d(width, blocks, continues=True)
        self.reverse = ResNet3d(width, max(blocks // 2, 1), continues=False)
        self.discriminator = nn.ModuleDict(
            {side: PatchDiscriminator3d(discriminator_width) for side in ("tissue", "masked")}
        )
        self.pool = nn.ModuleDict({side: ImagePool(seed=seed) for seed, side in enumerate(("tissue", "masked"))})
        self.equaliser = Equaliser()
        self._shown: dict[str, Tensor] = {}
        for part in (self.generator, self.reverse, self.discriminator):  # twice as fast on a CPU
            part.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]

    def forward(self, cube_norm: CubeNorm, mask: CubeNorm, noise: CubeNorm) -> CubeNorm:
        """Fill the masked core (mask = 1) of cubes in network range."""
        made: Tensor = self.generator(self._masked(cube_norm, mask, noise), mask)
        return made

    def _masked(self, cube_norm: Tensor, mask: Tensor, noise: Tensor) -> Tensor:
        grains = smooth_noise(noise) if self.smooth else noise
        return cube_norm * (1 - mask) + self.noise_sd * grains * mask

    def optimizers(self, settings: Mapping[str, Any]) -> dict[str, torch.optim.Optimizer]:
        """One Adam per turn, beta1 0.5. settings: "lr_generator" and "lr_discriminator" (Zhu: 2e-4 both)."""
        parts: dict[str, list[nn.Module]] = {
            "generators": [self.generator, self.reverse],
            "discriminators": [self.discriminator],
        }
        rates = {"generators": "lr_generator", "discriminators": "lr_discriminator"}
        return {
            turn: torch.optim.Adam(
                nn.ModuleList(modules).parameters(),
                lr=float(settings.get(rates[turn], 2e-4)),
                betas=(0.5, 0.999),
            )
            for turn, modules in parts.items()
        }

    def step(self, batch: dict[str, Tensor], turn: str) -> dict[str, Tensor]:
        """Losses of one turn; the discriminators' follows the generators' on the same batch.

        batch: hu (b, 1, 32, 32, 32) of wanted tissue, mask and noise of the same shape; masked_hu, cubes of other
        places whose cores are masked (without it, the wanted ones in reverse order: one set, unpaired).
        Raises RecipeError where the discriminators would begin.
        """
        mask = batch["mask"]
        tissue = self.equaliser(batch["hu"])
        around = self.equaliser(batch["masked_hu"]) if "masked_hu" in batch else tissue.flip(0)
        masked = self._masked(around, mask, batch["noise"])
        self.discriminator.requires_grad_(turn == "discriminators")
        if turn == "generators":
            return self._generators(masked, tissue, mask)
        if not self._shown:
            raise RecipeError("the discriminators have nothing to judge yet", remedy="let the generators begin")
        on_real = {"tissue": tissue, "masked": masked}
        losses = {side: self._discriminator(side, real) for side, real in on_real.items()}
        return {"loss": torch.stack(list(losses.values())).sum(), **{k: v.detach() for k, v in losses.items()}}

    def _generators(self, masked: Tensor, tissue: Tensor, mask: Tensor) -> dict[str, Tensor]:
        made, same_tissue = self._translated(self.generator, masked, tissue, mask)
        undone, same_masked = self._translated(self.reverse, tissue, masked, mask)
        for side, cubes in (("tissue", made), ("masked", undone)):
            self._shown[side] = self.pool[side].exchange(cubes)  # type: ignore[operator]
        again_masked, again_tissue = self.reverse(made, mask), self.generator(undone, mask)

        def l1(after: Tensor, before: Tensor) -> Tensor:
            return (after - before).abs().sum() / mask.sum()

        losses = {
            "adversarial": (self.discriminator["tissue"](made).float() - 1).square().mean()
            + (self.discriminator["masked"](undone).float() - 1).square().mean(),
            "cycle_masked": l1(again_masked, masked),
            "cycle_tissue": l1(again_tissue, tissue),
            "identity": l1(same_tissue, tissue) + l1(same_masked, masked),
        }
        loss = (
            losses["adversarial"]
            + self.cycle_masked * losses["cycle_masked"]
            + self.cycle * losses["cycle_tissue"]
            + self.identity * losses["identity"]
        )
        return {"loss": loss, **{name: value.detach() for name, value in losses.items()}}

    def _translated(self, generator: nn.Module, cubes: Tensor, wanted: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Cubes translated; and what becomes of those that need no translation, where identity counts."""
        if self.identity == 0:
            return generator(cubes, mask), wanted
        translated, same = generator(torch.cat([cubes, wanted]), torch.cat([mask, mask])).chunk(2)
        return translated, same

    def _discriminator(self, side: str, real: Tensor) -> Tensor:
        """Least squares: 1 real, 0 made. Halved, as in Zhu's section 7.1, to slow it beside the generators."""
        shown = self._shown[side]
        on_real, on_made = self.discriminator[side](torch.cat([real, shown])).float().split([len(real), len(shown)])
        loss: Tensor = 0.5 * ((on_real - 1).square().mean() + on_made.square().mean())
        return loss


def _reach(mask: Tensor) -> Tensor:
    """1 in the box of the core, falling to 0 within FADE_MM beyond it."""
    steps = int(FADE_MM) // 2
    size, weight = 2 * steps + 1, torch.ones_like(mask)
    for axis in (2, 3, 4):
        inside = mask.amax(dim=[other for other in (2, 3, 4) if other != axis])  # (b, 1, n)
        ramp = avg_pool1d(max_pool1d(inside, size, 1, steps), size, 1, steps)
        weight = weight * ramp.reshape([n if k in (0, axis) else 1 for k, n in enumerate(mask.shape)])
    return weight


def _keep_variance(network: ResNet3d) -> None:
    """Initial weights that keep the signal's size (He et al., ICCV 2015); residual branches begin small."""
    for module in network.modules():
        if isinstance(module, nn.Conv3d):
            nn.init.kaiming_normal_(module.weight)
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, ResidualBlock):
                module.conv2.weight.mul_(0.1)
        network.out.weight.mul_(0.1)  # begin at the continued shell


def _blur_matrix() -> Tensor:
    """A Gaussian of _LEVEL_SD_MM along one axis of 1 mm voxels: (32, 32)."""
    place = torch.arange(CUBE_VOXELS, dtype=torch.float32)
    return torch.exp(-((place[:, None] - place[None, :]) ** 2) / (2 * _LEVEL_SD_MM**2))
