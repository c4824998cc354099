"""Verbs on models: train, models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from ctguard.cli.common import AsJson, Device, Quiet, Seed, show, table, verb


@verb
def train(
    recipe: Annotated[Path, typer.Argument(help="A recipe of recipes/, by path or by name.")],
    data: Annotated[Path, typer.Option(help="The index of the training scans.")],
    out: Annotated[Path, typer.Option(help="The run folder.")],
    size: Annotated[Literal["cpu", "full"], typer.Option(help="Which size of the recipe.")] = "cpu",
    devices: Annotated[int, typer.Option(min=1, help="GPUs, or processes on a CPU.")] = 1,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run folder's last checkpoint.")] = False,
    init: Annotated[Path | None, typer.Option(help="Weights to start from.")] = None,
    seed: Seed = 0,
    device: Device = "auto",
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Train a model by its recipe."""
    raise NotImplementedError


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
