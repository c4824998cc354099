"""Tiny data in the published layouts: a DICOM series, readers' XML, MetaImage volumes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

SHAPE = (12, 40, 48)
STEP, PIXEL = 2.0, 0.5
ORIGIN = (-100.0, -50.0, 30.0)


def series(folder: Path, uid: str = "1.2.3", patient: str = "P1", count: int = 12, **tags: object) -> Path:
    """A CT series of `count` slices, files in an order that says nothing about position."""
    folder.mkdir(parents=True, exist_ok=True)
    for z in range(count):
        meta = FileMetaDataset()
        meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, CTImageStorage
        meta.MediaStorageSOPInstanceUID = f"{uid}.{z + 1}"
        ds = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
        ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, f"{uid}.{z + 1}"
        ds.SeriesInstanceUID, ds.StudyInstanceUID, ds.PatientID, ds.Modality = uid, "1.2", patient, "CT"
        ds.Rows, ds.Columns, ds.PixelSpacing = SHAPE[1], SHAPE[2], [PIXEL, PIXEL]
        ds.ImagePositionPatient = [ORIGIN[0], ORIGIN[1], ORIGIN[2] + STEP * z]
        ds.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        ds.RescaleSlope, ds.RescaleIntercept, ds.SliceThickness, ds.SeriesNumber = 1, -1024, STEP, 3
        ds.BitsAllocated = ds.BitsStored = 16
        ds.HighBit, ds.PixelRepresentation, ds.SamplesPerPixel = 15, 0, 1
        ds.PhotometricInterpretation = "MONOCHROME2"
        for name, value in tags.items():
            setattr(ds, name, value)
        ds.PixelData = np.zeros(SHAPE[1:], np.uint16).tobytes()
        ds.save_as(folder / f"{uid}-{(z * 7) % count:02d}.dcm", enforce_file_format=True)
    return folder


def square(x: int, y: int, half: int) -> list[tuple[int, int]]:
    """The outline of a square of (2 half + 1)^2 pixels around (x, y): one pixel outside of it, as LIDC draws."""
    r = range(-half - 1, half + 2)
    edge = [(x + a, y - half - 1) for a in r] + [(x + half + 1, y + a) for a in r]
    return edge + [(x - a, y + half + 1) for a in r] + [(x - half - 1, y - a) for a in r]


def nodule(name: str, x: int, y: int, half: int, slices: range, malignancy: int, hole: int | None = None) -> str:
    """An unblindedReadNodule: the same square in each slice, with a square hole of half size `hole`."""
    outlines = [(z, square(x, y, half), "TRUE") for z in slices]
    outlines += [(z, square(x, y, hole), "FALSE") for z in slices if hole is not None]
    rois = "".join(_roi(z, points, keep) for z, points, keep in outlines)
    rating = f"<characteristics><malignancy>{malignancy}</malignancy></characteristics>"
    return f"<unblindedReadNodule><noduleID>{name}</noduleID>{rating}{rois}</unblindedReadNodule>"


def small(name: str, x: int, y: int, z: int) -> str:
    """A nodule below 3 mm: one point, no ratings."""
    return f"<unblindedReadNodule><noduleID>{name}</noduleID>{_roi(z, [(x, y)], 'TRUE')}</unblindedReadNodule>"


def non_nodule(name: str, x: int, y: int, z: int) -> str:
    """A nonNodule: one locus."""
    place = f"<imageZposition>{ORIGIN[2] + STEP * z}</imageZposition><imageSOP_UID>1.2.3.{z + 1}</imageSOP_UID>"
    locus = f"<locus><xCoord>{x}</xCoord><yCoord>{y}</yCoord></locus>"
    return f"<nonNodule><nonNoduleID>{name}</nonNoduleID>{place}{locus}</nonNodule>"


def _roi(z: int, points: list[tuple[int, int]], inclusion: str) -> str:
    edge = "".join(f"<edgeMap><xCoord>{x}</xCoord><yCoord>{y}</yCoord></edgeMap>" for x, y in points)
    place = f"<imageZposition>{ORIGIN[2] + STEP * z} </imageZposition><imageSOP_UID>1.2.3.{z + 1}</imageSOP_UID>"
    return f"<roi>{place}<inclusion>{inclusion}</inclusion>{edge}</roi>"


def xml(path: Path, *sessions: str, uid: str = "1.2.3", doctype: str = "") -> Path:
    """A readers' XML; one argument per reading session."""
    body = "".join(f"<readingSession>{one}</readingSession>" for one in sessions)
    head = f"<ResponseHeader><SeriesInstanceUid>{uid}</SeriesInstanceUid></ResponseHeader>"
    path.write_text(
        f'<?xml version="1.0"?>{doctype}<LidcReadMessage xmlns="http://www.nih.gov">{head}{body}</LidcReadMessage>'
    )
    return path


def mhd(path: Path) -> Path:
    """A small MetaImage with its raw file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((4, 6, 5), np.int16)), str(path))
    return path
