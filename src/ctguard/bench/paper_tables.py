"""The figures that M3Dsynth printed: localisation F1 / IoU and detection Acc / Pd@1%, in per cent.

Zingarini et al., "M3Dsynth: A dataset of medical 3D images with AI-generated local manipulations", ICASSP 2024
(arXiv 2309.07973), main table. Column group: test generator; inner column: training generator. U-Net, HP-FCN and the
rest were fine-tuned there at full width from their public weights; intervals are not printed there.
"""

from __future__ import annotations

GENERATORS = ("pix2pix", "cyclegan", "diffusion")
"""In the order of both the column groups and the inner columns."""

SHORT = {"pix2pix": "P2P", "cyclegan": "Cyc", "diffusion": "DM"}

CELLS: tuple[tuple[str, str], ...] = tuple((test, train) for test in GENERATORS for train in GENERATORS)
"""(test generator, training generator) of the nine columns, from left to right."""

METHODS = {
    "xception": "Xception",
    "unet": "U-Net",
    "hpfcn": "HP-FCN",
    "mantranet": "ManTraNet",
    "mvssnet": "MVSS-Net",
    "trufor": "TruFor",
}
"""Detectors of the zoo as the paper calls them, in its order."""

Nine = tuple[tuple[float, float], ...]

LOCALISATION: dict[str, Nine] = {
    "unet": (
        *((44.5, 30.7), (39.7, 26.6), (35.5, 23.2)),
        *((34.4, 23.3), (57.5, 43.6), (22.7, 15.5)),
        *((46.9, 33.3), (49.1, 35.8), (57.7, 43.6)),
    ),
    "hpfcn": (
        *((85.0, 75.3), (59.1, 43.4), (45.6, 31.3)),
        *((63.6, 49.8), (84.5, 75.3), (36.4, 24.6)),
        *((77.0, 64.9), (73.6, 61.9), (84.9, 75.4)),
    ),
    "mantranet": (
        *((87.0, 79.1), (66.5, 50.5), (61.4, 45.5)),
        *((74.8, 63.3), (85.5, 77.2), (60.5, 47.4)),
        *((83.2, 73.0), (81.8, 70.7), (87.2, 78.5)),
    ),
    "mvssnet": (
        *((81.4, 70.4), (63.2, 49.8), (56.8, 42.5)),
        *((74.7, 64.2), (86.2, 78.0), (55.1, 44.1)),
        *((79.5, 68.5), (72.8, 62.2), (84.9, 75.4)),
    ),
    "trufor": (
        *((89.9, 82.9), (68.1, 55.5), (68.0, 54.7)),
        *((79.0, 70.1), (88.2, 81.2), (65.0, 54.1)),
        *((84.4, 75.2), (76.9, 66.7), (89.3, 82.0)),
    ),
}
"""F1 and IoU of the cells in the order of CELLS."""

DETECTION: dict[str, Nine] = {
    "xception": (
        *((83.7, 99.8), (86.9, 95.2), (71.9, 80.3)),
        *((81.3, 86.1), (87.4, 99.2), (64.1, 37.8)),
        *((83.5, 97.7), (86.8, 94.1), (71.9, 96.9)),
    ),
    "unet": (
        *((52.9, 93.1), (60.3, 74.5), (53.7, 56.5)),
        *((52.1, 64.4), (60.6, 95.4), (53.0, 29.2)),
        *((52.9, 91.1), (60.3, 79.5), (53.7, 96.8)),
    ),
    "hpfcn": (
        *((59.8, 45.6), (71.4, 50.8), (60.2, 31.7)),
        *((59.8, 43.1), (71.4, 52.0), (60.3, 28.9)),
        *((59.8, 45.4), (71.4, 51.4), (60.4, 33.6)),
    ),
    "mantranet": (
        *((52.7, 100.0), (56.6, 99.9), (52.8, 91.2)),
        *((52.7, 93.4), (56.6, 99.7), (52.8, 87.3)),
        *((52.7, 99.9), (56.6, 100.0), (52.8, 100.0)),
    ),
    "mvssnet": (
        *((73.0, 95.8), (92.5, 97.2), (75.4, 86.2)),
        *((72.1, 70.8), (92.7, 99.3), (73.7, 67.4)),
        *((73.0, 91.2), (92.6, 97.9), (76.0, 99.3)),
    ),
    "trufor": (
        *((95.0, 100.0), (95.8, 97.8), (94.3, 97.0)),
        *((93.3, 95.9), (96.0, 99.4), (91.2, 89.1)),
        *((95.0, 99.9), (96.0, 98.1), (94.9, 99.6)),
    ),
}
"""Acc (balanced accuracy at 0.5) and Pd@1% of the cells in the order of CELLS."""
