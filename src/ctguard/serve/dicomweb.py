"""DICOMweb: results to an archive by STOW-RS, and new series from one by QIDO-RS and WADO-RS."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from datetime import date, timedelta
from io import BytesIO
from pathlib import Path
from typing import Any

from dicomweb_client.api import DICOMwebClient
from pydicom import dcmread
from pydicom.dataset import Dataset
from requests import RequestException, Session
from requests.exceptions import SSLError
from sqlalchemy import Engine, select

from ctguard.core.errors import ReadError
from ctguard.io.dicom_values import PARSE_ERRORS
from ctguard.serve.associate import tls_fault
from ctguard.serve.config import Destination, Pull
from ctguard.serve.intake import SUCCESS, Intake
from ctguard.serve.logs import say
from ctguard.serve.store.database import session_scope
from ctguard.serve.store.models import Instance

TIMEOUT_S = 60.0
_AS_STORED = (("application/dicom", "*"),)
_PAGE = 200

Uids = tuple[str, str, str]
"""Study, series and instance."""


def client(url: str, ca: Path | None, token: Path | None, certificate: tuple[Path, Path] | None = None) -> Any:
    """A client for a DICOMweb service. Raises ReadError where the file of its token cannot be read."""
    session = Session()
    session.verify = True if ca is None else str(ca)
    if certificate is not None:
        session.cert = (str(certificate[0]), str(certificate[1]))
    if token is not None:
        try:
            session.headers["Authorization"] = f"Bearer {token.read_text(encoding='utf-8').strip()}"
        except OSError as error:
            raise ReadError(f"cannot be read ({error.strerror})", where=token, remedy="check [pull]") from error
    service = DICOMwebClient(url, session=session, timeout=TIMEOUT_S)
    service.set_http_retry_params(retry=False)  # who calls tries again, and says so
    return service


def store_files(destination: Destination, files: Sequence[Path]) -> str | None:
    """STOW-RS. None where all are stored, else why not."""
    certificate = None
    if destination.tls_certificate is not None and destination.tls_key is not None:
        certificate = (destination.tls_certificate, destination.tls_key)
    try:
        service = client(destination.url, destination.tls_ca, destination.token_file, certificate)
        answer = service.store_instances([dcmread(file) for file in files])
    except SSLError:
        return tls_fault(destination) or "the archive broke the connection off"
    except RequestException as error:
        status = getattr(error.response, "status_code", None)
        return "the archive cannot be reached" if status is None else f"the archive answered {status}"
    except (ReadError, *PARSE_ERRORS) as error:
        return f"cannot be sent ({type(error).__name__})"
    failed = answer.get("FailedSOPSequence") or []  # Orthanc sends it empty, too
    return f"the archive refused it ({failed[0].get('FailureReason', 0):04X})" if failed else None


def find(service: Any, level: str, filters: dict[str, str], series: tuple[str, str] | None = None) -> Iterator[Dataset]:
    """QIDO-RS, page by page. level: series or instances. series: study and series UID, to search within one."""
    offset = 0
    while True:
        named: dict[str, Any] = {"limit": _PAGE, "offset": offset, "search_filters": filters}
        if level == "series":
            rows = service.search_for_series(**named)
        else:
            rows = service.search_for_instances(*(series or ()), **named)
        yield from (Dataset.from_json(row) for row in rows)
        if len(rows) < _PAGE:
            return
        offset += _PAGE


def retrieve(service: Any, uids: Uids) -> bytes:
    """WADO-RS: the file of one object, in the transfer syntax in which it is stored."""
    buffer = BytesIO()
    service.retrieve_instance(*uids, media_types=_AS_STORED).save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def run_pull(settings: Pull, engine: Engine, intake: Intake, stopping: threading.Event) -> None:
    """Poll an archive until told to stop."""
    while not stopping.is_set():
        try:
            taken = pull_once(settings, engine, intake)
        except (RequestException, ReadError, *PARSE_ERRORS) as error:
            say("pull-failed", logging.WARNING, kind=type(error).__name__)
        else:
            say("pulled", logging.INFO if taken else logging.DEBUG, images=taken)
        stopping.wait(settings.interval_s)


def pull_once(settings: Pull, engine: Engine, intake: Intake) -> int:
    """Take in the CT images of the last days that the node does not have; how many. Raises RequestException."""
    service = client(settings.url, settings.tls_ca, settings.token_file)
    today = date.today()
    days = f"{today - timedelta(days=settings.days):%Y%m%d}-{today:%Y%m%d}"
    taken = 0
    for series in find(service, "series", {"Modality": "CT", "StudyDate": days}):
        within = (str(series.StudyInstanceUID), str(series.SeriesInstanceUID))
        offered = [str(row.SOPInstanceUID) for row in find(service, "instances", {}, within)]
        for uid in _missing(engine, offered):
            taken += intake.take(retrieve(service, (*within, uid)), uid, "DICOMWEB") == SUCCESS
    intake.recorder.settle()
    return taken


def _missing(engine: Engine, offered: Sequence[str]) -> list[str]:
    with session_scope(engine, read_only=True) as session:
        known = set(session.scalars(select(Instance.sop_uid).where(Instance.sop_uid.in_(offered))))
    return [uid for uid in offered if uid not in known]
