"""Every generator, detector, protector and scorer: torch-free, so that the command line can list them at once.

A new model is one file, one entry here and one recipe; the laws in tests/laws run on it unasked.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ctguard.core.errors import ModelError

if TYPE_CHECKING:
    from ctguard.train.checkpoint import Card

Kind = Literal["generator", "detector", "extractor", "protector", "scorer"]
WEIGHTS = Path(__file__).parent / "weights"


@dataclass(frozen=True)
class Entry:
    """One method. weights: stem of its files in the weights folder, empty where it has none to train."""

    name: str
    kind: Kind
    task: str
    class_path: str
    window_hu: tuple[float, float]
    weights: str
    source: str
    licence: str = "Apache-2.0"

    @property
    def weights_path(self) -> Path | None:
        """The shipped weights file, whether it exists or not; None where there is nothing to train."""
        return self.weights_in(None)

    def weights_in(self, folder: Path | None) -> Path | None:
        """The weights file in a folder (None: that of the shipped ones); None where there is nothing to train."""
        return (folder or WEIGHTS) / f"{self.weights}.safetensors" if self.weights else None


_CTGAN = "Mirsky et al., CT-GAN, USENIX Security 2019"
_CYCLE = "Zhu et al., CycleGAN, ICCV 2017, as in M3Dsynth, Zingarini et al., ICASSP 2024"
_DDPM = "Ho et al., DDPM, NeurIPS 2020, as in M3Dsynth, Zingarini et al., ICASSP 2024"
_MITS = "Pasqualino et al., MITS-GAN, Comput. Biol. Med. 183, 2024"
_TAFIM = "Aneja et al., TAFIM, ECCV 2022"
_CONTROL = "control forgery, M3Dsynth chain without a generator"
_CUBE_WINDOW = (-1024.0, 1600.0)

ENTRIES: tuple[Entry, ...] = (
    Entry(
        name="pix2pix",
        kind="generator",
        task="inject",
        class_path="ctguard.tamper.pix2pix:Pix2Pix",
        window_hu=_CUBE_WINDOW,
        weights="pix2pix_inject",
        source=_CTGAN,
    ),
    Entry(
        name="pix2pix",
        kind="generator",
        task="remove",
        class_path="ctguard.tamper.pix2pix:Pix2Pix",
        window_hu=_CUBE_WINDOW,
        weights="pix2pix_remove",
        source=_CTGAN,
    ),
    Entry(
        name="cyclegan",
        kind="generator",
        task="inject",
        class_path="ctguard.tamper.cyclegan:CycleGAN",
        window_hu=_CUBE_WINDOW,
        weights="cyclegan_inject",
        source=_CYCLE,
    ),
    Entry(
        name="cyclegan",
        kind="generator",
        task="remove",
        class_path="ctguard.tamper.cyclegan:CycleGAN",
        window_hu=_CUBE_WINDOW,
        weights="cyclegan_remove",
        source=_CYCLE,
    ),
    Entry(
        name="diffusion",
        kind="generator",
        task="inject",
        class_path="ctguard.tamper.diffusion:Diffusion",
        window_hu=_CUBE_WINDOW,
        weights="diffusion_inject",
        source=_DDPM,
    ),
    Entry(
        name="diffusion",
        kind="generator",
        task="remove",
        class_path="ctguard.tamper.diffusion:Diffusion",
        window_hu=_CUBE_WINDOW,
        weights="diffusion_remove",
        source=_DDPM,
    ),
    Entry(
        name="identity",
        kind="generator",
        task="any",
        class_path="ctguard.tamper.controls:Identity",
        window_hu=_CUBE_WINDOW,
        weights="",
        source=_CONTROL,
    ),
    Entry(
        name="copy-move",
        kind="generator",
        task="any",
        class_path="ctguard.tamper.controls:CopyMove",
        window_hu=_CUBE_WINDOW,
        weights="",
        source=_CONTROL,
    ),
    Entry(
        name="unet",
        kind="detector",
        task="localisation",
        class_path="ctguard.detect.unet:UNet2d",
        window_hu=(-1150.0, 350.0),
        weights="unet",
        source="Ronneberger et al., U-Net, MICCAI 2015",
    ),
    Entry(
        name="volumetric",
        kind="detector",
        task="localisation",
        class_path="ctguard.detect.volumetric:Volumetric",
        window_hu=(-1150.0, 350.0),
        weights="volumetric",
        source="this project",
    ),
    Entry(
        name="xception",
        kind="detector",
        task="detection",
        class_path="ctguard.detect.xception:Xception",
        window_hu=(-1150.0, 350.0),
        weights="xception",
        source="Chollet, Xception, CVPR 2017, as in FaceForensics++ and M3Dsynth, Zingarini et al., ICASSP 2024",
    ),
    Entry(
        name="hpfcn",
        kind="detector",
        task="localisation",
        class_path="ctguard.detect.hpfcn:HPFCN",
        window_hu=(-1150.0, 350.0),
        weights="hpfcn",
        source="Li and Huang, HP-FCN, ICCV 2019",
    ),
    Entry(
        name="mvssnet",
        kind="detector",
        task="localisation",
        class_path="ctguard.detect.mvssnet:MVSSNet",
        window_hu=(-1150.0, 350.0),
        weights="mvssnet",
        source="Chen et al., MVSS-Net, ICCV 2021; Dong et al., IEEE TPAMI 2022",
    ),
    Entry(
        name="mantranet",
        kind="detector",
        task="localisation",
        class_path="ctguard.detect.mantranet:ManTraNet",
        window_hu=(-1150.0, 350.0),
        weights="mantranet",
        source="Wu et al., ManTraNet, CVPR 2019",
    ),
    Entry(
        name="trufor",
        kind="detector",
        task="localisation",
        class_path="ctguard.detect.trufor:TruFor",
        window_hu=(-1150.0, 350.0),
        weights="trufor",
        source="Guillaro et al., TruFor, CVPR 2023, with a residual of CT noise in place of Noiseprint++",
    ),
    Entry(
        name="ct-residual",
        kind="extractor",
        task="residual",
        class_path="ctguard.detect.residual:CTResidual",
        window_hu=(-1150.0, 350.0),
        weights="residual",
        source="residual of CT noise, by contrast over series, after Guillaro et al., TruFor, CVPR 2023, section 3.1",
    ),
    Entry(
        name="ascent",
        kind="protector",
        task="perturbation",
        class_path="ctguard.protect.ascent:ascend",
        window_hu=_CUBE_WINDOW,
        weights="",
        source="projected gradient ascent (Madry et al., ICLR 2018) through the forging chain",
    ),
    Entry(
        name="noise",
        kind="protector",
        task="perturbation",
        class_path="ctguard.protect.noise:add_noise",
        window_hu=_CUBE_WINDOW,
        weights="",
        source="uniform noise within the budget: the floor of every protection table",
    ),
    Entry(
        name="mitsgan",
        kind="protector",
        task="perturbation",
        class_path="ctguard.protect.mitsgan:MITSGAN",
        window_hu=(-1150.0, 350.0),
        weights="mitsgan_gradient",
        source=f"{_MITS}, with gradients through the forging chain and a budget in HU",
    ),
    Entry(
        name="mitsgan-paper",
        kind="protector",
        task="perturbation",
        class_path="ctguard.protect.mitsgan:MITSGAN",
        window_hu=(-1024.0, 3071.0),
        weights="mitsgan_paper",
        source=_MITS,
    ),
    Entry(
        name="tafim",
        kind="protector",
        task="perturbation",
        class_path="ctguard.protect.tafim:TAFIM",
        window_hu=_CUBE_WINDOW,
        weights="tafim",
        source=_TAFIM,
    ),
    Entry(
        name="tafim-global",
        kind="protector",
        task="perturbation",
        class_path="ctguard.protect.tafim:TAFIMGlobal",
        window_hu=_CUBE_WINDOW,
        weights="tafim",
        source=f"{_TAFIM}: its global perturbation alone",
    ),
    Entry(
        name="shield",
        kind="protector",
        task="perturbation",
        class_path="ctguard.protect.shield:Shield",
        window_hu=_CUBE_WINDOW,
        weights="shield",
        source="ours: carrier waves at a share of the local noise (docs/concepts/shield.md)",
    ),
    Entry(
        name="seal",
        kind="protector",
        task="seal",
        class_path="ctguard.protect.seal:seal_volume",
        window_hu=_CUBE_WINDOW,
        weights="",
        source="ours: keyed digest and keyed pattern below the noise (docs/concepts/seal.md)",
    ),
    Entry(
        name="noisy-or",
        kind="scorer",
        task="malignancy",
        class_path="ctguard.cad.network:NoisyOr3d",
        window_hu=(-1200.0, 600.0),
        weights="cad",
        source="Liao et al., deep leaky noisy-or network, IEEE TNNLS 2019 (arXiv 1711.08324)",
    ),
)


def names(kind: Kind) -> tuple[str, ...]:
    """Names of one kind, in order, each once."""
    return tuple(dict.fromkeys(entry.name for entry in ENTRIES if entry.kind == kind))


def find(name: str, kind: Kind, task: str = "") -> Entry:
    """An entry. Raises ModelError listing what exists."""
    for entry in ENTRIES:
        if (entry.name, entry.kind) == (name, kind) and (task == "" or entry.task in (task, "any")):
            return entry
    raise ModelError(f"no {kind} is called {name!r}", remedy=f"choose one of {', '.join(names(kind))}")


def build(entry: Entry, settings: dict[str, Any]) -> Any:
    """An untrained module with these settings. Raises ModelError naming a setting that does not exist."""
    try:
        return resolve(entry.class_path)(**settings)
    except TypeError as error:
        raise ModelError(
            f"its settings do not fit: {error}", where=entry.name, remedy="see the class's arguments"
        ) from error


def load(entry: Entry, weights: Path | None = None) -> tuple[Any, Card]:
    """A trained module in eval mode and its card. weights: another file than the shipped one, its card beside it.

    Raises ModelError where weights or card are missing, damaged or of another architecture.
    """
    from ctguard.train.checkpoint import load_weights, read_card

    path = weights or entry.weights_path
    if path is None:
        raise ModelError("it has no weights", where=entry.name)
    card = read_card(path.with_suffix(".json"))
    module = build(entry, card.settings)
    load_weights(module, path, card.sha256)
    return module.eval(), card


def resolve(path: str) -> Any:
    """The object at "package.module:name"."""
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)
