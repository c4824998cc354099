"""Every exception that ctguard raises on purpose.

CtguardError
├── ReadError          a file or a series cannot be read whole
├── WriteError         an output cannot be written, or must not be
├── GeometryError      positions, spacings, grids or sites that do not fit
├── RefusedError       a guard against misuse said no (MISUSE.md)
├── DataError          a case table is incomplete, or leaks patients between splits
├── RecipeError        a recipe, an option or its values do not fit
├── ModelError         weights are missing, damaged or of another architecture
└── MissingExtraError  an optional part is not installed

The command line turns each of them into one line on stderr and exit code 1. A message says what, where
and what to do.
"""

from __future__ import annotations

from pathlib import Path


class CtguardError(Exception):
    """What went wrong, where, and what to do about it."""

    def __init__(self, what: str, *, where: str | Path | None = None, remedy: str | None = None) -> None:
        self.what = what
        self.where = None if where is None else str(where)
        self.remedy = remedy
        text = what if self.where is None else f"{self.where}: {what}"
        super().__init__(text if remedy is None else f"{text}; {remedy}")


class ReadError(CtguardError):
    """A file or a series cannot be read whole."""


class WriteError(CtguardError):
    """An output cannot be written, or must not be."""


class GeometryError(CtguardError):
    """Positions, spacings, grids or sites that do not fit."""


class RefusedError(CtguardError):
    """A guard against misuse said no."""


class DataError(CtguardError):
    """A case table is incomplete, or leaks patients between splits."""


class RecipeError(CtguardError):
    """A recipe, an option or its values do not fit."""


class ModelError(CtguardError):
    """Weights are missing, damaged or of another architecture."""


class MissingExtraError(CtguardError):
    """An optional part is not installed."""
