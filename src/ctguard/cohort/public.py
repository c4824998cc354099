"""Public collections whose files need not say themselves that they are de-identified.

LUNA16 turned LIDC-IDRI into MetaImage, which has no PatientIdentityRemoved. What speaks for such a scan is its
SeriesInstanceUID: The Cancer Imaging Archive gives every series a new one under its own root when it de-identifies
it (Clark et al., J Digit Imaging 26:1045, 2013), and all 1,018 series of LIDC-IDRI lie under the root below.
"""

from __future__ import annotations

import re
from dataclasses import replace

from ctguard.cohort.headers import stem
from ctguard.core.provenance import Provenance, Step
from ctguard.core.records import Case
from ctguard.core.volume import Volume
from ctguard.io.cases import case_path

COLLECTIONS = ("LIDC-IDRI", "LUNA16")
_LIDC_SERIES = re.compile(r"1\.3\.6\.1\.4\.1\.14519\.5\.2\.1\.6279\.6001\.\d{30}")


def is_public(case: Case, volume: Volume) -> bool:
    """Whether a row of an index names a series of LIDC-IDRI, and the volume is that series.

    All of: the row's collection is LIDC-IDRI or LUNA16, its SeriesInstanceUID is one that the archive gave, and the
    volume carries the same UID or, in a format without UIDs, its file is named by it.
    """
    uid = case.series_uid.partition("#")[0]
    own = volume.provenance.source.series_uid or stem(case_path("index.csv", case))
    return case.collection in COLLECTIONS and bool(_LIDC_SERIES.fullmatch(uid)) and own == uid


def as_public(case: Case, volume: Volume) -> Volume:
    """The volume, said to be de-identified where `is_public` holds; a provenance step records why."""
    source = volume.provenance.source
    if source.deidentified or not is_public(case, volume):
        return volume
    said = Provenance(replace(source, deidentified=True), volume.provenance.steps, volume.provenance.marks)
    return Volume(volume.hu, volume.geometry, said.then(Step("public_collection", {"name": case.collection})))
