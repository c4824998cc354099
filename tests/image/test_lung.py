"""Masks of lung, body and soft tissue on a drawn chest: what belongs in, what stays out, and on real series."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from ctguard import io
from ctguard.core.geometry import FloatTriple, Geometry
from ctguard.core.provenance import Provenance, Source
from ctguard.core.volume import Volume
from ctguard.image.lung import body_mask, lung_mask, parenchyma_mask, soft_tissue_mask, soft_tissue_region

SPACING: FloatTriple = (2.5, 1.5, 1.5)


def _volume(hu: NDArray[np.generic], spacing_zyx_mm: FloatTriple = SPACING) -> Volume:
    z, y, x = hu.shape
    return Volume(hu.astype(np.int16), Geometry((z, y, x), spacing_zyx_mm), Provenance(Source("phantom")))


def _chest(n_slices: int = 12) -> tuple[NDArray[np.int16], dict[str, NDArray[np.bool_]]]:
    """A chest of 230 x 230 pixels of 1.5 mm, and the truth: two lungs, trachea, table, a nodule, a pleural nodule."""
    rng = np.random.default_rng(5)
    _, y, x = np.mgrid[:n_slices, :230, :230].astype(float)

    def ellipse(cy: float, cx: float, ry: float, rx: float) -> NDArray[np.bool_]:
        return ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 <= 1

    truth = {
        "body": ellipse(110, 115, 75, 105),
        "lung": ellipse(110, 65, 52, 36) | ellipse(110, 165, 52, 36),
        "trachea": ellipse(85, 115, 6, 6),
        "table": (y > 195) & (y < 199),
        "nodule": ellipse(110, 60, 7, 7),
        "vessel": ellipse(125, 165, 2, 2),
        "bowel": ellipse(150, 115, 9, 12),
    }
    hu = np.full(truth["body"].shape, -1000.0)
    for name, value in (("body", 40), ("lung", -860), ("trachea", -990), ("table", -100), ("nodule", 30)):
        hu[truth[name]] = value
    hu[truth["vessel"]] = 20
    hu[truth["bowel"]] = -990
    return (hu + rng.normal(0, 25, hu.shape)).astype(np.int16), truth


def _dice(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def test_lung_is_found_with_its_nodule_and_vessels_and_nothing_else() -> None:
    hu, truth = _chest()
    lung = lung_mask(_volume(hu))
    assert _dice(lung, truth["lung"]) > 0.97
    assert lung[truth["nodule"]].all()
    assert lung[truth["vessel"]].all()
    assert not lung[truth["trachea"] | truth["table"] | truth["bowel"]].any()
    assert not lung[~truth["body"]].any()


def test_body_holds_lung_trachea_and_bowel_but_neither_table_nor_air() -> None:
    hu, truth = _chest()
    body = body_mask(_volume(hu))
    assert _dice(body, truth["body"]) > 0.98
    assert body[truth["trachea"] | truth["bowel"]].all()
    assert not body[truth["table"]].any()


def test_padding_is_neither_lung_nor_body_even_where_lung_touches_it() -> None:
    hu, truth = _chest()
    _, y, x = np.mgrid[: hu.shape[0], :230, :230]
    outside = (y - 110) ** 2 + (x - 60) ** 2 > 62**2
    for value in (-2048, -3024):
        padded = np.where(outside, value, hu)
        lung = lung_mask(_volume(padded))
        assert not lung[outside].any()
        assert not body_mask(_volume(padded))[outside].any()
        assert _dice(lung, truth["lung"] & ~outside) > 0.95


def test_targeted_field_of_view_keeps_lung_at_the_border() -> None:
    hu, truth = _chest()
    window = np.s_[:, 80:150, 40:110]
    lung = lung_mask(_volume(hu[window]))
    assert _dice(lung, truth["lung"][window]) > 0.96
    assert lung[:, 30, 0].all()


@pytest.mark.parametrize("n_slices", [1, 8])
@pytest.mark.parametrize("thick_mm", [12, 40])
def test_mattress_under_the_patient_is_not_lung(n_slices: int, thick_mm: int) -> None:
    hu, truth = _chest(n_slices)
    _, y, _ = np.mgrid[:n_slices, :230, :230]
    rng = np.random.default_rng(6)
    foam = ~truth["body"] & (y > 150) & (y <= 185 + thick_mm / 1.5)
    hu[foam] = rng.normal(-935, 25, int(foam.sum()))
    hu[~truth["body"] & (y > 185 + thick_mm / 1.5)] = -2048
    lung = lung_mask(_volume(hu))
    assert not lung[foam].any()
    assert _dice(lung, truth["lung"]) > 0.96


@pytest.mark.parametrize("n_slices", [1, 2])
def test_one_or_two_slices_are_enough(n_slices: int) -> None:
    hu, truth = _chest(n_slices)
    lung = lung_mask(_volume(hu))
    assert lung.shape == hu.shape
    assert _dice(lung, truth["lung"]) > 0.96
    assert not lung[truth["trachea"] | truth["bowel"]].any()


def test_masks_follow_thick_and_thin_slices() -> None:
    hu, truth = _chest()
    for z_mm in (0.6, 5.0):
        assert _dice(lung_mask(_volume(hu, (z_mm, 1.5, 1.5))), truth["lung"]) > 0.97


def test_no_lung_gives_an_empty_mask() -> None:
    rng = np.random.default_rng(0)
    hu = rng.normal(40, 20, (6, 80, 80))
    assert not lung_mask(_volume(hu)).any()
    assert not lung_mask(_volume(np.full((6, 80, 80), -1000))).any()
    assert soft_tissue_mask(_volume(hu)).mean() > 0.9


def test_parenchyma_leaves_the_nodule_out_and_soft_tissue_the_lung() -> None:
    hu, truth = _chest()
    volume = _volume(hu)
    parenchyma, soft, region = parenchyma_mask(volume), soft_tissue_mask(volume), soft_tissue_region(volume)
    assert parenchyma[truth["lung"]].mean() > 0.9
    assert not parenchyma[truth["nodule"]].any()
    assert not (soft & truth["lung"] & ~truth["nodule"] & ~truth["vessel"]).any()
    flesh = truth["body"] & ~truth["lung"] & ~truth["bowel"] & ~truth["trachea"]
    assert soft[flesh].mean() > 0.85
    assert region[flesh].mean() > 0.5
    assert not (region & truth["table"]).any()


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "litres", "hu"),
    [("R01-001", 2.17, -857), ("Lung_Dx-A0001_B", 5.46, -847), ("Lung_Dx-A0001_L", 5.46, -866)],
)
def test_real_lungs_are_whole(real_dir: Path, name: str, litres: float, hu: float) -> None:
    """Volume and median HU of masks that were looked at slice by slice; two kernels of one scan give one lung."""
    volume = io.read(real_dir / name)
    lung = lung_mask(volume)
    assert lung.sum() * volume.geometry.voxel_mm3 / 1e6 == pytest.approx(litres, rel=0.03)
    assert np.median(volume.hu[lung]) == pytest.approx(hu, abs=4)
    assert body_mask(volume)[lung].mean() > 0.999
