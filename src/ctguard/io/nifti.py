"""NIfTI-1 and NIfTI-2 (.nii, .nii.gz), by nibabel. NIfTI's patient space is RAS: x and y change sign to become LPS.

The carried record stands in a header extension of code 6 (comment), which other software leaves alone.
"""

from __future__ import annotations

import gzip
import io
import struct
import zlib
from math import prod
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.nifti1 import Nifti1Extension
from nibabel.spatialimages import HeaderDataError, HeaderTypeError, ImageDataError
from nibabel.wrapstruct import WrapStructError
from numpy.typing import NDArray

from ctguard.core.carried import Carried, from_text, to_text
from ctguard.core.errors import ReadError
from ctguard.core.marks import MARKS_KEY, SERIES_DESCRIPTION, Mark
from ctguard.core.provenance import Source
from ctguard.core.volume import Volume
from ctguard.io.atomic import atomic_files
from ctguard.io.bounded import MAX_VOLUME_BYTES
from ctguard.io.dicom_values import one_line
from ctguard.io.grid import affine_xyz, assemble, check_finite, hushed

_AGAIN = "copy it again from where it came"
_COMMENT = 6
_PREFIX = f"{MARKS_KEY}="
_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
_MM_PER_UNIT = {"unknown": 1.0, "mm": 1.0, "meter": 1000.0, "micron": 0.001}
_NIFTI2_BYTES = 540
_CHUNK = 1 << 20
_NIFTI2 = ((540).to_bytes(4, "little"), (540).to_bytes(4, "big"))
_DAMAGE = (
    *(ImageFileError, HeaderDataError, HeaderTypeError, ImageDataError, WrapStructError),
    *(OSError, EOFError, ValueError, KeyError, TypeError, OverflowError, zlib.error, struct.error),
)
"""What nibabel and gzip raise for damaged files."""


def read_nifti(path: Path) -> Volume:
    """Read a NIfTI volume of Hounsfield units with what it carries; sform stands above qform, as in nibabel.

    Raises ReadError for a file that is damaged, cut off, without qform and sform, or no 3-D scalar volume.
    """
    where = str(path)
    try:
        content = path.read_bytes()
        if content.startswith(b"\x1f\x8b"):
            content = _unpacked(content, where)
        kind = nib.Nifti2Image if content[:4] in _NIFTI2 else nib.Nifti1Image
        with hushed("nibabel.global"):
            image = kind.from_stream(io.BytesIO(content))
        voxels = _voxels(image, len(content), where)
        mm_per_unit = _MM_PER_UNIT[image.header.get_xyzt_units()[0]]
    except _DAMAGE as error:
        reason = getattr(error, "strerror", None) or one_line(error)
        raise ReadError(f"cannot be read ({reason})", where=where, remedy=_AGAIN) from error
    header = image.header
    if not int(header["sform_code"]) and not int(header["qform_code"]):
        raise ReadError("it has no qform or sform, so its orientation is unknown", where=where, remedy="set its sform")
    affine = _LPS @ np.asarray(image.affine, dtype=float)
    affine[:3] *= mm_per_unit
    return assemble(voxels, affine, Source("nifti", (where,)), _carried(header, where), where)


def write_nifti(volume: Volume, out: Path) -> None:
    """Write NIfTI-1 in int16 or float32, gzipped where `out` ends in .gz, with what the volume carries.

    The grid is held in float32, to about 1e-4 mm. Raises WriteError where `out` cannot be written.
    """
    check_finite(volume, str(out))
    text = to_text(volume.provenance)
    image = nib.Nifti1Image(volume.hu.transpose(2, 1, 0), _LPS @ affine_xyz(volume.geometry), dtype=volume.hu.dtype)
    image.header.set_xyzt_units("mm")
    image.set_qform(image.affine, code=1)
    image.set_sform(image.affine, code=1)
    image.header["descrip"] = "; ".join(dict.fromkeys(SERIES_DESCRIPTION[m.kind] for m in volume.provenance.marks))[:79]
    image.header.extensions.append(Nifti1Extension("comment", (_PREFIX + text).encode("ascii")))
    with atomic_files(out) as stage:
        if out.suffix.lower() == ".gz":
            # Level 1: noise barely compresses, and higher levels take four times as long for 2 %.
            # No name and no time in the gzip header: the same volume gives the same bytes.
            with (
                (stage / out.name).open("wb") as raw,
                gzip.GzipFile(filename="", mode="wb", fileobj=raw, compresslevel=1, mtime=0) as stream,
            ):
                image.to_stream(stream)
        else:
            with (stage / out.name).open("wb") as raw:
                image.to_stream(raw)


