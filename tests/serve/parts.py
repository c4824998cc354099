"""Real parts on loopback: the node, DCMTK's storescu, Orthanc, PostgreSQL. Absent ones skip their tests, visibly."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from ctguard.serve.config import Config, make_config
from ctguard.serve.logs import start_log
from tests.io.dicom_factory import make_series

STORESCU = Path("/usr/bin/storescu")
ORTHANC = shutil.which("Orthanc") or "/usr/sbin/Orthanc"
ORTHANC_DICOMWEB = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
needs_storescu = pytest.mark.skipif(not STORESCU.exists(), reason="needs storescu (Debian: dcmtk)")
needs_orthanc = pytest.mark.skipif(
    not (Path(ORTHANC).exists() and ORTHANC_DICOMWEB.exists()), reason="needs Orthanc (Debian: orthanc-dicomweb)"
)

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")


def free_port() -> int:
    """A port on loopback that nobody listens on."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(check: Callable[[], Any], seconds: float = 60.0, what: str = "it") -> Any:
    """What `check` returns as soon as it is true; fails after some time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = check()
        if found:
            return found
        time.sleep(0.1)
    return pytest.fail(f"{what} did not happen in {seconds} s")


def listens(port: int) -> bool:
    """Whether somebody does."""
    with closing(socket.socket()) as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def config_for(folder: Path, **sections: dict[str, Any]) -> Config:
    """A configuration with free ports, without page, that is quick."""
    values: dict[str, Any] = {
        "store": {"folder": str(folder)},
        "node": {"port": free_port(), "quiet_s": 1.0, "min_free_disk_mb": 1},
        "delivery": {"first_retry_s": 0.5, "longest_retry_s": 2.0},
        "web": {"enabled": False},
        "log": {"level": "INFO", "uids": True},
    }
    for name, section in sections.items():
        values[name] = {**values[name], **section} if isinstance(section, dict) and name in values else section
    return make_config(values)


def make_patient(folder: Path, slices: int = 6, side: int = 48, seed: int = 0, synthetic: bool = False) -> Path:
    """A series of its own study: a body of soft tissue with two lungs, and noise."""
    rng = np.random.default_rng(seed)
    z, y, x = np.mgrid[:slices, :side, :side] / np.array([slices, side, side]).reshape(3, 1, 1, 1)
    stored = np.where((y - 0.5) ** 2 + (x - 0.5) ** 2 < 0.2, 1064, 24)
    for middle in (0.3, 0.7):
        stored[((y - 0.5) / 0.3) ** 2 + ((x - middle) / 0.15) ** 2 < 1] = 174
    stored = (stored + rng.normal(0, 20, stored.shape) + z).clip(0).astype(np.int64)
    uids = [generate_uid(entropy_srcs=[f"{seed}-{what}"]) for what in ("study", "series")]

    def edit(ds: Dataset, index: int) -> None:
        ds.StudyInstanceUID, ds.SeriesInstanceUID = uids
        ds.SOPInstanceUID = generate_uid(entropy_srcs=[f"{seed}-{index}"])
        ds.PatientID, ds.PatientName = f"MRN{seed:05d}", f"DOE^JANE{seed}"
        if synthetic:
            ds.SyntheticData = "YES"

    return make_series(folder, stored, edit)


def make_certificates(folder: Path) -> Path:
    """ca.pem and rogue-ca.pem; node, client and rogue of 127.0.0.1, each a .pem and a .key, the first two of the
    first CA."""
    folder.mkdir()
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\n")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    for ca, names in (("ca", ("node", "client")), ("rogue-ca", ("rogue",))):
        new = ("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={ca}")
        openssl(*new, "-keyout", f"{ca}.key", "-out", f"{ca}.pem")
        for name in names:
            key = ("-newkey", "rsa:2048", "-nodes", "-keyout", f"{name}.key")
            openssl("req", *key, "-out", f"{name}.csr", "-subj", "/CN=localhost")
            sign = ("x509", "-req", "-in", f"{name}.csr", "-CA", f"{ca}.pem", "-CAkey", f"{ca}.key", "-CAcreateserial")
            openssl(*sign, "-days", "2", "-extfile", "names", "-out", f"{name}.pem")
    return folder


def storescu(port: int, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Send a folder by DCMTK."""
    command = [str(STORESCU), "-aec", "CTGUARD", "-aet", "SENDER", "+sd", "+r", "-R", *options, "127.0.0.1", str(port)]
    return subprocess.run([*command, str(folder)], capture_output=True, text=True, check=False, timeout=120)


