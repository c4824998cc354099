"""Forge one site of one volume, and measure what changed.

A source must be a phantom or say that it is de-identified; every result is marked; every forging is appended to a
local log (MISUSE.md).
"""

from __future__ import annotations

import getpass
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from ctguard import zoo
from ctguard.core.errors import GeometryError, RecipeError, RefusedError, WriteError
from ctguard.core.geometry import FloatTriple, Geometry, as_float_triple, as_int_triple
from ctguard.core.marks import Mark
from ctguard.core.provenance import Step
from ctguard.core.records import Edit, Finding, Mode, Task
from ctguard.core.volume import Volume
from ctguard.image.box import mask_box
from ctguard.image.noise import local_sd_map
from ctguard.synth.twin import TWIN, paste_twin
from ctguard.tamper.cube import CUBE_MM, Box, exact_cube
from ctguard.tamper.pipeline import Generator, Plan, Sampler, forge, make_plan, plan_cube

STRONG_SHARE = 0.5
_CONTEXT_VOXELS = 8
CONTROLS = ("identity", "copy-move", TWIN)


@dataclass(frozen=True)
class Request:
    """What to forge: at center_zyx (voxels), by which generator, in which mode. core_mm None: the mode's own.

    sampler: of a diffusion model; None: its own.
    """

    task: Task
    center_zyx: FloatTriple
    generator: str = "pix2pix"
    mode: Mode = "clean"
    core_mm: float | None = None
    seed: int = 0
    sampler: Sampler | None = None


def check_source(volume: Volume) -> None:
    """Raise RefusedError unless the volume is a phantom or says that it is de-identified."""
    if not volume.provenance.has_mark("phantom") and not volume.provenance.source.deidentified:
        raise RefusedError(
            "this scan is no phantom and does not say that it is de-identified",
            remedy="forge only scans with PatientIdentityRemoved = YES (MISUSE.md)",
        )


@lru_cache(maxsize=8)
def load_generator(name: str, task: Task, weights: Path | None = None) -> tuple[Any, str]:
    """A generator in eval mode and the hash of its weights (empty for a control without any)."""
    entry = zoo.find(name, "generator", task)
    if weights is None and entry.weights_path is None:
        return zoo.build(entry, {}), ""
    module, card = zoo.load(entry, weights)
    return module, card.sha256


def tamper_scan(
    volume: Volume, request: Request, *, weights: Path | None = None, donor_zyx: FloatTriple | None = None
) -> tuple[Volume, Edit, dict[str, float]]:
    """Forge one site: the forged volume, its ground truth, and seconds per stage.

    Stages: model (weights), network (the generator alone), chain (cut, equalise, paste, touch up), truth.
    Voxels that the plan does not touch are bit-identical to the source's. Raises RefusedError (see check_source),
    GeometryError where the site does not fit, ModelError where weights are missing.
    """
    check_source(volume)
    clock = Clock()
    plan = _draw_plan(volume, request, weights, donor_zyx)
    network = [0.0]
    if plan.generator == TWIN:
        box, hu = paste_twin(volume, plan)
    else:
        generator = plan_generator(volume, plan, weights)
        clock.lap("model")
        with _timed(generator) as network:
            box, hu = apply_plan(volume.hu, volume.geometry, plan, generator)
    hu = fitted(volume, volume.hu[box.slices()], hu)
    clock.lap("chain")
    clock.seconds |= {"network": network[0], "chain": clock.seconds["chain"] - network[0]}
    edit = measure_edit(volume, box, hu, plan)
    clock.lap("truth")
    forged = volume.hu.copy()
    forged[box.slices()] = hu
    kind = "injection" if plan.task == "inject" else "removal"
    detail = f"{kind} by {plan.generator} ({plan.mode} mode)"
    step = Step("tamper", {**plan.to_json(), "model_sha256": plan.model_sha256})
    return volume.changed(forged, step, Mark("forged", detail)), edit, clock.seconds


