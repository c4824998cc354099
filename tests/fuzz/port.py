"""Damaged conversations with a running node: it refuses each, stays, and judges a good series at the end."""

from __future__ import annotations

import json
import shutil
import socket
import struct
import time
from collections import Counter
from io import BytesIO
from pathlib import Path
from select import select as readable

import numpy as np
from pydicom import dcmread
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, JPEGLSLossless, RLELossless, generate_uid
from pynetdicom import AE, build_context
from pynetdicom.dimse_messages import C_STORE_RQ
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.pdu import A_ASSOCIATE_RQ, A_RELEASE_RQ, P_DATA_TF
from pynetdicom.pdu_primitives import A_ASSOCIATE, ImplementationClassUIDNotification, MaximumLengthNotification
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]
from sqlalchemy import select

from ctguard.serve.store import audit
from ctguard.serve.store.database import open_database, session_scope
from ctguard.serve.store.models import DONE, FAILED, Series
from tests.fuzz import mutate
from tests.fuzz.mutate import one_of
from tests.fuzz.report import CLOCK_S, LIMIT_S, Report, cpu_s
from tests.io.dicom_factory import make_series, stored_values
from tests.serve.parts import Running, config_for, make_patient, running, wait_for

BATCH = 25
MOST_MB = {"node": 300, "worker": 1500}
"""By which each process may grow."""
_KINDS = ("noise", "associate", "data", "data", "object", "object", "half-open", "oversized")
_BAD_EVENTS = ("internal-error", "process-ended", "cannot-run")
_OBJECT_MB = 4
_PATIENCE_S = 1.5
_ANSWERS = {2: "accepted", 3: "rejected", 6: "released", 7: "aborted"}
_STATUS = struct.pack("<HHI", 0, 0x0900, 2)
_SYNTAXES = (ExplicitVRLittleEndian, RLELossless, JPEGLSLossless)


def associate(syntax: UID) -> bytes:
    """An A-ASSOCIATE-RQ PDU for CT images."""
    asked = A_ASSOCIATE()
    asked.application_context_name = UID("1.2.840.10008.3.1.1.1")
    asked.calling_ae_title, asked.called_ae_title = "FUZZ", "CTGUARD"
    context = build_context(CTImageStorage, syntax)
    context.context_id = 1
    asked.presentation_context_definition_list = [context]
    most, who = MaximumLengthNotification(), ImplementationClassUIDNotification()
    most.maximum_length_received, who.implementation_class_uid = 16382, UID("1.2.3.4")
    asked.user_information = [most, who]
    return bytes(A_ASSOCIATE_RQ(asked).encode())


def store(dataset: bytes, sop_uid: str) -> bytes:
    """P-DATA-TF PDUs of a C-STORE request."""
    asked, message = C_STORE(), C_STORE_RQ()
    asked.MessageID, asked.Priority = 1, 2
    asked.AffectedSOPClassUID, asked.AffectedSOPInstanceUID = CTImageStorage, UID(sop_uid)
    asked.DataSet = BytesIO(dataset)
    message.primitive_to_message(asked)
    return b"".join(P_DATA_TF(data).encode() for data in message.encode_msg(1, 16382))


RELEASE = bytes(A_RELEASE_RQ().encode()) or b"\x05\0\0\0\0\4\0\0\0\0"


_SERIES_UID = str(generate_uid(entropy_srcs=["series"]))
"""Of what make_series makes."""


def sources(folder: Path) -> list[tuple[bytes, UID, str]]:
    """Datasets, their syntax, and their UID, which stands in them."""
    made = []
    for syntax in _SYNTAXES:
        for file in sorted(make_series(folder / syntax.name, stored_values(2), syntax=syntax).iterdir()):
            ds, content = dcmread(file), file.read_bytes()
            start = 132 + 12 + ds.file_meta.FileMetaInformationGroupLength
            made.append((content[start:], syntax, str(ds.SOPInstanceUID)))
    return made


def _renamed(dataset: bytes, uid: str, new: str) -> bytes:
    """The UID replaced by another of its length."""
    return dataset.replace(uid.encode(), new[: len(uid)].ljust(len(uid), "1").encode())


