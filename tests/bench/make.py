"""A small data set of forgeries that anybody can see, and detectors that need no training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ctguard import io, zoo
from ctguard.core.geometry import FloatTriple
from ctguard.core.records import Case, Edit, Finding, Split, Task
from ctguard.core.volume import Volume
from ctguard.detect.detector import Batch, Detector
from ctguard.io.cases import write_cases
from ctguard.io.forgeries import Forgery, write_forgery, write_manifest
from ctguard.train.checkpoint import Card, save_checkpoint
from tests.detect.scans import thorax

SHAPE, SPACING = (40, 48, 56), (2.5, 6.0, 6.0)
SITES: dict[Task, FloatTriple] = {"inject": (12.0, 24.0, 17.0), "remove": (30.0, 24.0, 39.0)}
BRIGHT_HU = 2000
SEEN: list[int] = []
"""Slices that a stub was shown, one number per call."""


class Stub(Detector):
    """In the whole body; its score is the hottest pixel."""

    area = "body"

    def __init__(self) -> None:
        super().__init__()
        self.window_hu = (-1000.0, 1000.0)
        self.dims = 2
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        SEEN.append(len(x))
        logit = self.logit(x)
        return logit.flatten(1).amax(dim=1), logit

    def logit(self, x: Tensor) -> Tensor:
        return (x - 1000) / 50

    def step(self, batch: Batch, turn: str) -> dict[str, Tensor]:
        return {"loss": torch.zeros(())}


class Constant(Stub):
    """Says the same of everything."""

    def logit(self, x: Tensor) -> Tensor:
        return torch.full_like(x, -1.0)


class Mute(Stub):
    """Knows, and does not say where."""

    localises = False


def add_detectors(monkeypatch: pytest.MonkeyPatch, folder: Path, threshold: float | None = 0.5) -> None:
    """The stubs as detectors of the zoo, alone in it, with weights in `folder`."""
    kept = tuple(entry for entry in zoo.ENTRIES if entry.kind != "detector")
    made = []
    for kind in (Stub, Constant, Mute):
        name = kind.__name__.lower()
        path = f"tests.bench.make:{kind.__name__}"
        made.append(zoo.Entry(name, "detector", "localisation", path, (-1000.0, 1000.0), name, "made for a test"))
        save(kind(), name, folder, threshold)
    monkeypatch.setattr(zoo, "ENTRIES", (*kept, *made))


def save(module: nn.Module, name: str, folder: Path, threshold: float | None = None) -> Card:
    """Weights and a card."""
    note = "" if threshold is None else "chosen by hand"
    card = Card(name, name, "", "cpu", {}, "made for a test", 0, 0, "", "", threshold=threshold, threshold_note=note)
    return save_checkpoint(module, card, folder)


def forgery(case: str, volume: Volume, task: Task, generator: str, hu: int = BRIGHT_HU) -> Forgery:
    """A cuboid of one value inside the nominal cube."""
    center = SITES[task]
    start = tuple(round(c) - r for c, r in zip(center, (3, 1, 1), strict=True))
    mask = np.ones((7, 3, 3), bool)
    edit = Edit(task, generator, "clean", 0, center, start, mask, mask, 0, {"core_mm": 16.0})  # type: ignore[arg-type]
    return Forgery(case, edit, np.full(mask.shape, hu, np.int16))


def data_set(
    folder: Path, patients: dict[Split, int], generators: tuple[str, ...] = ("pix2pix", "copy-move", "identity")
) -> Path:
    """Thoraces of each split, every one forged twice by each generator; identity leaves air, which no stub sees."""
    cases, names = [], []
    for number, split in enumerate(split for split, count in patients.items() for _ in range(count)):
        scan = f"scan-{number}"
        volume = thorax(SHAPE, SPACING, seed=number)
        io.write(volume, folder / f"{scan}.mha")
        point = volume.geometry.affine @ [*SITES["remove"], 1.0]
        finding = Finding((float(point[0]), float(point[1]), float(point[2])), 12.0, 5.0)
        cases.append(Case(scan, f"patient-{number}", f"{scan}.mha", split=split, findings=(finding,)))
        for task in SITES:
            for generator in generators:
                made = forgery(scan, volume, task, generator, -900 if generator == "identity" else BRIGHT_HU)
                write_forgery(made, folder)
                names.append({"forgery": made.name, "scan_id": scan})
    write_cases(cases, folder / "index.csv")
    write_manifest(names, "index.csv", folder)
    return folder
