"""Writes the tables of conformance.md from the code. tests/serve/test_conformance.py demands that both agree.

A table stands between `<!-- NAME -->` and the next empty line; everything else in the page is written by hand.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest.mock import Mock
from xml.etree import ElementTree

from pydicom.pixels.decoders.base import get_decoder
from pydicom.sr.coding import Code
from pydicom.uid import (
    UID,
    Comprehensive3DSRStorage,
    ExplicitVRLittleEndian,
    KeyObjectSelectionDocumentStorage,
    ParametricMapStorage,
    SegmentationStorage,
)
from pynetdicom import AE, PYNETDICOM_IMPLEMENTATION_UID, PYNETDICOM_IMPLEMENTATION_VERSION
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from ctguard.export import codes
from ctguard.io.dicom_pixels import _PLUGINS
from ctguard.serve import deliver, intake, mover
from ctguard.serve.audit_message import message
from ctguard.serve.config import make_config
from ctguard.serve.node import CLASSES, SYNTAXES, make_server
from ctguard.serve.store.models import AuditEvent

PAGE = Path(__file__).with_name("conformance.md")
SOURCE = Path(__file__).parents[2] / "src" / "ctguard" / "serve"
RESULTS = {
    "seg": SegmentationStorage,
    "map": ParametricMapStorage,
    "sr": Comprehensive3DSRStorage,
    "key": KeyObjectSelectionDocumentStorage,
}
_APPENDED = re.compile(r'\bappend\(\s*\w+,[^,()]+(?:\.[^,()]+)*,\s*"([a-z-]+)"')
_ALERTED = re.compile(r'\b(?:raise_alert\(\s*\w+,\s*|alert\(|alerts\.append\(\()"([a-z-]+)"')
_MEANING = {
    intake.SUCCESS: "Success: the object is on disk",
    intake.OUT_OF_RESOURCES: "Refused, out of resources: disk, object size, or a database that takes nothing",
    intake.MISMATCH: "Error, data set does not match SOP class: it names another SOP instance than the command",
    intake.NOT_UNDERSTOOD: "Error, cannot understand: no DICOM, or a study, series or instance UID that is none",
}


def accepted() -> dict[UID, list[UID]]:
    """Transfer syntaxes of each SOP class that the node accepts, in its order of preference."""
    config = make_config({"node": {"port": 0}})
    with closing(_Bound(make_server(config, Mock(), Mock()))) as node:
        return {UID(str(one.abstract_syntax)): list(one.transfer_syntax) for one in node.server.ae.supported_contexts}


class _Bound:
    """A server that never served: only its socket is closed."""

    def __init__(self, server: Any) -> None:
        self.server = server

    def close(self) -> None:
        self.server.socket.close()


def _table(head: str, rows: Iterable[Iterable[Any]]) -> str:
    cells = [[part.strip() for part in head.split("|")], *([str(cell) for cell in row] for row in rows)]
    lines = [f"| {' | '.join(row)} |" for row in cells]
    return "\n".join([lines[0], "|" + "---|" * len(cells[0]), *lines[1:]])


def _services() -> str:
    rows = [
        (Verification.name, Verification, "no", "yes"),
        *((one.name, one, "with `[forward]`", "yes") for one in CLASSES),
    ]
    rows += [(one.name, one, "yes", "no") for one in RESULTS.values()]
    rows += [(one.name, one, "`ctguard audit --archive`", "no") for one in map(UID, (mover._FIND, mover._MOVE))]
    return _table("SOP class | UID | SCU | SCP", rows)


def _syntaxes() -> str:
    return _table(
        "transfer syntax | UID | pixels are decoded by", ((one.name, one, _decoders(one)) for one in SYNTAXES)
    )


def _decoders(syntax: UID) -> str:
    decoder = get_decoder(syntax)
    if decoder.is_native:
        return "ctguard"
    return ", ".join(name for name in _PLUGINS if name in decoder.available_plugins)


def _echo() -> str:
    return _table("transfer syntax | UID", ((one.name, one) for one in map(UID, accepted()[Verification])))


def _answers() -> str:
    return _table("status | meaning", ((f"{code:04X}", words) for code, words in _MEANING.items()))


def _proposed() -> str:
    rows = [(kind, one.name, one, ExplicitVRLittleEndian.name) for kind, one in RESULTS.items()]
    rows += [("image", one.name, one, "the one in which the image is stored, alone") for one in CLASSES]
    return _table("kind | SOP class | UID | transfer syntax", rows)


def _statuses() -> str:
    stored = ", ".join(f"{code:04X}" for code in deliver._STORED)
    return _table("answer | what follows", ((stored, "delivered"), ("any other, or none", "tried again later")))


def _implementation() -> str:
    ae = AE("X")
    node = make_config({}).node
    rows = (
        ("implementation class UID", PYNETDICOM_IMPLEMENTATION_UID),
        ("implementation version name", PYNETDICOM_IMPLEMENTATION_VERSION),
        ("largest PDU received, as acceptor", f"{node.max_pdu_bytes} (`max_pdu_bytes`)"),
        ("largest PDU received, as requestor", ae.maximum_pdu_size),
    )
    return _table("item | value", rows)


def _settings() -> str:
    config = make_config({})
    rows = []
    for name in ("node", "tls", "delivery", "pull", "audit"):
        for key, value in getattr(config, name).model_dump(mode="json").items():
            rows.append((f"`[{name}] {key}`", "empty" if value in (None, "") else f"`{value}`"))
    return _table("setting | default", rows)


def events() -> list[str]:
    """Every event that the node's code appends to the audit trail."""
    text = "\n".join(file.read_text(encoding="utf-8") for file in sorted(SOURCE.rglob("*.py")))
    return sorted({"started", *_APPENDED.findall(text), *(f"alert-{kind}" for kind in _ALERTED.findall(text))})


def _messages() -> str:
    rows = []
    for name in events():
        event = AuditEvent(
            id=1, at=datetime(2000, 1, 1, tzinfo=UTC), actor="node", event=name, details={}, hash="0" * 64
        )
        what = ElementTree.fromstring(message(event))[0]
        (of, kind), code = what, "csd-code"
        typed = f"{kind.get(code)}, {kind.get('codeSystemName')}"
        rows.append(
            (
                f"`{name}`",
                f"{of.get(code)} {of.get('originalText')}",
                typed,
                what.get("EventActionCode"),
                what.get("EventOutcomeIndicator"),
            )
        )
    return _table("event | EventID (DCM) | EventTypeCode | action | outcome", rows)


def _codes() -> str:
    own = [one for one in vars(codes).values() if isinstance(one, Code) and one.scheme_designator == codes.SCHEME]
    return _table("code | meaning", ((one.value, one.meaning) for one in own))


TABLES: dict[str, Callable[[], str]] = {
    "services": _services,
    "syntaxes": _syntaxes,
    "echo": _echo,
    "answers": _answers,
    "proposed": _proposed,
    "statuses": _statuses,
    "implementation": _implementation,
    "settings": _settings,
    "messages": _messages,
    "codes": _codes,
}


def page() -> str:
    """The text of conformance.md with all tables as the code has them. Raises ValueError where one has no place."""
    text = PAGE.read_text(encoding="utf-8")
    for name, make in TABLES.items():
        place = re.compile(rf"(<!-- {name} -->\n).*?\n(?=\n)", re.DOTALL)
        if len(place.findall(text)) != 1:
            raise ValueError(f"{PAGE.name} needs one place <!-- {name} -->")
        made = make()
        text = place.sub(lambda found, made=made: f"{found[1]}{made}\n", text)
    return text


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
