"""Fuzz the readers, the node's port and the review page with damaged files and requests.

    .venv/bin/python runs/fuzz.py --out fuzz-out [--count 10000] [--seed 0] [--part readers|port|web]

Of the inputs 70 % are scans (DICOM in ten encodings, zip, NIfTI, MetaImage, NRRD, TIFF), read under a limit of memory;
15 % are connections to a running node; 15 % are requests to a running review page. Each must be taken or refused
clearly: no other exception, no traceback, no crash, no more than 10 s of work, no memory without end. Writes fuzz.json,
prints a table; a finding is kept with its input, and makes the exit code 1. Linux alone; the page needs schemathesis.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections import Counter
from importlib import import_module
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.fuzz.report import Report

PARTS = {"readers": 0.7, "port": 0.15, "web": 0.15}
"""Shares of the inputs. Each part is tests/fuzz/PART.py, imported when it runs."""


def table(reports: list[Report]) -> str:
    """Figures of each part, for people."""
    rows = []
    for one in reports:
        outcomes = sum(one.outcomes.values(), Counter()).most_common()
        rows.append(
            f"{one.part:8} {one.count:6} inputs {one.seconds:7.0f} s, slowest {one.slowest_s:.1f} s, "
            f"peak {one.memory_mb:.0f} MB, {len(one.findings)} findings: "
            + ", ".join(f"{count} {outcome}" for outcome, count in outcomes)
        )
    return "\n".join(rows)


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--part", choices=PARTS, help="this part alone, with all of the count")
    given = parser.parse_args()
    if given.out.exists():
        parser.error(f"{given.out} exists already")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what it started ends, too
    reports = []
    for name, share in PARTS.items():
        if given.part in (None, name):
            count = given.count if given.part else round(share * given.count)
            fuzz = getattr(import_module(f"tests.fuzz.{name}"), f"fuzz_{name}")
            reports.append(fuzz((given.out / name).absolute(), count, given.seed))
    found = [finding for one in reports for finding in one.findings]
    result = {"seed": given.seed, **{one.part: one.to_json() for one in reports}}
    (given.out / "fuzz.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    sys.stdout.write("\n".join([table(reports), *found]) + "\n")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
