"""A person's own password: who may change it, to what, and what ends with it."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import select, update

from ctguard.serve.store.database import session_scope
from ctguard.serve.store.models import AuditEvent, User
from ctguard.serve.web.users import add_user, check_password, hash_password, replace_password
from tests.serve.web.browser import LAPTOP, browser, log_in, served
from tests.serve.web.node import PASSWORD, Node, make_node

NEW = "another horse battery"


@pytest.fixture
def name(node: Node, request: pytest.FixtureRequest) -> str:
    """A viewer of this test alone."""
    made = f"u{abs(hash(request.node.nodeid)) % 10**9}"
    add_user(node.engine, made, "viewer", PASSWORD)
    return made


def events(node: Node, name: str) -> list[str]:
    with session_scope(node.engine, read_only=True) as session:
        mine = select(AuditEvent.event).where(AuditEvent.actor == name).order_by(AuditEvent.id)
        return list(session.scalars(mine))


def test_a_new_password_for_the_old_one_ends_all_other_log_ins(node: Node, name: str) -> None:
    here, there, stranger = node.client(name), node.client(name), node.client("vera")
    stolen = here.http.cookies["ctguard"]
    answer = here.send("/password", "/password", old=PASSWORD, new=NEW, again=NEW)
    assert (answer.status_code, answer.headers["location"]) == (303, "/password?changed=true")
    assert "Your password is changed" in here.get("/password?changed=true").text
    assert there.get("/").headers["location"] == "/login"
    assert stranger.get("/").status_code == 200
    there.http.cookies.set("ctguard", stolen)
    assert there.get("/").status_code == 303  # a copy of the log-in that changed it ends, too
    assert node.client().log_in(name).status_code == 401
    assert node.client().log_in(name, NEW).status_code == 303
    assert events(node, name)[:3] == ["log-in", "log-in", "password-changed"]


@pytest.mark.parametrize(
    ("old", "new", "again", "code", "says"),
    [
        ("no such password", NEW, NEW, 403, "The old password is wrong."),
        ("", NEW, NEW, 403, "The old password is wrong."),
        (PASSWORD, "short", "short", 400, "12 to 256 characters"),
        (PASSWORD, "x" * 257, "x" * 257, 400, "12 to 256 characters"),
        (PASSWORD, NEW, NEW + "!", 400, "not the same both times"),
        (PASSWORD, PASSWORD, PASSWORD, 400, "is the old one"),
    ],
)
def test_what_does_not_fit_changes_nothing(
    node: Node, name: str, old: str, new: str, again: str, code: int, says: str
) -> None:
    person, other = node.client(name), node.client(name)
    answer = person.send("/password", "/password", old=old, new=new, again=again)
    assert answer.status_code == code and says in answer.text
    assert new not in answer.text and (not old or old not in answer.text)
    assert person.get("/").status_code == other.get("/").status_code == 200
    assert node.client().log_in(name).status_code == 303
    assert ("password-refused" in events(node, name)) == (code == 403)
    assert "password-changed" not in events(node, name)


def test_a_screen_that_was_left_open_lets_nobody_guess(node: Node, name: str) -> None:
    person = node.client(name)
    codes = [person.send("/password", "/password", old=f"guess {n}", new=NEW, again=NEW).status_code for n in range(6)]
    assert codes == [403] * 5 + [429]
    assert person.send("/password", "/password", old=PASSWORD, new=NEW, again=NEW).status_code == 429


def test_an_administrator_who_was_faster_is_not_overruled(node: Node, name: str) -> None:
    checked = check_password(node.engine, name, PASSWORD)
    assert checked is not None
    with session_scope(node.engine) as session:
        session.execute(update(User).where(User.name == name).values(password_hash=hash_password("set by an admin")))
    assert replace_password(node.engine, checked, hash_password(NEW), node.config.web) is None
    assert check_password(node.engine, name, "set by an admin") is not None


def test_whom_a_proxy_vouches_for_has_no_password_here(tmp_path: Path) -> None:
    node = make_node(tmp_path, proxy_user_header="X-Remote-User", proxy_addresses=["10.1.0.0/16"])
    header = {"X-Remote-User": "paula"}
    person = node.client(client=("10.1.2.3", 5000), headers=header)
    person.get("/login")
    page = person.get("/password").text
    assert "your organisation" in page and "<label>" not in page
    assert person.send("/", "/password", old="", new=NEW, again=NEW).status_code == 403
    with session_scope(node.engine, read_only=True) as session:
        assert session.scalars(select(User).where(User.name == "paula")).one().password_hash == ""


def test_it_takes_no_more_than_a_keyboard(node: Node, name: str, tmp_path: Path) -> None:
    with served(node) as address, browser() as chromium:
        page = chromium.new_page(viewport=LAPTOP)
        page.set_default_timeout(60_000)
        log_in(page, address, name)
        for _ in range(20):
            page.keyboard.press("Tab")
            if page.evaluate("() => document.activeElement.textContent") == "Password":
                break
        page.keyboard.press("Enter")
        page.wait_for_url(f"{address}/password")
        page.locator("[name=old]:focus").wait_for()
        for text in (PASSWORD, NEW, NEW):
            page.keyboard.type(text)
            page.keyboard.press("Tab")
        (tmp_path / "password.png").write_bytes(page.screenshot())
        page.keyboard.press("Enter")
        page.get_by_text("Your password is changed").wait_for()
        (tmp_path / "changed.png").write_bytes(page.screenshot())
    assert "password-changed" in events(node, name)
