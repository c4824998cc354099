"""The forging chain of CT-GAN and M3Dsynth as one differentiable function (facts: CT-GAN 2.2-2.4, M3Dsynth 1.1).

Draw, record, apply: `draw_plan` holds all randomness, the Plan is JSON, `forge` is deterministic given it.
Cut a 32 mm cube, resample to 1 mm, equalise, mask the core, generate, invert everything, paste, touch up.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol, Self, cast, runtime_checkable

import torch
from torch import Tensor

from ctguard.core.errors import RecipeError
from ctguard.core.geometry import FloatTriple, Geometry, as_float_triple
from ctguard.core.provenance import Json
from ctguard.core.records import Mode, Task
from ctguard.core.shapes import CubeNorm, VolumeHU
from ctguard.tamper.cube import CUBE_VOXELS, Cube, core_mask, exact_cube, zoomed_cube
from ctguard.tamper.intensity import Equaliser
from ctguard.tamper.touchup import blend_clean, blend_ctgan, blend_m3dsynth, limit_range, match_level, remove_specks

CORE_MM: dict[Mode, float] = {"clean": 16.0, "m3dsynth": 16.0, "ctgan": 20.0}
CORE_LIMITS_MM = (16.0, 20.0)


class Generator(Protocol):
    """Fills the masked core of cubes: forward(cube_norm, mask, noise) -> cube_norm, all (b, 1, 32, 32, 32).

    It blanks the core itself (mask = 1), so that the controls, which need the core, go through the same chain.
    makes_tissue: a network's own, whose errors `clean` mode mends; the tissue of controls is the scan's and stays.
    """

    equaliser: Equaliser
    makes_tissue: bool

    def __call__(self, cube_norm: CubeNorm, mask: CubeNorm, noise: CubeNorm) -> CubeNorm:
        """Differentiable; cutting, equalising and pasting never appear here."""
        ...


@dataclass(frozen=True)
class Sampler:
    """How a diffusion model is sampled.

    name: "ddim" (deterministic given the Plan's noise, eta = 0) or "ddpm" (ancestral, with fresh noise at each step).
    steps: of the trained chain that are visited. reimpose: put the known shell back at each step.
    precision: inside the network. "bfloat16" is 2.5 times as fast where the processor has it, and replays there only.
    Raises RecipeError for another name or precision or less than one step.
    """

    name: Literal["ddim", "ddpm"] = "ddim"
    steps: int = 50
    reimpose: bool = False
    precision: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        if self.name not in ("ddim", "ddpm"):
            raise RecipeError(f"no sampler is called {self.name!r}", remedy="choose ddim or ddpm")
        if self.precision not in ("float32", "bfloat16"):
            raise RecipeError(f"no precision is called {self.precision!r}", remedy="choose float32 or bfloat16")
        if self.steps < 1:
            raise RecipeError(f"{self.steps} sampling steps", remedy="choose at least one")


@runtime_checkable
class Sampled(Protocol):
    """A generator that samples. sampler: its own choice, in force where a Plan names none."""

    sampler: Sampler

    def with_sampler(self, sampler: Sampler) -> Self:
        """The same weights, sampled another way."""
        ...


@dataclass(frozen=True)
class Plan:
    """Everything that replays one forgery on its source.

    center_zyx: the site, in voxels of the source. donor_zyx: where copy-move takes its tissue from.
    sampler: of a diffusion model; None for other generators, and for a diffusion model's own choice.
    """

    task: Task
    generator: str
    mode: Mode
    core_mm: float
    center_zyx: FloatTriple
    seed: int
    model_sha256: str = ""
    donor_zyx: FloatTriple | None = None
    sampler: Sampler | None = None

    def to_json(self) -> dict[str, Json]:
        """Plain JSON values."""
        return cast(dict[str, Json], asdict(self))

    @staticmethod
    def from_json(values: dict[str, Any]) -> Plan:
        """The Plan that `to_json` wrote."""
        donor, sampler = values.get("donor_zyx"), values.get("sampler")
        nested = {
            "center_zyx": as_float_triple(values["center_zyx"]),
            "donor_zyx": None if donor is None else as_float_triple(donor),
            "sampler": None if sampler is None else Sampler(**sampler),
        }
        return Plan(**{**values, **nested})


def make_plan(
    task: Task,
    generator: str,
    center_zyx: FloatTriple,
    *,
    mode: Mode,
    core_mm: float | None,
    seed: int,
    sha: str = "",
    sampler: Sampler | None = None,
) -> Plan:
    """A checked Plan. core_mm None: the mode's own. Raises RecipeError for a core outside 16-20 mm."""
    core = CORE_MM[mode] if core_mm is None else core_mm
    if not CORE_LIMITS_MM[0] <= core <= CORE_LIMITS_MM[1]:
        raise RecipeError(
            f"a masked core of {core:g} mm", remedy="choose 16 to 20 mm, what generators were trained for"
        )
    return Plan(task, generator, mode, core, center_zyx, seed, sha, sampler=sampler)


def plan_cube(geometry: Geometry, plan: Plan) -> Cube:
    """The cube of a plan. Raises GeometryError where the site does not fit the volume."""
    if plan.mode == "ctgan":
        return zoomed_cube(geometry, plan.center_zyx)
    return exact_cube(geometry, plan.center_zyx, plan.core_mm)


def initial_noise(seed: int) -> Tensor:
    """The generator's noise of a plan: standard normal (1, 1, 32, 32, 32)."""
    rng = torch.Generator().manual_seed(seed)
    return torch.randn((1, 1, CUBE_VOXELS, CUBE_VOXELS, CUBE_VOXELS), generator=rng)


def generate_cube(cube_hu: Tensor, plan: Plan, generator: Generator) -> Tensor:
    """Equalise, mask, generate and invert one cube: HU (32, 32, 32) in and out, before any pasting."""
    mask = core_mask(plan.core_mm)[None, None].to(cube_hu.device)
    noise = initial_noise(plan.seed).to(cube_hu.device)
    generator = _sampled(generator, plan)
    norm = generator.equaliser(cube_hu)[None, None]
    made: Tensor = generator.equaliser.inverse(generator(norm, mask, noise))[0, 0]
    return made


def _sampled(generator: Generator, plan: Plan) -> Generator:
    """The generator with the Plan's sampler. Raises RecipeError where it does not sample."""
    if plan.sampler is None:
        return generator
    if not isinstance(generator, Sampled):
        raise RecipeError(f"{plan.generator} is no diffusion model: it has no sampler to choose", remedy="leave it out")
    return cast(Generator, generator.with_sampler(plan.sampler))


def forge(hu: VolumeHU, geometry: Geometry, plan: Plan, generator: Generator, *, noise: bool = True) -> Tensor:
    """Apply a plan to a volume: float32 HU (z, y, x) in and out, on `geometry`.

    Gradients reach the input HU, also through the generator's view of the shell. Voxels that the plan does not
    touch are the input's own. Raises GeometryError where the site does not fit.
    noise: whether clean mode restores noise at the end. It is a constant to gradients and takes two thirds of the time.
    """
    cube = plan_cube(geometry, plan)
    cut = cube.cut(hu)
    made = limit_range(generate_cube(cut, plan, generator))
    if plan.mode == "clean":
        made = remove_specks(made) if generator.makes_tissue else made
        made = match_level(made, cut, core_mask(plan.core_mm).to(hu.device))
        return blend_clean(hu, cube, cube.back(made), plan.core_mm, plan.seed if noise else None)
    native = cube.back(made)
    if plan.mode == "m3dsynth":
        return blend_m3dsynth(hu, cube, native, plan.task)
    return blend_ctgan(hu, cube, native, plan.task, plan.seed)
