"""Reader studies: blinded, in an order of each reader's own, every answer once, a CSV at the end."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

import pytest

from ctguard.core.errors import DataError
from ctguard.serve.store.models import ReaderStudy
from ctguard.serve.web.study import COLUMNS, create_study, order_for
from tests.serve.web.node import Node, Person, make_node

STUDY = {"name": "pilot", "series": "1, 2 4", "readers": "rita rob", "seed": "7"}


@pytest.fixture
def pilot(tmp_path: Path) -> Node:
    """A node with a study of cases 1, 2 and 4, read by rita and rob."""
    node = make_node(tmp_path)
    assert node.client("ada").send("/studies", "/studies", **STUDY).status_code == 303
    return node


def answer(person: Person, position: int, verdict: str, confidence: int) -> int:
    """Read the next case; the status of the answer."""
    fields = {"verdict": verdict, "confidence": str(confidence)}
    return person.send("/studies/1", f"/studies/1/{position}", **fields).status_code


def test_a_reader_sees_images_and_nothing_of_the_verdict(pilot: Node) -> None:
    reader = pilot.client("rita")
    page = reader.get("/studies/1").text
    assert "case 1 of 3" in page
    for told in (
        "score",
        "Chest",
        "0.9996",
        "0.3100",
        "evidence",
        "tampering in",
        "/cases/",
        "map/",
        "data-map",
        "1.2.826",
    ):
        assert told not in page, told
    middle = int(re.search(r'id="scan" src="/studies/1/1/lung/(\d+).png"', page)[1])  # type: ignore[index]
    assert middle in (10, 3)  # the middle of 20 or of 6 slices, not the worst one
    assert reader.get(f"/studies/1/1/lung/{middle}.png").status_code == 200
    assert reader.get("/studies/1/1/ct-small.nii").status_code == 200
    for path in ("map/3.png", "map.nii", "map-small.nii"):
        assert reader.get(f"/studies/1/1/{path}").status_code == 404
    assert reader.get("/studies/1/2/lung/3.png").status_code == 404  # not before its turn


def test_its_cases_are_hidden_elsewhere_until_all_are_answered(pilot: Node) -> None:
    reader = pilot.client("rita")
    hidden = ("/cases/1", "/cases/1/report.html", "/cases/1/lung/3.png", "/cases/2/map.nii", "/cases/4/worst.png")
    assert "1 series" in reader.get("/").text
    assert {reader.get(path).status_code for path in hidden} == {403}
    for position in (1, 2, 3):
        assert "case " + str(position) in reader.get("/studies/1").text
        assert reader.get("/cases/1").status_code == 403
        assert answer(reader, position, "unsure", 1) == 303
    assert "all 3 cases are read" in reader.get("/studies/1").text
    assert reader.get("/cases/1").status_code == 200 and "4 series" in reader.get("/").text
    assert "4 series" in pilot.client("vera").get("/").text  # who reads nothing sees everything


def test_each_case_is_answered_once(pilot: Node) -> None:
    reader = pilot.client("rita")
    assert answer(reader, 2, "tampered", 3) == 409
    assert answer(reader, 1, "tampered", 3) == 303
    assert answer(reader, 1, "not tampered", 3) == 409
    assert pilot.client("vera").get("/studies/1").status_code == 403
    assert pilot.client("ada").get("/studies/1").status_code == 404  # no reader of it


def test_the_results_are_one_line_per_answer(pilot: Node) -> None:
    rita, rob = pilot.client("rita"), pilot.client("rob")
    given = [("tampered", 5), ("not tampered", 2), ("unsure", 1)]
    for position, (verdict, confidence) in enumerate(given, start=1):
        assert answer(rita, position, verdict, confidence) == 303
    assert answer(rob, 1, "not tampered", 4) == 303
    found = pilot.client("ada").get("/studies/1/results.csv")
    assert found.headers["content-type"].startswith("text/csv")
    rows = list(csv.DictReader(io.StringIO(found.text)))
    assert tuple(rows[0]) == COLUMNS
    assert [(row["reader"], row["position"], row["rating"]) for row in rows] == [
        ("rita", "1", "5"),
        ("rita", "2", "-2"),
        ("rita", "3", "0"),
        ("rob", "1", "-4"),
    ]
    study = ReaderStudy(name="pilot", seed=7, series=[1, 2, 4], readers=["rita", "rob"])
    assert [int(row["case"]) for row in rows[:3]] == order_for(study, "rita")
    assert all(0 <= float(row["seconds"]) < 60 for row in rows)
    assert {row["detector_threshold"] for row in rows} == {"0.95"}
    assert pilot.client("rita").get("/studies/1/results.csv").status_code == 403
    assert "rita 3 of 3" in pilot.client("ada").get("/studies").text


def test_orders_differ_between_readers_and_seeds_and_can_be_drawn_again() -> None:
    def order(seed: int, reader: str) -> list[int]:
        return order_for(ReaderStudy(name="x", seed=seed, series=list(range(40)), readers=[]), reader)

    assert order(1, "rita") == order(1, "rita")
    assert sorted(order(1, "rita")) == list(range(40))
    assert len({tuple(order(seed, reader)) for seed in (1, 2) for reader in ("rita", "rob")}) == 4


def test_a_study_takes_judged_cases_and_people_who_may_read(pilot: Node) -> None:
    for series, readers, words in (
        ([3], ["rita"], "3"),
        ([1, 9], ["rita"], "9"),
        ([1], ["vera"], "vera"),
        ([], ["rita"], "takes"),
    ):
        with pytest.raises(DataError, match=words):
            create_study(pilot.engine, "ada", "second", 0, series, readers)
    again = pilot.client("ada").send("/studies", "/studies", **STUDY)
    assert again.status_code == 400 and "there is a study of this name" in again.text
    wrong = pilot.client("ada").send("/studies", "/studies", **{**STUDY, "name": "b", "series": "one two"})
    assert wrong.status_code == 400 and "by their numbers" in wrong.text


def test_no_cell_of_the_results_is_a_formula(tmp_path: Path) -> None:
    node = make_node(tmp_path)
    admin = node.client("ada")
    assert admin.send("/studies", "/studies", **{**STUDY, "name": "=1+1", "readers": "ada"}).status_code == 303
    assert answer(admin, 1, "unsure", 1) == 303
    assert "\n'=1+1,ada," in admin.get("/studies/1/results.csv").text