@contextmanager
def logged(config: Config) -> Iterator[None]:
    """The log of a process of the node, in this one; all as it was at the end."""
    loggers = [
        logging.getLogger(name) for name in ("ctguard.serve", "uvicorn.error", "pynetdicom", "pydicom", "ctguard")
    ]
    before = [(one, one.handlers, one.propagate, one.level) for one in loggers]
    hooks = sys.excepthook, threading.excepthook
    try:
        with warnings.catch_warnings():
            start_log("node", config.log)
            yield
    finally:
        sys.excepthook, threading.excepthook = hooks
        for one, handlers, propagate, level in before:
            one.handlers, one.propagate = handlers, propagate
            one.setLevel(level)


class Running:
    """The whole of `ctguard serve` in processes of its own; its log lines are read from a file."""

    def __init__(self, config: Config, log: Path) -> None:
        self.config, self.log = config, log
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the supervisor, and wait until the node listens."""
        code = "import sys; from ctguard.serve.config import Config; from ctguard.serve.supervisor import serve;"
        code += "serve(Config.model_validate_json(sys.stdin.read()))"
        with self.log.open("ab") as stream:
            self.process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stderr=stream)
        assert self.process.stdin is not None
        self.process.stdin.write(self.config.model_dump_json().encode())
        self.process.stdin.close()
        wait_for(lambda: listens(self.config.node.port), 300, "the node's start")

    def lines(self, event: str = "") -> list[dict[str, Any]]:
        """What the log says."""
        found = []
        for line in self.log.read_text(encoding="utf-8").splitlines():
            if line.startswith("{"):
                found.append(json.loads(line))
        return [line for line in found if event in ("", line["event"])]

    def kill(self, role: str) -> bool:
        """kill -9 of the newest process of a role; False where it is gone already."""
        started = [line["child"] for line in self.lines("process-started") if line["role"] == role]
        try:
            os.kill(started[-1], signal.SIGKILL)
        except (IndexError, ProcessLookupError):
            return False
        return True

    def stop(self) -> int:
        """SIGTERM, and the exit code."""
        if self.process is None:
            return 0
        self.process.terminate()
        return self.process.wait(timeout=120)


@contextmanager
def running(config: Config, log: Path) -> Iterator[Running]:
    """`ctguard serve`, stopped at the end."""
    node = Running(config, log)
    try:
        node.start()
        yield node
    finally:
        if node.process is not None and node.process.poll() is None:
            node.stop()


class Orthanc:
    """A real archive: `dicom` and `web` are its ports. more: settings of Orthanc that differ."""

    def __init__(self, folder: Path, title: str = "SECURITY", **more: Any) -> None:
        self.dicom, self.web = free_port(), free_port()
        self.title = title
        settings = {
            "Name": title,
            "DicomAet": title,
            "DicomPort": self.dicom,
            "HttpPort": self.web,
            "StorageDirectory": str(folder / "storage"),
            "IndexDirectory": str(folder / "storage"),
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
            "DicomAlwaysAllowStore": True,
            "OverwriteInstances": False,
            "Plugins": [str(ORTHANC_DICOMWEB)],
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
            **more,
        }
        folder.mkdir(parents=True)
        (folder / "orthanc.json").write_text(json.dumps(settings))
        self.settings = folder / "orthanc.json"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start, and wait until it answers."""
        quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen([ORTHANC, str(self.settings)], **quiet)
        wait_for(lambda: listens(self.web) and listens(self.dicom), what="Orthanc's start")

    def stop(self) -> None:
        """End it."""
        if self.process is not None:
            self.process.terminate()
            self.process.wait(timeout=20)

    @property
    def url(self) -> str:
        """Of its DICOMweb service."""
        return f"http://127.0.0.1:{self.web}/dicom-web"

    def qido(self, level: str, **filters: str) -> list[dict[str, Any]]:
        """Rows of a QIDO-RS search."""
        answer = httpx.get(f"{self.url}/{level}", params=filters, headers={"Accept": "application/dicom+json"})
        answer.raise_for_status()
        return list(answer.json())

    def modalities(self) -> list[str]:
        """Of all series, sorted."""
        return sorted(row["00080060"]["Value"][0] for row in self.qido("series"))

    def instances(self) -> list[str]:
        """UIDs of all objects, sorted."""
        return sorted(row["00080018"]["Value"][0] for row in self.qido("instances"))


@contextmanager
def orthanc(folder: Path, title: str = "SECURITY", **more: Any) -> Iterator[Orthanc]:
    """An archive of its own, ended at the end."""
    archive = Orthanc(folder, title, **more)
    try:
        archive.start()
        yield archive
    finally:
        archive.stop()
