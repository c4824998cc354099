"""Open the node's database and work in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from alembic import command
from alembic.config import Config as AlembicConfig
from alembic.util import CommandError
from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, OperationalError
from sqlalchemy.orm import Session as OrmSession

from ctguard.core.errors import DataError

_MIGRATION_LOCK = 0x63746D69
_BUSY_S = 60


def open_database(url: str) -> Engine:
    """The database at a URL (sqlite:///PATH or postgresql+psycopg://…), its tables made or brought up to date.

    SQLite: write-ahead log, and a commit returns when it is on disk (synchronous=FULL), so that power loss takes
    nothing that was committed. Raises DataError where it cannot be opened, or was written by a newer ctguard.
    """
    try:
        address = make_url(url)
        engine = create_engine(address, pool_pre_ping=address.get_backend_name() != "sqlite")
        if engine.dialect.name == "sqlite":
            _prepare_sqlite(engine)
        with engine.begin() as connection:
            _migrate(connection)
    except CommandError as error:
        remedy = "start the version of ctguard that wrote it, or a newer one"
        raise DataError(f"the database does not fit this version ({error})", remedy=remedy) from error
    except (OperationalError, ArgumentError, ImportError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"the database cannot be opened ({reason})", remedy="check [store] url") from error
    return engine


@contextmanager
def session_scope(engine: Engine, *, read_only: bool = False) -> Iterator[OrmSession]:
    """One transaction: committed at the end, rolled back on an error. Objects stay readable afterwards.

    In SQLite there is one writer at a time: a transaction waits for its turn at its start, never in the middle, where
    it could fail. read_only does not wait, and must not write.
    """
    bind = engine.execution_options(read_only=True) if read_only else engine
    with OrmSession(bind, expire_on_commit=False) as session, session.begin():
        yield session


def _prepare_sqlite(engine: Engine) -> None:
    """Its driver's own transactions are switched off: they begin too late, and not around schema changes."""

    def connected(dbapi: Any, _: Any) -> None:
        dbapi.isolation_level = None
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", f"busy_timeout={_BUSY_S * 1000}"):
            dbapi.execute(f"PRAGMA {pragma}")

    def begun(connection: Connection) -> None:
        read_only = connection.get_execution_options().get("read_only")
        connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")

    event.listen(engine, "connect", connected)
    event.listen(engine, "begin", begun)


def _migrate(connection: Connection) -> None:
    """Bring the tables up to date. Of several processes that start at once, one does it while the others wait."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})
    config = AlembicConfig()
    config.set_main_option("script_location", "ctguard.serve.store:migrations")
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
