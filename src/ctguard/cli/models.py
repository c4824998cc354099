"""Verbs on models: train, models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ctguard.cli.common import AsJson, Quiet, command_line, names_of, show, table, verb
from ctguard.train.recipe import Size


@verb
def train(
    recipe: Annotated[Path, typer.Argument(help="A recipe: a .toml of the recipes folder, or your own.")],
    data: Annotated[
        list[Path], typer.Option(help="An index; may be repeated. Detectors: forgeries, then untouched nodules.")
    ],
    out: Annotated[Path, typer.Option(help="The run folder.")],
    size: Annotated[Size, typer.Option(help="Which size of the recipe.")] = "cpu",
    generators: Annotated[
        str, typer.Option(metavar="NAMES", help="Detectors: learn these alone; made are RECIPE_on_NAMES.safetensors.")
    ] = "",
    devices: Annotated[int, typer.Option(min=1, help="GPUs, or processes on a CPU.")] = 1,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run folder's last checkpoint.")] = False,
    init: Annotated[Path | None, typer.Option(help="Weights to start from.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Instead of the recipe's.")] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Train a model by its recipe; writes weights and their card."""
    from ctguard.core.errors import WriteError
    from ctguard.io.manifest import RunManifest
    from ctguard.train.recipe import Changes, read_recipe
    from ctguard.training.run import train as train_model

    if (out / "state.pt").exists() and not resume:
        raise WriteError("it holds a run already", where=out, remedy="pass --resume, or name a new folder")
    read_recipe(recipe, size)  # a recipe that cannot be used leaves no run folder
    with RunManifest(out, command_line.get()) as run:
        for path in (recipe, *data):
            run.add_input(path)
        settings: dict[str, Any] = {"resume": resume, "devices": devices, "init": init}
        card = train_model(recipe, data, out, size=size, changes=Changes(seed, names_of(generators)), **settings)
        run.seeds["recipe"] = card.seed
        for ending in ("safetensors", "json"):
            run.add_output(out / f"{card.name}.{ending}")
    facts = {"weights": str(out / f"{card.name}.safetensors"), "sha256": card.sha256, "metrics": card.metrics}
    numbers = ", ".join(f"{name} {value:.4g}" for name, value in card.metrics.items())
    show(facts, f"{facts['weights']}: {card.steps} steps, {numbers}", as_json)


@verb
def models(as_json: AsJson = False) -> None:
    """Every generator, detector and protector, with weights and source."""
    from ctguard.io.manifest import sha256_file
    from ctguard.zoo import ENTRIES

    rows = []
    for entry in ENTRIES:
        path = entry.weights_path
        sha = sha256_file(path) if path is not None and path.is_file() else None
        weights = None if path is None else path.name
        rows.append({"name": entry.name, "kind": entry.kind, "task": entry.task, "weights": weights, "sha256": sha})
        rows[-1]["source"] = entry.source
    lines = [tuple(rows[0]), *(tuple(_cell(key, value) for key, value in row.items()) for row in rows)]
    show(rows, table(lines), as_json)


def _cell(key: str, value: str | None) -> str:
    if value is None:
        return "-"
    return value[:12] if key == "sha256" else value
