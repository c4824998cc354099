"""Shield and seal together: one budget, a seal that holds, and the shielded scan when it is taken off."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ctguard import io
from ctguard.core.errors import RecipeError, RefusedError
from ctguard.core.volume import Volume
from ctguard.defence import SHIELD_SEAL, protect_scan, shield_and_seal
from ctguard.defence.combined import EACH_SHARE
from ctguard.defence.shield import shield_delta
from ctguard.image.lung import lung_mask
from ctguard.image.noise import local_sd_map
from ctguard.protect.seal import SealSettings, restore_volume, seal_volume
from ctguard.protect.shaping import Budget
from ctguard.protect.verify import verify_volume
from tests.cli.runner import run
from tests.protect.seals import KEY
from tests.protect.test_shield import rms, scan, weights

BUDGET_HU = 12.0


def added_sd(before: Volume, after: Volume) -> float:
    """What was added in lung, over the local noise there."""
    lung = lung_mask(before)
    added = after.hu.astype(np.float32) - before.hu
    return rms(added[lung]) / rms(local_sd_map(before.hu, before.geometry.spacing_zyx_mm)[lung])


def quiet_scan() -> Volume:
    """With lung so quiet that its noise is the limit, not the caps in HU."""
    volume = scan()
    lung = lung_mask(volume)
    hu = volume.hu.copy()
    hu[lung] = (hu[lung] + 830) // 2 - 830
    return Volume(hu, volume.geometry, volume.provenance)


def test_both_fit_into_the_budget_of_one(tmp_path: Path) -> None:
    volume, path = quiet_scan(), weights(tmp_path)
    both, _, price = shield_and_seal(volume, KEY, budget_hu=BUDGET_HU, weights=path, quiet=True)
    assert price.max_hu <= BUDGET_HU
    shield = protect_scan(volume, "shield", budget_hu=BUDGET_HU, weights=path, quiet=True)[0]
    one_after_the_other = seal_volume(shield, KEY, SealSettings())[0]
    assert added_sd(volume, both) < 0.2 < added_sd(volume, one_after_the_other)
    assert {mark.kind for mark in both.provenance.marks} >= {"protected", "sealed"}


def test_the_seal_holds_and_comes_off(tmp_path: Path) -> None:
    volume, path = scan(), weights(tmp_path)
    both, seal, _ = shield_and_seal(volume, KEY, budget_hu=BUDGET_HU, weights=path, quiet=True)
    assert verify_volume(both, KEY, seal, []).state == "intact"
    delta, _ = shield_delta(volume, Budget(9, EACH_SHARE), seed=0, weights=path, quiet=True)
    assert np.array_equal(restore_volume(both, seal, KEY).hu, volume.hu + delta.astype(np.int16))
    with pytest.raises(RefusedError):
        shield_and_seal(both, KEY, budget_hu=BUDGET_HU, weights=path)
    with pytest.raises(RecipeError, match="too small"):
        shield_and_seal(volume, KEY, budget_hu=2, weights=path)


def test_the_command_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    io.write(scan(), tmp_path / "scan.mha")
    key, out = tmp_path / "key", tmp_path / "out"
    assert run(capfd, "keygen", key).code == 0
    words = ("protect", tmp_path / "scan.mha", out, "--protector", SHIELD_SEAL, "--weights", weights(tmp_path))
    assert run(capfd, *words, "--key", key).code == 2  # no budget
    assert run(capfd, *words, "--budget-hu", "12").code == 2  # no key
    done = run(capfd, *words, "--budget-hu", "12", "--key", key, "--json")
    facts = json.loads(done.out)
    assert facts["protector"] == SHIELD_SEAL and 0 < facts["max_hu"] <= 12
    assert run(capfd, "verify", out / "series", "--key", key).out.startswith("the seal is intact")