def _draw_plan(volume: Volume, request: Request, weights: Path | None, donor_zyx: FloatTriple | None) -> Plan:
    """All randomness of a forging. Copy-move draws its donor here: lung for a removal, anywhere dense to inject."""
    sha = "" if request.generator in CONTROLS else load_generator(request.generator, request.task, weights)[1]
    plan = make_plan(
        request.task,
        request.generator,
        as_float_triple(request.center_zyx),
        mode=request.mode,
        core_mm=request.core_mm,
        seed=request.seed,
        sha=sha,
    )
    if request.sampler is not None:
        plan = replace(plan, sampler=request.sampler)
    if request.generator != "copy-move":
        return plan
    if donor_zyx is None:
        if request.task == "inject":
            raise RecipeError("copy-move needs a nodule to copy", remedy="choose another generator, or --task remove")
        donor_zyx = _draw_donor(volume, plan)
    return replace(plan, donor_zyx=donor_zyx)


def _draw_donor(volume: Volume, plan: Plan) -> FloatTriple:
    from ctguard.cohort.patches import draw_lung_sites
    from ctguard.core.geometry import index_to_lps_mm

    here = as_float_triple(index_to_lps_mm(volume.geometry, plan.center_zyx))
    rng = np.random.default_rng(plan.seed)
    sites = draw_lung_sites(volume, [Finding(here, 0.0)], 50, CUBE_MM, rng)
    for site in sites:
        try:
            exact_cube(volume.geometry, site, plan.core_mm)
        except GeometryError:
            continue
        return site
    raise GeometryError("no other place in lung to copy tissue from", remedy="choose another scan or generator")


def plan_generator(volume: Volume, plan: Plan, weights: Path | None = None) -> Generator:
    """The generator of a plan: copy-move with its donor cut from `volume`, or a network with its weights."""
    if plan.donor_zyx is not None:
        from ctguard.tamper.controls import CopyMove

        donor = exact_cube(volume.geometry, plan.donor_zyx, plan.core_mm)
        control: Generator = CopyMove(donor.cut(torch.from_numpy(volume.hu.astype(np.float32))))
        return control
    generator: Generator = load_generator(plan.generator, plan.task, weights)[0]
    return generator


def apply_plan(hu: NDArray[Any], geometry: Geometry, plan: Plan, generator: Generator) -> tuple[Box, NDArray[Any]]:
    """Apply a plan to voxels: the box that may have changed and its new content, in the type of `hu`.

    Only ctgan mode looks at the whole scan (its noise comes from a fixed place); the others read a block.
    """
    cube = plan_cube(geometry, plan)
    box = Box((0, 0, 0), geometry.shape_zyx)
    if plan.mode != "ctgan":
        box = cube.support.widened(_CONTEXT_VOXELS).inside(geometry.shape_zyx)
    local = replace(plan, center_zyx=as_float_triple(np.subtract(plan.center_zyx, box.start_zyx)))
    block = torch.from_numpy(hu[box.slices()].astype(np.float32))
    with torch.no_grad():
        made = forge(block, geometry.crop(box.start_zyx, box.shape_zyx), local, generator).numpy()
    if hu.dtype == np.int16:
        info = np.iinfo(np.int16)
        return box, np.clip(np.rint(made), info.min, info.max).astype(np.int16)
    return box, made.astype(hu.dtype)


def fitted(volume: Volume, before: NDArray[Any], after: NDArray[Any]) -> NDArray[Any]:
    """Changed voxels clipped to what the source's DICOM files can store; untouched ones (padding, say) stay."""
    ends = _storable_hu(volume)
    return after if ends is None else np.where(after == before, before, np.clip(after, *ends)).astype(after.dtype)


@lru_cache(maxsize=1)
def _storable_hu(volume: Volume) -> tuple[float, float] | None:
    """Every header of the series is read for it: once for all forgeries of a scan."""
    from ctguard.io.derived import stored_range_hu

    return stored_range_hu(volume)


