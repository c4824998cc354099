"""One HTML file that shows what was found or done: no scripts, no external requests, readable anywhere."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from ctguard import RESEARCH_USE_ONLY, __version__
from ctguard.core.errors import WriteError
from ctguard.core.geometry import Geometry
from ctguard.core.provenance import Json
from ctguard.core.records import Edit, Table, Verdict
from ctguard.core.volume import Volume
from ctguard.report.figures import overview_figure, site_figure

Tone = Literal["plain", "note", "alarm", "clear"]
SHOWN_REGIONS = 3


@dataclass(frozen=True)
class Paragraph:
    """Text. tone: note is a remark, alarm a verdict of tampering, clear a verdict without."""

    text: str
    tone: Tone = "plain"


@dataclass(frozen=True)
class Grid:
    """A small table. Rows are sequences of texts and numbers; without columns, each row is a name and a value."""

    rows: Sequence[Sequence[object]]
    columns: Sequence[str] = ()
    caption: str = ""


@dataclass(frozen=True)
class Picture:
    """A PNG. `alt` says in words what it shows, `caption` stands below it."""

    png: bytes
    alt: str
    caption: str = ""


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it. A core Table (a benchmark result) may stand there too."""

    title: str
    blocks: Sequence[Paragraph | Grid | Picture | Table]


def write_report(out_dir: Path, title: str, sections: Sequence[Section], name: str = "report.html") -> Path:
    """Write one self-contained HTML file into `out_dir`, which is made where missing, and return its path.

    The same sections give the same bytes. Raises WriteError where the file cannot be written.
    """
    page = render(title, sections)
    path = out_dir / name
    draft = path.with_name(path.name + ".part")
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        draft.write_text(page, encoding="utf-8")
        draft.replace(path)
    except OSError as error:
        raise WriteError(
            f"the report cannot be written ({error.strerror})", where=path, remedy="give a folder that you may write to"
        ) from error
    return path