def draw(rng: np.random.Generator, number: int, good: list[tuple[bytes, UID, str]]) -> tuple[str, list[bytes]]:
    """A kind of attack, and what is sent; each piece at once."""
    dataset, syntax, uid = one_of(rng, good)
    if rng.random() < 0.7:
        dataset = _renamed(dataset, uid, new := generate_uid(entropy_srcs=[f"fuzz {number}"]))
        uid = new[: len(uid)].ljust(len(uid), "1")
    dataset = _renamed(dataset, _SERIES_UID, generate_uid(entropy_srcs=[f"fuzz series {number // 10}"]))
    opening = associate(syntax)
    kind = str(one_of(rng, _KINDS))
    if kind == "noise":
        head = struct.pack(">BBI", int(rng.integers(0, 9)), 0, int(one_of(rng, (0, 4, 68, 500, 5000, 1 << 20))))
        return kind, [one_of(rng, (b"", head)) + rng.bytes(rng.integers(1, 4000))]
    if kind == "associate":
        return kind, [mutate.mutated(rng, opening, ()), store(dataset, uid), RELEASE]
    if kind == "data":
        return kind, [opening, mutate.mutated(rng, store(dataset, uid), ()), RELEASE]
    if kind == "object":
        damaged = mutate.mutated(rng, bytes(128) + b"DICM" + dataset, (mutate.dicom,))
        return kind, [opening, store(damaged[132:], uid), RELEASE]
    if kind == "half-open":
        whole = opening + store(dataset, uid)
        return kind, [whole[: rng.integers(len(whole))]]
    if rng.random() < 0.1:
        return kind, [opening, store(dataset + bytes((_OBJECT_MB + 2) << 20), uid)]
    size = int(one_of(rng, (1 << 20, 1 << 24, 1 << 31, (1 << 32) - 1)))
    return kind, [
        one_of(rng, (b"", opening)),
        struct.pack(">BBI", int(one_of(rng, (1, 4, 5))), 0, size) + bytes(70_000),
    ]


def answer_to(port: int, pieces: list[bytes], leave: bool) -> tuple[str, socket.socket | None]:
    """Send, and say what came back: the last PDU, or the status of a C-STORE. leave: hang up without a word."""
    client = socket.create_connection(("127.0.0.1", port), timeout=CLOCK_S)
    got = b""
    try:
        for piece in pieces:
            client.sendall(piece)
            if not leave and readable([client], [], [], _PATIENCE_S)[0]:  # an answer comes before more is sent
                got += client.recv(1 << 16)
        if leave:
            return "left", client
        client.shutdown(socket.SHUT_WR)
        while piece := client.recv(1 << 16):
            got += piece
    except TimeoutError:
        client.close()
        return "hang", None
    except OSError:  # it closed, with bytes of ours unread
        pass
    client.close()
    if b"Traceback" in got:
        return "traceback", None
    status = got.rfind(_STATUS)
    if status >= 0:
        return f"status {int.from_bytes(got[status + 8 : status + 10], 'little'):04X}", None
    return _ANSWERS.get(_last(got), "closed"), None


def _last(answers: bytes) -> int:
    """Type of the last PDU; 0 where there is none."""
    kind = 0
    while len(answers) >= 6:
        kind = answers[0]
        answers = answers[6 + int.from_bytes(answers[2:6], "big") :]
    return kind


class Watch:
    """What must hold of the node after each batch."""

    def __init__(self, node: Running) -> None:
        self.node, self.seen = node, 0
        wait_for(lambda: node.lines("worker-ready"), 120, "the worker's start")
        started = {line["role"]: line["child"] for line in node.lines("process-started")}
        self.pids = {role: started[role] for role in MOST_MB}
        self.before = {role: self._peak_mb(role) for role in MOST_MB}

    def _peak_mb(self, role: str) -> float:
        text = Path(f"/proc/{self.pids[role]}/status").read_text()
        return int(text.partition("VmHWM:")[2].split()[0]) / 1000

    @property
    def memory_mb(self) -> float:
        """Of the node's process, at its peak."""
        return self._peak_mb("node")

    def wrong(self) -> list[str]:
        """What does not hold."""
        found = []
        used = cpu_s(self.pids["node"])
        if not echoes(self.node.config.node.port) or cpu_s(self.pids["node"]) - used > LIMIT_S:
            found.append("no answer to C-ECHO")
        text = self.node.log.read_text(encoding="utf-8")
        for line in text[self.seen :].splitlines():
            if not line.startswith("{") or json.loads(line)["event"] in _BAD_EVENTS:
                found.append(f"in its log: {line[:500]}")
        self.seen = len(text)
        for role, most in MOST_MB.items():
            try:
                grown = self._peak_mb(role) - self.before[role]
            except FileNotFoundError:  # it ended, and the log says so
                continue
            if grown > most:
                found.append(f"the {role} grew by {grown:.0f} MB")
                self.before[role] += grown
        return found


