"""Lossy and lossless compression of slices, as a PACS does it: encode, decode, nothing else."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctguard.core.errors import DataError, MissingExtraError

Stored = NDArray[np.uint16]


def jpeg2000(hu: NDArray[Any], ratio: float | None = None) -> NDArray[np.int16]:
    """Every slice (z, y, x) through JPEG 2000: reversible without a ratio, else 9-7 at that ratio of 16-bit words.

    ratio: uncompressed over compressed bytes, as LossyImageCompressionRatio (0028,2112) counts. Lossy results are cut
    to the range of the scan. Raises DataError for HU that are no whole numbers, MissingExtraError without the codec.
    """
    codec = _module("openjpeg.utils", "pylibjpeg-openjpeg")
    options: dict[str, Any] = {"bits_stored": 16, "photometric_interpretation": 2}
    if ratio is not None:
        options["compression_ratios"] = [ratio]
    return _through(hu, lambda plane: codec.decode(codec.encode_array(plane, **options)))


def jpeg_ls(hu: NDArray[Any], near: int = 0) -> NDArray[np.int16]:
    """Every slice (z, y, x) through JPEG-LS; no voxel moves by more than `near` HU (ISO 14495-1).

    Raises DataError for HU that are no whole numbers, MissingExtraError without the codec.
    """
    codec = _module("jpeg_ls", "pyjpegls")

    def there_and_back(plane: Stored) -> NDArray[Any]:
        rows, columns = plane.shape
        coded = codec.encode_buffer(plane.astype("<u2").tobytes(), rows, columns, 1, 16, near)
        return np.frombuffer(codec.decode_buffer(bytes(coded))[0], "<u2")

    return _through(hu, there_and_back)


def _through(hu: NDArray[Any], codec: Callable[[Stored], NDArray[Any]]) -> NDArray[np.int16]:
    """Unsigned 16-bit words from the lowest HU up, through a codec and back."""
    low, high = int(hu.min()), int(hu.max())
    if hu.dtype != np.int16:
        raise DataError("its HU are no whole numbers, which codecs of CT need", remedy="compress the original series")
    out = np.empty(hu.shape, np.int16)
    for z, plane in enumerate(hu):
        words = np.ascontiguousarray(plane.astype(np.int32) - low).astype(np.uint16)
        decoded = np.asarray(codec(words)).reshape(plane.shape).astype(np.int32)
        out[z] = np.clip(decoded + low, low, high)
    return out


def _module(name: str, package: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise MissingExtraError(f"the codec of {package} is not installed", remedy=f"pip install {package}") from error
