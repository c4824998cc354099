"""Streams of which a damaged or malicious file cannot ask for more memory than it is worth."""

from __future__ import annotations

import os
import zlib
from typing import BinaryIO

MAX_RATIO = 50
"""Of unpacked to packed bytes; CT packs 2 to 5 times."""
SMALL_BYTES = 64 * 2**20
"""What unpacks to less than this is never a bomb, whatever its ratio."""
_SMALL_DATASET = 1 << 24
"""The same of a deflated dataset: zeros are two million elements to read."""
MAX_VOLUME_BYTES = 1 << 33
"""Of the voxels of a compressed file: 2048 slices of 1024 x 1024 in float32."""
_CHUNK = 1 << 20


def is_bomb(packed: int, unpacked: int, small: int = SMALL_BYTES) -> bool:
    """Whether so many bytes unpack to more than CT ever does."""
    return unpacked > small and unpacked > MAX_RATIO * max(packed, 1)


class Bounded:
    """A stream for pydicom, which asks for as many bytes as a damaged length says, and inflates without limit."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.seek, self.tell = stream.seek, stream.tell
        start = stream.tell()
        self._size = stream.seek(0, os.SEEK_END)
        stream.seek(start)

    def read(self, size: int = -1) -> bytes:
        """As of any stream. Raises ValueError where the rest, which pydicom asks for to inflate it, is a bomb."""
        if size >= 0:
            return self._stream.read(min(size, max(self._size - self.tell(), 0)))
        rest = self._stream.read()
        inflate, unpacked, left = zlib.decompressobj(-zlib.MAX_WBITS), 0, rest
        while left and not inflate.eof:
            unpacked += len(inflate.decompress(left, _CHUNK))
            left = inflate.unconsumed_tail
            if is_bomb(len(rest), unpacked, _SMALL_DATASET):
                raise ValueError(f"{len(rest)} bytes inflate to more than {unpacked - 1}, as only a bomb does")
        return rest
