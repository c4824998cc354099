"""Receive throughput of the node beside a bare pynetdicom storage SCP, and its memory over many megabytes.

    .venv/bin/python runs/bench_node.py --out bench-out [--images 600] [--senders 4] [--rounds 3] [--megabytes 500]

Both are sent the same slices of 256 x 256 by parallel storescu, in turn; the bare one writes each object to a file, and
nothing more. Prints one JSON object: images a second of each round, the ratio of the medians, and the node's resident
memory after each tenth of the megabytes. Needs storescu (Debian: dcmtk) and a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shutil
import statistics
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.serve.parts import config_for, free_port, listens, make_patient, storescu, wait_for

SLICES = 20


def bare(port: int, folder: str) -> None:
    """A storage SCP as pynetdicom's documentation has it."""
    from pydicom.uid import CTImageStorage
    from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, _config, evt

    _config.LOG_HANDLER_LEVEL = "none"

    def store(event: Any) -> int:
        (Path(folder) / event.request.AffectedSOPInstanceUID).write_bytes(event.encoded_dataset())
        return 0

    ae = AE("CTGUARD")
    ae.add_supported_context(CTImageStorage, ALL_TRANSFER_SYNTAXES)
    ae.start_server(("127.0.0.1", port), evt_handlers=[(evt.EVT_C_STORE, store)])


def node(port: int, folder: str) -> None:
    """The node alone, without worker and delivery."""
    from ctguard.serve.logs import start_log
    from ctguard.serve.node import run_node
    from ctguard.serve.store.database import open_database

    config = config_for(Path(folder), node={"port": port, "quiet_s": 600.0}, log={"level": "ERROR"})
    start_log("node", config.log)
    run_node(config, open_database(config.store.url), threading.Event())


def served(server: Any, folder: Path) -> tuple[Any, int]:
    """A process that runs a server, and its port."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    port = free_port()
    process = multiprocessing.get_context("spawn").Process(target=server, args=(port, str(folder)), daemon=True)
    process.start()
    wait_for(lambda: listens(port), 300, "the server's start")
    return process, port


def send(port: int, sources: Sequence[Path], senders: int) -> float:
    """Seconds that parallel senders take."""

    def one(own: Sequence[Path]) -> None:
        for source in own:
            if storescu(port, source).returncode != 0:
                raise RuntimeError("storescu failed")

    threads = [threading.Thread(target=one, args=(sources[first::senders],)) for first in range(senders)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - started


def resident_mb(pid: int) -> float:
    """Resident memory of a process."""
    text = Path(f"/proc/{pid}/status").read_text()
    return round(int(text.split("VmRSS:")[1].split()[0]) * 1024 / 1e6, 1)


def main() -> int:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    for name, value in (("images", 600), ("senders", 4), ("rounds", 3), ("megabytes", 500)):
        parser.add_argument(f"--{name}", type=int, default=value)
    given = parser.parse_args()
    count = given.images // SLICES
    sources = [make_patient(given.out / "series" / f"{n:03d}", SLICES, 256, seed=n) for n in range(count)]
    rates: dict[str, list[float]] = {"bare": [], "node": []}
    for _ in range(given.rounds):
        for name, server in (("bare", bare), ("node", node)):
            process, port = served(server, given.out / name)
            rates[name].append(round(count * SLICES / send(port, sources, given.senders), 1))
            process.kill()
    result: dict[str, Any] = {"images_a_second": rates}
    if given.rounds:
        result["ratio"] = round(statistics.median(rates["node"]) / statistics.median(rates["bare"]), 3)
    if given.megabytes:
        process, port = served(node, given.out / "node")
        result["resident_mb"] = [resident_mb(process.pid)]
        for part in range(10):
            size, sent = given.megabytes / 10, 0.0
            while sent < size:
                source = make_patient(given.out / "part", SLICES, 512, seed=1000 + part * 100 + int(sent))
                send(port, [source], 1)
                sent += sum(file.stat().st_size for file in source.iterdir()) / 1e6
            result["resident_mb"].append(resident_mb(process.pid))
        process.kill()
    sys.stdout.write(json.dumps(result) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
