"""Splits: by patient, stable, and refused when they leak."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctguard.cohort.split import assign_split, check_split, split_of
from ctguard.core.errors import DataError
from ctguard.core.records import Case


def case(scan: str, patient: str, **more: object) -> Case:
    return replace(Case(scan, patient, f"{scan}.mha"), **more)  # type: ignore[arg-type]


patients = st.lists(st.text(st.characters(codec="utf-8"), min_size=1).filter(str.strip), min_size=1, unique=True)


@settings(max_examples=60, deadline=None)
@given(patients, patients, st.integers(0, 9))
def test_adding_patients_moves_nobody(some: list[str], more: list[str], seed: int) -> None:
    def split(names: list[str]) -> dict[str, object]:
        cases = [case(f"{n}-{k}", name) for n, name in enumerate(names) for k in range(2)]
        return {one.patient: one.split for one in assign_split(cases, seed=seed)}

    alone = split(some)
    assert {name: split(list(dict.fromkeys(some + more)))[name] for name in some} == alone


def test_proportions_are_met_by_many_patients() -> None:
    names = [split_of(f"patient-{n}", {"train": 0.6, "valid": 0.3, "test": 0.1}, seed=4) for n in range(4000)]
    assert [names.count(s) / 4000 for s in ("train", "valid", "test")] == pytest.approx([0.6, 0.3, 0.1], abs=0.03)
    assert {split_of(str(n), {"train": 0.0, "test": 1.0}) for n in range(50)} == {"test"}


def test_seed_changes_the_split_and_a_published_one_wins() -> None:
    cases = [case(str(n), str(n)) for n in range(60)]
    assert assign_split(cases, seed=1) == assign_split(cases, seed=1) != assign_split(cases, seed=2)
    assert {one.split for one in assign_split(cases, fixed={str(n): "valid" for n in range(60)})} == {"valid"}


@pytest.mark.parametrize(
    ("cases", "says"),
    [
        ([case("a", "P7", split="train"), case("b", "P7", split="test")], "patient P7 stands in train"),
        (
            [case("a", "P1", split="train", series_uid="1.2"), case("b", "P2", split="test", series_uid="1.2")],
            "under the patients P1 and P2",
        ),
        ([case("a", "P1", split="train"), case("b", "P2")], "b of patient P2 has no split"),
        ([case("a", "P1", split="train"), case("a", "P2", split="train")], "scan_id a"),
    ],
)
def test_leaks_are_refused(cases: list[Case], says: str) -> None:
    with pytest.raises(DataError, match=says):
        check_split(cases)


def test_an_empty_split_that_is_needed_is_refused() -> None:
    check_split([case("a", "P", split="train")])
    with pytest.raises(DataError, match="no patient stands in valid"):
        check_split([case("a", "P", split="train")], need=("train", "valid"))


@pytest.mark.parametrize(
    "shares", [{"train": 0.5}, {"train": 1.5, "test": -0.5}, {"train": float("nan")}, {"dev": 1.0}]
)
def test_proportions_that_are_none(shares: dict[str, float]) -> None:
    with pytest.raises(DataError):
        split_of("P", shares)  # type: ignore[arg-type]
