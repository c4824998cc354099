"""The malignancy scorer: network, proposals and scores. Nothing here needs trained weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from ctguard import io, zoo
from ctguard.cad.network import NoisyOr3d, Seen, location_map
from ctguard.cad.propose import Candidate, propose, suppress
from ctguard.cad.score import case_probability, lung_box, read_volume, score_site, score_sites
from ctguard.core.errors import DataError, GeometryError, RecipeError
from ctguard.core.geometry import FloatTriple, as_float_triple, index_to_lps_mm
from ctguard.core.marks import Mark
from ctguard.core.provenance import Provenance, Source, Step
from ctguard.core.records import Case, Finding
from ctguard.core.volume import Volume
from ctguard.image.lung import lung_mask
from ctguard.io.cases import write_cases
from ctguard.training.run import train
from tests.detect.scans import thorax

SITES = ((10.0, 48.0, 77.0), (14.0, 40.0, 35.0))


@pytest.fixture
def scorer() -> NoisyOr3d:
    torch.manual_seed(0)
    return NoisyOr3d(width=3, block_mm=16).eval()


def scan(*sites: FloatTriple, radius_mm: float = 5.0) -> Volume:
    """A thorax of 2.5 x 2 x 2 mm with calcified balls in its lungs."""
    volume = thorax((24, 96, 112), (2.5, 2.0, 2.0))
    hu = volume.hu.copy()
    grid = np.moveaxis(np.indices(hu.shape), 0, -1)
    for site in sites:
        distance = np.linalg.norm((grid - np.asarray(site)) * volume.geometry.spacing_zyx_mm, axis=-1)
        hu[distance <= radius_mm] = 400
    return Volume(hu, volume.geometry, volume.provenance)


def blocks(count: int = 4, side: int = 16) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(1)
    return torch.randn((count, 1, side, side, side), generator=rng) * 200 - 700, torch.zeros(count, 2, 3)


class BrightBlobs(NoisyOr3d):
    """Finds what is brighter than 200 HU over 4 mm, and calls it malignant where the block's middle is bright."""

    def __init__(self) -> None:
        super().__init__(width=3, block_mm=32)

    def look(self, hu: Tensor, location: Tensor) -> Seen:
        features = F.avg_pool3d(hu, 4)
        boxes = torch.zeros(len(hu), 3, 5, *features.shape[2:])
        boxes[:, :, 0] = -20
        boxes[:, 0, 0] = (features[:, 0] - 200) / 25
        return Seen(features, boxes)

    def classify(self, features: Tensor, site_mm: Tensor | None = None) -> Tensor:
        middle = features.shape[-1] // 2
        return (features[:, 0, middle - 1 : middle + 1, middle - 1 : middle + 1].amax((1, 2, 3)) - 200) / 25


def test_the_published_size_has_its_parameters_and_the_cpu_size_fits_the_package() -> None:
    published = sum(p.numel() for p in NoisyOr3d().parameters())
    small = sum(p.numel() for p in NoisyOr3d(width=12, block_mm=32).parameters())
    assert 5.0e6 < published < 5.8e6
    assert 2 * small < 5e6  # bytes in fp16


@pytest.mark.parametrize("wrong", [{"width": 4}, {"block_mm": 40}, {"window_hu": (600.0, -1200.0)}])
def test_a_size_that_makes_no_network_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(RecipeError, match="no scorer has"):
        NoisyOr3d(**wrong)  # type: ignore[arg-type]


def test_features_and_boxes_have_a_cell_for_every_four_millimetres(scorer: NoisyOr3d) -> None:
    hu, location = blocks(2, 32)
    seen = scorer.look(hu, location)
    assert seen.boxes.shape == (2, 3, 5, 8, 8, 8)
    assert seen.features.shape[2:] == (8, 8, 8)
    assert scorer(hu, location).shape == (2,)


def test_the_middle_is_what_is_scored_unless_a_site_is_given(scorer: NoisyOr3d) -> None:
    hu, location = blocks(3, 32)
    features = scorer.look(hu, location).features
    middle = scorer.classify(features)
    assert torch.equal(middle, scorer.classify(features, torch.full((3, 3), 15.5)))
    assert not torch.equal(middle, scorer.classify(features, torch.full((3, 3), 3.0)))


def test_the_location_map_says_where_each_cell_lies_in_the_lungs() -> None:
    location = torch.tensor([[[0.5, 0.0, -0.5], [0.2, 0.4, 0.0]]])
    coordinates = location_map(location, torch.zeros(1, 7, 4, 4, 4))
    assert coordinates.shape == (1, 3, 4, 4, 4)
    assert coordinates[0].mean((1, 2, 3)).tolist() == pytest.approx([0.5, 0.0, -0.5], abs=1e-6)
    assert coordinates[0, 0, :, 0, 0].tolist() == pytest.approx([0.35, 0.45, 0.55, 0.65])
    assert coordinates[0, 2].std() == 0


