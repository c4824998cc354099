"""The layouts on disk: M3Dsynth's released one is read by our index and by code written for the release; DICOM."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pydicom
import pytest
from PIL import Image

from ctguard import io
from ctguard.cohort import m3dsynth
from ctguard.cohort.index import index_folder
from ctguard.core.errors import ReadError
from ctguard.core.geometry import FloatTriple, lps_mm_to_index
from ctguard.io.cases import read_cases
from ctguard.io.forgeries import read_manifest
from ctguard.io.tiff import read_label_stack
from ctguard.synth.dataset import synth
from ctguard.synth.rule import DatasetRule
from ctguard.synth.sites import SiteRule
from tests.synth.scans import cohort

RULE = DatasetRule(generators=("identity", "copy-move"), sites=SiteRule(injections=1))


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same data set in all layouts, and its phantoms."""
    root = tmp_path_factory.mktemp("sets")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(root / "state"))
        index = cohort(root / "cohort")
        for format in ("plan", "dicom", "tiff"):
            synth(index, root / format, replace(RULE, format=format))
    return root


def test_the_released_layout_is_read_by_our_own_index(sets: Path) -> None:
    root = sets / "tiff"
    made = index_folder(root, "m3dsynth", tables=root / "data")
    assert made.problems == ()
    known = m3dsynth.read_tables(root / "data")
    pristine = [case for case in made.cases if case.collection == "M3Dsynth/real"]
    assert {(case.patient, case.split) for case in pristine} == {("patient0", "train"), ("patient1", "test")}
    _, forgeries = read_manifest(sets / "plan")
    by_name = {(f.scan_id, f.edit.generator, f.edit.task, f.edit.center_zyx): f for f in forgeries}
    seen = 0
    for site in known.sites:
        scan_id = "scan" + site.patient[-1]
        source = io.read(sets / "cohort" / f"{scan_id}.mha")
        placed = m3dsynth.place(site, source.geometry)
        for name in site.generators:
            (forgery,) = (
                f
                for (scan, generator, task, center), f in by_name.items()
                if (scan, generator, task) == (scan_id, name, site.task)
                and np.abs(np.subtract(center, placed.center_zyx)).max() <= 0.5
            )
            scan_folder, label_folder = m3dsynth.released_scan(root, site, name)
            forged = io.read(scan_folder)
            assert np.array_equal(forged.hu, forgery.paste(source.hu))
            assert forged.provenance.has_mark("forged") and forged.geometry.agrees(source.geometry)
            label = read_label_stack(label_folder, forged.geometry)
            assert np.array_equal(label, forgery.edit.full_mask(source.hu.shape))
            seen += 1
    assert seen == len(forgeries) == 8


def test_code_written_for_the_release_reads_it(sets: Path) -> None:
    """Tables merged on their common columns, stacks found by generator and site, slices read by PIL."""
    root = sets / "tiff"
    tables = {name: pd.read_csv(root / "data" / f"{name}.csv") for name in ("data", "sets", "centers", "LIDC")}
    for name, columns in RELEASED.items():
        assert list(tables[name].columns) == columns.split(",")
    rows = tables["data"].merge(tables["sets"]).merge(tables["centers"])
    assert set(rows["set"]) == {"train", "test"} and len(rows) == len(tables["data"])
    assert (rows["center_test_y"] == 48).all() and (rows["center_test_x"] == 56).all()
    assert ((rows["center_test_z"] - rows["coord_z"]).abs() <= 16).all()
    for _, row in rows[rows["mod"] != "real"].iterrows():
        forged, label = (_stack(root / row["mod"] / part / row["img_id"]) for part in ("scan", "label"))
        real = _stack(root / "real" / "scan" / row["img_id"])
        assert forged.dtype == np.uint16 and forged.shape == real.shape == label.shape
        changed = forged != real
        assert changed.any() and not (changed & ~label.astype(bool)).any()
        z, y, x = (np.flatnonzero(label.any(axis=tuple(a for a in range(3) if a != axis))) for axis in range(3))
        assert abs(row["coord_z"] - 1 - (z[0] + z[-1]) / 2) <= 1.5  # slices count from 1, from the head
        assert abs(row["coord_y"] - (y[0] + y[-1]) / 2) <= 1.5 and abs(row["coord_x"] - (x[0] + x[-1]) / 2) <= 1.5


