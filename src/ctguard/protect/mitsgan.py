"""MITS-GAN (Pasqualino et al., Comput. Biol. Med. 183, 2024; facts: MITS-GAN 3.1-3.4), slice by slice.

Noise-Net (five convolutions) on Gaussian noise, concatenated with the slice; one convolution, three residual blocks,
one convolution, tanh. A discriminator of eight convolutions. Loss: domain loss (eq. 2) and, with weight alpha, the
manipulation loss (eq. 3), which the text wants large and eq. 1 would make small: it is subtracted.

paper mode: the output is the slice itself, made anew in network range. Nothing holds it to the original but the
discriminator; the released code lets no gradient through the forging (stop_gradient). Here every slice of the forged
cube is protected and the cube lies in lung; in the released code it mostly is not, and does not.
gradient mode, ours: the output is a perturbation within a budget in HU, rounded in the loop. The manipulation loss is
what the protection changes in the forged core, M(p) against M(x) in budgets squared, with its gradient through the
frozen chain: M(p) against p, as in eq. 3, is mostly the forging itself. A fidelity term weighs the perturbation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ctguard.core.errors import RecipeError
from ctguard.protect.network import Batch, ProtectorNet, as_slices, masked_square, without_level

NOISE_CHANNELS = (1, 2, 4, 4, 2, 1)
UNBOUNDED_HU = 1e4
"""A budget that no CT number exceeds."""
DISCRIMINATOR_CHANNELS = (1, 2, 4, 8, 8, 8, 8)
"""Of the release, in units of its width, before the last convolution to one score."""


def noise_net() -> nn.Sequential:
    """Five 1 x 1 convolutions, each with batch normalisation and ReLU: the release's 62 parameters."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(NOISE_CHANNELS):
        layers += [nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers)


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions with batch normalisation, added to their input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(b, width, y, x) to the same."""
        y: Tensor = torch.relu(x + self.layers(x))
        return y


class SliceGenerator(nn.Module):
    """MITS-GAN's generator: a slice in network range (b, 1, y, x) and noise of the same shape to -1..1."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.noise_net = noise_net()
        self.layers = nn.Sequential(
            nn.Conv2d(2, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            *(ResidualBlock(width) for _ in range(3)),
            nn.Conv2d(width, 1, 1),
            nn.Tanh(),
        )

    def forward(self, norm: Tensor, noise: Tensor) -> Tensor:
        """Noise enters as a channel of its own."""
        made: Tensor = self.layers(torch.cat([norm, self.noise_net(noise)], dim=1))
        return made


class SliceDiscriminator(nn.Module):
    """Eight 4 x 4 convolutions with LeakyReLU 0.2, batch normalised but for the first and the last; logits of "real".

    halvings: how many of them have stride 2; the release's seven bring 512 pixels down to one score.
    """

    def __init__(self, width: int, halvings: int) -> None:
        super().__init__()
        channels = (1, *(c * width for c in DISCRIMINATOR_CHANNELS), 1)
        layers: list[nn.Module] = []
        for k, (inputs, outputs) in enumerate(pairwise(channels)):
            halved = k < halvings
            layers.append(nn.ZeroPad2d(1 if halved else (1, 2, 1, 2)))
            layers.append(nn.Conv2d(inputs, outputs, 4, 2 if halved else 1, bias=False))
            if 0 < k < len(channels) - 2:
                layers.append(nn.BatchNorm2d(outputs))
            layers.append(nn.LeakyReLU(0.2))
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, norm: Tensor) -> Tensor:
        """Slices in network range (b, 1, y, x) to logits (b, 1, ., .)."""
        score: Tensor = self.layers(norm)
        return score