def test_the_place_in_the_lungs_reaches_the_score(scorer: NoisyOr3d) -> None:
    hu, location = blocks(2, 32)
    elsewhere = location.clone()
    elsewhere[:, 0, 0] = 1.0
    assert not torch.allclose(scorer(hu, location), scorer(hu, elsewhere))


def test_padding_values_of_scanners_do_no_harm_and_a_gradient_reaches_the_voxels(scorer: NoisyOr3d) -> None:
    hu, location = blocks()
    hu[:, :, :4] = -3024.0
    hu[:, :, -2:] = 32767.0
    hu.requires_grad_()
    logit = scorer(hu, location)
    (gradient,) = torch.autograd.grad(logit.sum(), hu)
    assert torch.isfinite(logit).all() and torch.isfinite(gradient).all() and gradient.abs().max() > 0


def test_a_case_is_a_noisy_or_with_a_leak(scorer: NoisyOr3d) -> None:
    p = np.array([0.3, 0.5, 0.2])
    with torch.no_grad():
        scorer.leak.fill_(-2.0)
        leak = float(torch.sigmoid(scorer.leak))
    assert case_probability(scorer, p) == pytest.approx(1 - (1 - leak) * 0.7 * 0.5 * 0.8)
    assert case_probability(scorer, p[:0]) == pytest.approx(leak)
    assert case_probability(scorer, np.append(np.zeros(5), 0.99)) == pytest.approx(leak)  # five at most
    assert case_probability(scorer, np.array([1.0, 0.5])) == pytest.approx(1.0)


def test_training_learns_to_find_and_to_tell_apart() -> None:
    torch.manual_seed(0)
    scorer = NoisyOr3d(width=3, block_mm=16, dropout=0.0)
    hu, location = blocks(10)
    site = torch.tensor([[7.5, 7.5, 7.5]]).repeat(10, 1)
    hu[:4, :, 5:11, 5:11, 5:11] = 0.0
    hu[4:8, :, 6:10, 6:10, 6:10] = 900.0
    batch = {
        "hu": hu,
        "location": location,
        "site_mm": site,
        "diameter_mm": torch.tensor([6.0] * 8 + [0.0] * 2),
        "malignant": torch.tensor([1.0] * 4 + [0.0] * 6),
        "case": torch.tensor([0, 0, 1, 1, 2, 2, 3, 3, 3, 3]),
    }
    optimizer = scorer.optimizers({"lr": 3e-3})["scorer"]
    losses = []
    for _ in range(25):
        values = scorer.step(batch, "scorer")
        optimizer.zero_grad()
        values["loss"].backward()
        optimizer.step()
        losses.append(values)
    for name in ("nodule", "case", "found"):
        assert losses[-1][name] < 0.6 * losses[0][name]
    with pytest.raises(RecipeError, match="no turn"):
        scorer.step(batch, "discriminator")
    with pytest.raises(RecipeError, match="lr"):
        scorer.optimizers({})


def test_boxes_that_match_the_nodule_cost_nothing() -> None:
    scorer = NoisyOr3d(width=3, block_mm=16)
    site, diameter = torch.tensor([[5.5, 5.5, 5.5]]), torch.tensor([10.0])
    right = torch.zeros(1, 3, 5, 4, 4, 4)
    right[:, :, 0] = -20
    right[0, 0, 0, 1, 1, 1] = 20
    found, shape = scorer._detector_losses(right, site, diameter)
    assert found < 1e-3 and shape < 1e-3
    elsewhere = right.roll(2, dims=3)
    assert scorer._detector_losses(elsewhere, site, diameter)[0] > 1
    too_large = right.clone()
    too_large[:, :, 4] = 1.0
    assert scorer._detector_losses(too_large, site, diameter)[1] > 0.1


def test_scores_read_voxels_and_geometry_only(scorer: NoisyOr3d) -> None:
    plain = scan(*SITES)
    told = Provenance(
        Source("dicom", ("forged/1.dcm",), series_uid="1.2.3", patient_id="CTGUARD^FORGED", kernel="FORGED"),
        (Step("block", {"lung_box_lps_mm": [[0, 0, 0], [1, 1, 1]]}), Step("tamper", {"task": "inject"})),
        (Mark("forged", "a nodule"), Mark("phantom", "made")),
    )
    marked = replace(plain, provenance=told)
    assert score_sites(plain, scorer, SITES).tobytes() == score_sites(marked, scorer, SITES).tobytes()
    names = {"name": "law", "model_id": "untrained", "threshold": 0.5}
    assert read_volume(plain, scorer, **names) == read_volume(marked, scorer, **names)  # type: ignore[arg-type]


def test_a_score_does_not_depend_on_its_neighbours(scorer: NoisyOr3d) -> None:
    volume = scan(*SITES)
    together = score_sites(volume, scorer, SITES)
    alone = [score_sites(volume, scorer, [site])[0] for site in SITES]
    assert together == pytest.approx(alone, abs=1e-6)
    assert len(score_sites(volume, scorer, [])) == 0


