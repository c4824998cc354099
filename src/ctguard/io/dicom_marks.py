"""The carried record inside a DICOM object: in a standard sequence for us, standard attributes for everyone else.

The record is the line that core/carried.py writes. It stands in items of ContributingEquipmentSequence
(PS3.3 C.12.1), which is there to say what contributed to an image. It is cut into pieces,
"ctguard-record 1/3 [...]", because ContributionDescription (ST) holds 1024 characters. No private attribute is
used: archives drop those, and validators complain.

An object without the record, but with SyntheticData or one of our SeriesDescriptions, is still marked: a forgery
never comes back unmarked.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import replace

from pydicom.dataset import Dataset

from ctguard.core.carried import Carried, from_text
from ctguard.core.errors import ReadError
from ctguard.core.marks import SERIES_DESCRIPTION, Mark, MarkKind, has, is_synthetic
from ctguard.io.dicom_values import texts

_PIECE_LENGTH = 960
_PIECE = re.compile(r"ctguard-record (\d{1,6})/(\d{1,6}) \[(.*)\]\s*", re.DOTALL)


def records_of(text: str, equipment: Dataset) -> list[Dataset]:
    """Items for ContributingEquipmentSequence that hold a carried record; `equipment` is the item to copy."""
    pieces = [text[i : i + _PIECE_LENGTH] for i in range(0, len(text), _PIECE_LENGTH)]
    items = []
    for number, piece in enumerate(pieces, start=1):
        item = deepcopy(equipment)
        # The brackets keep spaces at a piece's end, which DICOM would take for padding.
        item.ContributionDescription = f"ctguard-record {number}/{len(pieces)} [{piece}]"
        items.append(item)
    return items


def without_records(equipment: Iterable[Dataset]) -> list[Dataset]:
    """The items that are not pieces of a record."""
    return [item for item in equipment if not _PIECE.fullmatch(_description(item))]


def read_carried(ds: Dataset, file: str) -> Carried:
    """What one object says about itself: its record, and marks that standard attributes alone suffice for.

    Raises ReadError where the record is damaged.
    """
    text = _record(ds, file)
    carried = from_text(text, file) if text else Carried()
    marks = carried.marks
    kind = _described(ds)
    if "YES" in texts(ds, "SyntheticData") and not is_synthetic(marks):
        by_others = "SyntheticData (0008,001C) is YES, without marks of ctguard"
        marks = (*marks, Mark("phantom" if kind == "phantom" else "forged", by_others))
    if kind is not None and not has(marks, kind) and not (kind == "protected" and has(marks, "sealed")):
        marks = (*marks, Mark(kind, f"the SeriesDescription begins with {SERIES_DESCRIPTION[kind]!r}"))
    return replace(carried, marks=marks)


def _described(ds: Dataset) -> MarkKind | None:
    """The kind of mark that the SeriesDescription begins with, or None."""
    text = str(ds.get("SeriesDescription") or "")
    kinds: tuple[MarkKind, ...] = ("forged", "phantom", "protected")
    return next((kind for kind in kinds if text.startswith(SERIES_DESCRIPTION[kind])), None)


def _description(item: Dataset) -> str:
    return str(item.get("ContributionDescription") or "")


def _record(ds: Dataset, file: str) -> str:
    """The text of the record, put together; empty where there is none."""
    matches = [_PIECE.fullmatch(_description(item)) for item in ds.get("ContributingEquipmentSequence") or []]
    pieces = sorted({(int(m[1]), int(m[2]), m[3]) for m in matches if m})
    count = len(pieces)
    if [(number, total) for number, total, _ in pieces] != [(i + 1, count) for i in range(count)]:
        expected = max(total for _, total, _ in pieces)
        raise ReadError(
            f"its ctguard record is damaged ({count} pieces where there should be {expected})",
            where=file,
            remedy="read the file that it was made from",
        )
    return "".join(piece for _, _, piece in pieces)
