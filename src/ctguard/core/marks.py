"""Marks: what a file must say about itself, in every format that we write.

A mark is never optional. `to_text` and `from_text` are the one encoding that all writers and readers use;
io/ decides only where the text stands (DICOM attribute, NIfTI extension, MHA or NRRD key, TIFF sidecar).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal, get_args

from ctguard.core.errors import ReadError

MarkKind = Literal["phantom", "forged", "protected", "sealed"]

MARKS_KEY = "ctguard_marks"
"""Key under which MHA, NRRD and TIFF carry the marks."""

SERIES_DESCRIPTION: dict[MarkKind, str] = {
    "forged": "FORGED (research)",
    "phantom": "PHANTOM (synthetic)",
    "protected": "PROTECTED COPY - not for primary reading",
    "sealed": "PROTECTED COPY - not for primary reading",
}
"""How a DICOM SeriesDescription begins; viewers do not show SyntheticData."""


@dataclass(frozen=True)
class Mark:
    """One mark. `detail` is a short sentence for people: what was done, by what, how strongly."""

    kind: MarkKind
    detail: str


def has(marks: tuple[Mark, ...], kind: MarkKind) -> bool:
    """Whether a mark of this kind is among them."""
    return any(mark.kind == kind for mark in marks)


def is_synthetic(marks: tuple[Mark, ...]) -> bool:
    """Whether the pixels are, in whole or in part, not of a patient."""
    return has(marks, "forged") or has(marks, "phantom")


def to_text(marks: tuple[Mark, ...]) -> str:
    """Marks as one line of ASCII JSON."""
    return json.dumps([{"kind": mark.kind, "detail": mark.detail} for mark in marks])


def from_text(text: str, where: str) -> tuple[Mark, ...]:
    """Marks from the line that `to_text` wrote. Raises ReadError where the line is damaged."""
    try:
        rows = json.loads(text)
        marks = tuple(Mark(row["kind"], str(row["detail"])) for row in rows)
    except (ValueError, TypeError, KeyError) as error:
        raise ReadError(
            f"its ctguard marks are damaged ({error})", where=where, remedy="read the file that it was made from"
        ) from error
    if any(mark.kind not in get_args(MarkKind) for mark in marks):
        raise ReadError("it carries marks of an unknown kind", where=where, remedy="update ctguard")
    return marks
