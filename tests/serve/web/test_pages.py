"""What the pages say and keep."""

from __future__ import annotations

import re
import shutil
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from imagecodecs import png_decode
from sqlalchemy import select, text, update

from ctguard.serve.store.database import session_scope
from ctguard.serve.store.models import Alert, AuditEvent, Reading, Series, now
from ctguard.serve.web.meaning import worth
from ctguard.serve.web.pages import NOTICE, bar
from tests.serve.web.node import CLEAR, HOT_ZYX, JUDGED, Node, add_series, make_node

PAGES = (
    *("/", "/cases/1", "/cases/2", "/cases/3", "/cases/4", "/admin/users", "/admin/audit", "/admin/retention"),
    *("/studies", "/password", "/no-such-page", "/cases/99", "/cases/x", "/login"),
)


@pytest.mark.parametrize("path", PAGES)
def test_every_page_says_what_it_is_for_and_never_authentic(node: Node, path: str) -> None:
    answer = node.client("ada").get(path)
    assert NOTICE == "Research use only - not a medical device - not for diagnosis"
    assert NOTICE in answer.text
    assert "authentic" not in answer.text.lower()
    assert not re.search(r"<script(?![^>]*\bsrc=)|\son\w+=|\sstyle=|<style", answer.text)  # what the policy would block
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy and "http" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-store"


