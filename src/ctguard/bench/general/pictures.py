"""Real and generated pictures: what is told apart, and folders of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ctguard.bench.paper_tables import GENERATORS
from ctguard.core.errors import DataError, ReadError, RecipeError
from ctguard.io.manifest import sha256_array

GENERAL = ("progressive", "style", "latent")
"""Families of general pictures: progressive GAN, style-based GAN, latent diffusion."""
FAMILIES = (*GENERAL, *GENERATORS)
REAL = "real"
SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")
TEST_SHARE = 0.25

Part = Literal["train", "test"]
PARTS: tuple[Part, ...] = ("train", "test")


@dataclass(frozen=True, eq=False)
class Pictures:
    """Patches (n, c, y, x), c 1 or 3: uint8, or float32 in 0..1. units: what intervals are drawn by, one per patch."""

    values: NDArray[Any]
    units: tuple[str, ...]

    def tensor(self, chosen: slice | NDArray[np.int64]) -> Tensor:
        """These patches, float32 in 0..1."""
        return torch.from_numpy(as_unit(self.values[chosen]))


@dataclass(frozen=True, eq=False)
class Family:
    """One row and column of the matrix: real pictures and those of one generator. Either part may be missing."""

    name: str
    real: Mapping[Part, Pictures]
    fake: Mapping[Part, Pictures]

    def has(self, part: Part) -> bool:
        """Whether there is anything to learn from, or to test on."""
        return part in self.real and part in self.fake

    def digest(self, part: Part) -> str:
        """Hash of all patches of a part."""
        return "".join(sha256_array(side[part].values)[:16] for side in (self.real, self.fake))


@dataclass(frozen=True, eq=False)
class PictureBatches:
    """Batches as a function of the step: half real, half generated, flipped and turned by right angles."""

    real: Pictures
    fake: Pictures
    batch: int
    seed: int

    def __call__(self, step: int) -> dict[str, Tensor]:
        """x (batch, c, y, x) float32 in 0..1; label (batch): 1 where generated."""
        rng = np.random.default_rng([self.seed, step])
        label = np.arange(self.batch) % 2
        sides = [(self.real, self.fake)[k].values for k in label]
        x = np.stack([_turned(values[rng.integers(len(values))], rng) for values in sides])
        return {"x": torch.from_numpy(as_unit(x)), "label": torch.from_numpy(label.astype(np.float32))}


def as_unit(values: NDArray[Any]) -> NDArray[np.float32]:
    """Patches in 0..1."""
    return np.ascontiguousarray(values, np.float32) / np.float32(255 if values.dtype == np.uint8 else 1)


def _turned(patch: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
    patch = np.rot90(patch, int(rng.integers(4)), axes=(1, 2))
    return np.flip(patch, 2) if rng.random() < 0.5 else patch


def read_families(folders: Mapping[str, Path], side: int, counts: Mapping[Part, int], seed: int) -> list[Family]:
    """The three families of general pictures from folders: real, progressive, style and latent.

    From each image one patch of side x side at a random place, RGB, without any resampling. A quarter of the images is
    for the test; at most `counts` of each part are taken. Image k of a family is drawn together with real image k.
    Raises RecipeError for other names, DataError for missing or small folders and small images, ReadError.
    """
    known = (REAL, *GENERAL)
    unknown = [name for name in folders if name not in known]
    missing = [name for name in known if name not in folders]
    if unknown or missing:
        what = f"no family is called {unknown[0]!r}" if unknown else f"{', '.join(missing)}: no folder"
        raise RecipeError(what, where="--images", remedy=f"give NAME=DIR for each of {', '.join(known)}, or none")
    read = {name: _read_folder(folder, side, counts, [seed, k]) for k, (name, folder) in enumerate(folders.items())}
    real = read[REAL]
    paired = {name: {p: spread(read[name][p].values, real[p].units) for p in PARTS} for name in GENERAL}
    return [Family(name, real, paired[name]) for name in GENERAL]


def spread(values: NDArray[Any], units: Sequence[str]) -> Pictures:
    """Generated pictures are drawn independently of each other: they go to the units of the real ones in turn."""
    named = list(dict.fromkeys(units))
    return Pictures(values, tuple(named[k % len(named)] for k in range(len(values))))


def image_paths(folder: Path) -> list[Path]:
    """All images below a folder, sorted. Raises DataError where there is no folder."""
    if not folder.is_dir():
        raise DataError("no such folder of images", where=folder, remedy="check the path")
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)


def _read_folder(folder: Path, side: int, counts: Mapping[Part, int], seed: Sequence[int]) -> dict[Part, Pictures]:
    paths = image_paths(folder)
    rng = np.random.default_rng(list(seed))
    order = [paths[k] for k in rng.permutation(len(paths))]
    tests = round(TEST_SHARE * len(order))
    if tests < 2:
        remedy = f"give folders of images ({', '.join(SUFFIXES)})"
        raise DataError(f"{len(order)} images are too few to learn from and to test on", where=folder, remedy=remedy)
    parts: dict[Part, list[Path]] = {"train": order[tests:], "test": order[:tests]}
    return {
        part: Pictures(
            np.stack([_cropped(path, side, rng) for path in chosen[: counts[part]]]),
            tuple(path.relative_to(folder).as_posix() for path in chosen[: counts[part]]),
        )
        for part, chosen in parts.items()
    }


def _cropped(path: Path, side: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """(3, side, side) of an image, at a random place."""
    try:
        with Image.open(path) as opened:
            mode, image = opened.mode, np.asarray(opened.convert("RGB"))
    except (OSError, ValueError) as error:
        raise ReadError(f"not an image ({error})", where=path, remedy="remove it, or repair it") from error
    if mode.startswith(("I", "F")):
        raise ReadError(f"an image of mode {mode}", where=path, remedy="store it in 8 bits a channel")
    if min(image.shape[:2]) < side:
        raise DataError(f"{image.shape[1]} x {image.shape[0]} pixels hold no patch of {side}", where=path)
    y, x = (int(rng.integers(n - side + 1)) for n in image.shape[:2])
    return np.ascontiguousarray(image[y : y + side, x : x + side].transpose(2, 0, 1))


def folder_note(folders: Mapping[str, Path]) -> str:
    """Which folders, how many images, and whether their formats differ."""
    found = {name: image_paths(folder) for name, folder in folders.items()}
    kinds = {name: sorted({path.suffix.lower() for path in paths}) for name, paths in found.items()}
    words = ", ".join(f"{name} {folders[name].name} ({len(found[name])} images)" for name in found)
    line = f"General images: the folders given: {words}. One patch of each image at a random place, never resampled."
    if len({tuple(kind) for kind in kinds.values()}) > 1:
        listed = ", ".join(f"{name} {'/'.join(kind)}" for name, kind in kinds.items())
        line += f" Their formats differ ({listed}): a detector may learn compression instead of generators."
    return line
