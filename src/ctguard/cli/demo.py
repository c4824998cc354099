"""The demo verb: the whole story on an embedded phantom patient."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ctguard.cli.common import AsJson, Device, Quiet, Seed, verb


@verb
def demo(
    out: Annotated[Path, typer.Option(help="A new folder for the results.")] = Path("demo-out"),
    seed: Seed = 7,
    device: Device = "auto",
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Forge, judge and protect a phantom patient: OUT/index.html."""
    raise NotImplementedError
