"""Seal keys: files that only their owner can read, and the sub-keys that are derived from one.

A key is 32 random bytes or more. Its file holds one line, "ctguard-seal-key-1:" and the bytes in base64, so that a
pass phrase, a certificate or an empty file is never taken for a key. Sub-keys come from HKDF-Expand with SHA-256
(RFC 5869; section 3.3 lets a uniformly random key skip the extraction), one for each purpose.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
import secrets
import stat
from dataclasses import dataclass, field
from pathlib import Path

from ctguard.core.errors import ReadError, RefusedError, WriteError

_HEAD = b"ctguard-seal-key-1:"
_LEAST_BYTES = 32
_MOST_BYTES = 4096
_KEYGEN = "make one with `ctguard keygen`"


@dataclass(frozen=True)
class SealKey:
    """A symmetric key. Whoever holds it can verify and can seal; it never appears in a repr, a log or an output."""

    material: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.material) < _LEAST_BYTES or len(set(self.material)) < 8:
            raise RefusedError(
                f"a seal key needs {_LEAST_BYTES} random bytes; this one has {len(self.material)}", remedy=_KEYGEN
            )

    @property
    def key_id(self) -> str:
        """Sixteen hexadecimal digits that name the key and tell nothing about it."""
        return self.derive("key id", length=8).hex()

    def derive(self, purpose: str, context: bytes = b"", length: int = 32) -> bytes:
        """A sub-key: HKDF-Expand (RFC 5869) with the purpose and a context, e.g. a nonce, as info."""
        info = b"ctguard seal 1/" + purpose.encode() + b"\0" + context
        block, made, counter = b"", b"", 1
        while len(made) < length:
            block = hmac.new(self.material, block + info + bytes([counter]), hashlib.sha256).digest()
            made, counter = made + block, counter + 1
        return made[:length]


def new_key(path: Path, length: int = _LEAST_BYTES) -> SealKey:
    """A new key of `length` random bytes in a new file of mode 0600.

    Raises WriteError where the file exists (a key is never overwritten) or cannot be made, RefusedError for fewer
    than 32 bytes.
    """
    key = SealKey(secrets.token_bytes(length))
    try:
        # O_EXCL does not follow a link that lies there, and the mode holds from the first moment on.
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise WriteError("it exists; a key is never overwritten", where=path, remedy="give a new name") from None
    except OSError as error:
        raise WriteError(f"cannot be made ({error.strerror})", where=path, remedy="choose a writable folder") from error
    with os.fdopen(handle, "wb") as stream:
        os.fchmod(stream.fileno(), 0o600)
        stream.write(_HEAD + base64.b64encode(key.material) + b"\n")
        stream.flush()
        os.fsync(stream.fileno())
    return key


def read_key(path: Path) -> SealKey:
    """The key in a file.

    Raises ReadError where the file is missing, empty or no key, RefusedError where others than its owner may read
    or write it.
    """
    try:
        with path.open("rb") as stream:
            state = os.fstat(stream.fileno())
            if not stat.S_ISREG(state.st_mode):
                raise ReadError("it is no plain file", where=path, remedy=_KEYGEN)
            if state.st_mode & 0o077:
                mode = f"{stat.S_IMODE(state.st_mode):04o}"
                raise RefusedError(
                    f"others can read or change this key (mode {mode})",
                    where=path,
                    remedy="run chmod 600 on it, and replace the key if somebody else could have read it",
                )
            text = stream.read(_MOST_BYTES + 1).strip()
    except FileNotFoundError:
        raise ReadError("there is no such key file", where=path, remedy=_KEYGEN) from None
    except OSError as error:
        raise ReadError(f"cannot be read ({error.strerror})", where=path, remedy="check its permissions") from error
    if not text:
        raise ReadError("the key file is empty", where=path, remedy=_KEYGEN)
    if not text.startswith(_HEAD) or len(text) > _MOST_BYTES:
        raise ReadError("it is no seal key of ctguard", where=path, remedy=_KEYGEN)
    try:
        return SealKey(base64.b64decode(text.removeprefix(_HEAD), validate=True))
    except binascii.Error:
        raise ReadError("the key in it is damaged", where=path, remedy="take it from your backup") from None
