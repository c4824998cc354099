"""Run by Alembic: migrates the connection that `open_database` gives, in its transaction."""

from __future__ import annotations

from alembic import context

from ctguard.serve.store.models import Base

context.configure(connection=context.config.attributes["connection"], target_metadata=Base.metadata)
context.run_migrations()
