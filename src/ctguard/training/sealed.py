"""Seals for the scans that a detector learns from: a sealed scan is an honest one."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from ctguard.core.console import log
from ctguard.core.errors import CtguardError
from ctguard.core.volume import Volume
from ctguard.protect.keys import SealKey
from ctguard.protect.seal import seal_volume

EVERY = 3
"""One scan of so many is sealed."""


def seal_by_turns(volume: Volume, number: int) -> NDArray[np.int8] | None:
    """What a seal with a key of its own adds to every third scan, in HU (z, y, x); None for the others.

    A scan that cannot be sealed is said so, and shown without.
    """
    if number % EVERY:
        return None
    key = SealKey(hashlib.sha256(f"training scan {number}".encode()).digest())
    try:
        sealed, _, _ = seal_volume(volume, key)
    except CtguardError as error:
        log.warning("scan %d is shown without a seal: %s", number, error.what)
        return None
    return (sealed.hu.astype(np.int16) - volume.hu.astype(np.int16)).astype(np.int8)
