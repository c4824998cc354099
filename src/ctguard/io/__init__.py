"""Bytes to Volume and back: one `read`, one `write`, for every format. The format modules are imported when used."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ctguard.core.errors import ReadError, WriteError

if TYPE_CHECKING:
    from ctguard.core.volume import Volume

READS = "a DICOM folder, file or zip, .mha, .mhd, .nii, .nii.gz, .nrrd, or a folder of slideNNNN.tiff"
WRITES = "a folder name (DICOM), .mha, .mhd, .nii, .nii.gz, .nrrd or NAME.tiff (a folder of slices)"

_SPACING_MM = (1e-3, 100.0)
"""Of voxels; work on a grid of others would need filters without end."""
_ITK = (".mha", ".mhd", ".nrrd")
_NIFTI = (".nii", ".nii.gz")
_MARKLESS = (".raw", ".zraw", ".png", ".jpg", ".jpeg", ".bmp", ".npy", ".npz", ".hdr", ".img", ".gipl", ".gipl.gz")


def read(path: str | Path, *, allow_gaps: bool = False, series_uid: str | None = None) -> Volume:
    """The one CT volume at `path`, whole and in Hounsfield units.

    path: a DICOM folder, zip or file; .mha, .mhd, .nii, .nii.gz, .nrrd; or an M3Dsynth folder of slideNNNN.tiff.
    allow_gaps: fill missing DICOM slices by interpolation instead of refusing.
    series_uid: which DICOM series to take, where there are several.

    Raises ReadError naming the file and the remedy; never returns a half-read volume.
    """
    path = Path(path)
    volume = _read(path, allow_gaps, series_uid)
    spacing = volume.geometry.spacing_zyx_mm
    if not all(_SPACING_MM[0] <= mm <= _SPACING_MM[1] for mm in spacing):
        said = " x ".join(f"{mm:.3g}" for mm in spacing)
        raise ReadError(f"its voxels are {said} mm, which CT never has", where=path, remedy="repair its header")
    return volume


def _read(path: Path, allow_gaps: bool, series_uid: str | None) -> Volume:
    if not path.exists():
        raise ReadError("there is no such file or folder", where=path, remedy="check the path")
    ending = _ending(path)
    if path.is_dir():
        if ending == ".tiff" or (path / "slide0000.tiff").is_file():
            from ctguard.io.tiff import read_tiff

            return read_tiff(path)
    elif ending in _ITK:
        from ctguard.io.itk import read_itk

        return read_itk(path)
    elif ending in _NIFTI:
        from ctguard.io.nifti import read_nifti

        return read_nifti(path)
    elif path.name.startswith("slide") and ending in (".tiff", ".tif"):
        raise ReadError("one slice of a TIFF stack is no volume", where=path, remedy="give the folder that holds it")
    elif not _is_dicom_or_zip(path, ending):
        raise ReadError("its format is not known", where=path, remedy=f"give {READS}")
    from ctguard.io.dicom import read_dicom

    return read_dicom(path, allow_gaps=allow_gaps, series_uid=series_uid)


def write(volume: Volume, out: str | Path) -> Path:
    """Write a volume in the format that the ending of `out` names, with its marks and provenance; return `out`.

    .mha, .mhd, .nii, .nii.gz and .nrrd are files; NAME.tiff is a folder holding an M3Dsynth stack; a name without
    an ending is a DICOM folder. The same volume gives the same bytes. Existing files are replaced whole.

    Raises WriteError for a format that cannot carry the marks and where `out` cannot be written; then nothing is
    left behind.
    """
    out = Path(out)
    ending = _ending(out)
    if ending in _ITK:
        from ctguard.io.itk import write_itk

        write_itk(volume, out)
    elif ending in _NIFTI:
        from ctguard.io.nifti import write_nifti

        write_nifti(volume, out)
    elif ending == ".tiff":
        from ctguard.io.tiff import write_tiff

        write_tiff(volume, out)
    elif ending in _MARKLESS:
        raise WriteError(f"{ending} cannot carry the marks of a volume", where=out, remedy=f"give {WRITES}")
    elif ending == "" or out.is_dir():
        from ctguard.io.derived import write_dicom

        write_dicom(volume, out)
    else:
        raise WriteError(f"{ending} is no format that is written", where=out, remedy=f"give {WRITES}")
    return out


def _ending(path: Path) -> str:
    """The ending that names the format, in lower case: `.gz` together with the one before it."""
    ending = path.suffix.lower()
    return Path(path.stem).suffix.lower() + ending if ending == ".gz" else ending


def _is_dicom_or_zip(path: Path, ending: str) -> bool:
    from ctguard.io.zipped import is_zip

    if ending in (".dcm", ".zip") or is_zip(path):
        return True
    try:
        with path.open("rb") as stream:
            stream.seek(128)
            return stream.read(4) == b"DICM"
    except OSError as error:
        reason = error.strerror or str(error)
        raise ReadError(f"cannot be opened ({reason})", where=path, remedy="check its permissions") from error
