"""One node per test module: what one test writes, the others of its module may see."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from argon2 import PasswordHasher
from hypothesis import settings

from ctguard.serve.web import users
from tests.serve.web.node import Node, make_node

settings.register_profile("long", max_examples=10_000)


@pytest.fixture(scope="session", autouse=True)
def quick_hashes() -> Iterator[None]:
    """Argon2 with as little work as it takes: each log-in would cost 64 MiB and four threads."""
    quick = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(users, "_HASHER", quick)
        patch.setattr(users, "_NOBODY", quick.hash("nobody"))
        yield


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Node:
    """A node with users vera (viewer), rita and rob (reviewers), ada (admin) and four series."""
    return make_node(tmp_path_factory.mktemp("node"))
