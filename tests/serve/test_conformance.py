"""The conformance statement says what the code does: its tables, and what is negotiated on a real association."""

from __future__ import annotations

import re
import runpy
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEGLSLossless
from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, AllStoragePresentationContexts, build_role, evt
from pynetdicom.pdu_primitives import AsynchronousOperationsWindowNegotiation, UserIdentityNegotiation
from pynetdicom.sop_class import CTImageStorage, StorageCommitmentPushModel  # type: ignore[attr-defined]
from requests import PreparedRequest, Response, Session

from ctguard import io
from ctguard.export.results import KEY, MAP, SEG, SR, write_results
from ctguard.serve import deliver, dicomweb
from ctguard.serve.config import Destination
from ctguard.serve.node import make_server
from ctguard.serve.store.models import Delivery
from tests.export.series import make_marked, verdict_of
from tests.serve.parts import config_for, wait_for

DOCS = Path(__file__).resolve().parents[2] / "docs" / "reference"
PAGE = (DOCS / "conformance.md").read_text(encoding="utf-8")
TRANSIENT = 2
"""Of a rejection: try again later (PS3.8, table 9-21)."""
MADE = runpy.run_path(str(DOCS / "make_conformance.py"))


def rows(name: str) -> list[list[str]]:
    """The cells of a table of the page, without its head."""
    table = PAGE.split(f"<!-- {name} -->\n")[1].split("\n\n")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def test_the_tables_are_what_the_code_says() -> None:
    assert MADE["page"]() == PAGE, "run docs/reference/make_conformance.py"


def test_every_event_of_the_audit_trail_is_found() -> None:
    """The table's own search finds what the trail is known to hold."""
    known = {"started", "log-in", "log-in-refused", "series-judged", "alert-substituted", "object-delivered"}
    assert known <= set(MADE["events"]())


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A node that negotiates, for the sender SENDER alone, one association at a time."""
    node = {"calling_ae_titles": ["SENDER"], "max_associations": 1}
    server = make_server(config_for(tmp_path_factory.mktemp("node"), node=node), Mock(), Mock())
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()


def ask(port: int, contexts: list[tuple[str, Any]], called: str = "CTGUARD", **named: Any) -> Any:
    """The node's answer to SENDER, be it what it may."""
    ae = AE(named.pop("calling", "SENDER"))
    for abstract, syntaxes in contexts:
        ae.add_requested_context(abstract, syntaxes)
    return ae.associate("127.0.0.1", port, ae_title=called, **named)


def associate(port: int, contexts: list[tuple[str, Any]], called: str = "CTGUARD", **named: Any) -> Any:
    """An association by SENDER, once there is a place: one that just ended may hold it for a moment."""
    answers: list[Any] = []

    def has_place() -> bool:
        answers.append(ask(port, contexts, called, **named))
        refused = answers[-1].acceptor.primitive if answers[-1].is_rejected else None
        return refused is None or refused.result != TRANSIENT

    wait_for(has_place, 30, "a free place")
    return answers[-1]


def test_of_all_storage_classes_those_of_the_page_are_accepted(port: int) -> None:
    offered = [str(one.abstract_syntax) for one in AllStoragePresentationContexts]
    accepted = set()
    for start in range(0, len(offered), 100):
        some = {*offered[start : start + 100], str(CTImageStorage)}  # where none is accepted, pynetdicom aborts
        association = associate(port, [(uid, ExplicitVRLittleEndian) for uid in some])
        assert association.is_established
        accepted |= {str(one.abstract_syntax) for one in association.accepted_contexts}
        association.release()
    assert accepted == {uid for name, uid, _, scp in rows("services") if scp == "yes" and "Storage" in name}


def test_of_all_transfer_syntaxes_those_of_the_page_are_accepted(port: int) -> None:
    for uid in [uid for name, uid, _, scp in rows("services") if scp == "yes" and "Storage" in name]:
        association = associate(port, [(uid, syntax) for syntax in ALL_TRANSFER_SYNTAXES])
        accepted = {str(one.transfer_syntax[0]) for one in association.accepted_contexts}
        association.release()
        assert accepted == {syntax for _, syntax, _ in rows("syntaxes")}


def test_the_first_syntax_of_the_nodes_own_list_wins(port: int) -> None:
    order = [uid for _, uid, _ in rows("syntaxes")]
    association = associate(port, [(CTImageStorage, [JPEGLSLossless, ExplicitVRLittleEndian, ImplicitVRLittleEndian])])
    chosen = association.accepted_contexts[0].transfer_syntax[0]
    association.release()
    assert chosen == min((JPEGLSLossless, ExplicitVRLittleEndian, ImplicitVRLittleEndian), key=order.index)