class MITSGAN(ProtectorNet):
    """Generator and discriminator. Only the generator is shipped.

    width: of the generator (released: 64). discriminator: its width and halvings (released: 1, 7).
    alpha: weight of the manipulation loss (paper: 1; release: 0.1). fidelity: weight of the mean squared perturbation
    in budgets (gradient mode). budget_hu: paper mode trains without one and is cut to it afterwards. stop_gradient:
    take the forged slice as a constant, as released (paper mode). level_px: side of the square over which the
    perturbation has no mean (gradient mode; 0: it may have one), see `without_level`.
    """

    turns = ("protector", "discriminator")

    def __init__(
        self,
        mode: Literal["paper", "gradient"] = "gradient",
        width: int = 64,
        discriminator: Sequence[int] = (1, 7),
        alpha: float = 1.0,
        fidelity: float = 0.0,
        budget_hu: float = 5.0,
        stop_gradient: bool = True,
        level_px: int = 0,
    ) -> None:
        super().__init__()
        if mode not in ("paper", "gradient"):
            raise RecipeError(f"MITS-GAN has no mode {mode!r}", remedy="choose paper or gradient")
        self.mode, self.alpha, self.fidelity = mode, alpha, fidelity
        self.budget_hu, self.stop_gradient, self.level_px = budget_hu, stop_gradient, level_px
        # paper mode has to make every CT number anew; gradient mode only looks.
        self.window_hu = (-1024.0, 3071.0) if mode == "paper" else (-1150.0, 350.0)
        self.protector = SliceGenerator(width)
        self.discriminator = SliceDiscriminator(*discriminator)
        for name, parameter in self.named_parameters():
            if name.endswith("weight") and parameter.ndim == 4:
                nn.init.normal_(parameter, 0.0, 0.02)  # as released

    def forward(self, hu: Tensor, budget_hu: float | None = None) -> Tensor:
        """See ProtectorNet.forward; slices (b, 1, y, x)."""
        norm, bound = self._normed(hu), self.bound(budget_hu)
        made: Tensor = self.protector(norm, torch.randn_like(norm)).float()
        if self.mode == "gradient":
            return (bound * without_level(made, self.level_px)).clamp(-bound, bound)
        low, high = self.window_hu
        anew = low + (made + 1) / 2 * (high - low)
        return (anew - hu).clamp(-bound, bound)

    def optimizers(self, settings: Mapping[str, Any]) -> dict[str, torch.optim.Optimizer]:
        """Adam with betas 0.5 and 0.999 for both, as in the paper. settings: "lr" (paper: 2e-4)."""
        rate = float(settings.get("lr", 2e-4))
        return {
            turn: torch.optim.Adam(getattr(self, turn).parameters(), lr=rate, betas=(0.5, 0.999)) for turn in self.turns
        }

    def step(self, batch: Batch, turn: str) -> dict[str, Tensor]:
        """Losses of one turn; see ProtectorNet.step."""
        hu = batch["hu"]
        if turn == "discriminator":
            hu = hu[:, :, ::4]  # neighbouring slices are alike
            with torch.no_grad():
                protected = hu + self._added(hu)
            return {"loss": 0.5 * (self._judged(hu, real=True) + self._judged(protected, real=False))}
        added = self._added(hu)
        protected = hu + added
        domain = self._judged(protected, real=True)
        if self.mode == "paper":
            manipulation = self._apart(protected, batch)
            return {"loss": domain - self.alpha * manipulation, "domain": domain, "manipulation": manipulation}
        with torch.no_grad():
            wanted = self.forge(hu, batch)
        damage = masked_square(self.forge(protected, batch) - wanted, batch["core"])
        price = added.square().mean() / self.budget_hu**2
        loss = domain - self.alpha * damage.mean() / self.budget_hu**2 + self.fidelity * price
        return {"loss": loss, "domain": domain, "damage_hu": damage.mean().sqrt(), "price": price}

    def _added(self, hu: Tensor) -> Tensor:
        """What a training step adds: in paper mode nothing bounds it."""
        return self.rounded(hu, UNBOUNDED_HU if self.mode == "paper" else None)

    def _apart(self, protected: Tensor, batch: Batch) -> Tensor:
        """Eq. 3: mean squared difference, in network range, of protected slices and what the forging makes of them."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.stop_gradient):
            forged = self.forge(protected, batch)
        return (self._normed(protected) - self._normed(forged)).square().mean()

    def _judged(self, hu: Tensor, *, real: bool) -> Tensor:
        logit = self.discriminator(self._normed(as_slices(hu)))
        return nn.functional.binary_cross_entropy_with_logits(logit, torch.full_like(logit, float(real)))

    def _normed(self, hu: Tensor) -> Tensor:
        low, high = self.window_hu
        return (hu.clamp(low, high) - low) / (high - low) * 2 - 1
