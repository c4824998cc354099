"""Where a volume came from and what was done to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from ctguard.core.marks import Mark, MarkKind, has

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]


@dataclass(frozen=True)
class Source:
    """Where the voxels were read from, or made.

    format: dicom, mha, nifti, nrrd, tiff or phantom.
    files: one path per slice, in slice order, for DICOM; the one file otherwise; empty for a phantom.
    padding_hu: the value outside the field of view, where the file names one.
    deidentified: whether the file itself says so (PatientIdentityRemoved = YES, or a mark that was carried along).
    """

    format: str
    files: tuple[str, ...] = ()
    modality: str = "CT"
    series_uid: str | None = None
    patient_id: str | None = None
    kernel: str | None = None
    padding_hu: float | None = None
    deidentified: bool = False


@dataclass(frozen=True)
class Step:
    """One change: its name and the parameters that replay it. Never holds a path, a name or a UID."""

    name: str
    params: Mapping[str, Json] = field(default_factory=dict)


@dataclass(frozen=True)
class Provenance:
    """Source, steps since, and the marks that follow the voxels everywhere."""

    source: Source
    steps: tuple[Step, ...] = ()
    marks: tuple[Mark, ...] = ()

    def then(self, step: Step, *marks: Mark) -> Provenance:
        """This provenance with one more step and its marks."""
        return replace(self, steps=(*self.steps, step), marks=(*self.marks, *marks))

    def has_mark(self, kind: MarkKind) -> bool:
        """Whether a mark of this kind follows the voxels."""
        return has(self.marks, kind)
