"""`ctguard detect SCAN --out DIR` on a DICOM series, on a zip of one, and on what is no DICOM."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pydicom
import pytest
import torch

from ctguard import io
from ctguard.detect.unet import UNet2d
from ctguard.train.checkpoint import Card, save_checkpoint
from tests.cli.runner import run
from tests.cli.scans import small_volume
from tests.export.series import make_marked

Capture = pytest.CaptureFixture[str]
ALWAYS = ["map.nii.gz", "report.html", "run.json", "verdict.json", "worst.png"]


def weights(folder: Path, threshold: float) -> Path:
    """An untrained detector that calls every scan tampered (0), or none (1)."""
    torch.manual_seed(0)
    card = Card("toy", "unet", "", "cpu", {"width": 2}, "none", 0, 0, "", "", threshold=threshold)
    save_checkpoint(UNet2d(width=2), card, folder)
    return folder / "toy.safetensors"


def detect(capfd: Capture, scan: Path, out: Path, threshold: float, *more: str) -> tuple[list[str], str]:
    """The files of OUT and what stood on stderr."""
    given = ["--weights", weights(out.parent, threshold), "--device", "cpu", "--json", *more]
    done = run(capfd, "detect", scan, "--out", out, *given)
    assert done.code == 0, done.err
    assert done.json["tampered"] is (threshold == 0)
    return sorted(path.name for path in out.iterdir()), done.err


def test_dicom_results_stand_beside_the_report_and_in_run_json(tmp_path: Path, capfd: Capture) -> None:
    series = make_marked(tmp_path / "series")
    names, _ = detect(capfd, series, tmp_path / "out", 0)
    assert names == sorted([*ALWAYS, "seg.dcm", "map.dcm", "key.dcm", "sr.dcm"])
    listed = json.loads((tmp_path / "out" / "run.json").read_text())["outputs"]
    assert {"seg.dcm", "map.dcm", "key.dcm", "sr.dcm", "worst.png"} <= set(listed)
    assert (tmp_path / "out" / "worst.png").read_bytes().startswith(b"\x89PNG")
    verdict = json.loads((tmp_path / "out" / "verdict.json").read_text())
    seg = pydicom.dcmread(tmp_path / "out" / "seg.dcm")
    assert len(seg.SegmentSequence) == len(verdict["regions"])
    assert seg.DeviceSerialNumber == verdict["model_id"]


def test_a_clean_verdict_of_a_zip_says_why_there_is_no_segmentation(tmp_path: Path, capfd: Capture) -> None:
    series = make_marked(tmp_path / "series")
    with zipfile.ZipFile(tmp_path / "scan.zip", "w") as archive:
        for file in series.iterdir():
            archive.write(file, f"series/{file.name}")
    names, said = detect(capfd, tmp_path / "scan.zip", tmp_path / "out", 1)
    assert names == sorted([*ALWAYS, "map.dcm", "sr.dcm"])
    assert "no seg.dcm: the verdict names no region" in said


def test_what_is_no_dicom_is_judged_without_and_told_so(tmp_path: Path, capfd: Capture) -> None:
    scan = io.write(small_volume(3, (8, 32, 32)), tmp_path / "scan.nii.gz")
    names, said = detect(capfd, scan, tmp_path / "out", 0)
    assert names == ALWAYS
    assert "seg.dcm" in said and "DICOM series" in said


def test_a_series_whose_headers_do_not_allow_them_is_judged_all_the_same(tmp_path: Path, capfd: Capture) -> None:
    def lost(ds: pydicom.Dataset, z: int) -> None:
        del ds.FrameOfReferenceUID

    names, said = detect(capfd, make_marked(tmp_path / "series", edit=lost), tmp_path / "out", 0)
    assert names == ALWAYS
    assert "FrameOfReferenceUID" in said