def test_errors_protect_their_answers_too_and_say_nothing_of_the_inside(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    person = node.client("vera", raise_server_exceptions=False)

    def broken(*_: object) -> None:
        raise RuntimeError("secret path /var/x")

    monkeypatch.setattr("ctguard.serve.web.worklist._rows", broken)
    answer = person.get("/")
    assert answer.status_code == 500
    assert "Something went wrong" in answer.text
    assert "secret" not in answer.text and "Traceback" not in answer.text
    assert "default-src 'none'" in answer.headers["content-security-policy"]


@pytest.mark.parametrize(
    "path",
    [
        *("/cases/../../etc/passwd", "/cases/1/..%2f..%2fverdict.json", "/static/../app.py", "/static/%2e%2e/app.py"),
        *("/cases/1/lung/99.png", "/cases/1/lung/-1.png", "/cases/1/bone/3.png", "/cases/1/etc.nii", "/cases/1e9"),
        *("/cases/99999999999999999999", "/cases/0", "/docs", "/openapi.json"),
    ],
)
def test_paths_that_lead_nowhere_are_404(node: Node, path: str) -> None:
    answer = node.client("vera").get(path)
    assert answer.status_code == 404
    assert "There is no such page." in answer.text


def test_what_is_too_large_or_does_not_fit_is_refused(node: Node) -> None:
    person = node.client("rita")
    assert person.http.post("/login", content=b"x" * 70_000).status_code == 413
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    chunks = (b"name=x&" * 1300 for _ in range(9))  # a body that does not tell its length
    assert person.http.post("/login", content=chunks, headers=form).status_code == 413
    assert person.get("/", params={"show": "nonsense"}).status_code == 400
    assert person.get("/", params={"page": "0"}).status_code == 400
    assert person.get("/", params={"q": "a\0b"}).status_code == 400
    for fields in ({"verdict": "sure", "confidence": "3"}, {"verdict": "unsure", "confidence": "6"}, {}):
        assert person.send("/cases/1", "/cases/1/readings", **fields).status_code == 400
    long = {"verdict": "unsure", "confidence": "3", "note": "x" * 4001}
    assert person.send("/cases/1", "/cases/1/readings", **long).status_code == 400


def test_the_work_list_filters_and_finds(node: Node) -> None:
    person = node.client("vera")

    def cases(**query: str) -> list[str]:
        return re.findall(r'<td class="number"><a href="/cases/(\d+)"', person.get("/", params=query).text)

    assert cases() == ["1", "2", "3", "4"]  # the newest first
    assert cases(show="evidence") == ["1"]
    assert cases(show="clear") == ["2", "4"]
    assert cases(show="failed") == ["3"]
    assert cases(show="alerts") == ["1"]
    assert cases(q="chest 3") == ["3"]
    assert cases(q="%") == []
    text_ = person.get("/").text
    assert "evidence of tampering" in text_ and "no evidence of tampering found" in text_
    assert "1 alarm" in text_ and "budget of 5" in text_
    assert "synthetic" in text_ and "broken" in text_


def test_a_long_work_list_has_pages(tmp_path: Path) -> None:
    node = make_node(tmp_path)
    for number in range(5, 66):
        add_series(node.engine, None, number, **(JUDGED if number % 2 else CLEAR))
    person = node.client("vera")
    last = person.get("/", params={"page": "3"}).text
    assert "page 3 of 3" in last and "65 series" in last
    assert last.count('<td class="number">') == 15
    assert "page 3 of 3" in person.get("/", params={"page": "77"}).text
    assert "over" in person.get("/").text  # 30 alarms of a budget of 5


def test_text_from_outside_is_escaped(tmp_path: Path) -> None:
    node = make_node(tmp_path)
    add_series(node.engine, None, 5, description="<script>alert(1)</script>", calling_ae='"><img src=x>')
    page = node.client("vera").get("/").text
    assert "<script>alert" not in page and "<img src=x" not in page
    assert "&lt;script&gt;alert(1)" in page


def test_a_case_shows_place_size_and_integrity(node: Node) -> None:
    page = node.client("vera").get("/cases/1").text
    assert "Evidence of tampering in 1 region" in page
    for words in (
        "score <strong>0.9996",
        "threshold 0.9500",
        "centre 68.8, -25.0, -55.0 mm",
        "mm³",
        "ab" * 32,
        "broken",
    ):
        assert words in page, words
    assert "security" in page and "1 in 1,000,000" in page and "at most 0.01 %" in page
    clear = node.client("vera").get("/cases/2").text
    assert "No evidence of tampering found" in clear and "does not prove that a scan is genuine" in clear
    assert "a 2.5 mm gap after slice 41" in node.client("vera").get("/cases/3").text


def test_pictures_show_the_patient_as_readers_expect_and_the_map_where_it_is_hot(node: Node) -> None:
    person = node.client("vera")
    k, row, column = HOT_ZYX
    lung = png_decode(person.get(f"/cases/1/lung/{k}.png").content)
    soft = png_decode(person.get(f"/cases/1/mediastinum/{k}.png").content)
    heat = png_decode(person.get(f"/cases/1/map/{k}.png").content)
    assert lung.shape == (96, 96) and heat.shape == (96, 96, 4)
    assert lung[74, 48] == 255 and lung[22, 48] < 245  # the spine is at the back, below
    assert abs(int(lung[row, column]) - 255 * (-820 + 1350) / 1500) < 12
    assert soft[row, column] == 0 and abs(int(soft[22, 48]) - 128) < 15
    hottest = np.unravel_index(np.argmax(heat[..., 3].astype(int) - heat[..., 1]), heat.shape[:2])
    assert hottest == (row, column)
    assert heat[row, column, 0] == 255 and heat[row, column, 1] < 10 and heat[row, column, 3] == 255
    assert heat[row, 95 - column, 3] == 0  # and not on the other side


def test_a_case_that_was_not_prepared_is_made_when_it_is_opened(node: Node) -> None:
    person = node.client("vera")
    assert "being prepared" in person.get("/cases/4").text
    assert person.get("/cases/4/view").json() == {"ready": True}
    assert 'id="scan"' in person.get("/cases/4").text
    assert png_decode(person.get("/cases/4/lung/0.png").content).shape == (24, 36)
    assert not list((node.folder / "4").glob(".images-*"))


def test_what_is_not_judged_or_gone_or_damaged_is_said(tmp_path: Path) -> None:
    node = make_node(tmp_path)
    person = node.client("vera")
    assert person.get("/cases/3/view").status_code == 409
    shutil.rmtree(tmp_path / "1")
    with session_scope(node.engine) as session:
        session.execute(update(Series).where(Series.id == 1).values(folder=None, verdict_path=None))
    assert "retention period ended" in person.get("/cases/1").text
    gone = person.get("/cases/1/report.html")
    assert gone.status_code == 410 and "retention period ended" in gone.text
    view = tmp_path / "2" / "view"
    (view / "ct.nii.gz").write_bytes(b"\0" * (view / "ct.nii.gz").stat().st_size)
    damaged = person.get("/cases/2/lung/3.png")
    assert damaged.status_code == 500 and str(tmp_path) not in damaged.text and "log says why" in damaged.text


def test_the_export_is_one_file_that_needs_no_network(node: Node) -> None:
    answer = node.client("vera").get("/cases/1/report.html")
    assert 'filename="case-1.html"' in answer.headers["content-disposition"]
    assert "Research use only" in answer.text and "Evidence of tampering in 1 region" in answer.text
    assert "broken" in answer.text and "data:image/png;base64," in answer.text
    assert not re.search(r'(src|href)="(?!data:|#)', answer.text)


def test_readings_are_added_and_never_changed(node: Node) -> None:
    person = node.client("rita")
    first = person.send("/cases/1", "/cases/1/readings", verdict="tampered", confidence="4", note="Edge too sharp.")
    second = person.send("/cases/1", "/cases/1/readings", verdict="unsure", confidence="2")
    assert [first.status_code, second.status_code] == [303, 303]
    page = person.get("/cases/1").text
    assert page.index("<strong>tampered</strong>") < page.index("<strong>unsure</strong>")
    assert "Edge too sharp." in page and "rita" in page
    with session_scope(node.engine, read_only=True) as session:
        rows = session.scalars(select(Reading).where(Reading.series_id == 1).order_by(Reading.id)).all()
        events = session.scalars(select(AuditEvent).where(AuditEvent.event == "reading")).all()
    assert [row.verdict for row in rows] == ["tampered", "unsure"]
    assert all(row.seconds is not None and 0 <= row.seconds < 60 for row in rows)
    assert [event.details["verdict"] for event in events] == ["tampered", "unsure"]
    assert "Edge" not in str([event.details for event in events])  # notes may tell of patients
    assert "unsure" in person.get("/").text


def test_the_clock_of_one_case_does_not_fit_another(node: Node) -> None:
    person = node.client("rita")
    fields = {"verdict": "unsure", "confidence": "1"}
    assert person.send("/cases/2", "/cases/1/readings", **fields).status_code == 403


def test_alerts_are_acknowledged_once_by_name(node: Node) -> None:
    person = node.client("rita")
    assert "<strong>seal</strong> alert" in person.get("/cases/1").text
    assert person.send("/cases/1", "/alerts/1/acknowledge").status_code == 303
    assert person.send("/cases/2", "/alerts/1/acknowledge").status_code == 303
    assert "acknowledged by rita" in person.get("/cases/1").text
    assert person.send("/cases/1", "/alerts/77/acknowledge").status_code == 404
    with session_scope(node.engine, read_only=True) as session:
        assert session.scalars(select(Alert.acknowledged_by)).all() == ["rita"]
        assert len(session.scalars(select(AuditEvent).where(AuditEvent.event == "alert-acknowledged")).all()) == 1


def test_alerts_of_no_series_stand_above_the_work_list(tmp_path: Path) -> None:
    node = make_node(tmp_path)
    with session_scope(node.engine) as session:
        session.add(Alert(kind="disk", details={"free_mb": 100}))
    person = node.client("rita")
    assert "<strong>disk</strong> alert" in person.get("/").text and "free_mb: 100" in person.get("/").text
    assert person.send("/", "/alerts/2/acknowledge").headers["location"] == "/"
    assert "<strong>disk</strong>" not in person.get("/").text


def test_a_person_releases_what_quarantine_holds_back(tmp_path: Path) -> None:
    node = make_node(tmp_path)
    with session_scope(node.engine) as session:
        session.execute(update(Series).where(Series.id == 1).values(quarantined_until=now() + timedelta(hours=2)))
    assert node.client("vera").send("/cases/1", "/cases/1/release").status_code == 403
    person = node.client("rita")
    assert "held back until" in person.get("/cases/1").text
    assert person.send("/cases/1", "/cases/1/release").status_code == 303
    assert "held back" not in person.get("/cases/1").text
    assert person.send("/cases/1", "/cases/1/release").status_code == 409
    assert "quarantine-released" in node.client("ada").get("/admin/audit").text


def test_opening_and_exporting_a_case_is_audited(node: Node) -> None:
    node.client("vera").get("/cases/2")
    node.client("vera").get("/cases/2/report.html")
    page = node.client("ada").get("/admin/audit", params={"actor": "vera"}).text
    assert "case-opened" in page and "case-exported" in page and "series: 2" in page
    assert "rita" not in re.sub(r"<option.*?</option>", "", page)


def test_the_audit_page_finds_the_row_that_was_changed(tmp_path: Path) -> None:
    node = make_node(tmp_path)
    admin = node.client("ada")
    assert "Chain verified: 5 events" in admin.get("/admin/audit").text
    with node.engine.begin() as connection:
        connection.execute(text("DROP TRIGGER audit_event_UPDATE"))
        connection.execute(text("UPDATE audit_event SET actor = 'nobody' WHERE id = 3"))
    page = admin.get("/admin/audit").text
    assert "Chain broken at row 3" in page and "verified" not in page


def test_admins_add_users_and_hear_what_is_wrong(node: Node) -> None:
    admin = node.client("ada")
    short = admin.send("/admin/users", "/admin/users", name="eva", role="reviewer", password="short")
    assert short.status_code == 400 and "12 to 256 characters" in short.text
    made = admin.send("/admin/users", "/admin/users", name="eva", role="reviewer", password="long enough words")
    assert made.status_code == 303
    assert node.client().log_in("eva", "long enough words").status_code == 303


def test_health_and_metrics(tmp_path: Path) -> None:
    node = make_node(tmp_path)
    assert node.client().get("/healthz").json() == {"status": "ok"}
    page = node.client(client=("127.0.0.1", 5000)).get("/metrics").text
    assert 'ctguard_series{state="done"} 3.0' in page and 'ctguard_series{state="queued"} 0.0' in page
    assert "ctguard_tampered 1.0" in page and 'ctguard_alerts{kind="seal"} 1.0' in page
    assert 'ctguard_deliveries{state="sent"} 1.0' in page
    assert "Chest" not in page and "1.2.826" not in page


def test_an_alarm_is_worth_less_the_rarer_forgeries_are() -> None:
    found = worth([1e-2, 1e-4, 1e-6])
    assert [round(100 * row.predictive_value, 3) for row in found] == [50.251, 0.99, 0.01]
    assert [row.words for row in found] == ["at most 50 %", "at most 0.99 %", "at most 0.01 %"]


def test_the_bar_has_the_threshold_in_its_middle() -> None:
    assert bar(0.95, 0.95) == 50
    assert bar(0.2, 0.95) < 50 < bar(0.96, 0.95) < bar(0.999, 0.95) < bar(0.999, 0.9) <= 100
    assert bar(0.0, 0.95) == 0 and bar(1.0, 0.95) == 100


def test_all_pages_work_on_each_kind_of_database(url: str, tmp_path: Path) -> None:
    node = make_node(tmp_path / "node", url)
    admin, reader = node.client("ada"), node.client("rita")
    reading = {"verdict": "tampered", "confidence": "5", "note": "é\u2028ü"}
    assert reader.send("/cases/1", "/cases/1/readings", **reading).status_code == 303
    assert reader.send("/cases/1", "/alerts/1/acknowledge").status_code == 303
    study = {"name": "pilot", "series": "2", "readers": "rita", "seed": "1"}
    assert admin.send("/studies", "/studies", **study).status_code == 303
    assert reader.send("/studies/1", "/studies/1/1", **reading).status_code == 303
    for path in (
        *PAGES[:9],
        "/?q=chest&show=unread",
        "/?show=alerts",
        "/studies/1/results.csv",
        "/cases/1/report.html",
    ):
        assert admin.get(path).status_code == 200, path
    metrics = node.client(client=("127.0.0.1", 5000)).get("/metrics").text
    assert "ctguard_oldest_queued_s 0.0" in metrics and 'ctguard_series{state="failed"} 1.0' in metrics
    assert "Chain verified" in admin.get("/admin/audit").text
