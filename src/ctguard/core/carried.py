"""The record that travels with the voxels in every format: marks, provenance steps and a few source fields.

One encoding for all writers and readers: one line of ASCII JSON. io/ decides only where it stands (items of DICOM's
ContributingEquipmentSequence, the NIfTI header extension, the MHA and NRRD key `core.marks.MARKS_KEY`, the TIFF
description and sidecar).
It never holds a patient's name or id, a UID or a path, so that it may stand in a forged or a de-identified file.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from typing import cast

from ctguard.core.errors import ReadError, WriteError
from ctguard.core.marks import Mark
from ctguard.core.marks import from_text as marks_from_text
from ctguard.core.provenance import Json, Provenance, Source, Step

ENCODING = 1
"""Version of the record; a reader refuses a newer one."""

_UID = re.compile(r"\b[0-2](\.\d+){5,}\b")
_PATH = re.compile(r"^(/|~|[A-Za-z]:[\\/]|\\\\|file:)")


@dataclass(frozen=True)
class Carried:
    """What a file says about itself. Source fields are None where it does not name them."""

    steps: tuple[Step, ...] = ()
    marks: tuple[Mark, ...] = ()
    modality: str | None = None
    kernel: str | None = None
    padding_hu: float | None = None
    deidentified: bool = False

    def onto(self, source: Source) -> Provenance:
        """Provenance of the volume just read: `source` as the reader found it, filled up with what was carried.

        What the file's own header says (kernel, padding, a de-identification flag) stands above the carried value.
        """
        filled = replace(
            source,
            modality=self.modality or source.modality,
            kernel=source.kernel if source.kernel is not None else self.kernel,
            padding_hu=source.padding_hu if source.padding_hu is not None else self.padding_hu,
            deidentified=source.deidentified or self.deidentified,
        )
        return Provenance(filled, self.steps, self.marks)


def to_text(provenance: Provenance) -> str:
    """The record as one line of ASCII JSON, the same bytes for the same provenance.

    Raises WriteError where a step holds a path or a UID, or a value that JSON does not have.
    """
    source = provenance.source
    for step in provenance.steps:
        _refuse_identity(step.name, dict(step.params))
    record = {
        "ctguard": ENCODING,
        "marks": [{"kind": mark.kind, "detail": mark.detail} for mark in provenance.marks],
        "steps": [{"name": step.name, "params": dict(step.params)} for step in provenance.steps],
        "modality": source.modality,
        "kernel": source.kernel,
        "padding_hu": source.padding_hu,
        "deidentified": source.deidentified,
    }
    try:
        return json.dumps(record, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise WriteError(
            f"its provenance cannot be written ({error})", remedy="give steps plain JSON parameters"
        ) from error


def from_text(text: str, where: str) -> Carried:
    """The record out of the line that `to_text` wrote. Raises ReadError where the line is damaged or newer."""
    try:
        record = json.loads(text)
        encoding = record["ctguard"]
        if not isinstance(encoding, int) or encoding > ENCODING:
            raise ReadError(f"its ctguard record is of version {encoding}", where=where, remedy="update ctguard")
        padding = record["padding_hu"]
        return Carried(
            steps=tuple(Step(str(row["name"]), _mapping(row["params"])) for row in record["steps"]),
            marks=marks_from_text(json.dumps(record["marks"]), where),
            modality=_text_or_none(record["modality"]),
            kernel=_text_or_none(record["kernel"]),
            padding_hu=None if padding is None else float(padding),
            deidentified=record["deidentified"] is True,
        )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ReadError(
            f"its ctguard record is damaged ({error})", where=where, remedy="read the file that it was made from"
        ) from error


def _mapping(value: object) -> dict[str, Json]:
    if not isinstance(value, dict):
        raise TypeError("step parameters are no mapping")
    return cast(dict[str, Json], value)


def _text_or_none(value: object) -> str | None:
    if value is not None and not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _refuse_identity(step: str, value: Json) -> None:
    if isinstance(value, dict):
        for key, inner in value.items():
            _refuse_identity(step, key)
            _refuse_identity(step, inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            _refuse_identity(step, inner)
    elif isinstance(value, str) and (_UID.search(value) or _PATH.match(value)):
        raise WriteError(
            f"provenance step {step!r} holds a path or a UID, which must not travel with the voxels",
            remedy="record a hash instead",
        )
