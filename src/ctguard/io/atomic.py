"""All or nothing: outputs are made in a hidden sibling and renamed into place, so that a failure leaves nothing."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ctguard.core.errors import WriteError


@contextmanager
def atomic_files(out: Path) -> Iterator[Path]:
    """A fresh folder beside `out`; what is written in it moves beside `out` at the end, replacing files of those names.

    The file called `out.name` moves last, so that a header never points at data that is not there yet.
    Raises WriteError, of one line, where the folder cannot be written; then nothing is left behind.
    """
    if out.is_dir():
        raise WriteError("a folder of this name is in the way", where=out, remedy="give another name")
    with _staged(out) as stage:
        yield stage
        for made in sorted(stage.iterdir(), key=lambda path: path.name == out.name):
            made.replace(out.parent / made.name)


@contextmanager
def atomic_folder(out: Path) -> Iterator[Path]:
    """A fresh folder that becomes `out` at the end.

    Raises WriteError where `out` already holds something or cannot be written; then nothing is left behind.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise WriteError("it exists and is not an empty folder", where=out, remedy="give a new name")
    with _staged(out) as stage:
        yield stage
        stage.replace(out)


@contextmanager
def _staged(out: Path) -> Iterator[Path]:
    made = [parent for parent in out.parents if not parent.exists()]
    stage = out.parent / f".{out.name}.{secrets.token_hex(4)}.part"
    done = False
    try:
        stage.mkdir(parents=True)
        yield stage
        done = True
    except OSError as error:
        reason = error.strerror or str(error)
        raise WriteError(f"cannot be written ({reason})", where=out, remedy="choose a writable place") from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)
        for parent in () if done else made:
            if parent.is_dir() and not any(os.scandir(parent)):
                parent.rmdir()