def test_extended_negotiation_has_no_effect(port: int) -> None:
    window, user = AsynchronousOperationsWindowNegotiation(), UserIdentityNegotiation()
    window.maximum_number_operations_invoked = window.maximum_number_operations_performed = 5
    user.user_identity_type, user.primary_field, user.positive_response_requested = 1, b"anybody", True
    items = [build_role(CTImageStorage, scu_role=True, scp_role=True), window, user]
    association = associate(port, [(CTImageStorage, ExplicitVRLittleEndian)], ext_neg=items)
    context, acceptor = association.accepted_contexts[0], association.acceptor
    association.release()
    assert (context.as_scu, context.as_scp) == (True, False)
    assert acceptor.asynchronous_operations == (1, 1) and acceptor.role_selection == {}
    assert acceptor.user_identity is None
    stated = dict(rows("implementation"))
    assert stated["implementation class UID"] == acceptor.implementation_class_uid
    assert stated["implementation version name"] == acceptor.implementation_version_name
    assert stated["largest PDU received, as acceptor"].split()[0] == str(acceptor.maximum_length)


def test_rejections_have_the_reasons_of_the_page(port: int) -> None:
    contexts = [(CTImageStorage, ExplicitVRLittleEndian)]
    for titles, source_and_reason in (({"calling": "ROGUE"}, (1, 3)), ({"called": "OTHER"}, (1, 7))):
        rejected = associate(port, contexts, **titles)
        assert rejected.is_rejected
        answer = rejected.acceptor.primitive
        assert (answer.result, answer.result_source, answer.diagnostic) == (1, *source_and_reason)
        assert f"rejected permanent, service user, {source_and_reason[1]}" in PAGE
    first = associate(port, contexts)
    second = ask(port, contexts).acceptor.primitive
    first.release()
    assert first.is_released and (second.result, second.result_source, second.diagnostic) == (TRANSIENT, 3, 2)
    assert "rejected transient, service provider (presentation), 2" in PAGE


def test_storage_commitment_is_not_offered(port: int) -> None:
    association = associate(port, [(CTImageStorage, ExplicitVRLittleEndian), (StorageCommitmentPushModel, None)])
    refused = [one.abstract_syntax for one in association.rejected_contexts]
    association.release()
    assert refused == [StorageCommitmentPushModel] and "Not supported: Storage Commitment in either role" in PAGE


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Dataset, dict[str, Dataset]]:
    """The source, and its results by kind."""
    folder = tmp_path_factory.mktemp("written")
    volume = io.read(make_marked(folder / "series"))
    paths = {path.name: path for path in write_results(volume, verdict_of(volume), folder / "out")}
    kinds = {SEG: "seg", MAP: "map", SR: "sr", KEY: "key"}
    return pydicom.dcmread(volume.provenance.source.files[0]), {
        kinds[name]: pydicom.dcmread(path) for name, path in paths.items()
    }


def test_what_is_due_is_proposed_by_ctguard_in_its_own_syntax(written: tuple[Dataset, dict[str, Dataset]]) -> None:
    proposed: list[tuple[str, str, list[str]]] = []

    def offered(event: evt.Event) -> None:
        who = str(event.assoc.requestor.ae_title)
        contexts = event.assoc.requestor.requested_contexts
        proposed.extend((who, str(one.abstract_syntax), list(map(str, one.transfer_syntax))) for one in contexts)

    archive = AE("ARCHIVE")
    for one in written[1].values():
        archive.add_supported_context(one.SOPClassUID)
    answers = iter((0x0000, 0xB000, 0xB007, 0xA700))
    handlers: list[Any] = [(evt.EVT_ACCEPTED, offered), (evt.EVT_C_STORE, lambda event: next(answers))]
    server = archive.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
    assert server is not None
    to = Destination(name="archive", ae_title="ARCHIVE", host="127.0.0.1", port=server.server_address[1])
    due = [Delivery(id=number, path=ds.filename) for number, ds in enumerate(written[1].values())]
    said = [reason for _, reason in deliver._c_store("NODE", to, due)]
    archive.shutdown()
    assert said == [None, None, None, "the archive answered A700"]
    stated = [
        (uid, {one.name: one for one in (ExplicitVRLittleEndian,)}[syntax])
        for kind, _, uid, syntax in rows("proposed")
        if kind != "image"
    ]
    assert sorted(proposed) == sorted(("NODE", uid, [syntax]) for uid, syntax in stated)


