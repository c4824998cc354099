"""Images out of an archive by C-MOVE (PS3.4 C.4.2), one by one, to a storage SCP of our own; they stay in memory.

The archive is asked to send to a title; where that is, its own list of DICOM nodes says. So most of what goes wrong is
in that list, and the errors here say what it should hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from typing import Any

from pydicom.dataset import Dataset
from pynetdicom import evt
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelMove,
)

from ctguard.core.errors import DataError, ReadError
from ctguard.serve.associate import associate, make_ae
from ctguard.serve.config import Destination, Tls
from ctguard.serve.dicomweb import Uids
from ctguard.serve.node import CLASSES, SYNTAXES, tls_context

Fetch = Callable[[Uids], bytes | None]
"""The file of an image as an archive has it; empty where it cannot send it, None where it does not have it."""
_FIND, _MOVE = StudyRootQueryRetrieveInformationModelFind, StudyRootQueryRetrieveInformationModelMove
_SUCCESS, _NOT_AUTHORISED, _UNKNOWN_DESTINATION = 0x0000, 0x0124, 0xA801
_PENDING = (0xFF00, 0xFF01)
_PATIENCE_S = 300.0
"""An archive may have to fetch an image from a tape."""
_LATE_S = 10.0
"""Some archives answer before they send."""


@contextmanager
def over_dicom(archive: Destination, title: str, listen: tuple[str, int]) -> Iterator[Fetch]:
    """Ask `archive` as `title`, and receive at `listen` (host, port), over TLS both ways where the archive has it.

    Raises ReadError where the archive cannot be reached or refuses, or where nobody can listen there; so does the
    function that is yielded, where the archive sends nothing.
    """
    tls = Tls(certificate=archive.tls_certificate, key=archive.tls_key, client_ca=archive.tls_ca)
    ae = make_ae(title)
    ae.require_called_aet = True
    ae.dimse_timeout = ae.network_timeout = _PATIENCE_S
    for model in (_FIND, _MOVE):
        ae.add_requested_context(model)
    for sop_class in CLASSES:
        ae.add_supported_context(sop_class, SYNTAXES)
    mover = _Mover(archive, title, listen)
    handlers: Any = [(evt.EVT_C_STORE, mover.take)]
    try:
        ae.start_server(listen, block=False, ssl_context=tls_context(tls), evt_handlers=handlers)
    except OSError as error:
        reason, where = f"nobody can listen there ({error.strerror})", f"{listen[0]}:{listen[1]}"
        raise ReadError(reason, where=where, remedy="give another --listen") from error
    try:
        mover.association = associate(ae, archive)
        yield mover.fetch
        mover.association.release()
    finally:
        ae.shutdown()  # aborts what is still open, too


class _Mover:
    association: Any

    def __init__(self, archive: Destination, title: str, listen: tuple[str, int]) -> None:
        self.where = f"{archive.host}:{archive.port}"
        self.title, self.listen = title, listen
        self.wanted, self.moved = "", 0
        self.came: SimpleQueue[bytes] = SimpleQueue()

    def take(self, event: evt.Event) -> int:
        """The storage SCP: the image that was asked for, and nothing else."""
        if str(event.request.AffectedSOPInstanceUID) != self.wanted:  # type: ignore[union-attr]
            return _NOT_AUTHORISED
        self.wanted = ""
        self.came.put(event.encoded_dataset())
        return _SUCCESS

    def fetch(self, uids: Uids) -> bytes | None:
        if not all(uids):
            raise DataError("the ledger's database does not say of which series an image is", remedy="audit by --url")
        image = Dataset()
        image.QueryRetrieveLevel = "IMAGE"
        image.StudyInstanceUID, image.SeriesInstanceUID, image.SOPInstanceUID = uids
        if not self._has(image):
            return None
        self.wanted = uids[2]
        answers = self._ask(self.association.send_c_move, image, self.title, _MOVE)
        answer = answers[-1]
        try:
            content = self.came.get(timeout=_LATE_S if answer.Status == _SUCCESS else 0.0)
        except Empty:
            self.wanted = ""
            if self.moved and answer.Status != _UNKNOWN_DESTINATION:
                return b""
            raise self._error(_reason(answer, self.title)) from None
        self.moved += 1
        return content

    def _has(self, image: Dataset) -> bool:
        answers = self._ask(self.association.send_c_find, image, _FIND)
        if answers[-1].Status != _SUCCESS:
            raise self._error(f"the archive refuses to be searched (C-FIND status {answers[-1].Status:04X})")
        return any(answer.Status in _PENDING for answer in answers)

    def _ask(self, send: Callable[..., Any], *arguments: Any) -> list[Any]:
        """All answers to a request, the final one last."""
        try:
            answers = [status for status, _ in send(*arguments)]
        except (ValueError, RuntimeError) as error:  # no context was accepted for it; the association is gone
            raise self._error(str(error).splitlines()[0]) from error
        if not answers or "Status" not in answers[-1]:
            raise self._error("the archive gives no answer")
        return answers

    def _error(self, reason: str) -> ReadError:
        remedy = f"in the archive's list of DICOM nodes, {self.title} must be at this machine's address and port"
        remedy += f" {self.listen[1]}, and allowed to query and retrieve"
        return ReadError(reason, where=self.where, remedy=remedy)


def _reason(answer: Any, title: str) -> str:
    """Why nothing came."""
    if answer.Status == _UNKNOWN_DESTINATION:
        return f"the archive does not know {title}, to which it should send"
    if answer.get("NumberOfCompletedSuboperations"):
        return f"the archive says that it sent an image, but not to here: it knows {title} at another place"
    return f"the archive has an image, but sends nothing (C-MOVE status {answer.Status:04X})"
