"""What a data set looks like on disk.

plan    NAME.npz: Plan, ground truth and the changed block; the pristine scan stays where it is (the default)
dicom   NAME/series: a derived DICOM series, with edit.json, mask.nii.gz and strong.nii.gz as `ctguard tamper` has them
tiff    M3Dsynth's released layout: GENERATOR/scan/SITE and GENERATOR/label/SITE, one slideNNNN.tiff a slice from the
        head down, real/scan/SITE for the pristine scan, and the tables data.csv, centers.csv, sets.csv and LIDC.csv

Code written for M3Dsynth's release reads the third. Where the release leaves rows of centers.csv out, so that its
loader finds no training scan, ours has a row for every scan.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from ctguard import io
from ctguard.core.geometry import as_int_triple, index_to_lps_mm
from ctguard.core.provenance import Provenance
from ctguard.core.volume import Volume
from ctguard.io.atomic import atomic_files
from ctguard.io.forgeries import Forgery, write_forgery
from ctguard.io.tiff import offset_for, write_label_stack, write_tiff
from ctguard.synth.forge import edit_summary
from ctguard.synth.sites import CODES, RELEASED_NAMES, Site

Format = Literal["plan", "dicom", "tiff"]
FORMATS: tuple[Format, ...] = get_args(Format)
TABLES = "data"
"""The folder of the four tables, where code that is run inside of the data set looks for them."""

_JITTER = 16


@dataclass(frozen=True, eq=False)
class Sample:
    """One forged scan on its way to disk; provenance is that of the whole forged volume."""

    site: Site
    forgery: Forgery
    provenance: Provenance

    def volume(self, pristine: Volume) -> Volume:
        """The whole forged volume."""
        return Volume(self.forgery.paste(pristine.hu), pristine.geometry, self.provenance)


def write_samples(format: Format, folder: Path, pristine: Volume, samples: Sequence[Sample]) -> list[list[Path]]:
    """Write the samples of one scan; the files of each, in order. Raises WriteError."""
    if format == "plan":
        return [[write_forgery(sample.forgery, folder)] for sample in samples]
    if format == "dicom":
        return [_write_series(folder / sample.forgery.name, pristine, sample) for sample in samples]
    return _write_stacks(folder, pristine, samples)


def _write_series(folder: Path, pristine: Volume, sample: Sample) -> list[Path]:
    edit, forged = sample.forgery.edit, sample.volume(pristine)
    series = io.write(forged, folder / "series")
    truth = folder / "edit.json"
    point = index_to_lps_mm(pristine.geometry, edit.center_zyx).round(2).tolist()
    truth.write_text(json.dumps({**edit_summary(pristine, edit), "center_lps_mm": point}, indent=1) + "\n")
    masks = []
    for name, part in (("mask", edit), ("strong", replace(edit, mask=edit.strong))):
        mask = part.full_mask(pristine.geometry.shape_zyx).astype(np.int16)
        masks.append(io.write(Volume(mask, forged.geometry, forged.provenance), folder / f"{name}.nii.gz"))
    return [*sorted(series.iterdir()), truth, *masks]


def _write_stacks(folder: Path, pristine: Volume, samples: Sequence[Sample]) -> list[list[Path]]:
    """Stacks and labels of one scan. The pristine stack stands once; its other sites are links to it."""
    if not samples:
        return []
    lowest = min(float(pristine.hu.min()), *(float(sample.forgery.block.min()) for sample in samples))
    offset = offset_for(lowest)
    ids = list(dict.fromkeys(sample.site.site_id for sample in samples))
    real = folder / "real" / "scan"
    real.mkdir(parents=True)
    write_tiff(pristine, real / ids[0], offset=offset)
    for name in ids[1:]:
        (real / name).symlink_to(ids[0], target_is_directory=True)
    made = []
    for sample in samples:
        edit = sample.forgery.edit
        home = folder / RELEASED_NAMES.get(edit.generator, edit.generator)
        stacks = [home / "scan" / sample.site.site_id, home / "label" / sample.site.site_id]
        write_tiff(sample.volume(pristine), stacks[0], offset=offset)
        write_label_stack(edit.full_mask(pristine.geometry.shape_zyx), stacks[1], pristine.geometry)
        made.append([file for stack in stacks for file in sorted(stack.iterdir())])
    made[0] += sorted((real / ids[0]).iterdir())
    return made


def write_tables(folder: Path, records: Iterable[Mapping[str, Any]], seed: int) -> list[Path]:
    """data.csv, centers.csv, sets.csv and LIDC.csv of a data set in the released layout, from its case records.

    centers.csv: where a test slab is centred, as published: the middle of the plane, and the site's slice shifted at
    random by up to 16, another way for each generator.
    """
    data: list[list[Any]] = []
    centers: list[list[Any]] = []
    sets: dict[str, str] = {}
    series: dict[tuple[str, str], list[Any]] = {}
    for record in records:
        patient, number = record["patient"], record["series_number"]
        depth, height, width = record["shape_zyx"]
        seen: set[str] = set()
        for row in record["forgeries"]:
            sets[patient] = record["split"]
            series[patient, number] = [patient, number, *record["spacing_zyx_mm"], record["dicom"]]
            site, task, center = row["site"], row["plan"]["task"], as_int_triple(row["plan"]["center_zyx"])
            place = (depth - center[0], center[1], center[2])
            names = [] if site in seen else ["real"]
            seen.add(site)
            for name in (*names, RELEASED_NAMES.get(row["plan"]["generator"], row["plan"]["generator"])):
                data.append([site, CODES[task], name, patient, number, *place])
                slab = float(np.clip(place[0] + _jitter(seed, site, name), 0, depth - 1))
                centers.append([site, name, slab, height / 2, width / 2])
    split = [[patient, name] for patient, name in sorted(sets.items())]
    tables: dict[str, tuple[str, list[list[Any]]]] = {
        "data.csv": ("img_id,ty,mod,orig_id,sdir_id,coord_z,coord_y,coord_x", data),
        "centers.csv": ("img_id,mod,center_test_z,center_test_y,center_test_x", centers),
        "sets.csv": ("orig_id,set", split),
        "LIDC.csv": ("orig_id,sdir_id,spacing_z,spacing_y,spacing_x,dicom", [series[key] for key in sorted(series)]),
    }
    return [_write_table(folder / name, head, rows) for name, (head, rows) in tables.items()]


def _jitter(seed: int, site: str, name: str) -> int:
    digest = hashlib.sha256(f"{seed}:{site}:{name}".encode()).digest()
    return int.from_bytes(digest[:4]) % (2 * _JITTER + 1) - _JITTER


def _write_table(path: Path, head: str, rows: list[list[Any]]) -> Path:
    with atomic_files(path) as stage, (stage / path.name).open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(head.split(","))
        table.writerows(rows)
    return path
