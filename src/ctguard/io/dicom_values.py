"""Attribute values of a dataset, and the errors for those that are missing. For readers and writers of DICOM."""

from __future__ import annotations

import struct
import zlib
from functools import lru_cache
from typing import Any

from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import RawDataElement, convert_raw_data_element
from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.multival import MultiValue
from pydicom.tag import BaseTag, Tag

from ctguard.core.errors import ReadError

PARSE_ERRORS = (
    InvalidDicomError,
    BytesLengthException,
    EOFError,
    OSError,
    ValueError,
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
    NotImplementedError,
    RuntimeError,
    ArithmeticError,
    struct.error,
    zlib.error,
    UserWarning,
)
"""What pydicom and its decoders raise on damaged input."""

REWRITE = "export the series again, or copy it again from where it came"


def value_of(ds: Dataset, keyword: str) -> Any:
    """The value of an attribute, or None where it is absent or empty.

    Most values are the same in every slice of a series: each is decoded once, not once per slice.
    """
    element = ds.get_item(_tag_of(keyword))
    if isinstance(element, RawDataElement):
        value = _decoded_value(element.tag, element.VR, element.value, element.is_implicit_VR, element.is_little_endian)
    else:
        value = None if element is None else element.value
    return None if value == "" else value


@lru_cache(maxsize=256)
def _tag_of(keyword: str) -> BaseTag:
    return Tag(tag_for_keyword(keyword) or 0)


@lru_cache(maxsize=1024)
def _decoded_value(tag: BaseTag, vr: str | None, raw: bytes | None, implicit: bool, little: bool) -> Any:
    element = RawDataElement(tag, vr, len(raw or b""), raw, 0, implicit, little)
    return convert_raw_data_element(element).value


def required(ds: Dataset, keyword: str, file: str) -> Any:
    """The value of an attribute that a CT image must have. Raises ReadError naming the tag."""
    value = value_of(ds, keyword)
    if value is None:
        raise missing(keyword, file)
    return value


def missing(keyword: str, file: str) -> ReadError:
    """The error for an attribute that is absent or empty."""
    return ReadError(f"{keyword} {tag_text(keyword)} is missing", where=file, remedy=REWRITE)


def tag_text(keyword: str) -> str:
    """The tag of an attribute as errors name it: (0028,1053)."""
    tag = _tag_of(keyword)
    return f"({tag.group:04X},{tag.element:04X})"


def texts(ds: Dataset, keyword: str) -> list[str]:
    """Every value of an attribute as text; empty where it is absent or empty."""
    value = value_of(ds, keyword)
    return [] if value is None else texts_of(value)


def texts_of(value: Any) -> list[str]:
    """One value or several, as pydicom gives them, as a list of texts."""
    return [str(v) for v in value] if isinstance(value, MultiValue | list | tuple) else [str(value)]


def one_line(error: BaseException | str) -> str:
    """The text of another library's error, or of a file, on one line: shortened, without control characters."""
    text = "".join(c if c.isprintable() else " " for c in str(error))
    text = " ".join(text.split()) or type(error).__name__
    return text if len(text) <= 160 else f"{text[:157]}..."
