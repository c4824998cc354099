"""Fingerprints: the same for the same pixels however they are coded, another for any other; and where."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from ctguard.core.errors import CtguardError, RefusedError
from ctguard.protect.keys import SealKey
from ctguard.serve.ledger import Fingerprint, changed_region, fingerprint, open_key, sub_keys
from tests.io.dicom_factory import ct_slice, make_enhanced, save, stored_values

KEY = sub_keys(SealKey(bytes(range(32))))
SIDE = 96


def encoded(stored: np.ndarray, syntax: UID = ImplicitVRLittleEndian, **attributes: str) -> bytes:
    buffer = BytesIO()
    ds = ct_slice(stored, 0)
    for name, value in attributes.items():
        setattr(ds, name, value)
    save_to(ds, buffer, syntax)
    return buffer.getvalue()


def save_to(ds: Dataset, buffer: BytesIO, syntax: UID) -> None:
    ds.file_meta = pydicom.dataset.FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
    ds.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian if syntax.is_encapsulated else syntax
    if syntax.is_encapsulated:
        ds.compress(syntax, generate_instance_uid=False)
    ds.save_as(buffer, enforce_file_format=True)


@pytest.fixture
def stored() -> np.ndarray:
    return stored_values(1, SIDE)[0]


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless, JPEGLSLossless], ids=lambda uid: uid.name)
def test_lossless_transcoding_changes_nothing(stored: np.ndarray, syntax: UID) -> None:
    assert fingerprint(encoded(stored, syntax), KEY) == fingerprint(encoded(stored), KEY)


def test_byte_order_changes_nothing(tmp_path: Path, stored: np.ndarray) -> None:
    ds = ct_slice(stored, 0)
    ds.add_new("PixelData", "OW", stored.astype(">u2").tobytes())
    assert fingerprint(save(ds, tmp_path / "big.dcm", ExplicitVRBigEndian), KEY) == fingerprint(encoded(stored), KEY)


def test_names_and_numbers_change_nothing_and_are_not_in_it(stored: np.ndarray) -> None:
    other = fingerprint(
        encoded(stored, PatientName="X^Y", PatientID="9", SeriesDescription="z", RescaleSlope="1.0"), KEY
    )
    assert other == fingerprint(encoded(stored), KEY)


def test_one_voxel_by_one_changes_it_and_its_block_is_named(stored: np.ndarray) -> None:
    changed = stored.copy()
    changed[50, 70] += 1
    before, after = fingerprint(encoded(stored), KEY), fingerprint(encoded(changed), KEY)
    assert before.pixel_hmac != after.pixel_hmac
    # blocks of 8 mm: 11 rows at 0.7 mm, 10 columns at 0.8 mm
    region = {"frames": [1], "rows": [44, 55], "columns": [70, 80]}
    assert changed_region(before.block_digest, after.block_digest) == region


def test_another_rescaling_is_another_image(stored: np.ndarray) -> None:
    assert fingerprint(encoded(stored, RescaleIntercept="-1000"), KEY) != fingerprint(encoded(stored), KEY)
    one, other = fingerprint(encoded(stored, RescaleIntercept="-1000"), KEY), fingerprint(encoded(stored), KEY)
    assert changed_region(one.block_digest, other.block_digest) == {"whole": True}


def test_another_key_makes_another_fingerprint_but_the_same_blocks(stored: np.ndarray) -> None:
    one = fingerprint(encoded(stored), KEY)
    other = fingerprint(encoded(stored), sub_keys(SealKey(bytes(range(1, 33)))))
    assert one.pixel_hmac != other.pixel_hmac
    assert one.block_digest == other.block_digest


def test_every_one_of_a_hundred_substitutions_is_found(stored: np.ndarray) -> None:
    rng = np.random.default_rng(0)
    before = fingerprint(encoded(stored), KEY)
    for _ in range(100):
        changed = stored.copy()
        y, x = rng.integers(0, SIDE - 6, 2)
        changed[y : y + 6, x : x + 6] = stored[y : y + 6, x : x + 6].T + rng.integers(1, 4)
        after = fingerprint(encoded(changed), KEY)
        assert after.pixel_hmac != before.pixel_hmac
        region = changed_region(before.block_digest, after.block_digest)
        assert region["rows"][0] <= y and y + 6 <= region["rows"][1]
        assert region["columns"][0] <= x and x + 6 <= region["columns"][1]


def test_a_frame_of_an_enhanced_object_is_named(tmp_path: Path) -> None:
    stored = stored_values(3, 40)
    changed = stored.copy()
    changed[2, 0, 0] += 5
    prints: list[Fingerprint] = [
        fingerprint(make_enhanced(tmp_path / f"{name}.dcm", values, [0, 1, 2]), KEY)
        for name, values in (("a", stored), ("b", changed))
    ]
    assert changed_region(prints[0].block_digest, prints[1].block_digest)["frames"] == [3]


def test_what_cannot_be_decoded_is_an_error_of_ours(stored: np.ndarray) -> None:
    whole = encoded(stored)
    for broken in (b"", b"no DICOM", whole[:-50], whole[:400]):
        with pytest.raises(CtguardError):
            fingerprint(broken, KEY)


def test_the_key_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "node.key"
    key = open_key(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert open_key(path) == key
    assert "pixels" not in repr(key) and len(key.pseudonym("MRN123")) == 16
    path.chmod(0o644)
    with pytest.raises(RefusedError, match="others can read"):
        open_key(path)
