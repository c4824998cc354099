"""`ctguard VERB`. Only typer is imported here and in the verb modules; what a verb needs, it imports when it runs."""

from __future__ import annotations

import logging
import sys
import warnings
from types import TracebackType
from typing import Annotated

import typer
import typer.main

from ctguard import RESEARCH_USE_ONLY, __version__
from ctguard.cli import bench, cad, data, demo, models, scan, seal, serve, synth
from ctguard.cli.common import command_line
from ctguard.core.console import log
from ctguard.io import READS

_HELP = f"""Has a CT scan been tampered with, and where? How do we make it hard to tamper with?

SCAN is {READS}.
Exit codes: 0 done, 1 failed, 2 wrong use, 3 tampered (detect --fail-if-tampered, verify --fail-if-broken).
--debug, anywhere on the line, shows the traceback of an error.

{RESEARCH_USE_ONLY}
"""

app = typer.Typer(
    help=_HELP,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
for _verb in (
    demo.demo,
    data.info,
    data.convert,
    data.phantom,
    data.index,
    scan.tamper,
    synth.synth,
    scan.detect,
    scan.protect,
    seal.keygen,
    seal.verify,
    seal.restore,
    cad.cad,
    models.train,
    scan.report,
    models.models,
    serve.serve,
    serve.audit,
):
    app.command(no_args_is_help=_verb.__name__ not in ("demo", "models", "serve"))(_verb)
app.add_typer(bench.bench)


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"ctguard {__version__}. {RESEARCH_USE_ONLY}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", is_eager=True, callback=_print_version)] = False,
) -> None:
    """The options before the verb; `main` has taken --debug out."""


def _fault(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """An exception that nobody foresaw: still one line, and how to see more."""
    if log.isEnabledFor(logging.DEBUG):
        sys.__excepthook__(kind, error, trace)
    else:
        text = " ".join(f"{kind.__name__}: {error}".split())
        typer.echo(f"ctguard: error: internal error: {text}; run it with --debug and report what it says", err=True)


def main(arguments: list[str] | None = None) -> None:
    """The `ctguard` command."""
    given = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in given
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("ctguard: %(message)s"))
    log.handlers = [handler]
    log.setLevel(logging.DEBUG if debug else logging.INFO)
    if not debug:  # warnings of other libraries mean nothing to a user
        warnings.simplefilter("ignore")
    sys.excepthook = _fault
    words = [word for word in given if word != "--debug"]
    command_line.set(("ctguard", *words))
    typer.main.get_command(app)(args=words, prog_name="ctguard")
