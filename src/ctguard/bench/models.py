"""The trained detectors of a table: default weights, or the cells of the 3 x 3 matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch

from ctguard import zoo
from ctguard.bench.judging import NO_THRESHOLD
from ctguard.bench.paper_tables import GENERATORS
from ctguard.core.errors import DataError, ModelError
from ctguard.core.threshold import Threshold
from ctguard.detect.detector import Detector
from ctguard.train.checkpoint import Card, read_card

ON = "_on_"


@dataclass(frozen=True)
class Model:
    """One checkpoint of a detector.

    name: of its rows and of its folder. detector: in the zoo. card: None where it is not trained; then only its name is
    printed. trained_on: the one generator of a matrix cell, "" for default weights. threshold: of the calibrated
    protocol, and where it is from.
    """

    name: str
    detector: str
    weights: Path | None
    card: Card | None
    trained_on: str = ""
    threshold: Threshold = NO_THRESHOLD
    threshold_note: str = ""

    @property
    def sha256(self) -> str:
        """Hash of the weights, "" where there are none."""
        return self.card.sha256 if self.card else ""

    @property
    def label(self) -> str:
        """As tables call it: reduced widths are named."""
        return self.detector if self.card is None else f"{self.detector} ({self.card.size})"

    def at(self, threshold: Threshold, note: str) -> Model:
        """The same with a threshold."""
        return replace(self, threshold=threshold, threshold_note=note)


def find_models(names: Sequence[str] = (), folder: Path | None = None) -> list[Model]:
    """Detectors with their weights; by default all of the zoo, those that are not trained with no card.

    folder: of NAME.safetensors and cards, instead of the shipped weights. Raises ModelError for an unknown name, and
    where weights that were asked for by name are missing.
    """
    models = []
    for name in names or zoo.names("detector"):
        entry = zoo.find(name, "detector")
        path = entry.weights_in(folder)
        if path is None or not path.is_file():
            if names:
                raise ModelError("it is not trained", where=path or name, remedy="train it, or give --weights")
            models.append(Model(name, name, None, None))
            continue
        models.append(_model(name, name, path))
    return models


def find_matrix(folder: Path | None) -> list[Model]:
    """The cells DETECTOR_on_GENERATOR.safetensors of a folder, all detectors of the zoo x the paper's generators.

    A cell that is not there has no card. Raises ModelError where the folder holds a matrix checkpoint of an unknown
    detector or generator.
    """
    if folder is None:
        return []
    cells = [(name, generator) for name in zoo.names("detector") for generator in GENERATORS]
    stems = {f"{name}{ON}{generator}": (name, generator) for name, generator in cells}
    present = {path.stem: path for path in sorted(folder.glob(f"*{ON}*.safetensors"))}
    unknown = sorted(set(present) - set(stems))
    if unknown:
        remedy = f"name it DETECTOR{ON}GENERATOR.safetensors, of {', '.join(GENERATORS)}"
        raise ModelError(f"no cell of the matrix is called {unknown[0]!r}", where=folder, remedy=remedy)
    if not present:
        raise ModelError("it holds no matrix checkpoint", where=folder, remedy=f"name them DETECTOR{ON}GENERATOR")
    return [
        _model(stem, name, present[stem], generator) if stem in present else Model(stem, name, None, None, generator)
        for stem, (name, generator) in stems.items()
    ]


def _model(name: str, detector: str, path: Path, trained_on: str = "") -> Model:
    card = read_card(path.with_suffix(".json"))
    model = Model(name, detector, path, card, trained_on)
    return model if card.threshold is None else model.at(card.scan_threshold, f"the card's: {card.threshold_note}")


@lru_cache(maxsize=64)
def load_detector(name: str, weights: Path) -> Detector:
    """The detector of a model, once per process. One torch thread per job, so that the same command gives the same."""
    torch.set_num_threads(1)
    detector: Detector = zoo.load(zoo.find(name, "detector"), weights)[0]
    return detector


def detector_of(model: Model) -> Detector:
    """The loaded detector of a model. Raises DataError for one without a file of weights."""
    if model.weights is None:
        raise DataError("its weights have no file", where=model.name, remedy="load it from a file")
    return load_detector(model.detector, model.weights)


def hashes_of(models: Sequence[Model]) -> dict[str, str]:
    """Of the weights of every trained model, by its name: a table carries them."""
    return {model.name: model.sha256 for model in models if model.card is not None}
