"""Damaged files of every format, each read in another process under a watchdog and a limit of memory."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import shutil
import subprocess
import time
import traceback
import warnings
import zipfile
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from ctguard.core.geometry import Geometry
from ctguard.core.marks import Mark
from ctguard.core.provenance import Provenance, Source
from ctguard.core.volume import Volume
from tests.fuzz import mutate
from tests.fuzz.mutate import Mutate, one_of
from tests.fuzz.report import CLOCK_S, LIMIT_S, Report, cpu_s
from tests.io.dicom_factory import make_enhanced, make_series, stored_values

MOST_MB = 600
"""By which one small file may let the reader's memory grow."""
_ROOM = 3 << 30
_SLICES, _SIDE = 3, 32
_DCMCJPEG = shutil.which("dcmcjpeg")


def volume() -> Volume:
    """A marked phantom of a few slices."""
    hu = (stored_values(_SLICES, _SIDE) - 1024).astype(np.int16)
    geometry = Geometry(hu.shape, (2.5, 0.8, 0.7), (-50.0, -60.0, -300.0))  # type: ignore[arg-type]
    return Volume(hu, geometry, Provenance(Source("phantom"), marks=(Mark("phantom", "made for a test"),)))


def _syntax(uid: UID) -> Callable[[Path], None]:
    return lambda folder: make_series(folder, stored_values(_SLICES, _SIDE), syntax=uid) and None


def _enhanced(uid: UID) -> Callable[[Path], None]:
    return lambda folder: make_enhanced(folder / "a.dcm", stored_values(_SLICES, _SIDE), [2, 0, 1], uid) and None


def _own(name: str = "") -> Callable[[Path], None]:
    """What ctguard itself writes."""

    def make(folder: Path) -> None:
        from ctguard import io
        from ctguard.io.private import write_blocks

        io.write(volume(), folder / name if name else folder)
        if not name:
            write_blocks(sorted(folder.iterdir()), [b"seal" * 40] * _SLICES)

    return make


def _zip(folder: Path) -> None:
    _own()(folder / "series")
    with zipfile.ZipFile(folder / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted((folder / "series").iterdir()):
            archive.write(file, f"series/{file.name}")
    shutil.rmtree(folder / "series")


def _jpeg(folder: Path) -> None:
    _syntax(ExplicitVRLittleEndian)(folder)
    for file in folder.iterdir():
        subprocess.run([str(_DCMCJPEG), str(file), str(file)], check=True)


_NIFTI: Sequence[Mutate] = (mutate.gzipped(mutate.poke), mutate.gzipped(mutate.noise))
KINDS: dict[str, tuple[Callable[[Path], None], Sequence[Mutate]]] = {
    "dicom": (_own(), (mutate.dicom,)),
    "implicit": (_syntax(ImplicitVRLittleEndian), ()),
    "big endian": (_syntax(ExplicitVRBigEndian), ()),
    "deflated": (_syntax(DeflatedExplicitVRLittleEndian), (mutate.dicom,)),
    "rle": (_syntax(RLELossless), (mutate.dicom,)),
    "jpeg-ls": (_syntax(JPEGLSLossless), (mutate.dicom,)),
    "jpeg 2000": (_syntax(JPEG2000Lossless), (mutate.dicom,)),
    "enhanced": (_enhanced(ExplicitVRLittleEndian), (mutate.dicom,)),
    "enhanced jpeg-ls": (_enhanced(JPEGLSLossless), (mutate.dicom,)),
    "enhanced rle": (_enhanced(RLELossless), (mutate.dicom,)),
    "zip": (_zip, (mutate.zipped,)),
    "nifti": (_own("a.nii"), _NIFTI),
    "nifti gz": (_own("a.nii.gz"), _NIFTI),
    "mha": (_own("a.mha"), (mutate.words,)),
    "mhd": (_own("a.mhd"), (mutate.words,)),
    "nrrd": (_own("a.nrrd"), (mutate.words, mutate.gzipped(mutate.words))),
    "tiff": (_own("a.tiff"), (mutate.words,)),
    **({"jpeg": (_jpeg, (mutate.dicom,))} if _DCMCJPEG else {}),
}


def sources(folder: Path) -> dict[str, Path]:
    """A good scan of each kind, in a folder of its own."""
    for name, (make, _) in KINDS.items():
        (folder / name).mkdir(parents=True)
        make(folder / name)
    return {name: folder / name for name in KINDS}


def damage(rng: np.random.Generator, kinds: dict[str, Path], work: Path) -> tuple[str, Path]:
    """A damaged copy of one of the good scans under `work`; its kind, and the path to read."""
    kind = str(one_of(rng, list(kinds)))
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(kinds[kind], work)
    files = sorted(path for path in work.rglob("*") if path.is_file())
    victim = one_of(rng, files)
    other = one_of(rng, sorted(path for path in kinds[one_of(rng, list(kinds))].rglob("*") if path.is_file()))
    victim.write_bytes(mutate.mutated(rng, victim.read_bytes(), KINDS[kind][1], other.read_bytes()))
    folder = victim.parent.suffix == ".tiff"
    alone = victim.suffix == ".dcm" and rng.random() < 0.5
    if folder:
        return kind, victim.parent
    header = next((file for file in files if file.suffix == ".mhd"), victim)
    return kind, header if alone or victim.suffix != ".dcm" else work


def examine(path: Path) -> tuple[str, str]:
    """Read as `ctguard info` and the node do. The outcome in a word, and what is wrong with it, or nothing."""
    from ctguard import io
    from ctguard.cli.data import _facts
    from ctguard.core.errors import CtguardError
    from ctguard.io.private import read_blocks
    from ctguard.serve.ledger import NodeKey, fingerprint
    from ctguard.serve.objects import read_head

    def node(content: bytes) -> None:
        if read_head(content) is not None:
            fingerprint(content, NodeKey(b"k" * 32, b"n" * 32, "k"))

    def info() -> None:
        read = io.read(path)
        if not np.isfinite(read.hu).all():
            raise ArithmeticError("a volume that is not finite")
        json.dumps(_facts(path, read), allow_nan=False)
        read_blocks(read)

    steps: list[Callable[[], None]] = [info]
    if path.suffix == ".dcm":
        steps.append(lambda: node(path.read_bytes()))
    outcome = "read"
    for step in steps:
        try:
            step()
        except CtguardError as error:
            outcome = type(error).__name__
            if not str(error).isprintable() or len(str(error)) > 1000 or error.remedy is None:
                return outcome, f"not a clear refusal: {str(error)[:2000]!r}"
        except Exception as error:  # noqa: BLE001 (what it is looking for)
            return type(error).__name__, traceback.format_exc()
    return outcome, ""


def _status_mb(key: str, pid: int | str = "self") -> float:
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.partition(f"{key}:")[2].split()[0]) / 1000


