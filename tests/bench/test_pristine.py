"""Scores for a threshold: every scan as it is and after one operation, whatever was killed in between."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ctguard.bench.detection import forged_cases
from ctguard.bench.pristine import CHANGES, PLAIN, score_pristine
from ctguard.core.errors import ReadError
from ctguard.core.records import Case
from tests.bench.make import SEEN, Stub, data_set


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Case]]:
    index, items = forged_cases(data_set(tmp_path_factory.mktemp("forged"), {"test": 3, "valid": 1}), "test")
    return index, [case for case, _ in items]


def test_each_scan_is_scored_as_it_is_and_after_an_operation(data: tuple[Path, list[Case]], tmp_path: Path) -> None:
    index, cases = data
    rows = score_pristine(Stub(), index, cases, tmp_path / "kept.json")
    assert [row.scan_id for row in rows] == [case.scan_id for case in cases for _ in range(2)]
    assert [row.operation for row in rows[::2]] == [PLAIN] * len(cases)
    changed = [row.operation for row in rows[1::2]]
    assert PLAIN not in changed and set(changed) <= {one.name for one in CHANGES}
    assert all(0 <= row.score <= 1 and row.searched_ml > 0 for row in rows)


def test_thresholds_rest_on_no_other_weights() -> None:
    assert CHANGES and not any(one.weights for one in CHANGES)


def test_a_killed_calibration_goes_on_with_the_same_weights(data: tuple[Path, list[Case]], tmp_path: Path) -> None:
    index, cases = data
    stub = Stub()
    whole = score_pristine(stub, index, cases, tmp_path / "whole.json")
    gone = replace(cases[1], path="gone.mha")
    with pytest.raises(ReadError):
        score_pristine(stub, index, [cases[0], gone], tmp_path / "kept.json")
    SEEN.clear()
    assert score_pristine(stub, index, cases, tmp_path / "kept.json") == whole
    part = sum(SEEN)
    SEEN.clear()
    with torch.no_grad():
        stub.weight += 1
    score_pristine(stub, index, cases, tmp_path / "kept.json")
    assert 0 < part < sum(SEEN)


def test_two_jobs_give_the_same_scores(data: tuple[Path, list[Case]], tmp_path: Path) -> None:
    index, cases = data
    alone, shared = (score_pristine(Stub(), index, cases, tmp_path / f"{jobs}.json", jobs) for jobs in (1, 2))
    assert shared == alone
