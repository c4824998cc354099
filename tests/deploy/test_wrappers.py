"""The wrappers for mercure, Grand Challenge and MONAI Deploy, called as these platforms call them."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pydicom
import pytest
from pydicom.dataset import Dataset

from ctguard import io
from tests.cli.scans import small_volume
from tests.io.dicom_factory import make_series, stored_values
from tests.serve.parts import make_patient
from tests.serve.soak import suspicious_weights

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
RESULTS = {"SEG", "OT", "SR", "KO"}
Done = subprocess.CompletedProcess[str]


def run(script: Path, programs: Path = Path(sys.executable).parent, **environment: str) -> Done:
    """A script with the `ctguard` of a folder on its path, and no more of this environment than a container has."""
    path = f"{programs}:{os.environ['PATH']}"
    kept = {"PATH": path, "OMP_NUM_THREADS": "1", "MPLCONFIGDIR": "/tmp/matplotlib", **environment}
    return subprocess.run([sys.executable, script], env=kept, capture_output=True, text=True, check=False)


def named_by_mercure(source: Path, folder: Path) -> str:
    """Copy a series under mercure's names, each with its .tags; the series UID."""
    uid = ""
    for file in sorted(source.iterdir()):
        uid = str(pydicom.dcmread(file, stop_before_pixels=True).SeriesInstanceUID)
        (folder / f"{uid}#{file.name}").write_bytes(file.read_bytes())
        (folder / f"{uid}#{file.stem}.tags").write_text("{}", encoding="utf-8")
    return uid


def mercure_task(folder: Path, **settings: object) -> dict[str, str]:
    """The folders and the environment of a task."""
    (folder / "in").mkdir()
    (folder / "out").mkdir()
    task = {"id": "1", "info": {}, "process": {"module_name": "ctguard", "settings": settings}}
    (folder / "in" / "task.json").write_text(json.dumps(task), encoding="utf-8")
    return {"MERCURE_IN_DIR": str(folder / "in"), "MERCURE_OUT_DIR": str(folder / "out")}


def test_mercure_gets_the_results_of_each_ct_series(tmp_path: Path) -> None:
    environment = mercure_task(tmp_path, weights=str(suspicious_weights(tmp_path / "weights")))

    def another(ds: Dataset, z: int) -> None:
        ds.Modality = "MR"

    good = named_by_mercure(make_patient(tmp_path / "good"), tmp_path / "in")
    gap = make_patient(tmp_path / "gap", seed=1)
    sorted(gap.iterdir())[2].unlink()
    broken = named_by_mercure(gap, tmp_path / "in")
    named_by_mercure(make_series(tmp_path / "mr", stored_values(), another), tmp_path / "in")
    done = run(DEPLOY / "mercure" / "module.py", **environment)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "out" / "result.json").read_text(encoding="utf-8"))
    said = {one["series"]: one for one in result["series"]}
    assert set(said) == {good, broken}
    assert said[good]["tampered"] is True and said[good]["regions"]
    assert "gap" in said[broken]["failed"] and str(tmp_path) not in said[good].values()
    assert result["__mercure_notification"]["requested"] is True
    assert "1 with evidence of tampering, 1 not judged" in result["__mercure_notification"]["text"]
    sent = {file.name: pydicom.dcmread(file) for file in (tmp_path / "out").glob("*.dcm")}
    assert {ds.Modality for ds in sent.values()} == RESULTS
    assert all(name == f"{ds.SeriesInstanceUID}#{ds.SOPInstanceUID}.dcm" for name, ds in sent.items())