def serve(pipe: Connection, stderr: str) -> None:
    """Examine paths from the pipe; answers outcome, what is wrong, and the memory that it took (peak, MB)."""
    os.dup2(os.open(stderr, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    warnings.simplefilter("ignore")
    examine(Path(pipe.recv()))  # a good one: what is loaded once
    room = int(_status_mb("VmSize") * 1000 * 1024) + _ROOM
    resource.setrlimit(resource.RLIMIT_AS, (room, room))
    pipe.send(None)
    while True:
        path = Path(pipe.recv())
        Path("/proc/self/clear_refs").write_text("5")  # begins VmHWM anew
        before = _status_mb("VmRSS")
        outcome, wrong = examine(path)
        grown = _status_mb("VmHWM") - before
        if not wrong and grown > MOST_MB:
            wrong = f"took {grown:.0f} MB"
        pipe.send((outcome, wrong, _status_mb("VmHWM")))


class Examiner:
    """The other process, started anew where it crashed or hung."""

    def __init__(self, good: Path, stderr: Path) -> None:
        self.good, self.stderr = good, stderr
        self.process: Any = None

    def ask(self, path: Path) -> tuple[str, str, float]:
        """As `serve` answers; a crash and a hang are wrong."""
        if self.process is None:
            context = multiprocessing.get_context("spawn")
            self.pipe, theirs = context.Pipe()
            self.process = context.Process(target=serve, args=(theirs, str(self.stderr)), daemon=True)
            self.process.start()
            theirs.close()
            self.pipe.send(str(self.good))
            self.pipe.recv()
        self.pipe.send(str(path))
        at, used = time.monotonic(), cpu_s(self.process.pid)
        while not self.pipe.poll(1.0):
            if cpu_s(self.process.pid) - used > LIMIT_S or time.monotonic() - at > CLOCK_S:
                self.close()
                return "hang", f"no answer after {LIMIT_S:g} s of work, or {CLOCK_S:g} s", 0.0
        try:
            answer: tuple[str, str, float] = self.pipe.recv()
        except EOFError:
            self.process.join()
            code = self.process.exitcode
            self.close()
            return "crash", f"ended its process, exit code {code}", 0.0
        return answer

    def close(self) -> None:
        """End it."""
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.process = None


def fuzz_readers(out: Path, count: int, seed: int) -> Report:
    """Read `count` damaged scans; each follows from seed and number alone."""
    report, started = Report("readers", out / "findings"), time.monotonic()
    kinds = sources(out / "sources")
    examiner = Examiner(kinds["dicom"], out / "readers.stderr")
    try:
        for number in range(count):
            kind, path = damage(np.random.default_rng([seed, 1, number]), kinds, out / "case")
            at = time.monotonic()
            outcome, wrong, memory = examiner.ask(path)
            report.add(kind, outcome, time.monotonic() - at)
            report.memory_mb = max(report.memory_mb, memory)
            if wrong:
                report.found(number, wrong, path)
    finally:
        examiner.close()
    report.seconds = time.monotonic() - started
    return report
