"""The rows of the protection tables: a protector with its settings and weights, and a scan that it protected.

A protected scan is written as a file and read back; everything is measured on what was read.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ctguard import io, zoo
from ctguard.bench.protection_scene import TASKS, Forger, Scene
from ctguard.core.errors import GeometryError, ModelError, RecipeError
from ctguard.core.geometry import as_float_triple
from ctguard.core.marks import Mark
from ctguard.core.provenance import Step
from ctguard.core.volume import Volume
from ctguard.defence import SHIELD_SEAL, check_unmarked, protect_scan, site_attack
from ctguard.defence.combined import budgets
from ctguard.defence.shield import GENERATORS as REFINED_AGAINST
from ctguard.defence.shield import shield_delta
from ctguard.io.derived import stored_range_hu
from ctguard.protect.ascent import AscentSettings, ascend
from ctguard.protect.keys import SealKey
from ctguard.protect.noise import add_noise
from ctguard.protect.protector import Attack, DrawAttack
from ctguard.protect.seal import SealSettings, seal_volume
from ctguard.protect.shaping import Budget
from ctguard.protect.shield_refine import Effort
from ctguard.synth.forge import fitted
from ctguard.tamper.cube import Box
from ctguard.train.checkpoint import Card, read_card

NONE = "no protection"
"""The control: x itself takes the place of p."""
SETTINGS = {"": ("budget",), "ascent": ("budget", "steps"), "shield": ("budget", "steps", "refine")}
SETTINGS[SHIELD_SEAL] = SETTINGS["shield"]
"""What a row's name may set, by protector."""
_ROUNDING_VARIANCE = 1 / 12


@dataclass(frozen=True)
class Setup:
    """One row. protector "": the control. missing: why it has no figures. card: of a protector with weights.

    steps: of ascent. refine: of the shield (steps, or minutes); None: feed-forward alone. training_hours: of the run
    that made the weights, where its run.json lies beside them.
    """

    label: str
    protector: str = ""
    budget_hu: float = 0.0
    steps: int = 0
    refine: Effort | None = None
    weights: Path | None = None
    card: Card | None = None
    training_hours: float | None = None
    missing: str = ""

    @property
    def sha256(self) -> str:
        """Of its weights, "" where it has none."""
        return self.card.sha256 if self.card else ""

    @property
    def effort(self) -> tuple[str, float] | None:
        """Unit and number of what is spent on each scan; None for what is not worked on per scan."""
        if self.protector == "ascent":
            return "steps", float(self.steps)
        if self.refine is None:
            return None
        return ("minutes", self.refine.minutes) if self.refine.minutes else ("steps", float(self.refine.steps or 0))

    @property
    def alpha(self) -> float | None:
        """The weight of MITS-GAN's manipulation loss; None for others."""
        value = self.card.settings.get("alpha") if self.card and self.protector.startswith("mitsgan") else None
        return None if value is None else float(value)

    def knows(self, forger: Forger) -> str:
        """Whether it worked against this forger: "seen" or "unseen", or "" for what works against none."""
        if self.protector == "ascent":
            return "seen" if (forger.generator, forger.folder) == ("pix2pix", None) else "unseen"
        if self.refine is not None and forger.generator in REFINED_AGAINST and forger.folder is None:
            return "seen"
        if self.card is None or not self.card.trained_against:
            return ""
        known = set(self.card.trained_against.values())
        return "seen" if known & {sha for _, sha in forger.sha256} else "unseen"


CONTROL = Setup(NONE)