def test_mercure_is_told_where_nothing_could_be_judged(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    stand_in = tmp_path / "bin" / "ctguard"
    stand_in.write_text("#!/bin/sh\necho 'ctguard: slices' >&2; echo 'ctguard: error: disk full' >&2; exit 1\n")
    stand_in.chmod(0o755)
    environment = mercure_task(tmp_path)
    uid = named_by_mercure(make_patient(tmp_path / "series"), tmp_path / "in")
    done = run(DEPLOY / "mercure" / "module.py", tmp_path / "bin", **environment)
    assert done.returncode == 1
    result = json.loads((tmp_path / "out" / "result.json").read_text(encoding="utf-8"))
    assert result["series"] == [{"series": uid, "failed": "ctguard: error: disk full"}]
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["result.json"]


def test_mercure_is_told_of_a_setting_that_there_is_none_of(tmp_path: Path) -> None:
    done = run(DEPLOY / "mercure" / "module.py", **mercure_task(tmp_path, treshold=0.5))
    assert done.returncode != 0
    assert "'treshold'; there are detector, weights, fast, allow_gaps" in done.stderr


@pytest.fixture
def grand_challenge(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """The functions of the wrapper, with `ctguard` on the path."""
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    return runpy.run_path(str(DEPLOY / "grand-challenge" / "inference.py"))


def gc_input(folder: Path, *places: str) -> Path:
    """/input with inputs.json for these sockets, and a folder for each image."""
    sockets = [{"socket": {"slug": Path(place).name, "relative_path": place}, "value": None} for place in places]
    for place in places:
        if place.startswith("images/"):
            (folder / place).mkdir(parents=True)
    (folder / "inputs.json").write_text(json.dumps(sockets), encoding="utf-8")
    return folder


def test_grand_challenge_gets_map_likelihood_and_verdict(tmp_path: Path, grand_challenge: dict[str, object]) -> None:
    source = gc_input(tmp_path / "input", "images/ct", "age.json")
    scan = io.write(small_volume(), source / "images" / "ct" / "0b1d.mha")
    (tmp_path / "output").mkdir()
    grand_challenge["judge"](grand_challenge["scan_of"](source), tmp_path / "output")  # type: ignore[operator]
    made = sorted(str(file.relative_to(tmp_path / "output")) for file in (tmp_path / "output").rglob("*.*"))
    assert made == ["ct-tampering-likelihood.json", "ct-tampering-verdict.json", "images/ct-tampering-map/map.mha"]
    likelihood = json.loads((tmp_path / "output" / made[0]).read_text(encoding="utf-8"))
    verdict = json.loads((tmp_path / "output" / made[1]).read_text(encoding="utf-8"))
    map_ = io.read(tmp_path / "output" / made[2])
    assert likelihood == verdict["score"] and 0 <= likelihood <= 1 and "scan" not in verdict
    assert map_.geometry.agrees(io.read(scan).geometry) and 0 < map_.hu.max() <= 1


def test_grand_challenge_takes_a_folder_of_dicom_and_refuses_two_images(
    tmp_path: Path, grand_challenge: dict[str, object]
) -> None:
    source = gc_input(tmp_path / "dicom", "images/ct")
    for file in make_patient(tmp_path / "series", slices=3).iterdir():
        (source / "images" / "ct" / file.name).write_bytes(file.read_bytes())
    scan_of = grand_challenge["scan_of"]
    assert scan_of(source) == source / "images" / "ct"  # type: ignore[operator]
    with pytest.raises(ValueError, match="one CT image; the job has the sockets images/ct, images/pet"):
        scan_of(gc_input(tmp_path / "two", "images/ct", "images/pet"))  # type: ignore[operator]


def test_monai_judges_each_ct_series_of_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    judge = runpy.run_path(str(DEPLOY / "monai" / "app" / "judge.py"))["judge"]
    make_patient(tmp_path / "in" / "study" / "series")
    (tmp_path / "in" / "readme.txt").write_text("no DICOM", encoding="utf-8")
    (folder,) = judge(tmp_path / "in", tmp_path / "out")
    assert {"sr.dcm", "verdict.json", "report.html"} <= {file.name for file in folder.iterdir()}
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no CT series"):
        judge(tmp_path / "empty", tmp_path / "none")


@pytest.mark.skipif(find_spec("holoscan") is None, reason="needs the MONAI Deploy App SDK (pip: monai-deploy-app-sdk)")
def test_monai_application_runs(tmp_path: Path) -> None:
    make_patient(tmp_path / "in")
    (tmp_path / "out").mkdir()
    done = run(
        DEPLOY / "monai" / "app", HOLOSCAN_INPUT_PATH=str(tmp_path / "in"), HOLOSCAN_OUTPUT_PATH=str(tmp_path / "out")
    )
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "out").glob("*/sr.dcm"))) == 1
