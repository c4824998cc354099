"""Who gets in, as whom, for how long, and what a form has to carry."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from fastapi.routing import APIRoute
from sqlalchemy import select, update

from ctguard.core.errors import DataError
from ctguard.serve.store.database import session_scope
from ctguard.serve.store.models import AuditEvent, Session, User, now
from ctguard.serve.web.app import create_app
from ctguard.serve.web.users import Attempts, add_user
from tests.serve.web.node import PASSWORD, Node, hidden, make_node


def routes(node: Node, method: str) -> list[str]:
    """The paths of all routes of a method, with 1 for every number."""
    found: list[Any] = list(create_app(node.config, node.engine).routes)
    paths: list[str] = []
    while found:
        route = found.pop()
        found.extend(getattr(getattr(route, "original_router", None), "routes", ()))
        if isinstance(route, APIRoute) and method in route.methods:
            paths.append(route.path)
    return paths


def filled(path: str) -> str:
    """A path of a route with values that fit."""
    for name, value in (("window", "lung"), ("name", "ct"), ("size", "ct"), ("k", "3")):
        path = path.replace(f"{{{name}}}", value)
    parts = [("1" if part.startswith("{") and part.endswith("}") else part) for part in path.split("/")]
    return "/".join(parts)


def test_nothing_but_health_log_in_and_styles_is_open(node: Node) -> None:
    paths = routes(node, "GET")
    assert len(paths) > 15
    stranger = node.client()
    answers = {path: stranger.get(filled(path)) for path in paths}
    free = {path for path, answer in answers.items() if answer.headers.get("location", "")[:6] != "/login"}
    assert free == {"/login", "/healthz", "/metrics"}
    assert answers["/metrics"].status_code == 403
    assert stranger.get("/static/review.css").status_code == 200


def test_after_log_in_one_is_where_one_wanted_to_be(node: Node) -> None:
    person = node.client()
    there = person.get("/cases/1?x=1").headers["location"]
    assert there == "/login?next=/cases/1%3Fx%3D1"
    form = person.get(there).text
    fields = {"name": "vera", "password": PASSWORD, "csrf": hidden(form, "csrf"), "next": hidden(form, "next")}
    assert person.http.post("/login", data=fields).headers["location"] == "/cases/1?x=1"


@pytest.mark.parametrize("target", ["//evil.example", "https://evil.example", "/\\evil.example", "javascript:alert(1)"])
def test_log_in_leads_to_no_other_host(node: Node, target: str) -> None:
    person = node.client()
    form = person.get("/login", params={"next": target}).text
    fields = {"name": "vera", "password": PASSWORD, "csrf": hidden(form, "csrf"), "next": target}
    assert hidden(form, "next") == "/"
    assert person.http.post("/login", data=fields).headers["location"] == "/"


def test_wrong_names_and_passwords_look_the_same_and_are_audited_without_the_name(node: Node) -> None:
    answers = [node.client().log_in(name, word) for name, word in (("vera", "no such password"), ("nobody", PASSWORD))]
    assert [answer.status_code for answer in answers] == [401, 401]
    for answer in answers:
        assert "Name or password is wrong." in answer.text
        assert "set-cookie" not in answer.headers or "ctguard=" not in answer.headers["set-cookie"]
    with session_scope(node.engine, read_only=True) as session:
        events = session.scalars(select(AuditEvent).where(AuditEvent.event == "log-in-refused")).all()
    assert len(events) == 2
    assert {event.actor for event in events} == {"web"}


def test_the_sixth_wrong_password_is_not_even_tried(node: Node) -> None:
    person = node.client()
    codes = [person.log_in("rob", f"wrong password {k}").status_code for k in range(6)]
    assert codes == [401] * 5 + [429]
    refused = person.log_in("rob")
    assert refused.status_code == 429
    assert refused.headers["retry-after"] == "900"
    assert person.log_in("rita").status_code == 303  # other people are not locked out


def test_attempts_are_forgiven_with_time_and_after_success(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("ctguard.serve.web.users.time.monotonic", lambda: clock[0])
    attempts = Attempts(2, seconds=10)
    assert [attempts.take("a") for _ in range(3)] == [True, True, False]
    clock[0] = 11
    assert attempts.take("a")
    attempts.forget("a")
    assert [attempts.take("a") for _ in range(3)] == [True, True, False]


def test_the_cookie_is_for_this_host_over_tls_alone(node: Node, tmp_path: Path) -> None:
    plain = node.client().log_in("vera").headers["set-cookie"]
    assert "ctguard=" in plain
    assert "HttpOnly" in plain and "SameSite=strict" in plain and "Path=/" in plain and "Domain" not in plain
    strict = make_node(tmp_path, secure_cookies=True)
    person = strict.client(base_url="https://testserver")
    answer = person.log_in("vera")
    assert "__Host-ctguard=" in answer.headers["set-cookie"] and "Secure" in answer.headers["set-cookie"]
    assert "max-age=" in answer.headers["strict-transport-security"]
    assert person.get("/").status_code == 200


def test_the_database_holds_no_token_and_no_password(node: Node) -> None:
    person = node.client("vera")
    token = person.http.cookies["ctguard"]
    with session_scope(node.engine, read_only=True) as session:
        assert token not in {row.id for row in session.scalars(select(Session))}
        hashes = [user.password_hash for user in session.scalars(select(User))]
    assert all(text.startswith("$argon2id$") and PASSWORD not in text for text in hashes)


@pytest.mark.parametrize(
    ("column", "ago"),
    [("last_seen", timedelta(minutes=31)), ("expires_at", timedelta(seconds=1)), (None, timedelta())],
)
def test_a_log_in_ends_when_idle_and_when_old(node: Node, column: str | None, ago: timedelta) -> None:
    person = node.client("vera")
    assert person.get("/").status_code == 200
    with session_scope(node.engine) as session:
        if column:
            session.execute(update(Session).values({column: now() - ago}))
    assert person.get("/").status_code == (303 if column else 200)
    if column:
        assert person.get("/").headers["location"] == "/login"


def test_use_keeps_a_log_in_alive_but_not_for_ever(node: Node) -> None:
    person = node.client("vera")
    with session_scope(node.engine) as session:
        session.execute(update(Session).values(last_seen=now() - timedelta(minutes=29)))
    assert person.get("/").status_code == 200
    with session_scope(node.engine, read_only=True) as session:
        seen = session.scalars(select(Session.last_seen)).all()
    assert now() - max(seen) < timedelta(minutes=1)


def test_log_out_ends_it_on_the_server(node: Node) -> None:
    person = node.client("vera")
    token = person.http.cookies["ctguard"]
    assert person.send("/", "/logout").status_code == 303
    person.http.cookies.set("ctguard", token)
    assert person.get("/").status_code == 303


@pytest.mark.parametrize("name", ["vera", "rita", "ada"])
def test_no_form_is_taken_without_the_token_of_its_log_in(node: Node, name: str) -> None:
    person, other = node.client(name), node.client("ada")
    foreign = hidden(other.get("/").text, "csrf")
    fields = {"verdict": "tampered", "confidence": "3", "role": "admin", "name": "x", "series": "1", "readers": "rita"}
    paths = [path for path in routes(node, "POST") if path != "/login"]
    assert len(paths) >= 6
    for path in paths:
        for token in ({}, {"csrf": ""}, {"csrf": foreign}):
            answer = person.http.post(filled(path), data={**fields, **token})
            assert answer.status_code == 403, path
    assert person.get("/").status_code == 200


def test_a_form_from_another_site_is_refused_even_with_the_token(node: Node) -> None:
    person = node.client("rita")
    token = hidden(person.get("/").text, "csrf")
    answer = person.http.post("/logout", data={"csrf": token}, headers={"Sec-Fetch-Site": "cross-site"})
    assert answer.status_code == 403


def test_the_log_in_form_itself_cannot_be_sent_from_elsewhere(node: Node) -> None:
    person = node.client()
    assert person.http.post("/login", data={"name": "vera", "password": PASSWORD}).status_code == 403
    person.get("/login")
    assert person.http.post("/login", data={"name": "vera", "password": PASSWORD, "csrf": "x"}).status_code == 403


def test_each_role_may_what_it_says(node: Node) -> None:
    answer = {"verdict": "unsure", "confidence": "1"}
    wanted = {"vera": (200, 403, 403), "rita": (200, 303, 403), "ada": (200, 303, 200)}
    for name, codes in wanted.items():
        person = node.client(name)
        done = (
            person.get("/cases/1"),
            person.send("/cases/1", "/cases/1/readings", **answer),
            person.get("/admin/audit"),
        )
        assert tuple(one.status_code for one in done) == codes, name


def test_a_proxy_names_the_user_from_a_listed_address_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    node = make_node(tmp_path, proxy_user_header="X-Remote-User", proxy_addresses=["10.1.0.0/16"])
    header = {"X-Remote-User": "paula"}
    trusted = node.client(client=("10.1.2.3", 5000))
    answer = trusted.get("/login", headers=header)
    assert answer.status_code == 303
    page = trusted.get("/", headers=header)
    assert page.status_code == 200 and "paula" in page.text and "viewer" in page.text
    assert trusted.get("/", headers={"X-Remote-User": "ada"}).status_code == 303  # another person: not this log-in
    stranger = node.client(client=("10.2.0.1", 5000))
    assert "Password" in stranger.get("/login", headers=header).text
    assert stranger.get("/", headers=header).headers["location"] == "/login"
    assert "proxy-header-ignored" in caplog.text
    with session_scope(node.engine) as session:
        session.execute(update(User).where(User.name == "paula").values(disabled=True))
    assert trusted.get("/", headers=header).status_code == 303
    assert trusted.get("/login", headers=header).status_code == 403


def test_users_are_added_with_a_fit_name_role_and_password(node: Node) -> None:
    for name, role, password, words in (
        ("vera", "viewer", PASSWORD, "there is a user"),
        ("x", "owner", PASSWORD, "no role"),
        ("x", "viewer", "short", "12 to 256"),
        ("a b", "viewer", PASSWORD, "no name"),
    ):
        with pytest.raises(DataError, match=words):
            add_user(node.engine, name, role, password)


def test_an_admin_disables_a_user_at_once(node: Node) -> None:
    add_user(node.engine, "temp", "reviewer", PASSWORD)
    person, admin = node.client("temp"), node.client("ada")
    with session_scope(node.engine, read_only=True) as session:
        numbers = {user.name: user.id for user in session.scalars(select(User))}
    done = admin.send("/admin/users", f"/admin/users/{numbers['temp']}", role="reviewer", disabled="true")
    assert done.status_code == 303
    assert person.get("/").status_code == 303
    assert node.client().log_in("temp").status_code == 401
    own = admin.send("/admin/users", f"/admin/users/{numbers['ada']}", role="viewer")
    assert own.status_code == 400 and "Another administrator" in own.text