def render(title: str, sections: Sequence[Section]) -> str:
    """The page as text. Everything that is not a picture is escaped."""
    pages = Environment(
        loader=PackageLoader("ctguard", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.filters.update(cell=_cell, png=_data_uri, kind=lambda block: type(block).__name__.lower(), number=_is_number)
    return pages.get_template("report.html").render(
        title=title, sections=sections, notice=RESEARCH_USE_ONLY, version=__version__
    )


def verdict_sections(volume: Volume, verdict: Verdict) -> list[Section]:
    """What a detector says of a scan: the verdict, its regions, pictures, then geometry and provenance.

    Raises GeometryError where the verdict is of another grid.
    """
    numbers = Grid(
        (
            ("score", verdict.score),
            ("threshold", verdict.threshold),
            ("highest value of the map", float(verdict.map.max())),
            ("detector", verdict.detector),
            ("model", verdict.model_id),
        )
    )
    words = Paragraph(_sentence(verdict.words), "alarm" if verdict.tampered else "clear")
    meaning = Paragraph(
        f"The score is that of the most suspicious {'cube of 12 mm' if verdict.says_where else 'slice'}. At or above "
        "the threshold, which is that of a scan "
        "with so much lung, the scan counts as tampered with. No evidence does not prove that a scan is genuine: "
        "forgeries of kinds that the detector never saw may pass, and unusual scanners may alarm it.",
        "note",
    )
    worst = Picture(
        overview_figure(volume, verdict),
        "Axial slices with the detector map over them",
        "The slices with the highest map values. Above the scan, below it the detector's map "
        "(yellow low, red high, bare where it did not look)"
        + (
            " with the regions in numbered boxes."
            if verdict.regions
            else "; this detector does not say where."
            if not verdict.says_where
            else "; no region reaches the threshold."
        ),
    )
    sections = [Section("Verdict", (words, numbers, meaning, worst))]
    if verdict.regions:
        sections.append(_region_section(volume, verdict))
    return [*sections, *scan_sections(volume)]


def tamper_sections(original: Volume, changed: Volume, edit: Edit) -> list[Section]:
    """What was forged: task and place, the changed voxels, the site in three planes, geometry and provenance.

    Raises GeometryError where the two scans lie on different grids.
    """
    mm = original.geometry.voxel_mm3
    box = tuple(slice(a, a + n) for a, n in zip(edit.box_start_zyx, edit.mask.shape, strict=True))
    difference = changed.hu[box].astype(np.float64) - original.hu[box]
    moved = np.abs(difference[edit.mask])
    facts = Grid(
        (
            ("task", edit.task),
            ("generator", edit.generator),
            ("mode", edit.mode),
            ("seed", edit.seed),
            ("centre (z, y, x)", _triple(edit.center_zyx)),
            ("changed voxels", f"{int(edit.mask.sum()):,} ({edit.mask.sum() * mm:,.0f} mm³)"),
            ("changed by more than half the local noise", f"{int(edit.strong.sum()):,}"),
            ("changed outside the 32 mm cube", f"{edit.outside_cube:,}"),
            ("largest change", f"{moved.max(initial=0.0):.0f} HU"),
            ("mean change", f"{moved.mean() if moved.size else 0.0:.0f} HU"),
        )
    )
    words = Paragraph("This scan was forged on purpose, for research. It carries its marks in every format.", "alarm")
    picture = Picture(
        site_figure(original, changed, center_zyx=edit.center_zyx),
        "The forged site in three planes: original, forged and their difference",
        "Original, forged and their difference in HU, 80 mm around the site, lung window "
        "(centre -600 HU, width 1,500 HU).",
    )
    return [Section("Forgery", (words, facts, picture)), *scan_sections(changed)]


def _region_section(volume: Volume, verdict: Verdict) -> Section:
    rows = [
        (
            number,
            f"{region.score:.3f}",
            _triple(region.center_zyx),
            _triple(region.center_lps_mm),
            _triple(region.extent_mm),
        )
        for number, region in enumerate(verdict.regions, start=1)
    ]
    columns = ("region", "score", "centre (z, y, x)", "centre, LPS mm (x, y, z)", "extent, mm (z, y, x)")
    blocks: list[Paragraph | Grid | Picture | Table] = [Grid(rows, columns)]
    for number, region in enumerate(verdict.regions[:SHOWN_REGIONS], start=1):
        png = site_figure(volume, map_=verdict.map, center_zyx=region.center_zyx)
        caption = f"Region {number}: the scan and the map, 80 mm around its centre. Cyan: where the map is 0.5."
        blocks.append(Picture(png, f"Region {number} in three planes", caption))
    if len(verdict.regions) > SHOWN_REGIONS:
        blocks.append(Paragraph(f"Pictures show the {SHOWN_REGIONS} regions with the highest scores.", "note"))
    return Section("Regions", blocks)


def scan_sections(volume: Volume) -> list[Section]:
    """Geometry, provenance and marks of a scan: how every page ends."""
    source = volume.provenance.source
    blocks: list[Paragraph | Grid | Picture | Table] = []
    rows: list[tuple[object, ...]] = [("format", source.format), ("modality", source.modality)]
    # a forgery's report names no source: nothing may lead from it to a patient (PS3.15 basic profile)
    rows += [("series", source.series_uid)] if source.series_uid and not volume.provenance.has_mark("forged") else []
    rows += [("kernel", source.kernel)] if source.kernel else []
    rows += [("mark", f"{mark.kind}: {mark.detail}") for mark in volume.provenance.marks]
    blocks.append(Grid(rows))
    if volume.provenance.steps:
        steps = [(n, step.name, _params(step.params)) for n, step in enumerate(volume.provenance.steps, start=1)]
        blocks.append(Grid(steps, ("step", "what", "parameters"), "Changes, in order"))
    else:
        blocks.append(Paragraph("No change is recorded.", "note"))
    return [Section("Geometry", (_geometry_grid(volume.geometry),)), Section("Provenance", blocks)]


def _geometry_grid(geometry: Geometry) -> Grid:
    size = np.asarray(geometry.shape_zyx) * np.asarray(geometry.spacing_zyx_mm)
    return Grid(
        (
            ("voxels (z, y, x)", " × ".join(str(n) for n in geometry.shape_zyx)),
            ("spacing, mm (z, y, x)", " × ".join(f"{mm:.4g}" for mm in geometry.spacing_zyx_mm)),
            ("size, mm (z, y, x)", " × ".join(f"{mm:.1f}" for mm in size)),
            ("first voxel, LPS mm (x, y, z)", _triple(geometry.origin_lps_mm)),
        )
    )


def _params(params: Mapping[str, Json]) -> str:
    return ", ".join(f"{key} = {_short(value)}" for key, value in params.items())


def _short(value: Json, limit: int = 60) -> str:
    """A parameter on one line: long lists and nested plans are counted, not printed."""
    text = _cell(value) if not isinstance(value, list) else "[" + ", ".join(_short(v, limit) for v in value) + "]"
    if len(text) <= limit:
        return text
    if isinstance(value, list | dict):
        return f"({len(value)} values)"
    return text[: limit - 1] + "…"


def _triple(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.1f}" for value in values)


def _sentence(words: str) -> str:
    return words[:1].upper() + words[1:] + "."


def _cell(value: object) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "–"}[value]
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and abs(value) >= 10_000 else str(value)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
