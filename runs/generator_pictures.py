"""Pictures of what each generator makes: docs/images/generators_inject.png and generators_remove.png.

    python runs/generator_pictures.py OUT --scan PATH:Z,Y,X ... [--task inject|remove] [--generators NAMES] [--seed 0]

A row for each scan and place (voxels), a pair of planes (axial and coronal) for the scan and for each generator's
forgery of it. Marked in each panel; nothing else is written.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ctguard import io
from ctguard.core.geometry import FloatTriple, as_float_triple
from ctguard.core.volume import Volume
from ctguard.report.figures import LUNG_WINDOW_HU, Panel, draw_panel
from ctguard.report.planes import PLANES, Field, View
from ctguard.report.style import INK, add_scale_bar, as_png, new_figure, stamp_of
from ctguard.synth.forge import Request, tamper_scan

FIELD_MM = 56.0


def main() -> None:
    """Forge, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="the PNG")
    parser.add_argument("--scan", action="append", required=True, help="PATH:Z,Y,X, as often as there are rows")
    parser.add_argument("--task", choices=("inject", "remove"), default="inject")
    parser.add_argument("--generators", default="pix2pix,cyclegan,diffusion")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    generators = given.generators.split(",")
    columns = 2 * (1 + len(generators))
    figure = new_figure(len(given.scan), columns)
    for row, text in enumerate(given.scan):
        path, place = text.rsplit(":", 1)
        center = as_float_triple([float(value) for value in place.split(",")])
        scan = io.read(Path(path))
        requests = [Request(given.task, center, name, seed=given.seed) for name in generators]
        shown = [scan, *(tamper_scan(scan, request)[0] for request in requests)]
        for k, (name, volume) in enumerate(zip(["scan", *generators], shown, strict=True)):
            panels = [figure.add_subplot(len(given.scan), columns, row * columns + 2 * k + i + 1) for i in (0, 1)]
            _draw(panels, volume, center)
            if row == 0:
                panels[0].set_title(name, fontsize=10, color=INK, pad=5)
    given.out.write_bytes(as_png(figure))


def _draw(panels: Sequence[Any], volume: Volume, center: FloatTriple) -> None:
    field = Field(View.of(volume.geometry), center, FIELD_MM)
    for axes, plane in zip(panels, PLANES, strict=False):
        draw_panel(axes, Panel("", volume.hu, LUNG_WINDOW_HU, stamp_of(volume)), field, plane)
        add_scale_bar(axes, 10)


if __name__ == "__main__":
    main()