def echoes(port: int) -> bool:
    """Whether C-ECHO is answered."""
    ae = AE("ECHO")
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = CLOCK_S
    ae.add_requested_context(Verification)
    association = ae.associate("127.0.0.1", port, ae_title="CTGUARD")
    if not association.is_established:
        return False
    status = association.send_c_echo()
    association.release()
    return "Status" in status and status.Status == 0


def fuzz_port(out: Path, count: int, seed: int) -> Report:
    """`count` damaged conversations with a node that has a worker; each follows from seed and number alone."""
    report, started = Report("port", out / "findings"), time.monotonic()
    limits = {"network_timeout_s": 4.0, "max_object_mb": _OBJECT_MB, "max_pdu_bytes": 32768, "quiet_s": 2.0}
    config = config_for(out / "data", node=limits)
    good = sources(out / "sources")
    batch, left = out / "batch", list[socket.socket]()
    with running(config, out / "node.log") as node:
        watch = Watch(node)
        for number in range(count):
            rng = np.random.default_rng([seed, 2, number])
            kind, pieces = draw(rng, number, good)
            batch.mkdir(exist_ok=True)
            (batch / f"{number:05d}.bin").write_bytes(b"".join(pieces))
            at = time.monotonic()
            outcome, open_ = answer_to(config.node.port, pieces, kind == "half-open")
            left += [open_] if open_ else []
            report.add(kind, outcome, time.monotonic() - at)
            if outcome in ("hang", "traceback"):
                report.found(number, outcome, b"".join(pieces))
            if number % BATCH == BATCH - 1 or number == count - 1:
                for client in left:
                    client.close()
                left.clear()
                for what in watch.wrong():
                    report.found(number, what, batch)
                shutil.rmtree(batch)
        _end(report, node, watch, out, count)
    report.seconds = time.monotonic() - started
    return report


def _end(report: Report, node: Running, watch: Watch, out: Path, count: int) -> None:
    """Every series is judged or failed, and a good one judged."""
    patient = make_patient(out / "patient", seed=1_000_000)
    for file in sorted(patient.iterdir()):
        ds, content = dcmread(file), file.read_bytes()
        start = 132 + 12 + ds.file_meta.FileMetaInformationGroupLength
        pieces = [associate(ExplicitVRLittleEndian), store(content[start:], str(ds.SOPInstanceUID)), RELEASE]
        answer, _ = answer_to(node.config.node.port, pieces, leave=False)
        if answer != "status 0000":
            report.found(count, f"a good image: {answer}", file)
    engine = open_database(node.config.store.url)

    def states() -> dict[str, str]:
        with session_scope(engine, read_only=True) as session:
            return {row.series_uid: row.state for row in session.scalars(select(Series))}

    wait_for(lambda: set(states().values()) <= {DONE, FAILED}, 1200, "the end of all analyses")
    if states().get(str(ds.SeriesInstanceUID)) != DONE:
        report.found(count, "a good series was not judged", patient)
    for state, series in Counter(states().values()).items():
        report.notes[f"series {state}"] = series
    with session_scope(engine, read_only=True) as session:
        broken = audit.check_chain(session).broken_at
    if broken is not None:
        report.found(count, f"the audit chain is broken at {broken}", out / "node.log")
    for what in watch.wrong():
        report.found(count, what, out / "node.log")
    report.memory_mb = watch.memory_mb
