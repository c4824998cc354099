"""Key files: who may read them, what passes for a key, what never leaves them."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from ctguard.core.errors import ReadError, RefusedError, WriteError
from ctguard.protect.keys import SealKey, new_key, read_key
from tests.protect.seals import KEY, OTHER


def test_a_new_key_is_random_private_and_comes_back(tmp_path: Path) -> None:
    one, other = new_key(tmp_path / "one"), new_key(tmp_path / "other")
    assert read_key(tmp_path / "one") == one
    assert one.material != other.material
    assert one.key_id != other.key_id
    assert len(one.material) == 32
    assert stat.S_IMODE((tmp_path / "one").stat().st_mode) == 0o600


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    first = new_key(tmp_path / "key")
    with pytest.raises(WriteError, match="never overwritten"):
        new_key(tmp_path / "key")
    assert read_key(tmp_path / "key") == first


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o660, 0o604])
def test_a_key_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    new_key(tmp_path / "key")
    (tmp_path / "key").chmod(mode)
    with pytest.raises(RefusedError, match=rf"mode {mode:04o}.*chmod 600"):
        read_key(tmp_path / "key")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "empty"),
        (b"\n \n", "empty"),
        (b"correct horse battery staple and some more words to be long", "no seal key"),
        (b"-----BEGIN PRIVATE KEY-----\nabc\n", "no seal key"),
        (b"ctguard-seal-key-1:!!!not base64!!!", "damaged"),
    ],
)
def test_what_is_no_key_is_refused_in_one_line(tmp_path: Path, text: bytes, words: str) -> None:
    path = tmp_path / "key"
    path.write_bytes(text)
    path.chmod(0o600)
    with pytest.raises(ReadError, match=words) as error:
        read_key(path)
    assert "\n" not in str(error.value)
    assert text.strip() == b"" or text.decode().strip() not in str(error.value)


def test_a_missing_key_a_folder_and_a_short_key_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(ReadError, match="no such key file"):
        read_key(tmp_path / "nothing")
    with pytest.raises(ReadError):
        read_key(tmp_path)
    with pytest.raises(RefusedError, match="32 random bytes"):
        SealKey(b"short")
    with pytest.raises(RefusedError, match="random"):
        SealKey(bytes(32))


def test_the_bytes_of_a_key_stand_in_no_repr_and_not_in_its_id() -> None:
    assert repr(KEY) == "SealKey()"
    assert KEY.material.hex()[:8] not in KEY.key_id
    assert KEY.key_id != OTHER.key_id


def test_sub_keys_differ_by_purpose_context_and_key() -> None:
    made = {KEY.derive("a"), KEY.derive("b"), KEY.derive("a", b"x"), OTHER.derive("a"), KEY.derive("a", b"y")}
    assert len(made) == 5
    assert KEY.derive("a") == KEY.derive("a")
    assert len(KEY.derive("a", length=100)) == 100
