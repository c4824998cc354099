"""Take one DICOM object in: bytes to disk, then the answer; the work list follows within a moment.

Safe against kill -9 and power loss by order alone. 1. The bytes go to a file in `arrived/`, and it and the folder are
fsynced. 2. The sender hears success. 3. The recorder links the file to its place, and the link is fsynced; the row is
committed (SQLite synchronous=FULL, PostgreSQL's own log); the file in `arrived/` goes. What lies there at a start is
recorded then, unless it is a part of a file, which nobody was promised: its name holds the checksum. So every row has
its whole file, and every success its row.
"""

from __future__ import annotations

import shutil
import threading
import time
import zlib

from sqlalchemy import Engine

from ctguard.serve.config import Config
from ctguard.serve.ledger import NodeKey
from ctguard.serve.logs import say
from ctguard.serve.objects import Head, make_folder, read_head, write_new
from ctguard.serve.recorder import Arrival, Recorder

SUCCESS, OUT_OF_RESOURCES, MISMATCH, NOT_UNDERSTOOD = 0x0000, 0xA700, 0xA900, 0xC000
"""Answers to a C-STORE (PS3.4 B.2.3)."""
ARRIVED = "arrived"


class Intake:
    """Takes objects in from any number of threads.

    There is one for a database: all that comes in goes through the node's process.
    """

    def __init__(self, config: Config, engine: Engine, key: NodeKey) -> None:
        root = config.store.folder.absolute()
        self.folder, self.arrived = root / "series", root / ARRIVED
        self.least_free = config.node.min_free_disk_mb * 1_000_000
        self.most_bytes = int(config.node.max_object_mb * 1_000_000)
        self._free_known: tuple[float, bool] = (-1.0, True)
        self._count, self._counting = time.time_ns(), threading.Lock()
        for folder in (self.folder, self.arrived):
            make_folder(folder)
        self.recorder = Recorder(self.folder, engine, key)
        self._take_up()

    def take(self, encoded: bytes, sop_uid: str, calling: str) -> int:
        """Keep a DICOM file's bytes, announced under `sop_uid`. Returns the status for the sender."""
        if len(encoded) > self.most_bytes or not self._has_room():
            return _refused(OUT_OF_RESOURCES, "too large" if len(encoded) > self.most_bytes else "disk full")
        head = read_head(encoded)
        if head is None:
            return _refused(NOT_UNDERSTOOD, "not understood")
        if head.sop_uid != sop_uid:
            return _refused(MISMATCH, "another UID than announced")
        if not self.recorder.has_place():
            return _refused(OUT_OF_RESOURCES, "the work list takes nothing")
        path = self.arrived / self._name(encoded, calling)
        try:
            write_new(path, encoded)
        except OSError as error:
            self.recorder.give_back()
            path.unlink(missing_ok=True)
            return _refused(OUT_OF_RESOURCES, f"cannot be stored ({type(error).__name__})")
        self.recorder.add(Arrival(head, calling, path, len(encoded)))
        return SUCCESS

    def _name(self, encoded: bytes, calling: str) -> str:
        """In the order of arrival; with what only the sender said, and a checksum."""
        title = calling.encode(errors="replace").hex()
        with self._counting:
            self._count += 1
            return f"{self._count:020d}-{title}-{zlib.crc32(encoded):08x}.dcm"

    def _take_up(self) -> None:
        """Record what a node that was stopped had kept, and remove parts of what it had not."""
        left = sorted(self.arrived.glob("*-*-*.dcm"))
        for path in left:
            encoded = path.read_bytes()
            _, calling, checksum = path.stem.split("-")
            head: Head | None = read_head(encoded) if checksum == f"{zlib.crc32(encoded):08x}" else None
            if head is None:
                path.unlink()
            else:
                self.recorder.add(Arrival(head, bytes.fromhex(calling).decode(), path, len(encoded)), waits=False)
        if left:
            say("arrived-before", count=len(left))

    def _has_room(self) -> bool:
        """Whether there is disk left; asked anew each second."""
        at, free = self._free_known
        if time.monotonic() - at > 1:
            before, free = free, shutil.disk_usage(self.folder).free > self.least_free
            self._free_known = (time.monotonic(), free)
            if before and not free:
                self.recorder.alert("disk-full", {"least_free_mb": self.least_free // 1_000_000})
        return free


def _refused(status: int, why: str) -> int:
    say("image-refused", 30, why=why)
    return status
