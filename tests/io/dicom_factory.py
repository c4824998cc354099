"""Small DICOM series for tests, made with pydicom alone so that the code under test has no hand in them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    UID,
    CTImageStorage,
    EnhancedCTImageStorage,
    ExplicitVRLittleEndian,
    generate_uid,
)

Edit = Callable[[Dataset, int], None]
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
SAGITTAL = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)
CORONAL = (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)


def stored_values(slices: int = 5, side: int = 32, low: int = 0, high: int = 3000, seed: int = 0) -> NDArray[Any]:
    """Noise that fills a range of stored values, (z, y, x)."""
    return np.random.default_rng(seed).integers(low, high, (slices, side, side))


def ct_slice(stored: NDArray[Any], z: int, orientation: Sequence[float] = AXIAL, spacing_z: float = 2.5) -> Dataset:
    """One identified CT slice of a patient "DOE^JANE", unsigned 16 bits, HU = stored - 1024."""
    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 100"
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.SOPClassUID = CTImageStorage
    ds.SOPInstanceUID = generate_uid(entropy_srcs=["instance", str(z), str(orientation)])
    ds.StudyDate, ds.StudyTime, ds.ContentDate, ds.AcquisitionDate = "20010203", "040506", "20010203", "20010203"
    ds.AccessionNumber, ds.StudyID, ds.Modality = "ACC77", "S1", "CT"
    ds.Manufacturer, ds.InstitutionName, ds.StationName = "Maker", "General Hospital", "CT01"
    ds.ReferringPhysicianName, ds.OperatorsName = "WHO^DOCTOR", "WHO^OPERATOR"
    ds.StudyDescription, ds.SeriesDescription, ds.ImageComments = "Chest of Jane", "Lung 2.5", "for Jane"
    ds.PatientName, ds.PatientID, ds.PatientBirthDate, ds.PatientSex = "DOE^JANE", "MRN123", "19500101", "F"
    ds.BodyPartExamined, ds.KVP, ds.ConvolutionKernel, ds.PatientPosition = "CHEST", "120", "STANDARD", "HFS"
    ds.SliceThickness = str(spacing_z)
    ds.StudyInstanceUID = generate_uid(entropy_srcs=["study"])
    ds.SeriesInstanceUID = generate_uid(entropy_srcs=["series"])
    ds.FrameOfReferenceUID = generate_uid(entropy_srcs=["frame"])
    ds.SeriesNumber, ds.AcquisitionNumber, ds.InstanceNumber = 3, 1, 100 - z
    ds.PositionReferenceIndicator = ""
    axes = np.array(orientation).reshape(2, 3)
    position = np.array([-50.0, -60.0, -300.0]) + z * spacing_z * np.cross(axes[0], axes[1])
    ds.ImagePositionPatient = [f"{v:.6g}" for v in position]
    ds.ImageOrientationPatient = [f"{v:.10g}" for v in orientation]
    ds.PixelSpacing = ["0.7", "0.8"]
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Rows, ds.Columns = stored.shape
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 0
    ds.RescaleIntercept, ds.RescaleSlope = "-1024", "1"
    ds.add_new("PixelData", "OW", stored.astype("<u2").tobytes())
    return ds


def save(ds: Dataset, path: Path, syntax: UID = ExplicitVRLittleEndian) -> Path:
    """Write one dataset; compress it where the syntax is a compressed one."""
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    compressed = syntax.is_encapsulated
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian if compressed else syntax
    if compressed:
        ds.compress(syntax, generate_instance_uid=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    ds.save_as(path, enforce_file_format=True)
    return path


def make_series(
    folder: Path,
    stored: NDArray[Any],
    edit: Edit | None = None,
    *,
    orientation: Sequence[float] = AXIAL,
    syntax: UID = ExplicitVRLittleEndian,
    names: Sequence[str] | None = None,
) -> Path:
    """A folder of single-frame files; `edit(ds, z)` changes a slice before it is written."""
    for z, plane in enumerate(stored):
        ds = ct_slice(plane, z, orientation)
        if edit is not None:
            edit(ds, z)
        save(ds, folder / (names[z] if names else f"IM-{z:04d}.dcm"), syntax)
    return folder


def pixel_type(
    slope: str = "1", intercept: str = "-1024", signed: bool = False, bits: int = 16, padding: int | None = None
) -> Edit:
    """An edit that changes what stored values mean; values must fit the type."""

    def edit(ds: Dataset, z: int) -> None:
        values = np.frombuffer(ds.PixelData, "<u2")
        ds.BitsStored, ds.HighBit, ds.PixelRepresentation = bits, bits - 1, int(signed)
        ds.RescaleSlope, ds.RescaleIntercept = slope, intercept
        if padding is not None:
            ds.add_new("PixelPaddingValue", "SS" if signed else "US", padding)
            values = values.reshape(ds.Rows, ds.Columns).copy()
            values[:4] = np.array(padding).astype(np.int32).astype("<u2")
        ds["PixelData"].value = values.tobytes()

    return edit


def make_enhanced(path: Path, stored: NDArray[Any], order: Sequence[int], syntax: UID = ExplicitVRLittleEndian) -> Path:
    """An enhanced multi-frame CT whose frames stand in `order`; each frame has a slope and intercept of its own."""
    ds = ct_slice(stored[0], 0)
    for keyword in (
        *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept"),
        *("SliceThickness", "ConvolutionKernel", "ImageType", "PositionReferenceIndicator"),
    ):
        delattr(ds, keyword)
    ds.SOPClassUID = EnhancedCTImageStorage
    ds.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    ds.NumberOfFrames = len(order)
    measures, plane, kernel, shared = Dataset(), Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = ["0.7", "0.8"], "2.5"
    plane.ImageOrientationPatient = [str(v) for v in AXIAL]
    kernel.ConvolutionKernel = "B30f"
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [plane]
    shared.CTReconstructionSequence = [kernel]
    ds.SharedFunctionalGroupsSequence = [shared]
    frames = []
    for z in order:
        position, rescale, frame = Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = ["-50", "-60", f"{-300 + 2.5 * z}"]
        rescale.RescaleSlope, rescale.RescaleIntercept, rescale.RescaleType = "1", str(-1024 - z), "HU"
        frame.PlanePositionSequence, frame.PixelValueTransformationSequence = [position], [rescale]
        frames.append(frame)
    ds.PerFrameFunctionalGroupsSequence = frames
    ds["PixelData"].value = stored[list(order)].astype("<u2").tobytes()
    return save(ds, path, syntax)