RELEASED = {
    "data": "img_id,ty,mod,orig_id,sdir_id,coord_z,coord_y,coord_x",
    "centers": "img_id,mod,center_test_z,center_test_y,center_test_x",
    "sets": "orig_id,set",
    "LIDC": "orig_id,sdir_id,spacing_z,spacing_y,spacing_x,dicom",
}


def _stack(folder: Path) -> np.ndarray[Any, Any]:
    planes = []
    while (folder / f"slide{len(planes):04d}.tiff").is_file():
        with Image.open(folder / f"slide{len(planes):04d}.tiff") as image:
            planes.append(np.asarray(image))
    return np.stack(planes)


def test_dicom_series_are_marked_and_their_truth_lies_beside_them(sets: Path) -> None:
    _, forgeries = read_manifest(sets / "plan")
    for forgery in forgeries[:2]:
        folder = sets / "dicom" / forgery.name
        forged = io.read(folder / "series")
        source = io.read(sets / "cohort" / f"{forgery.scan_id}.mha")
        assert np.array_equal(forged.hu, forgery.paste(source.hu))
        assert forged.provenance.has_mark("forged")
        header = pydicom.dcmread(next((folder / "series").iterdir()), stop_before_pixels=True)
        assert header[0x0008, 0x001C].value == "YES" and header.PatientName == "CTGUARD^FORGED"
        mask = io.read(folder / "mask.nii.gz")
        assert np.array_equal(mask.hu > 0, forgery.edit.full_mask(source.hu.shape))
        assert (folder / "edit.json").is_file() and (folder / "strong.nii.gz").is_file()


def test_whole_scans_are_not_mistaken_for_plans(sets: Path) -> None:
    with pytest.raises(ReadError, match=r"whole scans \(dicom\).*--format plan"):
        read_manifest(sets / "dicom")


@pytest.mark.real
def test_the_released_sites_of_a_real_patient_are_forged_where_the_release_forged_them(
    real_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = real_dir.parent / "tables" / "m3dsynth"
    if not tables.is_dir():
        pytest.skip("needs the published tables beside the real series")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    index = tmp_path / "index.csv"
    from ctguard.io.cases import write_cases

    made = index_folder(real_dir / "LIDC-IDRI-0003", "m3dsynth", tables=tables, relative_to=tmp_path)
    write_cases(made.cases, index)
    summary = synth(index, tmp_path / "set", DatasetRule(generators=("pix2pix",), tables=tables))
    assert (summary.count("pix2pix", "remove", "train"), summary.forgeries, summary.failed) == (4, 4, ())
    pristine, forgeries = read_manifest(tmp_path / "set")
    assert [case.split for case in read_cases(pristine)] == ["train"]
    volume = io.read(real_dir / "LIDC-IDRI-0003")
    lesions = [
        lps_mm_to_index(volume.geometry, one.center_lps_mm)
        for one in index_folder(real_dir / "LIDC-IDRI-0003", "lidc", min_readers=3).cases[0].findings
    ]
    released = {(57, 198, 308), (58, 198, 308), (56, 219, 221), (57, 219, 221)}
    reached = set()
    for forgery in forgeries:
        z, y, x = _middle(forgery.edit.mask, forgery.edit.box_start_zyx)
        from_head = volume.hu.shape[0] - z
        reached |= {site for site in released if np.abs(np.subtract((from_head, y, x), site)).max() <= 1}
        gaps = [np.abs(np.subtract((z, y, x), lesion) * volume.geometry.spacing_zyx_mm) for lesion in lesions]
        assert min(gap.max() for gap in gaps) <= 2 * volume.geometry.spacing_zyx_mm[0]
        assert (forgery.paste(volume.hu) != volume.hu).any()
    assert reached == released


def _middle(mask: np.ndarray[Any, Any], start: tuple[int, int, int]) -> FloatTriple:
    """The middle of what changed."""
    z, y, x = (a + (n - 1) / 2 for a, n in zip(start, mask.shape, strict=True))
    return z, y, x