def measure_edit(volume: Volume, box: Box, forged: NDArray[Any], plan: Plan) -> Edit:
    """Ground truth: what differs after rounding, holes filled. Raises GeometryError where nothing does."""
    original = volume.hu[box.slices()]
    change = forged.astype(np.float32) - original.astype(np.float32)
    changed = change != 0
    tight = mask_box(changed)
    if tight is None:
        raise GeometryError(f"forging at {plan.center_zyx} (z, y, x) changed no voxel", remedy="choose another site")
    mask = ndimage.binary_fill_holes(changed)[tight]
    sd = local_sd_map(original.astype(np.float32), volume.geometry.spacing_zyx_mm)
    strong = (np.abs(change) > STRONG_SHARE * sd)[tight]
    start = as_int_triple(np.add(box.start_zyx, [side.start for side in tight]))
    axes = [
        np.abs(s + np.arange(n) - c) * mm <= CUBE_MM / 2
        for s, n, c, mm in zip(start, mask.shape, plan.center_zyx, volume.geometry.spacing_zyx_mm, strict=True)
    ]
    inside = axes[0][:, None, None] & axes[1][None, :, None] & axes[2][None, None, :]
    return Edit(
        task=plan.task,
        generator=plan.generator,
        mode=plan.mode,
        seed=plan.seed,
        center_zyx=plan.center_zyx,
        box_start_zyx=start,
        mask=mask,
        strong=strong,
        outside_cube=int((mask & ~inside).sum()),
        plan=plan.to_json(),
    )


def edit_summary(volume: Volume, edit: Edit) -> dict[str, Any]:
    """The ground truth as JSON: site, masks' volumes, Plan."""
    mm3 = volume.geometry.voxel_mm3
    return {
        "task": edit.task,
        "generator": edit.generator,
        "mode": edit.mode,
        "center_zyx": list(edit.center_zyx),
        "box_start_zyx": list(edit.box_start_zyx),
        "box_shape_zyx": list(edit.mask.shape),
        "changed_mm3": float(edit.mask.sum()) * mm3,
        "strong_mm3": float(edit.strong.sum()) * mm3,
        "changed_outside_cube": edit.outside_cube,
        "plan": edit.plan,
    }


def log_forging(plan: dict[str, Any], source_sha256: str, forged_sha256: str) -> Path:
    """Append user, hashes and Plan to the local log of forgings. Raises WriteError where that is impossible."""
    folder = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "ctguard"
    path = folder / "forgings.jsonl"
    row = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "user": getpass.getuser(),
        "source_sha256": source_sha256,
        "forged_sha256": forged_sha256,
        "plan": plan,
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.write(json.dumps(row) + "\n")
    except OSError as error:
        raise WriteError(
            f"the log of forgings cannot be written ({error.strerror})", where=path, remedy="set XDG_STATE_HOME"
        ) from error
    return path


@contextmanager
def _timed(generator: Any) -> Iterator[list[float]]:
    """Seconds that a network takes, without the chain around it: one number, summed over its calls."""
    seconds, started = [0.0], [0.0]

    def before(*_: object) -> None:
        started[0] = time.perf_counter()

    def after(*_: object) -> None:
        seconds[0] += time.perf_counter() - started[0]

    hooks = (generator.register_forward_pre_hook(before), generator.register_forward_hook(after))
    try:
        yield seconds
    finally:
        for hook in hooks:
            hook.remove()


class Clock:
    """Seconds per stage; a stage may come again."""

    def __init__(self) -> None:
        self.last = time.perf_counter()
        self.seconds: dict[str, float] = {}

    def lap(self, name: str) -> None:
        """What passed since the last lap belongs to this stage."""
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self.last
        self.last = now

    def take(self, seconds: Mapping[str, float]) -> None:
        """What passed since the last lap, told by the stages themselves."""
        for name, value in seconds.items():
            self.seconds[name] = self.seconds.get(name, 0.0) + value
        self.last = time.perf_counter()