def find_setups(
    names: Sequence[str], weights: Iterable[tuple[str, Path]], *, budget_hu: float, steps: int
) -> tuple[Setup, ...]:
    """The rows that were asked for. names: "NAME" or "NAME:steps=50:budget=3". weights: (NAME, file), each a row.

    A protector whose weights do not exist is a row that says so. Raises ModelError for a name that the zoo does not
    have, and where weights that were given are missing; RecipeError for another setting or the same row twice.
    """
    files: dict[str, list[Path]] = {}
    for name, path in weights:
        _entry(name)
        files.setdefault(name, []).append(path)
    setups: list[Setup] = []
    named = [text.partition(":")[0] for text in names]
    for text in dict.fromkeys([*names, *(name for name in files if name not in named)]):
        name, *pairs = text.split(":")
        entry = _entry(name)
        plain = _plain(text, name, _settings(text, name, pairs), budget_hu, steps)
        if not entry.weights:
            setups.append(plain)
            continue
        for path in files.get(name) or [entry.weights_path or Path()]:
            given = path in files.get(name, [])
            if not path.is_file():
                if given:
                    raise ModelError("its weights are missing", where=path, remedy="train it, or leave it out")
                setups.append(Setup(text, name, missing="no weights"))
                continue
            stems = [one.stem for one in files.get(name, [])]
            alone = path.stem if stems.count(path.stem) == 1 else f"{path.parent.name}/{path.stem}"
            label = f"{text} {alone}" if given else text
            card = read_card(path.with_suffix(".json"))
            setups.append(replace(plain, label=label, weights=path, card=card, training_hours=_hours(path.parent)))
    labels = [setup.label for setup in setups]
    if len(set(labels)) < len(labels) or NONE in labels:
        raise RecipeError("two rows have the same name", remedy="name the weights files differently")
    return tuple(setups)


def _entry(name: str) -> zoo.Entry:
    """The zoo's entry; shield+seal has the shield's weights."""
    return zoo.find("shield" if name == SHIELD_SEAL else name, "protector")


def _hours(folder: Path) -> float | None:
    """How long `ctguard train` took; None where a folder of weights holds no run.json of it."""
    path = folder / "run.json"
    return float(json.loads(path.read_text(encoding="utf-8"))["seconds"]) / 3600 if path.is_file() else None


def _plain(text: str, name: str, values: dict[str, float], budget_hu: float, steps: int) -> Setup:
    """A row before its weights."""
    setup = Setup(text, name, values.get("budget", budget_hu), int(values.get("steps", steps)))
    if name not in ("shield", SHIELD_SEAL) or values.keys() <= {"budget"}:
        return setup
    given = values.get("steps")
    return replace(setup, refine=Effort(None if given is None else int(given), values.get("refine")))


def _settings(text: str, name: str, pairs: Sequence[str]) -> dict[str, float]:
    known = SETTINGS.get(name, SETTINGS[""])
    found = {}
    for pair in pairs:
        key, _, value = pair.partition("=")
        if key not in known:
            raise RecipeError(f"{text!r} has a setting {key!r}", remedy=f"choose of {', '.join(known)}")
        try:
            found[key] = float(value)
        except ValueError:
            raise RecipeError(f"{pair!r} of {text!r} is no setting", remedy=f"write {name}:{key}=50") from None
    return found


@dataclass(frozen=True, eq=False)
class Protected:
    """A protected scan as it was read back, and the seconds that protecting took (the writing not counted)."""

    volume: Volume
    seconds: float


def protect(setup: Setup, scene: Scene) -> Protected:
    """p: protected, written as a file, and read back. The control is x itself.

    What works per scan, ascent and a refined shield, works on the block alone (protocols.md: 80 mm blocks); all others
    see the scan.
    """
    if not setup.protector:
        return Protected(scene.volume, 0.0)
    check_unmarked(scene.volume)
    started = time.perf_counter()
    if setup.protector == "ascent":
        made = _ascended(setup, scene)
    elif setup.protector == "seal":
        made = _sealed(scene, scene.volume, SealSettings(max_hu=setup.budget_hu, seed=scene.seed))
    elif setup.protector == SHIELD_SEAL:
        shield_budget, sealing = budgets(setup.budget_hu, scene.seed)
        made = _sealed(scene, _shielded(setup, scene, shield_budget), sealing)
    elif setup.refine is not None:
        made = _shielded(setup, scene, Budget(setup.budget_hu))
    else:
        made, _ = protect_scan(
            scene.volume,
            setup.protector,
            budget_hu=setup.budget_hu,
            seed=scene.seed,
            steps=setup.steps,
            weights=setup.weights,
            quiet=True,
        )
    seconds = time.perf_counter() - started
    return Protected(reread(made), seconds)


