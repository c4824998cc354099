"""Requests that nobody would send: each gets a clear answer, and none breaks the page.

For a long run: pytest tests/serve/web/test_fuzz.py --hypothesis-profile=long
"""

from __future__ import annotations

import re
import warnings
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.serve.web.node import Node, Person, hidden

EXAMPLES = settings().max_examples // 5
BOUNDED = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
WORDS = st.one_of(
    st.text(max_size=40), st.sampled_from(["1", "0", "-1", "lung", "map", "..", "%2e%2e", "ct", "'--", "{{7*7}}"])
)


@pytest.fixture(scope="module")
def admin(node: Node) -> Person:
    """Somebody who may do everything, and whose server's failures come back as answers."""
    return node.client("ada", raise_server_exceptions=False)


def check(answer: Any) -> None:
    """A clear answer: no failure, nothing of the inside, and protected as every other."""
    assert answer.status_code in (200, 303, 307, 400, 403, 404, 405, 409, 410, 413, 422), answer.status_code
    assert "Traceback" not in answer.text and 'File "' not in answer.text
    assert "default-src 'none'" in answer.headers["content-security-policy"]


@BOUNDED
@given(
    parts=st.lists(WORDS, max_size=5),
    query=st.dictionaries(st.sampled_from(["q", "page", "show", "next", "event"]), WORDS),
)
def test_any_address_gets_a_clear_answer(admin: Person, parts: list[str], query: dict[str, str]) -> None:
    roots = ("", "cases", "studies", "admin", "static", "login")
    path = "http://testserver/" + "/".join(
        quote(part, safe="%.") for part in (roots[len(str(parts)) % len(roots)], *parts)
    )
    check(admin.get(path, params=query))


@BOUNDED
@given(
    target=st.sampled_from(
        ["/cases/1/readings", "/alerts/1/acknowledge", "/studies", "/studies/1/1", "/admin/users", "/login"]
    ),
    fields=st.dictionaries(
        st.sampled_from(
            ["verdict", "confidence", "note", "shown", "series", "readers", "seed", "name", "role", "password"]
        ),
        WORDS,
    ),
)
def test_any_form_gets_a_clear_answer(admin: Person, target: str, fields: dict[str, str]) -> None:
    token = hidden(admin.get("/").text, "csrf")
    check(admin.http.post(target, data={**fields, "csrf": token}))


@BOUNDED
@given(
    body=st.binary(max_size=400),
    kind=st.sampled_from(
        ["application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "application/json", "text/xml"]
    ),
)
def test_any_bytes_as_a_form_get_a_clear_answer(admin: Person, body: bytes, kind: str) -> None:
    check(admin.http.post("/cases/1/readings", content=body, headers={"Content-Type": kind}))


def test_what_the_schema_promises_is_what_the_page_does(node: Node, admin: Person) -> None:
    """Schemathesis draws requests from the application's own description of its routes, a few for each."""
    schemathesis = pytest.importorskip("schemathesis", reason="needs schemathesis")
    application: Any = admin.http.app
    schema = schemathesis.openapi.from_dict(application.openapi())
    seen = set()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for result in schema.get_all_operations():
            operation = result.ok()
            if operation.path == "/logout":
                continue

            @settings(
                max_examples=max(3, EXAMPLES // 20),
                deadline=None,
                database=None,
                suppress_health_check=list(HealthCheck),
            )
            @given(case=operation.as_strategy())
            def ask(case: Any) -> None:
                arguments = case.as_transport_kwargs(base_url="http://testserver")
                for unknown in ("cookies", "verify", "timeout", "cert", "stream", "auth"):
                    arguments.pop(unknown, None)
                answer = admin.http.request(**arguments)
                assert answer.status_code < 500 and not re.search(r"Traceback|File \"", answer.text)

            ask()
            seen.add((operation.method.upper(), operation.path))
    assert len(seen) > 20
