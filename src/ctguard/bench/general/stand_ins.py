"""General pictures for who has none: photographs, and three small generators that learn from them here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ctguard.bench.general.kept import train_kept
from ctguard.bench.general.latent import LatentDiffusion
from ctguard.bench.general.photographs import PHOTOGRAPHS, read_photographs
from ctguard.bench.general.pictures import GENERAL, PARTS, Family, Part, Pictures, as_unit, spread
from ctguard.bench.general.progressive import Progressive
from ctguard.bench.general.style import StyleBased
from ctguard.io.atomic import atomic_files
from ctguard.io.manifest import sha256_array
from ctguard.train.checkpoint import Card
from ctguard.train.recipe import Recipe, Size

AT_ONCE = 100
RATES = {"progressive": 2e-3, "style": 2e-3, "latent": 1e-3}


@dataclass(frozen=True)
class StandIns:
    """How the generators learn: side in pixels, channels, steps, pictures in a step, and how many are made."""

    size: Size
    side: int
    width: int
    steps: int
    batch: int
    counts: dict[Part, int]
    seed: int = 0


@dataclass(frozen=True, eq=False)
class _Batches:
    """x: patches of photographs in -1..1, turned; z: standard normal (batch, latent). Functions of the step."""

    real: Pictures
    batch: int
    latent: int
    seed: int

    def __call__(self, step: int) -> dict[str, Tensor]:
        rng = np.random.default_rng([self.seed, step])
        values = as_unit(self.real.values[rng.integers(len(self.real.values), size=self.batch)]) * 2 - 1
        values = np.where(rng.random((self.batch, 1, 1, 1)) < 0.5, values[..., ::-1], values)
        z = rng.standard_normal((self.batch, self.latent), dtype=np.float32)
        return {"x": torch.from_numpy(values), "z": torch.from_numpy(z)}


def make_stand_ins(how: StandIns, out: Path, device: str) -> tuple[list[Family], str]:
    """The three families, and a note that says what they are and what they are not.

    OUT keeps the generators and their pictures. Raises DataError where a photograph is missing, RecipeError where OUT
    holds others.
    """
    real = read_photographs(how.side, how.counts, how.seed)
    families, cards = [], []
    for name in GENERAL:
        module, card = _generator(name, how, real["train"], out)
        cards.append(f"{name} {sum(p.numel() for p in module.parameters()) / 1e6:.2f} M")
        fake = {
            part: spread(values, real[part].units)
            for part, values in _made(module, card, how, out / f"{name}.npz", device).items()
        }
        families.append(Family(name, real, fake))
    counts = f"{how.counts['train']} training and {how.counts['test']} test patches"
    note = (
        f"General images: stand-ins, made by this command. Real: {counts} of {how.side} x {how.side} pixels, grey, of "
        f"the {len(PHOTOGRAPHS)} photographs that come with scikit-image; test patches lie in other parts of the same "
        "photographs, and intervals are drawn by photograph. Generated: as many by three networks of the named "
        f"families, {how.width} channels wide, trained on the training patches for {how.steps} steps "
        f"({', '.join(cards)} parameters with what trained them). They are not ProGAN, StyleGAN2 and LDM of the "
        "literature, nor pictures of their size: they show what training on generated pictures says of CT, not how "
        "well published generators are found."
    )
    return families, note


def _generator(name: str, how: StandIns, real: Pictures, out: Path) -> tuple[nn.Module, Card]:
    makers: dict[str, Callable[[], nn.Module]] = {
        "progressive": partial(Progressive, how.side, how.width, steps=how.steps),
        "style": partial(StyleBased, how.side, how.width),
        "latent": partial(LatentDiffusion, how.side, how.width),
    }
    recipe = Recipe(
        name=name,
        model=f"{name} stand-in",
        size=how.size,
        steps=how.steps,
        batch=how.batch,
        seed=how.seed,
        ema=0.999,
        decay=name == "latent",
        optimiser={"lr": RATES[name]},
        model_settings={"side": how.side, "width": how.width, "steps": how.steps},
        data_settings={"material": sha256_array(real.values)},
    )
    latent = int(makers[name]().latent)  # type: ignore[arg-type]
    batches = _Batches(real, how.batch, latent, how.seed)
    return train_kept(makers[name], batches, recipe, out, f"photographs of scikit-image, {how.side} pixels")


def _made(module: nn.Module, card: Card, how: StandIns, path: Path, device: str) -> dict[Part, NDArray[np.uint8]]:
    """Pictures (n, 1, side, side) of each part, drawn anew only where the kept ones are of other weights."""
    key = f"{card.sha256} {sorted(how.counts.items())} {how.seed}"
    if path.is_file():
        with np.load(path) as stored:
            if str(stored["key"]) == key:
                return {part: stored[part] for part in PARTS}
    made = {part: draw(module.to(device), how.counts[part], how.seed + k, device) for k, part in enumerate(PARTS, 1)}
    with atomic_files(path) as stage:
        np.savez_compressed(stage / path.name, key=np.array(key), **made)  # type: ignore[arg-type]
    return made


@torch.no_grad()
def draw(module: nn.Module, count: int, seed: int, device: str = "cpu") -> NDArray[np.uint8]:
    """`count` pictures (n, 1, side, side) of a generator, in 8 bits as pictures are stored."""
    size: int = module.latent  # type: ignore[assignment]
    generator = torch.Generator(device).manual_seed(seed)
    parts = []
    for start in range(0, count, AT_ONCE):
        z = torch.randn((min(AT_ONCE, count - start), size), generator=generator, device=device)
        made: Tensor = module.draw(z, generator)  # type: ignore[operator]
        parts.append(((made.clamp(-1, 1) + 1) * 127.5).round().byte().cpu().numpy())
    return np.concatenate(parts)
