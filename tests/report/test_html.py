"""The report: one file, nothing from outside, the notice at both ends, everything escaped."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from ctguard import RESEARCH_USE_ONLY
from ctguard.core.errors import WriteError
from ctguard.core.geometry import Geometry
from ctguard.core.marks import Mark
from ctguard.core.provenance import Provenance, Source, Step
from ctguard.core.records import Edit, Region, Table, Verdict
from ctguard.core.volume import Volume
from ctguard.report.html import Grid, Paragraph, Section, render, tamper_sections, verdict_sections, write_report

SHAPE = (12, 40, 40)
GRID = Geometry(SHAPE, (2.5, 1.5, 1.5))
SOURCE = Source("dicom", ("secret/path.dcm",), series_uid="1.2.840.99", patient_id="DOE^JANE")


def a_scan() -> Volume:
    hu = np.random.default_rng(0).normal(-700, 100, SHAPE).round().astype(np.int16)
    return Volume(hu, GRID, Provenance(SOURCE))


def a_verdict(score: float, regions: int = 0) -> Verdict:
    found = tuple(Region((5.0, 9.0 + n, 9.0), (1.0, 2.0, 3.0), (5.0, 6.0, 7.0), 0.9) for n in range(regions))
    return Verdict("unet", "unet-cpu", score, 0.8, np.zeros(SHAPE, np.float32), GRID, found)


def an_edit(scan: Volume) -> tuple[Volume, Edit]:
    hu = scan.hu.copy()
    hu[4:6, 10:14, 10:14] = 50
    mask = np.ones((2, 4, 4), bool)
    edit = Edit("inject", "pix2pix", "clean", 7, (4.5, 11.5, 11.5), (4, 10, 10), mask, mask, 0, {})
    step = Step("inject", {"seed": 7, "noise": [float(n) for n in range(500)]})
    return scan.changed(hu, step, Mark("forged", "a nodule")), edit


class Links(HTMLParser):
    """Collects what a page would fetch, and checks that tags close."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.fetched += [value or "" for key, value in attrs if key in ("src", "href", "data", "action", "poster")]
        if tag not in ("meta", "img", "link", "br", "hr", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_a_report_is_one_well_formed_file_that_fetches_nothing(tmp_path: Path) -> None:
    scan = a_scan()
    changed, edit = an_edit(scan)
    sections = [*tamper_sections(scan, changed, edit), *verdict_sections(changed, a_verdict(0.95, 1))]
    path = write_report(tmp_path / "new" / "folder", "Forged", sections)
    page = path.read_text(encoding="utf-8")
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]
    links = Links()
    links.feed(page)
    assert links.open == []
    assert all(link.startswith(("data:image/png;base64,", "#s")) for link in links.fetched)
    assert "<script" not in page and "url(" not in page and "@import" not in page
    assert "default-src 'none'" in page


def test_the_notice_stands_at_both_ends() -> None:
    page = render("Empty", [])
    assert page.count(RESEARCH_USE_ONLY) == 2
    body = page[page.index("<body>") :]
    assert body.index(RESEARCH_USE_ONLY) < body.index("<main>") < body.rindex(RESEARCH_USE_ONLY)


def test_the_same_report_has_the_same_bytes(tmp_path: Path) -> None:
    one, two = (
        write_report(tmp_path, "Verdict", verdict_sections(a_scan(), a_verdict(0.5)), name).read_bytes()
        for name in ("a.html", "b.html")
    )
    assert one == two


def test_text_from_files_cannot_become_markup() -> None:
    evil = "<script>alert('x')</script>"
    table = Table(evil, (evil,), ({evil: evil},), {"patients": 3}, evil)
    blocks = [Paragraph(evil), Grid([(evil, evil)], caption=evil), Grid([(evil,)], (evil,)), table]
    page = render(evil, [Section(evil, blocks)])
    assert "<script" not in page and page.count("&lt;script&gt;") >= 10


def test_a_clean_verdict_is_worded_with_care() -> None:
    page = render("Clean", verdict_sections(a_scan(), a_verdict(0.3)))
    assert 'class="clear">No evidence of tampering found.' in page
    assert "authentic" not in page.lower() and ">Regions<" not in page


def test_the_score_is_told_for_what_it_is() -> None:
    mute = a_verdict(0.95)
    localises = Verdict("unet", "unet-cpu", 0.3, 0.8, np.full(SHAPE, 0.1, np.float32), GRID)
    assert "most suspicious slice" in render("", verdict_sections(a_scan(), mute))
    page = render("", verdict_sections(a_scan(), localises))
    assert "most suspicious cube of 12 mm" in page and "this detector does not say where." not in page


def test_a_verdict_of_tampering_lists_every_region_and_pictures_the_first_three() -> None:
    page = render("Tampered", verdict_sections(a_scan(), a_verdict(0.95, 4)))
    assert 'class="alarm">Evidence of tampering in 4 regions.' in page
    assert page.count("<td>5.0, 6.0, 7.0</td>") == 4
    assert page.count('alt="Region') == 3 and "Pictures show the 3 regions" in page


def test_geometry_and_steps_are_told_and_patients_are_not() -> None:
    scan = a_scan()
    changed, edit = an_edit(scan)
    page = re.sub(r"base64,[^\"]*", "", render("Forged", tamper_sections(scan, changed, edit)))
    assert "12 × 40 × 40" in page and "2.5 × 1.5 × 1.5" in page
    assert "forged: a nodule" in page and "seed = 7" in page and "noise = (500 values)" in page
    assert "32 (180 mm³)" in page
    for secret in ("DOE", "secret", "1.2.840.99"):
        assert secret not in page
    own = re.sub(r"base64,[^\"]*", "", render("Clean", verdict_sections(scan, a_verdict(0.3))))
    assert "1.2.840.99" in own and "DOE" not in own and "secret" not in own


def test_a_benchmark_table_shows_its_numbers_and_its_n() -> None:
    table = Table("Detection", ("detector", "AUC"), ({"detector": "unet", "AUC": 0.91237},), {"patients": 100}, "run-1")
    page = render("Bench", [Section("Results", [table])])
    assert re.search(r'<td class="number">0.9124</td>', page)
    assert "100 patients, run run-1" in page


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(WriteError, match=r"taken.*give a folder"):
        write_report(tmp_path / "taken", "Verdict", [])
