"""Marks and steps inside a DICOM object: one JSON record for us, standard attributes for everyone else.

The record, {"marks": as core/marks.to_text writes them, "steps": the provenance steps}, stands in items of
ContributingEquipmentSequence (PS3.3 C.12.1), which is there to say what contributed to an image. It is cut into
pieces, "ctguard-record 1/3 [...]", because ContributionDescription (ST) holds 1024 characters. No private
attribute is used: archives drop those, and validators complain.

An object without the record, but with SyntheticData or one of our SeriesDescriptions, is still marked: a forgery
never comes back unmarked.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from copy import deepcopy
from functools import lru_cache

from pydicom.dataset import Dataset
from pydicom.tag import Tag

from ctguard.core.errors import ReadError
from ctguard.core.marks import SERIES_DESCRIPTION, Mark, MarkKind, from_text, has, is_synthetic, to_text
from ctguard.core.provenance import Step

_SYNTHETIC_DATA = Tag(0x0008, 0x001C)
_PIECE_LENGTH = 960
_PIECE = re.compile(r"ctguard-record (\d+)/(\d+) \[(.*)\]\s*", re.DOTALL)


def records_of(marks: tuple[Mark, ...], steps: Sequence[Step], equipment: Dataset) -> list[Dataset]:
    """Items for ContributingEquipmentSequence that hold marks and steps; `equipment` is the item to copy."""
    text = json.dumps({"marks": to_text(marks), "steps": json.loads(steps_to_text(steps))})
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


def read_marks(ds: Dataset, file: str) -> tuple[tuple[Mark, ...], tuple[Step, ...]]:
    """Marks and steps of one object; standard attributes alone suffice for a mark. ReadError where damaged."""
    text = _record(ds, file)
    marks, steps = _parsed(text, file) if text else ((), ())
    if ds.get(_SYNTHETIC_DATA) is not None and ds[_SYNTHETIC_DATA].value == "YES" and not is_synthetic(marks):
        by_others = "SyntheticData (0008,001C) is YES, without marks of ctguard"
        marks = (*marks, Mark("phantom" if _described(ds) == "phantom" else "forged", by_others))
    kind = _described(ds)
    if kind is not None and not has(marks, kind) and not (kind == "protected" and has(marks, "sealed")):
        marks = (*marks, Mark(kind, f"the SeriesDescription begins with {SERIES_DESCRIPTION[kind]!r}"))
    return marks, steps


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
    pieces = {(int(m[1]), int(m[2])): m[3] for m in matches if m}
    if pieces and sorted(pieces) != [(i + 1, len(pieces)) for i in range(len(pieces))]:
        raise _damaged(f"pieces {sorted(pieces)}", file)
    return "".join(pieces[key] for key in sorted(pieces))


def steps_to_text(steps: Sequence[Step]) -> str:
    """Provenance steps as one line of ASCII JSON."""
    return json.dumps([{"name": step.name, "params": dict(step.params)} for step in steps], sort_keys=True)


@lru_cache(maxsize=4)
def _parsed(text: str, file: str) -> tuple[tuple[Mark, ...], tuple[Step, ...]]:
    try:
        record = json.loads(text)
        steps = tuple(Step(str(row["name"]), dict(row["params"])) for row in record["steps"])
        return from_text(record["marks"], file), steps
    except (ValueError, TypeError, KeyError) as error:
        raise _damaged(str(error), file) from error


def _damaged(what: str, file: str) -> ReadError:
    remedy = "read the file that it was made from"
    return ReadError(f"its ctguard record is damaged ({what})", where=file, remedy=remedy)
