"""gdcm in a process of its own: a damaged JPEG frame makes it end its whole process, which would be the node's.

A request is a line of JSON, then PixelData; an answer is a line of JSON, then the voxels of all frames.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import threading
from functools import lru_cache
from select import select
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import UID

from ctguard.io.dicom_values import PARSE_ERRORS, one_line

_START_S, _FRAME_S = 120.0, 9.0
_MOST_BYTES = 4 << 30
_ONE = threading.Lock()


def frames(pixel_data: bytes, syntax: UID, options: dict[str, Any]) -> list[NDArray[Any]]:
    """Stored values of each frame. options: of pydicom's decoder. Raises RuntimeError where gdcm fails, or ends."""
    request = {"syntax": syntax, "bytes": len(pixel_data), "options": options}
    with _ONE:
        process = _helper(os.getpid())
        if process.poll() is not None:  # it was ended by somebody since
            _helper.cache_clear()
            process = _helper(os.getpid())
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(json.dumps(request).encode() + b"\n" + pixel_data)
            process.stdin.flush()
            answer = json.loads(_line(process, _FRAME_S * min(options["number_of_frames"], 10)))
            size = int(np.prod(answer.get("shape", 0))) * np.dtype(answer.get("type", "u1")).itemsize
            voxels = process.stdout.read(size)
            if len(voxels) < size:
                raise EOFError
        except (OSError, EOFError, ValueError) as error:
            process.kill()
            process.communicate()
            _helper.cache_clear()
            raise RuntimeError("gdcm ended, or did not, on a damaged frame") from error
    if "error" in answer:
        raise RuntimeError(answer["error"])
    return list(np.frombuffer(voxels, answer["type"]).reshape(answer["shape"]))


@lru_cache(maxsize=1)
def _helper(owner: int) -> subprocess.Popen[bytes]:
    """The process that decodes for the process `owner`; it ends with it."""
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen([sys.executable, "-P", "-m", __name__], **pipes)
    _line(process, _START_S)
    return process


def _line(process: subprocess.Popen[bytes], seconds: float) -> bytes:
    assert process.stdout is not None
    ready = select([process.stdout], [], [], seconds)[0]
    return process.stdout.readline() if ready else b""


def _serve(requests: BinaryIO, answers: BinaryIO) -> None:
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (_MOST_BYTES if hard < 0 else min(_MOST_BYTES, hard), hard))
    answers.write(b"ready\n")
    answers.flush()
    while line := requests.readline():
        request = json.loads(line)
        data = requests.read(request["bytes"])
        try:
            decoder = get_decoder(UID(request["syntax"]))
            decoded = decoder.iter_array(data, raw=True, decoding_plugin="gdcm", **request["options"])
            voxels = np.stack([array for array, _ in decoded])
            answer, body = {"type": voxels.dtype.str, "shape": voxels.shape}, voxels.tobytes()
        except (*PARSE_ERRORS, MemoryError) as error:
            answer, body = {"error": one_line(error)}, b""
        answers.write(json.dumps(answer).encode() + b"\n" + body)
        answers.flush()


if __name__ == "__main__":
    _serve(sys.stdin.buffer, sys.stdout.buffer)
