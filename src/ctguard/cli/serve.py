"""Verbs of the node: serve, and audit of an archive against its ledger."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ctguard.cli.common import TAMPERED, AsJson, Quiet, Seed, show, verb

if TYPE_CHECKING:
    from ctguard.serve.config import Config, Destination


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
    url: Annotated[str, typer.Option(help="DICOMweb (QIDO-RS, WADO-RS) of the archive; or give --archive.")] = "",
    archive: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="The archive by DICOM (C-FIND, C-MOVE); or give --url.")
    ] = "",
    archive_title: Annotated[str, typer.Option(metavar="AET", help="Title of that archive.")] = "",
    title: Annotated[
        str, typer.Option(metavar="AET", help="Our title, to which the archive sends: in its list of DICOM nodes.")
    ] = "CTGUARD_AUDIT",
    listen: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Where we receive: as that list has it, or 0.0.0.0 and its port.")
    ] = "",
    sample: Annotated[int, typer.Option(min=1, help="Images that are fetched and compared.")] = 100,
    ca: Annotated[Path | None, typer.Option(help="CA of the archive's certificate; with --archive: TLS.")] = None,
    certificate: Annotated[Path | None, typer.Option(help="Ours, to send and to receive with.")] = None,
    certificate_key: Annotated[Path | None, typer.Option(help="And its key.")] = None,
    token: Annotated[Path | None, typer.Option(help="File with a bearer token, for --url.")] = None,
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
        from ctguard.serve.archive import audit_archive, over_web
        from ctguard.serve.mover import over_dicom
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"it needs {error.name}", remedy="pip install ctguard[node]") from error
    if bool(url) == bool(archive):
        raise typer.BadParameter("give either --url or --archive")
    if (url and (archive_title or listen or certificate or certificate_key)) or (archive and token):
        raise typer.BadParameter("--archive-title, --listen and --certificate go with --archive, --token with --url")
    if url:
        fetching = over_web(url, ca, token)
    else:
        to = _archive(archive, archive_title, (ca, certificate, certificate_key))
        fetching = over_dicom(to, _title(title, "--title"), _address(listen, "--listen"))
    address = ledger if "://" in ledger else f"sqlite:///{Path(ledger).absolute()}"
    found = audit_archive(address, key, fetching, sample=sample, seed=seed)
    counts = f"{len(found.substituted)} substituted, {len(found.missing)} missing, {len(found.unreadable)} unreadable"
    lines = [f"{found.compared} images compared, {counts}"]
    lines += [f"  {uid}: other pixels, {region}" for uid, region in found.substituted.items()]
    show(found.to_json(), "\n".join(lines), as_json)
    if fail_if_substituted and found.substituted:
        raise typer.Exit(TAMPERED)


def _archive(address: str, title: str, tls: tuple[Path | None, Path | None, Path | None]) -> Destination:
    """An archive by DICOM. tls: CA, our certificate, and its key. Raises typer.BadParameter."""
    from ctguard.serve.config import Destination

    ca, certificate, key = tls
    if len({ca is None, certificate is None, key is None}) > 1:
        raise typer.BadParameter("TLS is both ways: give --ca, --certificate and --certificate-key, or none of them")
    host, port = _address(address, "--archive")
    named = {"ae_title": _title(title, "--archive-title"), "host": host, "port": port}
    return Destination.model_validate(
        {"name": "archive", **named, "tls_ca": ca, "tls_certificate": certificate, "tls_key": key}
    )


def _address(text: str, option: str) -> tuple[str, int]:
    """Host and port out of HOST:PORT. Raises typer.BadParameter."""
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise typer.BadParameter(f"{text!r} is no HOST:PORT", param_hint=option)
    return host.strip("[]"), int(port)


def _title(text: str, option: str) -> str:
    """A title as DICOM has it (VR AE). Raises typer.BadParameter."""
    if not text.strip() or len(text) > 16 or not text.isascii() or not text.isprintable() or "\\" in text:
        raise typer.BadParameter(f"{text!r} is no AE title: 1 to 16 ASCII characters", param_hint=option)
    return text
