"""The configuration of `ctguard serve`: one TOML; every default stands in ctguard-serve.toml and nowhere else."""

from __future__ import annotations

import tomllib
from ipaddress import IPv4Network, IPv6Network, ip_address
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from ctguard.core.errors import ReadError, RecipeError

DEFAULTS = Path(__file__).with_name("ctguard-serve.toml")
SECURITY = "security"
"""The destination that gets results without an opt-in."""

OptionalPath = Annotated[Path | None, BeforeValidator(lambda value: value or None)]
Title = Annotated[str, Field(min_length=1, max_length=16)]
Port = Annotated[int, Field(ge=0, le=65535)]
Positive = Annotated[float, Field(gt=0)]
Kind = Literal["seg", "map", "sr", "key"]


class Section(BaseModel):
    """A table of the TOML: frozen, and without keys that nobody knows."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Store(Section):
    """Where images, cases, database and key lie."""

    folder: Path
    database: str
    key: OptionalPath
    retention_days: Annotated[int, Field(ge=0)]

    @property
    def url(self) -> str:
        """The database as SQLAlchemy names it."""
        return self.database or f"sqlite:///{self.folder.absolute() / 'node.db'}"

    @property
    def key_path(self) -> Path:
        """The key of ledger and pseudonyms."""
        return self.key or self.folder / "node.key"


class Node(Section):
    """The storage SCP and its limits."""

    ae_title: Title
    host: str
    port: Port
    calling_ae_titles: list[str]
    addresses: list[IPv4Network | IPv6Network]
    quiet_s: Positive
    max_associations: Annotated[int, Field(ge=1)]
    max_pdu_bytes: Annotated[int, Field(ge=4096, le=1 << 24)]
    max_object_mb: Positive
    min_free_disk_mb: Annotated[int, Field(ge=0)]
    network_timeout_s: Positive

    @model_validator(mode="after")
    def _nobody_unknown(self) -> Self:
        loopback = self.host == "localhost" or ip_address(self.host).is_loopback
        if "*" in self.calling_ae_titles and not loopback:
            raise ValueError("list the calling_ae_titles that may send: '*' is for loopback alone")
        return self


class Tls(Section):
    """TLS of the node: all three or none."""

    certificate: OptionalPath
    key: OptionalPath
    client_ca: OptionalPath

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if len({self.certificate is None, self.key is None, self.client_ca is None}) != 1:
            raise ValueError("give certificate, key and client_ca, or none of them")
        return self


class Analysis(Section):
    """What a worker does with a series."""

    workers: Annotated[int, Field(ge=1)]
    detector: str
    weights: OptionalPath
    fast: bool
    device: Annotated[str, Field(pattern=r"^(cpu|cuda(:\d+)?)$")]
    allow_gaps: bool
    timeout_s: Positive
    attempts: Annotated[int, Field(ge=1)]
    seal_key: OptionalPath
    seal_ledger: OptionalPath
    signature_certificate: OptionalPath


class Retries(Section):
    """How often, and how long, a delivery is tried."""

    first_retry_s: Positive
    longest_retry_s: Positive
    attempts: Annotated[int, Field(ge=1)]


class Destination(Section):
    """An archive: ae_title, host and port for DICOM, or a url for DICOMweb. Its defaults are in the TOML's comment."""

    name: Annotated[str, Field(min_length=1, max_length=64)]
    ae_title: str = ""
    host: str = ""
    port: Port = 0
    url: str = ""
    token_file: OptionalPath = None
    tls_ca: OptionalPath = None
    tls_certificate: OptionalPath = None
    tls_key: OptionalPath = None
    results: bool | None = None
    kinds: list[Kind] = ["seg", "map", "sr", "key"]

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if bool(self.url) == bool(self.ae_title and self.host and self.port):
            raise ValueError("give either url, or ae_title, host and port")
        return self

    @property
    def takes_results(self) -> bool:
        """The one named "security" does unless it says no; any other only where it says yes."""
        return self.name == SECURITY if self.results is None else self.results


class Forward(Section):
    """Copies that leave the house."""

    destination: str
    seal_key: OptionalPath
    seal_budget_hu: Positive
    quarantine_hours: Annotated[float, Field(ge=0)]


class Pull(Section):
    """An archive that is polled."""

    url: str
    token_file: OptionalPath
    tls_ca: OptionalPath
    interval_s: Positive
    days: Annotated[int, Field(ge=1)]


class Audit(Section):
    """Where audit messages go."""

    syslog_host: str
    syslog_port: Port
    tls_ca: OptionalPath
    tls_certificate: OptionalPath
    tls_key: OptionalPath


class Web(Section):
    """The review page."""

    enabled: bool
    host: str
    port: Port
    certificate: OptionalPath
    key: OptionalPath
    secure_cookies: bool
    session_idle_minutes: Positive
    session_hours: Positive
    proxy_user_header: str
    proxy_addresses: list[IPv4Network | IPv6Network]
    proxy_role: Literal["viewer", "reviewer", "admin"]
    metrics_addresses: list[IPv4Network | IPv6Network]
    prevalences: list[Annotated[float, Field(gt=0, lt=1)]]
    weekly_alarm_budget: Positive


class Log(Section):
    """What the log says."""

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"]
    uids: bool


class Config(Section):
    """All tables of the TOML."""

    store: Store
    node: Node
    tls: Tls
    analysis: Analysis
    delivery: Retries
    destination: list[Destination] = []
    forward: Forward
    pull: Pull
    audit: Audit
    web: Web
    log: Log

    @model_validator(mode="after")
    def _names(self) -> Self:
        names = [destination.name for destination in self.destination]
        if len(set(names)) < len(names):
            raise ValueError("two destinations have one name")
        if self.forward.destination and self.forward.destination not in names:
            raise ValueError(f"forward: no destination is called {self.forward.destination!r}")
        return self


def load_config(path: Path | None = None) -> Config:
    """The defaults, and what a file says otherwise.

    Raises ReadError where the file cannot be read, RecipeError naming each setting that is unknown or does not fit.
    """
    return make_config({} if path is None else _read(path), str(path or DEFAULTS))


def make_config(given: dict[str, Any], where: str = "configuration") -> Config:
    """The defaults, and what nested tables say otherwise. Raises RecipeError."""
    values = _read(DEFAULTS)
    for name, section in given.items():
        known = values.get(name)
        values[name] = {**known, **section} if isinstance(known, dict) and isinstance(section, dict) else section
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        raise RecipeError(wrong, where=where, remedy="see the commented ctguard-serve.toml") from error


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ReadError(f"cannot be read ({error.strerror})", where=path, remedy="check the path") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"is no TOML ({error})", where=path, remedy="see docs/how-to/serve.md") from error
