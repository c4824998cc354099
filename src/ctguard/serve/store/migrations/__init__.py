"""Alembic's steps from one version of the tables to the next; `open_database` runs them."""
