"""run.json: what a run was asked, with which versions and seeds, on which bytes, at what cost.

The only place where wall-clock values stand; every other output depends on seeds and inputs alone.
"""

from __future__ import annotations

import hashlib
import json
import platform
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ctguard import __version__
from ctguard.core.errors import ReadError
from ctguard.core.provenance import Json
from ctguard.io.atomic import atomic_files

_PACKAGES = ("torch", "numpy", "scipy", "pydicom", "highdicom")
_CHUNK = 1 << 20


class RunManifest:
    """Context manager around a run: writes `run.json` into the run's folder at the end, a failed run's too.

    with RunManifest(folder, command=["ctguard", "bench", …], seeds={"draw": 7}) as run:
        run.add_input(index_csv)
        …
        run.add_output(folder / "table.csv")

    folder: made where it does not exist. command: the arguments as given. seeds: by purpose.
    Raises ReadError for an input or output that cannot be read, WriteError where run.json cannot be written.
    """

    def __init__(self, folder: str | Path, command: Sequence[str], seeds: Mapping[str, int] | None = None) -> None:
        self.folder = Path(folder)
        self.command = list(command)
        self.seeds = dict(seeds or {})
        self.inputs: dict[str, str] = {}
        self.outputs: dict[str, str] = {}
        self.notes: dict[str, Json] = {}
        self._started = datetime.now(UTC)
        self._clock = time.perf_counter()

    def add_input(self, path: str | Path) -> str:
        """Record and return the SHA-256 of an input file or folder."""
        digest = self.inputs[str(path)] = sha256_path(path)
        return digest

    def add_output(self, path: str | Path) -> str:
        """Record and return the SHA-256 of an output; its name is relative to the run's folder where it lies there."""
        path = Path(path)
        name = path.relative_to(self.folder) if path.is_relative_to(self.folder) else path
        digest = self.outputs[str(name)] = sha256_path(path)
        return digest

    def note(self, key: str, value: Json) -> None:
        """Record one more plain value under `notes`."""
        self.notes[key] = value

    @property
    def run_id(self) -> str:
        """Twelve hexadecimal digits that the same command, versions, seeds and inputs give again."""
        fixed = [self.command, versions(), self.seeds, sorted(self.inputs.values())]
        return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()[:12]

    def __enter__(self) -> Self:
        self._started = datetime.now(UTC)
        self._clock = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        record = {
            "run_id": self.run_id,
            "command": self.command,
            "versions": versions(),
            "seeds": self.seeds,
            "inputs": self.inputs,
            "outputs": self.outputs,
            "notes": self.notes,
            "failed": None if kind is None else f"{kind.__name__}: {error}",
            "started": self._started.isoformat(timespec="seconds"),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": round(time.perf_counter() - self._clock, 3),
            "peak_mb": peak_mb(),
        }
        with atomic_files(self.folder / "run.json") as stage:
            (stage / "run.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def versions() -> dict[str, str | None]:
    """Versions of ctguard, Python and the packages that decide results; None where one is not installed."""
    found: dict[str, str | None] = {"ctguard": __version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)  # from its metadata: importing torch takes seconds
        except PackageNotFoundError:
            found[name] = None
    return found


def peak_mb() -> float:
    """Most resident memory so far, in MB (10^6 bytes), of this process or of the largest of its ended children."""
    unit = 1 if sys.platform == "darwin" else 1024
    most = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return round(most * unit / 1e6, 1)


def sha256_file(path: str | Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal. Raises ReadError where it cannot be read."""
    digest = hashlib.sha256()
    try:
        with Path(path).open("rb") as stream:
            while chunk := stream.read(_CHUNK):
                digest.update(chunk)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ReadError(f"cannot be read ({reason})", where=path, remedy="check the path") from error
    return digest.hexdigest()


def sha256_path(path: str | Path) -> str:
    """`sha256_file`, or for a folder the SHA-256 over the relative names and hashes of all files in it."""
    path = Path(path)
    if not path.is_dir():
        return sha256_file(path)
    lines = [
        f"{sha256_file(file)}  {file.relative_to(path).as_posix()}\n" for file in path.rglob("*") if file.is_file()
    ]
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


def sha256_array(array: NDArray[Any]) -> str:
    """SHA-256 of an array's type, shape and values; memory layout and byte order do not matter."""
    plain = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    digest = hashlib.sha256(f"{plain.dtype.str}{plain.shape}".encode())
    digest.update(plain.data if plain.size else b"")
    return digest.hexdigest()
