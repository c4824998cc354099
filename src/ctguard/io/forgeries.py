"""Forgeries of a data set: Plan + changed block beside the pristine scan; whole volumes are composed when read."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctguard.core.errors import ReadError
from ctguard.core.geometry import as_float_triple, as_int_triple
from ctguard.core.records import Edit
from ctguard.io.atomic import atomic_files

MANIFEST = "forgeries.jsonl"


@dataclass(frozen=True, eq=False)
class Forgery:
    """One forged scan. block: the voxels of the edit's bounding box after forging, HU, in the scan's own type."""

    scan_id: str
    edit: Edit
    block: NDArray[Any]

    @property
    def name(self) -> str:
        """Unique within a data set."""
        z, y, x = as_int_triple(self.edit.center_zyx)
        return f"{self.scan_id}_{self.edit.generator}_{self.edit.task}_{z}_{y}_{x}"

    def paste(self, hu: NDArray[Any]) -> NDArray[Any]:
        """A forged copy of the pristine scan's voxels (z, y, x)."""
        forged = hu.copy()
        window = tuple(slice(a, a + n) for a, n in zip(self.edit.box_start_zyx, self.block.shape, strict=True))
        forged[window] = self.block
        return forged


def write_forgery(forgery: Forgery, folder: Path) -> Path:
    """Write NAME.npz; the same forgery gives the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    edit = forgery.edit
    row = {
        "scan_id": forgery.scan_id,
        "task": edit.task,
        "generator": edit.generator,
        "mode": edit.mode,
        "seed": edit.seed,
        "center_zyx": list(edit.center_zyx),
        "box_start_zyx": list(edit.box_start_zyx),
        "outside_cube": edit.outside_cube,
        "plan": edit.plan,
    }
    path = folder / f"{forgery.name}.npz"
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        np.savez_compressed(
            file, block=forgery.block, mask=edit.mask, strong=edit.strong, row=np.array(json.dumps(row))
        )
    partial.replace(path)
    return path


def read_forgery(path: Path) -> Forgery:
    """The forgery that `write_forgery` wrote. Raises ReadError where the file is missing or damaged."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            row = json.loads(str(stored["row"]))
            edit = Edit(
                task=row["task"],
                generator=row["generator"],
                mode=row["mode"],
                seed=row["seed"],
                center_zyx=as_float_triple(row["center_zyx"]),
                box_start_zyx=as_int_triple(row["box_start_zyx"]),
                mask=stored["mask"],
                strong=stored["strong"],
                outside_cube=row["outside_cube"],
                plan=row["plan"],
            )
            return Forgery(row["scan_id"], edit, stored["block"])
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise ReadError(f"not a whole forgery: {error}", where=path, remedy="forge it again") from error


def write_manifest(rows: Iterable[Mapping[str, Any]], index: str, folder: Path, format: str = "plan") -> None:
    """List the forgeries of a data set, and the index of their pristine scans, one JSON line each.

    rows: what is known of each forgery; "forgery" is its name. format: how they are stored, see synth.layouts.
    """
    lines = [json.dumps(row) for row in ({"index": index, "format": format}, *rows)]
    with atomic_files(folder / MANIFEST) as stage:
        (stage / MANIFEST).write_text("\n".join(lines) + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> tuple[Path, list[Forgery]]:
    """The index of the pristine scans and all forgeries. Raises ReadError."""
    path = folder / MANIFEST
    if not path.is_file():
        raise ReadError("no forgeries are listed here", where=path, remedy="make some with `ctguard synth`")
    head, *rows = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
    if head.get("format", "plan") != "plan":
        what = f"its forgeries are whole scans ({head['format']}), without the pristine ones"
        raise ReadError(what, where=path, remedy="make them with `ctguard synth --format plan`")
    return (folder / head["index"]).resolve(), [read_forgery(folder / f"{row['forgery']}.npz") for row in rows]
