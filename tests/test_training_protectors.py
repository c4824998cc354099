"""Training protectors: blocks and sites, the attack on them, and `train` end to end, tiny."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ctguard.core.errors import DataError, ModelError
from ctguard.core.geometry import Geometry
from ctguard.core.records import Case
from ctguard.defence import protect_scan
from ctguard.defence.attacks import attack_generator, attack_names, block_attack
from ctguard.io.cases import read_cases, write_cases
from ctguard.protect.mitsgan import MITSGAN
from ctguard.tamper.pipeline import forge, make_plan
from ctguard.train.checkpoint import read_card
from ctguard.training.protectors import BlockBatches, ScanBlocks, judge_protector, scan_blocks
from ctguard.training.run import train
from ctguard.zoo import WEIGHTS
from tests.laws.test_protectors import answering
from tests.laws.test_protectors import batch as small_batch
from tests.synth.scans import cohort, scan

RECIPE = """
name = "tiny"
model = "mitsgan"
task = "perturbation"
seed = 1
data_settings = { side = 24, sites = 3, valid_batches = 1 }
[cpu]
steps = 2
batch = 1
validate_every = 1
optimiser = { lr = 1e-3 }
model_settings = { width = 4, discriminator = [1, 2], budget_hu = 4.0 }
"""


def case() -> Case:
    return Case("a", "a", "a.mha", "ctguard-phantom")


@pytest.fixture(scope="module")
def blocks() -> ScanBlocks:
    found = scan_blocks(scan(shape_zyx=(40, 96, 112)), case(), 6, 32, np.random.default_rng(0))
    assert found is not None
    return found


def test_blocks_hold_lung_with_its_site_anywhere_in_them(blocks: ScanBlocks) -> None:
    assert blocks.hu.shape[0] == 6 and blocks.hu.shape[2:] == (32, 32) and not blocks.real
    here = [b[tuple(np.rint(site).astype(int))] for b, site in zip(blocks.hu, blocks.site_zyx, strict=True)]
    assert np.mean(here) < -600
    assert len(np.unique(blocks.site_zyx, axis=0)) > 4


def test_a_scan_without_room_for_a_cube_gives_none() -> None:
    assert scan_blocks(scan(shape_zyx=(6, 96, 112)), case(), 3, 32, np.random.default_rng(0)) is None


def test_batches_are_a_function_of_the_step_and_sites_move_with_mirrored_tissue(blocks: ScanBlocks) -> None:
    marked = blocks.hu.copy()
    for block, site in zip(marked, np.rint(blocks.site_zyx).astype(int), strict=True):
        block[tuple(site)] = 3000
    batches = BlockBatches([replace(blocks, hu=marked)], 3, 5, attacks=2)
    for step in range(6):
        one, same = batches(step), batches(step)
        assert all(torch.equal(one[key], same[key]) for key in one)
        for block, site, core in zip(one["hu"], one["site_zyx"], one["core"], strict=True):
            peak = np.argwhere(block[0].numpy() == 3000)[0]
            moved_mm = np.abs(peak - site.numpy()) * blocks.spacing_zyx_mm
            assert moved_mm.max() <= 2.0 + 1e-3
            assert core[0, *peak] == 1
    assert not torch.equal(batches(0)["hu"], batches(1)["hu"])
    assert {int(a) for step in range(9) for a in batches(step)["attack"]} == {0, 1}


def test_real_and_made_scans_come_in_the_share_asked_for(blocks: ScanBlocks) -> None:
    real = replace(blocks, hu=np.full_like(blocks.hu, -700), real=True)
    batches = BlockBatches([blocks, blocks, real], 1, 5, attacks=1, real_share=0.5)
    share = np.mean([float(batches(step)["hu"].min()) == -700 for step in range(80)])
    assert 0.3 < share < 0.7


def test_the_attack_on_blocks_is_the_chain_without_its_noise(blocks: ScanBlocks) -> None:
    """What a perturbation changes in the forged core is the same through both."""
    attack, hashes = block_attack(["pix2pix"])
    assert hashes == {name: read_card(WEIGHTS / f"{name}.json").sha256 for name in hashes} and len(hashes) == 2
    batch = BlockBatches([blocks], 2, 3, attacks=len(attack_names(["pix2pix"])))(0)
    added = torch.randn(batch["hu"].shape, generator=torch.Generator().manual_seed(0)) * 5
    with torch.no_grad():
        fast = attack(batch["hu"] + added, batch) - attack(batch["hu"], batch)
        for i, core in enumerate(batch["core"][:, 0]):
            name, task = attack_names(["pix2pix"])[int(batch["attack"][i])]
            z, y, x = (float(v) for v in batch["site_zyx"][i])
            core_mm, seed = float(batch["core_mm"][i]), int(batch["seed"][i])
            plan = make_plan(task, name, (z, y, x), mode="clean", core_mm=core_mm, seed=seed)
            geometry = Geometry(tuple(core.shape), tuple(float(v) for v in blocks.spacing_zyx_mm))  # type: ignore[arg-type]
            module = attack_generator(name, task)[0]
            hu = batch["hu"][i, 0]
            whole = forge(hu + added[i, 0], geometry, plan, module) - forge(hu, geometry, plan, module)
            inside = core > 0
            difference = (whole - fast[i, 0])[inside].square().mean().sqrt()
            assert difference < 0.3 * whole[inside].square().mean().sqrt()


def test_mixed_precision_around_the_attack_does_not_round_a_perturbation_away(blocks: ScanBlocks) -> None:
    attack, _ = block_attack(["identity"])
    batch = BlockBatches([blocks], 1, 3, attacks=2)(0)
    plain = attack(batch["hu"], batch)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = attack(batch["hu"], batch)
    assert mixed.dtype == torch.float32 and torch.equal(plain, mixed)


def test_damage_gain_and_floor_are_measured_in_the_core() -> None:
    class Lifted(MITSGAN):
        def forward(self, hu: torch.Tensor, budget_hu: float | None = None) -> torch.Tensor:
            return torch.full_like(hu, 2.2)

    network = Lifted(width=4, discriminator=(1, 2))
    network.attack = answering
    metrics = judge_protector(network, [small_batch()])
    assert metrics["damage_hu"] == metrics["score"] == pytest.approx(22, abs=0.1)  # 2 and ten times 2
    assert metrics["gain"] == pytest.approx(11, abs=0.1)
    assert metrics["noise_damage_hu"] < 3 and metrics["max_hu"] == metrics["level_hu"] == 2 and metrics["sd_hu"] == 0


def test_a_protector_trains_resumes_and_protects_within_its_budget(tmp_path: Path) -> None:
    index = cohort(tmp_path, 2, ("train", "valid"))
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE)
    card = train(recipe, [index], tmp_path / "run")
    assert set(card.trained_against) == {"pix2pix_inject", "pix2pix_remove"}
    assert {"damage_hu", "gain", "noise_damage_hu", "sd_hu"} <= set(card.metrics)
    assert "3 blocks of 1 scans (ctguard-phantom, synthetic)" in card.data
    recipe.write_text(RECIPE.replace("steps = 2", "steps = 1"))
    train(recipe, [index], tmp_path / "again")
    recipe.write_text(RECIPE)
    assert train(recipe, [index], tmp_path / "again", resume=True).sha256 == card.sha256

    volume = scan(shape_zyx=(8, 96, 112))
    weights = tmp_path / "run" / "tiny.safetensors"
    protected, price = protect_scan(volume, "mitsgan", budget_hu=3.5, weights=weights, quiet=True)
    change = protected.hu.astype(int) - volume.hu
    assert 0 < np.abs(change).max() == price.max_hu <= 3
    step = protected.provenance.steps[-1]
    assert step.params["model_sha256"] == card.sha256 and step.params["budget_hu"] == 3.5


def test_what_cannot_be_trained_on_or_against_is_named(tmp_path: Path) -> None:
    index = cohort(tmp_path, 2, ("train", "valid"))
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE.replace("side = 24", 'side = 24, weights = "nowhere"'))
    with pytest.raises(ModelError, match="pix2pix_inject"):
        train(recipe, [index], tmp_path / "run")
    recipe.write_text(RECIPE)
    write_cases([c for c in read_cases(index) if c.split == "valid"], index)
    with pytest.raises(DataError, match="no scan to train on"):
        train(recipe, [index], tmp_path / "run")


def test_a_protector_without_weights_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="train"):
        protect_scan(scan(), "mitsgan", budget_hu=5, weights=tmp_path / "none.safetensors")
