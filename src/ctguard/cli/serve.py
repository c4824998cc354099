"""Verbs of the node: serve, and audit of an archive against its ledger."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ctguard.cli.common import TAMPERED, AsJson, Quiet, Seed, show, verb

if TYPE_CHECKING:
    from ctguard.serve.config import Config


@verb
def serve(
    config: Annotated[Path | None, typer.Option(help="TOML that names what differs from ctguard-serve.toml.")] = None,
    show_config: Annotated[bool, typer.Option("--show-config", help="Print the commented defaults, and end.")] = False,
    add_user: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Add a user of the review page, with a password asked for or on stdin; end."),
    ] = None,
    role: Annotated[Literal["viewer", "reviewer", "admin"], typer.Option(help="Of the user that is added.")] = "viewer",
) -> None:
    """A DICOM node with a review page, beside a PACS."""
    from ctguard.core.errors import MissingExtraError

    try:
        from ctguard.serve.config import DEFAULTS, load_config
        from ctguard.serve.supervisor import serve as run
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"the node needs {error.name}", remedy="pip install ctguard[node]") from error
    if show_config:
        typer.echo(DEFAULTS.read_text(encoding="utf-8"), nl=False)
        return
    settings = load_config(config)
    if add_user is None:
        run(settings)
    else:
        _add_user(settings, add_user, role)
        show({"user": add_user, "role": role}, f"{add_user} may log in as {role}", as_json=False)


def _add_user(config: Config, name: str, role: str) -> None:
    from ctguard.serve.objects import make_folder
    from ctguard.serve.store.database import open_database
    from ctguard.serve.web.users import add_user

    make_folder(config.store.folder.absolute())
    engine = open_database(config.store.url)
    asked = sys.stdin.isatty()
    password = typer.prompt("Password", hide_input=True, confirmation_prompt=True) if asked else sys.stdin.readline()
    add_user(engine, name, role, password.rstrip("\r\n"))


@verb
def audit(
    ledger: Annotated[str, typer.Option(help="The node's database: a file, or a URL.")],
    key: Annotated[Path, typer.Option(help="The node's key file.")],
    url: Annotated[str, typer.Option(help="DICOMweb (QIDO-RS, WADO-RS) of the archive.")],
    sample: Annotated[int, typer.Option(min=1, help="Images that are fetched and compared.")] = 100,
    ca: Annotated[Path | None, typer.Option(help="CA of the archive's certificate.")] = None,
    token: Annotated[Path | None, typer.Option(help="File with a bearer token.")] = None,
    fail_if_substituted: Annotated[
        bool, typer.Option("--fail-if-substituted", help="Exit 3 if an image is not what it was.")
    ] = False,
    seed: Seed = 0,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Does an archive still hold the images that the node saw?"""
    from ctguard.core.errors import MissingExtraError

    try:
        from ctguard.serve.archive import audit_archive
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"it needs {error.name}", remedy="pip install ctguard[node]") from error
    address = ledger if "://" in ledger else f"sqlite:///{Path(ledger).absolute()}"
    found = audit_archive(address, key, url, sample=sample, seed=seed, ca=ca, token=token)
    lines = [f"{found.compared} images compared, {len(found.substituted)} substituted, {len(found.missing)} missing"]
    lines += [f"  {uid}: other pixels, {region}" for uid, region in found.substituted.items()]
    show(found.to_json(), "\n".join(lines), as_json)
    if fail_if_substituted and found.substituted:
        raise typer.Exit(TAMPERED)
