"""One loop for every model: turns, validation, early stopping, resuming. It knows no task."""

from __future__ import annotations

import copy
import csv
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from ctguard.core.console import log, progress
from ctguard.core.errors import RecipeError
from ctguard.train.precision import WideKernelsInFloat32
from ctguard.train.recipe import Recipe

Batch = dict[str, Tensor]
_SAVE_EVERY = 100
_RECALIBRATION_BATCHES = 32


class Trainable(Protocol):
    """What `fit` asks of a model besides being an nn.Module."""

    turns: tuple[str, ...]

    def optimizers(self, settings: Mapping[str, Any]) -> dict[str, torch.optim.Optimizer]:
        """One optimiser per turn, with the recipe's optimiser settings."""
        ...

    def step(self, batch: Batch, turn: str) -> dict[str, Tensor]:
        """Losses of a turn; "loss" is minimised."""
        ...


@dataclass(frozen=True)
class FitResult:
    """What came out: the module with the best (or last) weights, in eval mode, and the loss curve's file."""

    module: nn.Module
    steps: int
    best: float | None
    curve: Path


def fit(
    module: nn.Module,
    batches: Callable[[int], Batch],
    recipe: Recipe,
    out: Path,
    *,
    validate: Callable[[nn.Module], dict[str, float]] | None = None,
    resume: bool = False,
    devices: int = 1,
    quiet: bool = False,
) -> FitResult:
    """Train a Trainable module.

    batches: step -> batch; a function of the step alone, so that a resumed run sees the same data.
    validate: metrics of a module in eval mode; "score" is maximised.
    Writes out/state.pt (for `resume`) and out/loss.csv. Raises RecipeError where resume finds another recipe, and where
    a loss is no longer a finite number.
    """
    from lightning.fabric import Fabric
    from lightning.fabric.strategies.ddp import DDPStrategy

    torch.manual_seed(recipe.seed)
    # Other processes begin as copies of this one, so that what was read is shared; a turn trains a part of the model.
    strategy = "auto" if devices == 1 else DDPStrategy(start_method="fork", find_unused_parameters=True)
    fabric = Fabric(accelerator="auto", devices=devices, strategy=strategy, precision=recipe.precision)  # type: ignore[arg-type]
    if recipe.batch % fabric.world_size:
        raise RecipeError(
            f"a batch of {recipe.batch} cannot be shared equally by {fabric.world_size} devices",
            where=recipe.name,
            remedy="give a number of devices that divides it",
        )
    out.mkdir(parents=True, exist_ok=True)
    run = _Run(module, recipe, out)
    state = run.kept() if resume else None
    fabric.launch(partial(_steps, run=run, state=state, batches=batches, validate=validate, quiet=quiet))
    if fabric.world_size > 1:  # the training was another process's
        run.begin({}, run.kept())
    module.load_state_dict(run.best_state or run.candidate(batches).state_dict())
    return FitResult(module.eval(), run.step, run.best, run.curve)


def _steps(
    fabric: Any,
    run: _Run,
    state: dict[str, Any] | None,
    batches: Callable[[int], Batch],
    validate: Callable[[nn.Module], dict[str, float]] | None,
    quiet: bool,
) -> None:
    """What each process does: steps on its share of the batches; the first one judges and writes."""
    module, recipe, first = run.module, run.recipe, fabric.is_global_zero
    turns: tuple[str, ...] = module.turns  # type: ignore[assignment]
    optimizers: dict[str, torch.optim.Optimizer] = module.optimizers(recipe.optimiser)  # type: ignore[operator]
    wrapped, *ready = fabric.setup(module, *(optimizers[turn] for turn in turns))
    wrapped.mark_forward_method("step")
    run.begin(dict(zip(turns, ready, strict=True)), state)
    if not first:  # what a model draws for its share is not what the first process draws for its own
        torch.manual_seed(recipe.seed + 7919 * fabric.global_rank + run.step)
    for step in progress(range(run.step, recipe.steps), recipe.name, recipe.steps - run.step, quiet or not first):
        share = {key: value[fabric.global_rank :: fabric.world_size] for key, value in batches(step).items()}
        batch = {key: fabric.to_device(value) for key, value in share.items()}
        module.train()
        run.set_rates(step)
        losses: dict[str, float] = {}
        for turn in turns:
            run.optimizers[turn].zero_grad()
            with fabric.autocast(), WideKernelsInFloat32():  # a marked method alone does not enter autocast
                values = wrapped.step(batch, turn)
            fabric.backward(values["loss"])
            run.optimizers[turn].step()
            losses |= {f"{turn}_{key}": float(value.detach()) for key, value in values.items()}
        _check_finite(losses, step, recipe)
        run.after(step, losses)
        last = step + 1 == recipe.steps
        if validate is not None and (last or (step + 1) % recipe.validate_every == 0):
            if first:
                run.judge(validate, batches)
            run.without_gain = fabric.broadcast(run.without_gain)
            if recipe.patience and run.without_gain >= recipe.patience:
                if first:
                    log.info("%s: no gain in %d validations, stopped at %d", recipe.name, run.without_gain, run.step)
                break
        if first and (last or (step + 1) % _SAVE_EVERY == 0):
            run.save()
    if first:
        run.save()


