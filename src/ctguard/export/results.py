"""All results of a verdict, as datasets or files."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from pydicom.dataset import Dataset

from ctguard.core.errors import WriteError
from ctguard.core.records import Verdict
from ctguard.core.volume import Volume
from ctguard.export.judged import Judged, judged
from ctguard.export.key_object import key_object
from ctguard.export.parametric_map import parametric_map
from ctguard.export.report_sr import report_sr
from ctguard.export.segmentation import segmentation
from ctguard.io.dicom_values import one_line

SEG, MAP, SR, KEY = "seg.dcm", "map.dcm", "sr.dcm", "key.dcm"
_UNFIT = (ValueError, TypeError, AttributeError, KeyError)
"""What highdicom and pydicom raise for headers that they do not take."""


def write_results(volume: Volume, verdict: Verdict, folder: Path, *, made: datetime | None = None) -> list[Path]:
    """Write seg.dcm, map.dcm, key.dcm and sr.dcm into `folder`, those that the verdict gives rise to; their paths.

    made: date and time that they carry, and that their UIDs depend on; without it, those of the study.
    Raises what `export.judged.judged` raises, and WriteError, leaving none, where the source's headers do not allow
    a valid result.
    """
    of = judged(volume, verdict, made=made)
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    try:
        for name, ds in results(of):
            written.append(folder / name)
            ds.save_as(written[-1], enforce_file_format=True)
    except _UNFIT as error:
        for path in written:
            path.unlink(missing_ok=True)
        raise WriteError(
            f"its headers do not allow DICOM results ({one_line(error)})",
            where=of.images[0].instance_uid,
            remedy="repair the series; dciodvfy names what is wrong with it",
        ) from error
    return written


def results(of: Judged) -> Iterator[tuple[str, Dataset]]:
    """File name and dataset of each result, the report last: it names the others as evidence.

    A report there is always; a segmentation and a key object where there is a region; a map where the detector says
    where. One is let go before the next is made: a map can be hundreds of megabytes.
    """
    seg = segmentation(of)
    if seg is not None:
        yield SEG, seg
    others = []
    for name, make in ((MAP, parametric_map), (KEY, key_object)):
        ds = make(of)
        if ds is not None:
            others.append(_stub(ds))
            yield name, ds
        del ds
    yield SR, report_sr(of, seg, others)


def _stub(ds: Dataset) -> Dataset:
    """As much of an object as a reference takes."""
    stub = Dataset()
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPClassUID", "SOPInstanceUID"):
        stub[keyword] = ds[keyword]
    return stub