def test_a_place_outside_the_scan_is_refused(scorer: NoisyOr3d) -> None:
    with pytest.raises(GeometryError, match="outside the scan"):
        score_sites(scan(), scorer, [(10.0, 48.0, 200.0)])


def test_the_box_of_the_lungs_lies_in_patient_space() -> None:
    volume = scan()
    box = lung_box(volume)
    assert box is not None
    spans = np.argwhere(lung_mask(volume))
    corners = index_to_lps_mm(volume.geometry, np.stack([spans.min(0), spans.max(0)]))
    assert np.allclose(box, corners)
    assert lung_box(Volume(np.full_like(volume.hu, 40), volume.geometry, volume.provenance)) is None


def test_blobs_in_the_lungs_are_found_once_each_where_they_are() -> None:
    volume = scan(*SITES)
    found = propose(volume, BrightBlobs(), lung_mask(volume), lung_box(volume))
    assert len(found) == 2
    spacing = np.asarray(volume.geometry.spacing_zyx_mm)
    for site in SITES:
        nearest = min(float(np.linalg.norm(np.subtract(one.center_zyx, site) * spacing)) for one in found)
        assert nearest < 4.0
    assert all(one.confidence >= 0.5 and one.diameter_mm == pytest.approx(10.0) for one in found)


def test_nothing_is_found_in_clear_lungs_or_without_lungs() -> None:
    clear = scan()
    assert propose(clear, BrightBlobs(), lung_mask(clear), lung_box(clear)) == []
    solid = Volume(np.full_like(clear.hu, 40), clear.geometry, clear.provenance)
    reading = read_volume(solid, BrightBlobs(), name="n", model_id="m", threshold=0.5)
    assert reading.nodules == () and reading.case_probability < 0.01


def test_the_more_confident_of_two_neighbours_stays() -> None:
    here, near, far = (Candidate((0.0, 0.0, x), 10.0, c) for x, c in ((0.0, 0.7), (3.0, 0.9), (40.0, 0.6)))
    assert suppress([here, near, far], (1.0, 1.0, 1.0)) == [near, far]
    assert suppress([here, near, far], (1.0, 1.0, 4.0)) == [near, here, far]  # 12 mm apart


def test_a_reading_scores_each_proposal_where_it_was_found() -> None:
    volume = scan(*SITES)
    reading = read_volume(volume, BrightBlobs(), name="blobs", model_id="m", threshold=0.5)
    assert len(reading.nodules) == 2 and all(one.malignancy > 0.9 for one in reading.nodules)
    assert reading.case_probability > 0.99
    first = reading.nodules[0]
    assert first.center_lps_mm == pytest.approx(tuple(index_to_lps_mm(volume.geometry, first.center_zyx)))
    lung = score_site(volume, BrightBlobs(), (12.0, 60.0, 77.0), name="blobs", model_id="m", threshold=0.5)
    assert lung.nodules[0].malignancy < 0.1


RECIPE = """
name = "tiny"
model = "noisy-or"
task = "malignancy"
seed = 1
data_settings = { lung_sites = 2 }
[cpu]
steps = 2
batch = 5
validate_every = 2
optimiser = { lr = 1e-3 }
model_settings = { width = 3, block_mm = 16 }
"""


def index(folder: Path) -> Path:
    """A training and a validation patient, each with a benign and a malignant nodule."""
    cases = []
    for split in ("train", "valid"):
        volume = scan(*SITES)
        io.write(volume, folder / f"{split}.mha")
        places = [as_float_triple(index_to_lps_mm(volume.geometry, site)) for site in SITES]
        findings = tuple(Finding(place, 10.0, m) for place, m in zip(places, (1.0, 5.0), strict=True))
        cases.append(Case(split, split, f"{split}.mha", "ctguard-phantom", "", split, findings))  # type: ignore[arg-type]
    write_cases(cases, folder / "index.csv")
    return folder / "index.csv"


def test_a_scorer_trains_and_its_card_holds_threshold_and_warning(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(RECIPE)
    card = train(tmp_path / "recipe.toml", [index(tmp_path)], tmp_path / "run")
    assert card.steps == 2 and card.threshold is not None and 0 < card.threshold < 1
    assert "Youden" in card.threshold_note and "1 malignant and 1 benign" in card.threshold_note
    assert "surrogate" in card.notes and "1 malignant and 1 benign nodules, 2 places without" in card.data
    assert {"auc", "auc_8_15_mm", "auc_of_diameter"} <= set(card.metrics)
    module, _ = zoo.load(zoo.find("noisy-or", "scorer"), tmp_path / "run" / "tiny.safetensors")
    assert len(score_sites(scan(*SITES), module, SITES)) == 2


def test_a_scorer_without_validation_patients_is_refused(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(RECIPE)
    path = index(tmp_path)
    path.write_text(path.read_text().replace(",valid,", ",train,"))
    with pytest.raises(DataError, match="validation"):
        train(tmp_path / "recipe.toml", [path], tmp_path / "run")