def _check_finite(losses: Mapping[str, float], step: int, recipe: Recipe) -> None:
    lost = [name for name, value in losses.items() if not math.isfinite(value)]
    if lost:
        raise RecipeError(
            f"{', '.join(lost)} is not a finite number at step {step}",
            where=recipe.name,
            remedy="lower the learning rate or take precision 32-true; --resume goes on from the last state",
        )


def _recalibrate(module: nn.Module, batches: Callable[[int], Batch], turn: str) -> None:
    """Statistics of batch normalisation that belong to averaged weights (Izmailov et al., UAI 2018, section 3.2)."""
    module.train()  # a frozen part stays in eval mode, and keeps its statistics
    every = [part for part in module.modules() if isinstance(part, torch.nn.modules.batchnorm._BatchNorm)]
    norms = [norm for norm in every if norm.training]
    momenta = [norm.momentum for norm in norms]
    device = next(module.parameters()).device
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    with torch.no_grad():
        for step in range(_RECALIBRATION_BATCHES if norms else 0):
            batch = {key: value.to(device) for key, value in batches(step).items()}
            module.step(batch, turn)  # type: ignore[operator]
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def _warmed(decay: float) -> Callable[[Tensor, Tensor, Tensor | int], Tensor]:
    """Exponential average whose decay starts low, so that a short run does not keep its first weights."""

    def average(kept: Tensor, new: Tensor, count: Tensor | int) -> Tensor:
        return torch.lerp(new, kept, min(decay, (1 + int(count)) / (10 + int(count))))

    return average


class _Run:
    """State of a run that survives being killed."""

    def __init__(self, module: nn.Module, recipe: Recipe, out: Path) -> None:
        self.module, self.recipe = module, recipe
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        self.average: AveragedModel | None = None
        self.path, self.curve = out / "state.pt", out / "loss.csv"
        self.step, self.without_gain = 0, 0
        self.best: float | None = None
        self.best_state: dict[str, Any] | None = None
        self.rows: list[dict[str, float]] = []

    def begin(self, optimizers: dict[str, torch.optim.Optimizer], state: dict[str, Any] | None) -> None:
        """Take optimisers, once the module lies on its device, and go on from a state."""
        self.optimizers = optimizers
        self.average = AveragedModel(self.module, avg_fn=_warmed(self.recipe.ema)) if self.recipe.ema else None
        if state is None:
            return
        self.module.load_state_dict(state["module"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        for turn, optimizer in optimizers.items():
            optimizer.load_state_dict(state["optimizers"][turn])
        torch.set_rng_state(state["torch_rng"])
        self.step, self.without_gain, self.best, self.best_state, self.rows = state["progress"]

    def after(self, step: int, losses: dict[str, float]) -> None:
        self.step = step + 1
        self.rows.append({"step": step, **losses})
        if self.average is not None:
            self.average.update_parameters(self.module)

    def set_rates(self, step: int) -> None:
        if self.recipe.decay:
            factor = 0.5 * (1 + math.cos(math.pi * step / self.recipe.steps))
            for optimizer in self.optimizers.values():
                for group in optimizer.param_groups:
                    group["lr"] = factor * group.setdefault("first_lr", group["lr"])

    def candidate(self, batches: Callable[[int], Batch]) -> nn.Module:
        """What the run would keep now: averaged or last weights with batch statistics of their own, in eval mode."""
        kept = copy.deepcopy(self.module if self.average is None else self.average.module)
        _recalibrate(kept, batches, self.module.turns[-1])  # type: ignore[arg-type, index]
        return kept.eval()

    def judge(self, validate: Callable[[nn.Module], dict[str, float]], batches: Callable[[int], Batch]) -> None:
        judged = self.candidate(batches)
        with torch.no_grad():
            metrics = validate(judged)
        log.info("%s step %d: %s", self.recipe.name, self.step, {k: round(v, 4) for k, v in metrics.items()})
        self.rows[-1] |= {f"valid_{key}": value for key, value in metrics.items()}
        if self.best is None or metrics["score"] > self.best:
            self.best, self.without_gain = metrics["score"], 0
            self.best_state = {key: value.clone() for key, value in judged.state_dict().items()}
        else:
            self.without_gain += 1

    def save(self) -> None:
        """Write state and loss curve, each by rename, so that a kill leaves the old or the new one."""
        state = {
            "recipe": self.recipe.__dict__,
            "module": self.module.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "optimizers": {turn: optimizer.state_dict() for turn, optimizer in self.optimizers.items()},
            "torch_rng": torch.get_rng_state(),
            "progress": (self.step, self.without_gain, self.best, self.best_state, self.rows),
        }
        partial = self.path.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self.path)
        columns = list(dict.fromkeys(key for row in self.rows for key in row))
        with self.curve.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(self.rows)

    def kept(self) -> dict[str, Any] | None:
        """The state that a run of this recipe left, if there is one. Raises RecipeError for another recipe's."""
        if not self.path.is_file():
            return None
        state: dict[str, Any] = torch.load(self.path, weights_only=False)
        differing = [k for k, v in self.recipe.__dict__.items() if k != "steps" and state["recipe"].get(k) != v]
        if differing:
            raise RecipeError(
                f"the run was started with another {differing[0]}", where=self.path, remedy="choose another --out"
            )
        return state
