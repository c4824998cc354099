"""Indexing folders of every kind: what is found, what is reported, what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ctguard.cohort import m3dsynth
from ctguard.cohort.headers import find
from ctguard.cohort.index import index_folder
from ctguard.core.errors import DataError, GeometryError
from ctguard.io import read
from tests.cohort import make


def test_a_folder_of_everything(tmp_path: Path) -> None:
    root = tmp_path / "root"
    make.series(root / "a", "1.2.3", "P1")
    make.series(root / "a", "1.2.9", "P2")  # a second series in the same folder
    make.series(root / "mr", "1.2.5", "P3", Modality="MR")
    make.mhd(root / "v" / "scan7.mhd")
    (root / "bad.dcm").write_bytes(b"no dicom")
    (root / "bad.mha").write_text("no header")
    index = index_folder(root, relative_to=tmp_path)
    assert [(c.patient, c.path) for c in index.cases] == [
        ("P1", "root/a"),
        ("P2", "root/a"),
        ("scan7", "root/v/scan7.mhd"),
    ]
    for case in index.cases:
        read(tmp_path / case.path, series_uid=case.series_uid or None)
    text = "\n".join(map(str, index.problems))
    assert "bad.dcm" in text and "bad.mha" in text and "12 x modality MR" in text


@pytest.mark.parametrize("damage", ["gap", "truncated"])
def test_a_broken_series_is_reported_and_the_rest_goes_on(tmp_path: Path, damage: str) -> None:
    make.series(tmp_path / "good", "1.2.3", "P1")
    bad = sorted(make.series(tmp_path / "bad", "1.2.4", "P2").iterdir())[3]
    if damage == "gap":
        bad.unlink()
    else:
        bad.write_bytes(bad.read_bytes()[:-2000])
    index = index_folder(tmp_path)
    assert [c.patient for c in index.cases] == ["P1"]
    assert any("1.2.4" in p.where and (damage in p.what) for p in index.problems)


def test_same_names_stay_apart_and_no_patient_id_is_said(tmp_path: Path) -> None:
    for name in "ab":
        make.mhd(tmp_path / name / "ct.mhd")
    make.series(tmp_path / "c", patient="")
    index = index_folder(tmp_path)
    assert len({c.scan_id for c in index.cases}) == 3
    assert any("no PatientID" in p.what for p in index.problems)


def test_lidc_kind(tmp_path: Path) -> None:
    make.series(tmp_path / "d")
    make.xml(
        tmp_path / "a.xml", *[make.nodule("n", 20, 15, 4, range(3, 8), 4)] * 3, make.nodule("m", 40, 30, 2, range(3), 1)
    )
    (tmp_path / "broken.xml").write_text("<a>")
    index = index_folder(tmp_path, "lidc", min_readers=3)
    assert [len(c.findings) for c in index.cases] == [1] and index.cases[0].collection == "LIDC-IDRI"
    assert any("broken.xml" in p.where for p in index.problems)
    assert len(index_folder(tmp_path, "lidc").cases[0].findings) == 2


def test_luna16_kind(tmp_path: Path) -> None:
    make.mhd(tmp_path / "subset0" / "1.9.1.mhd")
    table = tmp_path / "annotations.csv"
    head = "seriesuid,coordX,coordY,coordZ,diameter_mm,mal_details\n"
    table.write_text(head + '1.9.1,-1.5,2,3,8.5,"[4, 2, 3]"\n1.9.2,0,0,0,4,"[1]"\n')
    index = index_folder(tmp_path, "luna16", annotations=table)
    (finding,) = index.cases[0].findings
    assert (finding.center_lps_mm, finding.diameter_mm, finding.malignancy) == ((-1.5, 2.0, 3.0), 8.5, 3.0)
    assert any("1 rows of 1 series" in p.what for p in index.problems)
    for text, says in (("seriesuid,coordX\n", "coordY, coordZ, diameter_mm"), (head + "1.9.1,x,0,0,4,[1]\n", "line 2")):
        table.write_text(text)
        with pytest.raises(DataError, match=says):
            index_folder(tmp_path, "luna16", annotations=table)


def tables(folder: Path) -> Path:
    """Two sites of one series; inj_9 stands in centers.csv alone."""
    folder.mkdir()
    (folder / "sets.csv").write_text("orig_id,set\nP1,valid\n")
    (folder / "LIDC.csv").write_text(
        "orig_id,sdir_id,spacing_z,spacing_y,spacing_x,dicom\nP1,3,2,0.5,0.5,P1/x/3.000-NA-.2.3\n"
    )
    rows = ["rem_1,rem,real", "rem_1,rem,cycle", "rem_1,rem,pix2pix", "inj_1,inj,real", "inj_1,inj,diffusion"]
    places = {"rem_1": "4,15,20", "inj_1": "9,30,10"}
    lines = [f"{row},P1,3,{places[row.split(',')[0]]}" for row in rows]
    (folder / "data.csv").write_text(
        "img_id,ty,mod,orig_id,sdir_id,coord_z,coord_y,coord_x\n" + "\n".join(lines) + "\n"
    )
    centers = "img_id,mod,center_test_z,center_test_y,center_test_x\ninj_9,real,1,2,3\nrem_1,real,5,256,256\n"
    (folder / "centers.csv").write_text(centers)
    return folder


def test_m3dsynth_kind(tmp_path: Path) -> None:
    folder = tables(tmp_path / "t")
    make.series(tmp_path / "d")
    index = index_folder(tmp_path / "d", "m3dsynth", tables=folder)
    assert [c.split for c in index.cases] == ["valid"]
    known = m3dsynth.read_tables(folder)
    counts = m3dsynth.count_sites(known)
    assert (counts.manipulated, counts.sites, counts.patients, counts.series) == (3, 2, 1, 1)
    assert counts.by_generator["pix2pix", "remove", "valid"] == 1
    assert len(known.problems) == 1 and "inj_9" in known.problems[0]
    series = find(tmp_path / "d").series[0]
    placed = {p.site.site_id: p for p in m3dsynth.place_all(known.of_series(series), series)}
    assert placed["rem_1"].center_zyx == (12 - 4, 15, 20)
    assert placed["rem_1"].center_lps_mm == pytest.approx((-90, -42.5, 46))


def test_m3dsynth_released_stacks(tmp_path: Path) -> None:
    folder = tables(tmp_path / "t")
    for name in ("real/scan/rem_1", "real/scan/inj_1", "cycle/scan/rem_1"):
        (tmp_path / "m" / name).mkdir(parents=True)
    index = index_folder(tmp_path / "m", "m3dsynth", tables=folder)
    assert [c.path for c in index.cases] == ["real/scan/rem_1", "cycle/scan/rem_1"]  # one pristine series, once
    assert any("1 stacks are missing" in p.what for p in index.problems)


def test_damaged_tables_are_refused(tmp_path: Path) -> None:
    folder = tables(tmp_path / "t")
    text = (folder / "data.csv").read_text()
    (folder / "data.csv").write_text(text.replace("rem_1,rem,cycle,P1,3,4,15,20", "rem_1,rem,cycle,P1,3,4,15,21"))
    with pytest.raises(DataError, match=r"line 3.*rem_1 another place"):
        m3dsynth.read_tables(folder)
    (folder / "sets.csv").write_text("orig_id\n")
    with pytest.raises(DataError, match=r"sets\.csv.*lacks the column set"):
        m3dsynth.read_tables(folder)


@pytest.mark.parametrize(
    ("kind", "options", "says"),
    [
        ("luna16", {}, "needs --annotations"),
        ("m3dsynth", {}, "needs --tables"),
        ("folder", {"annotations": "x"}, "does not belong"),
        ("folder", {}, "holds no scan"),
        ("lidc", {"annotations": "nowhere"}, "no annotations"),
        ("other", {}, "no kind 'other'"),
    ],
)
def test_wrong_use_says_what_is_missing(tmp_path: Path, kind: str, options: dict[str, str], says: str) -> None:
    with pytest.raises(DataError, match=says):
        index_folder(tmp_path, kind, **options)  # type: ignore[arg-type]


@pytest.mark.real
def test_real_marks_rows_and_sites_land_on_the_same_lesions(real_dir: Path) -> None:
    """LIDC-IDRI-0003: every XML nodule and LUNA16 row within 2 mm of one lesion, every M3Dsynth site within 1 slice."""
    found = find(real_dir / "LIDC-IDRI-0003")
    (series,) = found.series
    shared = real_dir.parent / "tables"
    if not shared.is_dir():
        pytest.skip("needs the published tables beside the real series")
    marked = index_folder(real_dir / "LIDC-IDRI-0003", "lidc", min_readers=3).cases[0].findings
    luna = index_folder(
        real_dir / "LIDC-IDRI-0003", "luna16", annotations=shared / "luna16" / "annotations_with_malignancy.csv"
    )
    rows = luna.cases[0].findings
    assert len(marked) == len(rows) == 3
    for row in rows:
        near = min(marked, key=lambda m: np.linalg.norm(np.subtract(m.center_lps_mm, row.center_lps_mm)))
        assert np.linalg.norm(np.subtract(near.center_lps_mm, row.center_lps_mm)) < 0.5
        assert near.malignancy == row.malignancy and near.diameter_mm == pytest.approx(row.diameter_mm, rel=0.05)
    sites = m3dsynth.place_all(m3dsynth.read_tables(shared / "m3dsynth").of_series(series), series)
    assert len(sites) == 4
    for site in sites:
        gaps = [np.abs(np.subtract(site.center_lps_mm, m.center_lps_mm)) for m in marked]
        gap = min(gaps, key=np.linalg.norm)
        assert gap[2] <= series.slice_step_mm and np.hypot(gap[0], gap[1]) < 2


def test_a_site_outside_its_series_is_refused(tmp_path: Path) -> None:
    site = m3dsynth.read_tables(tables(tmp_path / "t")).sites[0]
    make.series(tmp_path / "d", count=3)
    with pytest.raises(GeometryError, match="rem_1 at slice 4 from the head"):
        m3dsynth.place(site, find(tmp_path / "d").series[0].geometry)
