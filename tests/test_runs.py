"""The pipeline scripts go the whole way, with networks too small to be of use."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from ctguard.io.cases import read_cases
from ctguard.io.forgeries import Forgery, read_manifest
from ctguard.synth.dataset import synth
from ctguard.synth.rule import DatasetRule
from ctguard.synth.sites import SiteRule
from ctguard.training.run import train
from tests.layouts import Phantom, phantoms, write_cohort, write_lidc, write_luna16

ROOT = Path(__file__).parents[1]
TINY = (
    (r"^steps = \d+", "steps = 2"),
    (r"^batch = \d+", "batch = 2"),
    (r"^validate_every = \d+", "validate_every = 1"),
    (r"width = \d+", "width = 4"),
    (r"block_mm = \d+", "block_mm = 16"),
    (r"blocks = \d+", "blocks = 1"),
    (r"patch = \d{2,}", "patch = 64"),
    (r"^patch = [12]$", "patch = 4"),
    (r"^channels = .*", "channels = [8, 8]"),
    (r"^attention = .*", "attention = [false, false]"),
    (r"nodules_mm = \[1[34][^]]*\]", "nodules_mm = [10.0, 20.0]"),
    (r"dense_mm = 1\d[\d.]*", "dense_mm = 10.0"),
    (r"malignant = true, ", ""),
    (r"valid_batches = \d+", "valid_batches = 1"),
    (r"lung_sites(\w*) = \d+", r"lung_sites\1 = 4"),
    (r"-mixed", "-true"),
)
"""Two steps of two examples, the narrowest networks; float32, for bf16 is slow to emulate. The few small patients
have no large malignant nodule, so injectors learn from any of 10 mm and above."""

MADE_HERE = (
    "cad",
    *(f"{name}_{task}" for name in ("pix2pix", "cyclegan", "diffusion") for task in ("inject", "remove")),
)

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="bash scripts")


def tiny_recipes(folder: Path) -> Path:
    """The repository's recipes, tiny at both sizes."""
    folder.mkdir()
    for recipe in (ROOT / "recipes").glob("*.toml"):
        text = recipe.read_text()
        for pattern, value in TINY:
            text = re.sub(pattern, value, text, flags=re.MULTILINE)
        text = text.replace("bf16-true", "32-true")
        if recipe.name == "cad.toml":
            text = text.replace("width = 4", "width = 3")
        (folder / recipe.name).write_text(text)
    return folder


@pytest.fixture(scope="module")
def recipes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_recipes(tmp_path_factory.mktemp("tiny") / "recipes")


def bash(script: str, *arguments: str | Path, state: Path) -> str:
    """Run a script of runs/ as a user does; its output."""
    environment = {**os.environ, "XDG_STATE_HOME": str(state)}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    command = ["bash", str(ROOT / "runs" / script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


def card(out: Path, name: str) -> dict[str, object]:
    found: dict[str, object] = json.loads((out / "weights" / f"{name}.json").read_text())
    return found


def test_the_phantom_pipeline_runs_from_patients_to_verdicts(tmp_path: Path, recipes: Path) -> None:
    out = tmp_path / "run"
    bash("phantom_cpu.sh", out, "5", "small", recipes, "2", state=tmp_path)
    assert "| pristine |" in (out / "detection.md").read_text()
    for name in ("pristine", "removed", "protected"):
        verdict = json.loads((out / f"verdict-{name}" / "verdict.json").read_text())
        assert verdict["detector"] == "unet"
    generators = {f"pix2pix_{task}": card(out, f"pix2pix_{task}")["sha256"] for task in ("inject", "remove")}
    against = card(out, "unet")["trained_against"]
    assert isinstance(against, dict) and against and against.items() <= generators.items()


@pytest.fixture(scope="module")
def patients() -> list[Phantom]:
    return phantoms()


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory, patients: list[Phantom]) -> Path:
    return write_cohort(patients, tmp_path_factory.mktemp("phantoms") / "cohort")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, cohort: Path, recipes: Path) -> Path:
    """Weights of every generator and the scorer, trained here: a process for each would take minutes."""
    folder = tmp_path_factory.mktemp("trained")
    for name in MADE_HERE:
        train(recipes / f"{name}.toml", [cohort], folder / name, size="full")
        for ending in ("json", "safetensors"):
            shutil.copy(folder / name / f"{name}.{ending}", folder)
    return folder


def run_full(
    root: Path, kind: str, scans: Path, recipes: Path, trained: Path | None = None, but: tuple[str, ...] = ()
) -> str:
    """lidc_full.sh into root/run, which has all weights but these."""
    if trained is not None:
        (root / "run" / "weights").mkdir(parents=True)
        for path in trained.iterdir():
            if path.suffix in (".json", ".safetensors") and path.stem not in but:
                shutil.copy(path, root / "run" / "weights")
    return bash("lidc_full.sh", root / "run", kind, scans, "full", recipes, "1", state=root)