def _unpacked(content: bytes, where: str) -> bytes:
    """What a gzip file holds, to the end, so that its checksum is tested; never much more than its header says."""
    with gzip.GzipFile(fileobj=io.BytesIO(content)) as stream:
        plain = stream.read(_NIFTI2_BYTES)
        kind: Any = nib.Nifti2Header if plain[:4] in _NIFTI2 else nib.Nifti1Header
        header = kind(plain[: kind.template_dtype.itemsize], check=False)
        wanted = int(header["vox_offset"]) + prod(header.get_data_shape()) * header.get_data_dtype().itemsize
        pieces, held = [plain], len(plain)
        while piece := stream.read(_CHUNK):
            held += len(piece)
            if held > min(wanted, MAX_VOLUME_BYTES) + _CHUNK:
                what = f"its header says {wanted} bytes, and it unpacks to more than {held - 1}"
                raise ReadError(what, where=where, remedy=_AGAIN)
            pieces.append(piece)
    return b"".join(pieces)


def _voxels(image: Any, held: int, where: str) -> NDArray[Any]:
    """Voxels (z, y, x), scaled; integers stay integers where slope and intercept are whole numbers.

    held: bytes of the file, tested before room is made for what its header asks.
    """
    proxy = image.dataobj
    shape = tuple(proxy.shape)
    if len(shape) > 3 and all(n == 1 for n in shape[3:]):
        shape = shape[:3]
    if len(shape) != 3 or np.dtype(proxy.dtype).kind not in "iuf":
        what = f"an array of shape {tuple(proxy.shape)} and type {np.dtype(proxy.dtype)} is no volume"
        raise ReadError(what, where=where, remedy="give one 3-D CT volume with one value per voxel")
    wanted = proxy.offset + prod(shape) * np.dtype(proxy.dtype).itemsize
    if min(shape) < 1 or wanted > held:
        raise ReadError(f"it is cut off: {held} bytes where there should be {wanted}", where=where, remedy=_AGAIN)
    stored = np.asarray(proxy.get_unscaled()).reshape(shape, order="F").transpose(2, 1, 0)
    slope, intercept = float(proxy.slope), float(proxy.inter)
    if slope == 1.0 and intercept == 0.0:
        return stored
    if stored.dtype.kind in "iu" and slope.is_integer() and intercept.is_integer():
        return stored.astype(np.int64) * int(slope) + int(intercept)
    return np.asarray(stored * slope + intercept)


def _carried(header: Any, where: str) -> Carried:
    texts = set()
    for extension in header.extensions:
        if extension.get_code() == _COMMENT:
            content = extension.get_content()
            text = (content if isinstance(content, str) else content.decode("latin-1")).rstrip("\x00")
            if text.startswith(_PREFIX):
                texts.add(text.removeprefix(_PREFIX))
    if len(texts) > 1:
        raise ReadError("it carries two different ctguard records", where=where, remedy="read what it was made from")
    if texts:
        return from_text(texts.pop(), where)
    # Software that drops extensions often keeps the description: a forgery must not come back unmarked.
    described = header["descrip"].item().decode("latin-1")
    told = (kind for kind, words in SERIES_DESCRIPTION.items() if words in described)
    return Carried(marks=tuple(Mark(kind, f"its description is {described!r}") for kind in told))
