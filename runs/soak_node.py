"""Soak of `ctguard serve`: parallel senders, kill -9 of node and worker at random moments, a real Orthanc behind it.

    .venv/bin/python runs/soak_node.py --out soak-out [--series 50] [--senders 4] [--kills 20]

Prints one JSON object; exit 1 where a series was lost, judged or delivered twice, or not judged whole. Needs storescu
and Orthanc with its DICOMweb plugin (Debian: dcmtk, orthanc-dicomweb).
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.serve.parts import orthanc
from tests.serve.soak import soak


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    for name, value in (("series", 50), ("senders", 4), ("kills", 20), ("slices", 20), ("side", 256)):
        parser.add_argument(f"--{name}", type=int, default=value)
    given = vars(parser.parse_args())
    out = given.pop("out")
    with orthanc(out / "orthanc") as archive:
        result = soak(out, archive, **given)
    sys.stdout.write(json.dumps(vars(result) | {"kills": dict(result.kills)}) + "\n")
    return bool(result.wrong)


if __name__ == "__main__":
    sys.exit(main())