@pytest.mark.filterwarnings("ignore:message sent by origin server")
def test_requests_by_dicomweb_are_those_of_the_page(
    written: tuple[Dataset, dict[str, Dataset]], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def send(session: Session, request: PreparedRequest, **_: Any) -> Response:
        kind = request.headers["Accept"] if request.method == "GET" else request.headers["Content-Type"]
        asked.append((request.method, str(request.url), str(kind)))
        answer = Response()
        answer.status_code, answer.request, answer._content = 200, request, b"[]" if request.method == "GET" else b""
        answer.headers["Content-Type"] = "application/dicom+json"
        return answer

    monkeypatch.setattr(Session, "send", send)
    service = dicomweb.client("http://archive", None, None)
    list(dicomweb.find(service, "series", {"Modality": "CT", "StudyDate": "20260101-20260102"}))
    list(dicomweb.find(service, "instances", {}, ("1.2", "1.3")))
    list(dicomweb.find(service, "instances", {"SOPInstanceUID": "1.4"}))
    with suppress(InvalidDicomError):  # of the empty answer
        dicomweb.retrieve(service, ("1.2", "1.3", "1.4"))
    report = Path(str(written[1]["sr"].filename))
    assert dicomweb.store_files(Destination(name="web", url="http://archive"), [report]) is None
    assert [(method, url) for method, url, _ in asked] == [
        ("GET", "http://archive/series?Modality=CT&StudyDate=20260101-20260102&limit=200&offset=0"),
        ("GET", "http://archive/studies/1.2/series/1.3/instances?limit=200&offset=0"),
        ("GET", "http://archive/instances?SOPInstanceUID=1.4&limit=200&offset=0"),
        ("GET", "http://archive/studies/1.2/series/1.3/instances/1.4"),
        ("POST", "http://archive/studies"),
    ]
    assert f"Accept: `{asked[3][2]}`" in PAGE and asked[4][2].startswith('multipart/related; type="application/dicom"')


def test_results_are_of_the_classes_that_are_proposed(written: tuple[Dataset, dict[str, Dataset]]) -> None:
    stated = {kind: (uid, syntax) for kind, _, uid, syntax in rows("proposed") if kind != "image"}
    assert stated == {kind: (ds.SOPClassUID, ds.file_meta.TransferSyntaxUID.name) for kind, ds in written[1].items()}


def test_results_have_the_attributes_of_the_page(written: tuple[Dataset, dict[str, Dataset]]) -> None:
    source, results = written
    wrong = []
    for keywords, *cells in rows("attributes"):
        for keyword in keywords.split(", "):
            for kind, cell in zip(("seg", "map", "sr", "key"), cells, strict=True):
                found = results[kind].get(keyword)
                wanted = source.get(keyword) if cell == "source" else cell
                if cell == "present":
                    fits = found is not None
                elif cell == "":
                    fits = keyword not in results[kind]
                else:
                    fits = _text(found) == _text(wanted)
                if not fits:
                    wrong.append((keyword, kind, cell, str(found)[:40]))
    assert wrong == []


def _text(value: Any) -> str:
    return "\\".join(map(str, value)) if isinstance(value, pydicom.multival.MultiValue) else str(value)


def test_private_elements_are_those_of_the_page(written: tuple[Dataset, dict[str, Dataset]]) -> None:
    assert [element.tag for ds in written[1].values() for element in ds.iterall() if element.tag.is_private] == []
    assert re.search(r"\(0099,xx01\) \| CTGUARD SEAL 1 \| OB \| sealed copies alone", PAGE)


@pytest.mark.parametrize(
    ("character_set", "name"),
    [
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎"),
        ("ISO_IR 192", "Müller^Ödön=王"),
        ("GB18030", "Wang^XiaoDong=王^小东"),
        ("ISO_IR 126", "Διονυσιος"),
        ("ISO_IR 6", "DOE^JANE"),
        (None, "DOE^JANE"),
    ],
)
def test_results_have_the_character_set_of_the_source(character_set: Any, name: str, tmp_path: Path) -> None:
    def edit(ds: Dataset, z: int) -> None:
        ds.PatientName = name
        if character_set is None:
            del ds.SpecificCharacterSet
        else:
            ds.SpecificCharacterSet = character_set

    volume = io.read(make_marked(tmp_path / "series", edit=edit))
    for path in write_results(volume, verdict_of(volume), tmp_path / "out"):
        ds = pydicom.dcmread(path)
        assert (str(ds.PatientName), ds.get("SpecificCharacterSet")) == (name, character_set), path.name