def _sealed(scene: Scene, volume: Volume, settings: SealSettings) -> Volume:
    key = SealKey(hashlib.sha256(f"bench protection {scene.seed}".encode()).digest())
    return seal_volume(volume, key, settings, stored_range_hu=stored_range_hu(scene.volume))[0]


def reread(volume: Volume) -> Volume:
    """What a file of this volume holds: DICOM where it was read from DICOM, else MHA."""
    with tempfile.TemporaryDirectory(prefix="ctguard-") as folder:
        name = "series" if volume.provenance.source.format == "dicom" else "scan.mha"
        return io.read(io.write(volume, Path(folder) / name))


def noise_like(scene: Scene, protected: Volume) -> Volume:
    """x with white noise whose SD is that of p - x in the cubes of the sites: the floor at the same SD.

    In the body, within the block alone, in whole HU.
    """
    block = scene.box.slices()
    added = protected.hu[block].astype(np.float32) - scene.volume.hu[block]
    sd = float(added[scene.cubes()].std())
    drawn = float(np.sqrt(max(sd * sd - _ROUNDING_VARIANCE, 0.0)))
    noise = add_noise(scene.body[block], np.ceil(8 * sd) + 1, scene.seed, sd_hu=drawn)
    return added_to(scene.volume, scene.box, noise)


def ceiling(scene: Scene, attack: Attack, settings: AscentSettings, seed: int) -> Volume:
    """x protected against one attack whose site, task, generator and noise are all known: the ceiling."""
    box = Box(
        (attack.window[0].start, attack.window[1].start, attack.window[2].start),
        (_length(attack.window[0]), _length(attack.window[1]), _length(attack.window[2])),
    )
    alone = Attack((slice(None), slice(None), slice(None)), attack.forge)
    here = box.slices()
    delta = ascend(scene.volume.hu[here], scene.body[here], lambda _: alone, settings, seed, quiet=True)
    return added_to(scene.volume, box, delta)


def added_to(volume: Volume, box: Box, delta: np.ndarray) -> Volume:
    """A volume with whole HU added in a box, clipped to what its source's files can hold."""
    hu = volume.hu.copy()
    hu[box.slices()] += delta.astype(np.int16)
    return volume.changed(fitted(volume, volume.hu, hu), Step("added"), Mark("protected", "for a benchmark"))


def _ascended(setup: Setup, scene: Scene) -> Volume:
    """Gradient ascent against the shipped Pix2Pix at random sites of the block."""
    block = scene.box.slices()
    part = Volume(
        scene.volume.hu[block],
        scene.volume.geometry.crop(scene.box.start_zyx, scene.box.shape_zyx),
        scene.volume.provenance,
    )
    settings = AscentSettings(budget_hu=setup.budget_hu, steps=setup.steps)
    delta = ascend(part.hu, scene.body[block], _block_attacks(part, scene), settings, scene.seed, quiet=True)
    return added_to(scene.volume, scene.box, delta)


def _shielded(setup: Setup, scene: Scene, budget: Budget) -> Volume:
    """The shield; refined where lung lies in the block, if it is refined."""
    lung = scene.lung
    if setup.refine is not None:
        block = scene.box.slices()
        lung = np.zeros_like(scene.lung)
        lung[block] = scene.lung[block]
    made = {"effort": setup.refine, "weights": setup.weights, "lung": lung, "quiet": True}
    delta, _ = shield_delta(scene.volume, budget, seed=scene.seed, **made)  # type: ignore[arg-type]
    return added_to(scene.volume, Box((0, 0, 0), scene.volume.geometry.shape_zyx), delta * scene.body)


def _block_attacks(part: Volume, scene: Scene) -> DrawAttack:
    """Attacks at random sites in lung of the block, both tasks, random noise."""
    voxels = np.argwhere(scene.lung[scene.box.slices()])

    def draw(rng: np.random.Generator) -> Attack:
        while True:
            site = as_float_triple(voxels[rng.integers(len(voxels))])
            task = TASKS[int(rng.integers(len(TASKS)))]
            try:
                return site_attack(part, site, task, "pix2pix", int(rng.integers(2**31)))
            except GeometryError:
                continue  # the core leaves the block: draw again

    return draw


def _length(side: slice) -> int:
    return int(side.stop) - int(side.start)