@pytest.fixture(scope="module")
def lidc(tmp_path_factory: pytest.TempPathFactory, patients: list[Phantom], recipes: Path, trained: Path) -> Path:
    """A whole run on the layout of LIDC-IDRI, which trains one generator, the scorer and the detector."""
    root = tmp_path_factory.mktemp("lidc")
    run_full(root, "lidc", write_lidc(patients, root / "scans"), recipes, trained, but=("pix2pix_inject", "cad"))
    return root / "run"


def test_lidc_goes_from_dicom_and_xml_to_tables(lidc: Path, patients: list[Phantom]) -> None:
    cases = read_cases(lidc / "index.csv")
    read = [finding for case in cases for finding in case.findings]
    drawn = [finding for one in patients for finding in one.nodules]
    ratings = sorted(4.75 if finding.malignancy == 5 else 1.25 for finding in drawn)
    assert sorted(finding.malignancy or 0.0 for finding in read) == ratings
    diameters = sorted(finding.diameter_mm for finding in drawn)
    assert sorted(finding.diameter_mm for finding in read) == pytest.approx(diameters, rel=0.1)
    assert {f.source for case in cases for f in case.findings} == {"LIDC 4/4 readers"}
    _check_tables(lidc, pristine=2)
    against = card(lidc, "unet")["trained_against"]
    assert isinstance(against, dict) and set(against) >= {"pix2pix_inject", "cyclegan_remove", "diffusion_inject"}
    for name in ("unet", "cad", "diffusion_remove"):
        assert card(lidc, name)["size"] == "full"


def _check_tables(out: Path, pristine: int) -> None:
    table = (out / "detection.md").read_text()
    for name in ("pix2pix", "cyclegan", "diffusion"):
        assert f"| {name} inject |" in table and f"| {name} remove |" in table
    assert f"| pristine | {pristine} |" in table
    assert (out / "malignancy" / "malignancy.png").is_file()


def test_generators_and_scorer_share_no_patient_and_no_test_patient(lidc: Path) -> None:
    split = {case.patient: case.split for case in read_cases(lidc / "index.csv")}
    forgers = {case.patient for case in read_cases(lidc / "generators" / "index.csv")}
    judges = {case.patient for case in read_cases(lidc / "scorer" / "index.csv")}
    assert forgers and judges and not forgers & judges
    assert "test" not in {split[name] for name in forgers | judges}
    assert {split[name] for name in forgers} == {"train"}


def test_started_again_it_keeps_what_is_done(lidc: Path, recipes: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in lidc.rglob("*.safetensors")}
    table = (lidc / "detection.md").stat().st_mtime_ns
    (lidc / "malignancy" / "malignancy.png").unlink()
    run_full(lidc.parent, "lidc", lidc.parent / "scans", recipes)
    assert {path: path.stat().st_mtime_ns for path in lidc.rglob("*.safetensors")} == before
    assert (lidc / "detection.md").stat().st_mtime_ns == table
    assert (lidc / "malignancy" / "malignancy.png").is_file()


def test_luna16_goes_from_metaimage_and_csv_to_tables(
    patients: list[Phantom], recipes: Path, trained: Path, tmp_path: Path
) -> None:
    scans = write_luna16(patients[::2], tmp_path / "scans")
    said = run_full(tmp_path, "luna16", scans, recipes, trained, but=("diffusion_remove",))
    out = tmp_path / "run"
    assert "no rated nodules" in said
    assert {case.collection for case in read_cases(out / "index.csv")} == {"LUNA16"}
    assert [case.split for case in read_cases(out / "generators" / "index.csv")] == ["train"]
    _check_tables(out, pristine=1)


def test_m3dsynth_goes_from_stacks_and_tables_to_a_detector(
    patients: list[Phantom], recipes: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    cohort = write_cohort(patients[::2], tmp_path / "cohort")
    rule = DatasetRule(sites=SiteRule(injections=1), weights=trained)
    released = tmp_path / "released"
    assert not synth(cohort, released, replace(rule, format="tiff")).failed
    run_full(tmp_path, "m3dsynth", released, recipes)
    table = (tmp_path / "run" / "detection.md").read_text()
    assert "| cyclegan remove | 1 |" in table and "| pristine |" in table
    synth(cohort, tmp_path / "plans", rule)
    ours, theirs = (read_manifest(tmp_path / name)[1] for name in ("plans", "run/forged"))
    assert len(ours) == len(theirs) == 18, "three scans, three generators, a removal and an injection"
    for one, other in zip(sorted(ours, key=_place), sorted(theirs, key=_place), strict=True):
        assert _place(one) == _place(other) and (one.block == other.block).all()
        assert (one.edit.mask == other.edit.mask).all()


def _place(forgery: Forgery) -> tuple[object, ...]:
    edit = forgery.edit
    return forgery.scan_id.partition("_")[0], edit.generator, edit.task, edit.box_start_zyx
