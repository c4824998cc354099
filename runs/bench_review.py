"""Time until the first slice of a large case is visible on the review page.

    .venv/bin/python runs/bench_review.py --out bench-out [--slices 140] [--side 512] [--rounds 5]

A judged case of a real size is opened in Debian's Chromium, by a fresh browser each time: seconds from the click on the
work list until the slice, and then its map, are decoded and drawn. Prints one JSON object. Needs Chromium and a machine
that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.serve.web.browser import LAPTOP, browser, log_in, served
from tests.serve.web.node import JUDGED, add_series, hot_map, make_node, phantom, write_case

_DRAWN = (
    "image => image.decode().then(() => new Promise(done => requestAnimationFrame(() => done(image.naturalWidth))))"
)


def main() -> int:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    for name, value in (("slices", 140), ("side", 512), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=value)
    given = parser.parse_args()
    node = make_node(given.out / "node")
    volume = phantom((given.slices, given.side, given.side))
    center = (given.slices // 2, given.side // 3, given.side // 3)
    write_case(node.folder / "large", volume, hot_map(volume, center), tampered=True)
    case = add_series(node.engine, node.folder / "large", 5, **JUDGED)
    seconds = []
    with served(node) as address:
        for _ in range(given.rounds):
            with browser() as chromium:
                page = chromium.new_page(viewport=LAPTOP)
                page.set_default_timeout(120_000)
                log_in(page, address, "ada")
                started = time.perf_counter()
                page.locator(f"a[href='/cases/{case}']").first.click()
                page.wait_for_url(f"{address}/cases/{case}")
                width = page.locator("#scan").evaluate(_DRAWN)
                scan = time.perf_counter() - started
                page.locator("#heat").evaluate(_DRAWN)
                seconds.append({"slice": round(scan, 2), "map": round(time.perf_counter() - started, 2)})
                if width != given.side:
                    raise RuntimeError(f"a slice of {width} pixels")
    sys.stdout.write(json.dumps({"slices": given.slices, "side": given.side, "seconds": seconds}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
