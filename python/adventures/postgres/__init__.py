"""A library in a table of Postgres, with pgvector."""

from __future__ import annotations

from adventures.postgres.store import PostgresStore

__all__ = ["PostgresStore"]
