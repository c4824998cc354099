"""What the verbs share: common options, one line per error, exit codes, results on stdout."""

from __future__ import annotations

import functools
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Any, ParamSpec

import typer

from ctguard.core.console import log
from ctguard.core.errors import CtguardError, RecipeError
from ctguard.io import READS

FAILED = 1
"""Missing or unreadable input, a refusal, a full disk: exit 1. Wrong use exits 2 (typer)."""
DETECTOR = "unet"
"""Judges where none is named."""
TAMPERED = 3
"""`detect --fail-if-tampered` alone."""
INTERRUPTED = 130

command_line: ContextVar[tuple[str, ...]] = ContextVar("command_line", default=("ctguard",))
"""The words that are being run, for run.json; set by `app.main`."""

P = ParamSpec("P")


def _set_quiet(value: bool) -> bool:
    if value:
        log.setLevel(logging.WARNING)
    return value


def _check_device(value: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", value):
        raise typer.BadParameter("give auto, cpu, cuda or cuda:N")
    return value


Scan = Annotated[Path, typer.Argument(help=READS)]
Seed = Annotated[int, typer.Option(min=0, help="Same seed, same bytes.")]
Device = Annotated[str, typer.Option(callback=_check_device, help="auto, cpu, cuda or cuda:N.")]
Jobs = Annotated[int, typer.Option(min=1, help="Processes; each uses one thread.")]
Quiet = Annotated[bool, typer.Option("--quiet", callback=_set_quiet, help="No log lines and no progress.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
AllowGaps = Annotated[bool, typer.Option("--allow-gaps", help="Interpolate missing slices instead of refusing.")]
Series = Annotated[str | None, typer.Option(help="SeriesInstanceUID, where SCAN holds several series.")]


def verb(function: Callable[P, None]) -> Callable[P, None]:
    """Turn the errors that users cause, or can mend, into one line on stderr and exit code 1."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            function(*args, **kwargs)
            sys.stdout.flush()
        except BrokenPipeError:
            # Whoever read our output has left; Python would complain once more when it flushes at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(FAILED) from None
        except KeyboardInterrupt:
            typer.echo("ctguard: stopped", err=True)
            raise typer.Exit(INTERRUPTED) from None
        except (CtguardError, OSError, MemoryError) as error:
            if log.isEnabledFor(logging.DEBUG):
                raise
            typer.echo(f"ctguard: error: {error_line(error)}", err=True)
            raise typer.Exit(FAILED) from None

    return run


def error_line(error: BaseException) -> str:
    """An error as one line for people."""
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    elif isinstance(error, MemoryError):
        text = "not enough memory; close other programs, or work on a smaller scan"
    else:
        text = str(error)
    return " ".join(text.split())


def show(data: Any, text: str, as_json: bool) -> None:
    """The result of a verb on stdout: the JSON of `data`, or `text`."""
    typer.echo(json.dumps(data, ensure_ascii=False) if as_json else text)


def table(rows: Sequence[tuple[str, ...]]) -> str:
    """Rows of cells as aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def names_of(text: str) -> tuple[str, ...]:
    """Names out of "a,b, c"; none out of ""."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def triple(value: str, option: str) -> tuple[float, float, float]:
    """Three numbers out of "a,b,c". Raises typer.BadParameter (wrong use, exit 2)."""
    try:
        a, b, c = (float(part) for part in value.split(","))
    except ValueError:
        raise typer.BadParameter(f"{value!r} is not three numbers like 40,210,130", param_hint=option) from None
    return a, b, c


def torch_device(name: str) -> str:
    """The device to work on. Limits torch to one thread per job, so that the same command gives the same bytes."""
    import torch

    torch.set_num_threads(1)
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    number = int(name.partition(":")[2] or 0)
    if name != "cpu" and number >= torch.cuda.device_count():
        raise RecipeError(f"this machine has no device {name}", remedy="pass --device cpu, or install a CUDA torch")
    return name
