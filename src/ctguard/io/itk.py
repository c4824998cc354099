"""MetaImage (.mha, .mhd with .raw or .zraw) and NRRD (.nrrd), by SimpleITK. ITK's patient space is LPS, as ours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813 (the name its own documents use)

from ctguard.core.carried import Carried, from_text, to_text
from ctguard.core.errors import ReadError, WriteError
from ctguard.core.marks import MARKS_KEY
from ctguard.core.provenance import Source
from ctguard.core.volume import Volume
from ctguard.io.atomic import atomic_files
from ctguard.io.dicom_values import one_line
from ctguard.io.grid import affine_xyz, assemble, check_finite
from ctguard.io.headers import check_metaimage, check_nrrd

_DRIVERS = {".mha": ("mha", "MetaImageIO"), ".mhd": ("mha", "MetaImageIO"), ".nrrd": ("nrrd", "NrrdImageIO")}
_PIECE = 8000
"""Characters of the carried record per header field; MetaImage fields end at 32 KiB."""


def read_itk(path: Path) -> Volume:
    """Read a .mha, .mhd or .nrrd volume of Hounsfield units with what it carries (core.carried).

    Raises ReadError for a file that is damaged, cut off, without geometry, or no 3-D scalar volume.
    """
    where = str(path)
    name, driver = _DRIVERS[path.suffix.lower()]
    reader = sitk.ImageFileReader()
    reader.SetFileName(where)
    reader.SetImageIO(driver)
    try:
        (check_nrrd if name == "nrrd" else check_metaimage)(path)
        reader.ReadImageInformation()
        if reader.GetDimension() != 3 or reader.GetNumberOfComponents() != 1:
            what = f"{reader.GetDimension()} dimensions and {reader.GetNumberOfComponents()} values per voxel"
            raise ReadError(f"it has {what}", where=where, remedy="give one 3-D CT volume with one value per voxel")
        carried = _carried(reader, where)
        image = reader.Execute()
    except RuntimeError as error:
        raise ReadError(f"cannot be read ({_last_line(error)})", where=where, remedy="check the file") from error
    except OSError as error:
        raise ReadError(f"cannot be read ({error.strerror or error})", where=where, remedy="check the file") from error
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * np.asarray(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    return assemble(sitk.GetArrayFromImage(image), affine, Source(name, (where,)), carried, where)


def write_itk(volume: Volume, out: Path) -> None:
    """Write .mha, .mhd (with .zraw) or .nrrd, compressed without loss, with what the volume carries.

    Raises WriteError where `out` cannot be written; then nothing is left behind.
    """
    check_finite(volume, str(out))
    affine = affine_xyz(volume.geometry)
    spacing = np.asarray(volume.geometry.spacing_zyx_mm[::-1])
    image = sitk.GetImageFromArray(volume.hu)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(affine[:3, 3].tolist())
    image.SetDirection((affine[:3, :3] / spacing).ravel().tolist())
    for key, piece in _pieces(to_text(volume.provenance)).items():
        image.SetMetaData(key, piece)
    with atomic_files(out) as stage:
        # The driver goes by a lower-case ending; the header inside .mhd names its data by the same stem.
        staged = stage / (out.stem + out.suffix.lower())
        try:
            sitk.WriteImage(image, str(staged), useCompression=True)
        except RuntimeError as error:
            raise WriteError(f"cannot be written ({_last_line(error)})", where=out, remedy="check the disk") from error
        if staged.name != out.name:
            staged.rename(stage / out.name)


def _pieces(text: str) -> dict[str, str]:
    """The record under MARKS_KEY, and under MARKS_KEY_2, _3 … where it is longer than a header field."""
    if len(text) > _PIECE:
        text = text.replace(" ", "\\u0020")  # a field loses blanks at its ends
    starts = range(0, len(text), _PIECE)
    return {_piece_key(n): text[start : start + _PIECE] for n, start in enumerate(starts, start=1)}


def _carried(reader: sitk.ImageFileReader, where: str) -> Carried:
    keys = [key for key in reader.GetMetaDataKeys() if key == MARKS_KEY or key.startswith(f"{MARKS_KEY}_")]
    if not keys:
        return Carried()
    names = [_piece_key(n) for n in range(1, len(keys) + 1)]
    if set(names) != set(keys):
        raise ReadError("a part of its ctguard record is missing", where=where, remedy="read what it was made from")
    return from_text("".join(reader.GetMetaData(name) for name in names), where)


def _piece_key(number: int) -> str:
    return MARKS_KEY if number == 1 else f"{MARKS_KEY}_{number}"


def _last_line(error: RuntimeError) -> str:
    """What ITK says in the end, without the source lines and addresses before it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return one_line(lines[-1]) if lines else type(error).__name__
