"""Splits by patient: stable when patients are added, and refused when they leak."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import get_args

from ctguard.core.errors import DataError
from ctguard.core.records import Case, Split

SPLITS: tuple[Split, ...] = get_args(Split)
PROPORTIONS: Mapping[Split, float] = MappingProxyType({"train": 0.66, "valid": 0.14, "test": 0.20})
"""M3Dsynth's 488, 100 and 150 patients."""


def split_of(patient: str, proportions: Mapping[Split, float] = PROPORTIONS, seed: int = 0) -> Split:
    """The split of a patient: a hash of seed and patient id, so it depends on nobody else in the cohort.

    proportions: shares that add up to 1; a cohort meets them in expectation, not exactly.
    Raises DataError where the shares are not such, or the patient has no name.
    """
    _check_proportions(proportions)
    if not patient.strip():
        raise DataError("a case without a patient cannot be split", remedy="fill the column patient")
    digest = hashlib.sha256(f"{seed}:{patient}".encode()).digest()
    # 53 bits: exact in a float, and below 1 for every digest.
    draw = (int.from_bytes(digest[:8], "big") >> 11) / 2**53
    edge = 0.0
    wanted = [name for name in SPLITS if proportions.get(name, 0.0) > 0]
    for name in wanted:
        edge += proportions[name]
        if draw < edge:
            return name
    return wanted[-1]  # the shares add up to a little less than 1 in floating point


def assign_split(
    cases: Iterable[Case],
    proportions: Mapping[Split, float] = PROPORTIONS,
    seed: int = 0,
    fixed: Mapping[str, Split] | None = None,
) -> list[Case]:
    """The cases with their split set, replacing any that they had.

    fixed: patients whose split is given, such as M3Dsynth's published one (`m3dsynth.Tables.splits`).
    Raises DataError as `split_of` and `check_split` do.
    """
    fixed = fixed or {}
    result = [
        replace(case, split=fixed.get(case.patient) or split_of(case.patient, proportions, seed)) for case in cases
    ]
    check_split(result)
    return result


def check_split(cases: Iterable[Case], need: Sequence[Split] = ()) -> None:
    """Refuse a table in which a split tells nothing.

    Raises DataError naming the patient who stands in two splits, the scan that stands under two patients
    or in two splits (by series or by path), the case without a split, the scan_id given twice, or the split
    of `need` that holds nobody.
    """
    split_by_patient: dict[str, tuple[Split, str]] = {}
    patient_by_scan: dict[str, str] = {}
    ids: set[str] = set()
    for case in cases:
        if case.scan_id in ids:
            raise DataError(f"scan_id {case.scan_id} stands in two rows", remedy="give each scan its own")
        ids.add(case.scan_id)
        if case.split is None:
            raise DataError(
                f"case {case.scan_id} of patient {case.patient} has no split", remedy="split the index anew"
            )
        seen, other = split_by_patient.setdefault(case.patient, (case.split, case.scan_id))
        if seen != case.split:
            raise DataError(
                f"patient {case.patient} stands in {seen} ({other}) and in {case.split} ({case.scan_id})",
                remedy="keep all scans of a patient in one split",
            )
        for key in _same_scan_keys(case):
            owner = patient_by_scan.setdefault(key, case.patient)
            if owner != case.patient:
                raise DataError(
                    f"the scan {case.scan_id} ({key}) stands under the patients {owner} and {case.patient}",
                    remedy="give both rows the same patient, or drop one",
                )
    empty = [name for name in need if name not in {split for split, _ in split_by_patient.values()}]
    if empty:
        raise DataError(f"no patient stands in {' or '.join(empty)}", remedy="add patients or split with another seed")


def _same_scan_keys(case: Case) -> list[str]:
    """What makes two rows the same scan: the series, or the path where it holds one series only."""
    return [f"series {case.series_uid}"] if case.series_uid else [f"path {case.path}"]


def _check_proportions(proportions: Mapping[Split, float]) -> None:
    unknown = [name for name in proportions if name not in SPLITS]
    if unknown:
        raise DataError(f"there is no split {', '.join(map(str, unknown))}", remedy=f"use {', '.join(SPLITS)}")
    shares = list(proportions.values())
    if any(not math.isfinite(share) or share < 0 for share in shares) or not math.isclose(
        sum(shares), 1.0, abs_tol=1e-6
    ):
        raise DataError(
            f"the proportions {dict(proportions)} are not shares of one", remedy="give numbers >= 0 that add up to 1"
        )
