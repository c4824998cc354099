"""Local users and their log-ins: argon2 passwords, sessions of which the database holds only a hash."""

from __future__ import annotations

import hashlib
import re
import secrets
import threading
import time
from collections import OrderedDict, deque
from dataclasses import dataclass
from datetime import timedelta

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from sqlalchemy import Engine, delete, select
from sqlalchemy.orm import Session as OrmSession

from ctguard.core.errors import DataError
from ctguard.serve.config import Web
from ctguard.serve.store.audit import append
from ctguard.serve.store.database import session_scope
from ctguard.serve.store.models import ROLES, Session, User, now

MIN_PASSWORD, MAX_PASSWORD = 12, 256
_NAME = re.compile(r"[\w.@+-]{1,128}")
_HASHER = PasswordHasher()
"""The library's defaults: RFC 9106, low-memory profile."""
_NOBODY = _HASHER.hash(secrets.token_hex(16))
"""Verified for names that do not exist, so that they take as long."""
_AT_ONCE = threading.BoundedSemaphore(2)
"""Each verification takes 64 MiB: a flood of log-ins must not take the machine."""
_SEEN_EVERY = timedelta(seconds=60)


@dataclass(frozen=True)
class Who:
    """A person who is logged in. session: id of the log-in; csrf: what its forms carry."""

    id: int
    name: str
    role: str
    session: str
    csrf: str

    def may(self, role: str) -> bool:
        """Whether the role is this one or one above it."""
        return ROLES.index(self.role) >= ROLES.index(role)


def add_user(engine: Engine, name: str, role: str, password: str, actor: str = "command line") -> None:
    """Add a local user, audited. Raises DataError for a name that is taken, and for an unfit name, role or password."""
    if not _NAME.fullmatch(name):
        raise DataError("this is no name of a user", where=name[:40], remedy="take letters, digits and . @ + - _")
    if role not in ROLES:
        raise DataError(f"there is no role {role!r}", remedy=f"take one of {', '.join(ROLES)}")
    hashed = hash_password(password)
    with session_scope(engine) as session:
        if session.scalar(select(User).where(User.name == name)) is not None:
            raise DataError("there is a user of this name", where=name, remedy="an admin can change it on the page")
        session.add(User(name=name, role=role, password_hash=hashed))
        append(session, actor, "user-added", {"user": name, "role": role})


def hash_password(password: str) -> str:
    """Argon2id. Raises DataError for a password that is too short or too long."""
    if not MIN_PASSWORD <= len(password) <= MAX_PASSWORD:
        raise DataError(f"a password has {MIN_PASSWORD} to {MAX_PASSWORD} characters", remedy="choose another one")
    return _HASHER.hash(password)


def replace_password(engine: Engine, user: User, hashed: str, web: Web) -> str | None:
    """A person's own new password, audited. All log-ins of the user end; returns the token of a new one.

    None, and nothing changed, where the user is not what was checked any more: an admin was faster.
    """
    same = (User.id == user.id, User.password_hash == user.password_hash, User.disabled.is_(False))
    with session_scope(engine) as session:
        row = session.scalar(select(User).where(*same).with_for_update())
        if row is None:
            return None
        row.password_hash = hashed
        session.execute(delete(Session).where(Session.user_id == row.id))
        append(session, row.name, "password-changed", {"user": row.name})
        return open_session(session, row, web)


def check_password(engine: Engine, name: str, password: str) -> User | None:
    """The user of this name and password who is not disabled; as slow for any name."""
    with session_scope(engine, read_only=True) as session:
        user = session.scalar(select(User).where(User.name == name))
    known = user is not None and bool(user.password_hash) and not user.disabled
    with _AT_ONCE:
        try:
            _HASHER.verify(user.password_hash if user is not None and known else _NOBODY, password[:MAX_PASSWORD])
        except (VerificationError, InvalidHashError):
            return None
    return user if known else None


def proxy_user(session: OrmSession, name: str, role: str) -> User | None:
    """The user whom a trusted proxy names, added where there is none; None for a disabled one or no name at all."""
    if not _NAME.fullmatch(name):
        return None
    user = session.scalar(select(User).where(User.name == name))
    if user is None:
        user = User(name=name, role=role)
        session.add(user)
        session.flush()
        append(session, name, "user-added", {"user": name, "role": role, "by": "proxy"})
    return None if user.disabled else user


def open_session(session: OrmSession, user: User, web: Web) -> str:
    """A new log-in; returns the token for the browser. Old log-ins that ran out are cleared away."""
    token = secrets.token_urlsafe(32)
    at = now()
    session.execute(delete(Session).where(Session.expires_at < at))
    session.add(
        Session(
            id=_digest(token),
            user_id=user.id,
            created_at=at,
            last_seen=at,
            expires_at=at + timedelta(hours=web.session_hours),
            csrf=secrets.token_urlsafe(32),
        )
    )
    return token


def find_session(engine: Engine, token: str, web: Web) -> Who | None:
    """Whose token this is; None where it is unknown, ran out, was idle for too long, or its user is disabled."""
    with session_scope(engine, read_only=True) as session:
        found = session.execute(select(Session, User).join(User).where(Session.id == _digest(token))).one_or_none()
    if found is None:
        return None
    login, user = found
    at = now()
    idle = at - login.last_seen
    if at >= login.expires_at or idle >= timedelta(minutes=web.session_idle_minutes) or user.disabled:
        close_sessions(engine, login=login.id)
        return None
    if idle >= _SEEN_EVERY:
        with session_scope(engine) as session:
            row = session.get(Session, login.id)
            if row is not None:
                row.last_seen = at
    return Who(user.id, user.name, user.role, login.id, login.csrf)


def close_sessions(engine: Engine, *, login: str) -> None:
    """End one log-in."""
    with session_scope(engine) as session:
        session.execute(delete(Session).where(Session.id == login))


class Attempts:
    """Log-ins that were tried, by key: `most` within `seconds`. Keeps the newest 10,000 keys."""

    def __init__(self, most: int, seconds: float = 900.0) -> None:
        self.most, self.seconds = most, seconds
        self._tried: OrderedDict[str, deque[float]] = OrderedDict()
        self._lock = threading.Lock()

    def take(self, key: str) -> bool:
        """Count one attempt, before it is made; False where there were too many."""
        with self._lock:
            tried = self._tried.setdefault(key, deque())
            self._tried.move_to_end(key)
            if len(self._tried) > 10_000:
                self._tried.popitem(last=False)
            while tried and tried[0] < time.monotonic() - self.seconds:
                tried.popleft()
            if len(tried) >= self.most:
                return False
            tried.append(time.monotonic())
            return True

    def forget(self, key: str) -> None:
        """It succeeded."""
        with self._lock:
            self._tried.pop(key, None)


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
