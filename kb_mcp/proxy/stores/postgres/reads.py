"""What stands outside any decision of a PostgreSQL store: reads for people and recovery, its admin.

Floor: a store; built in wiring alone. Connections come from a small pool; none is used on an event
loop's thread, but for the audit's generators, which commands walk.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import psycopg
from typing_extensions import override

from kb_mcp.proxy.ledger.port import LedgerUnavailableError
from kb_mcp.proxy.stores.admin import StoreAdmin
from kb_mcp.proxy.stores.postgres.connection import TRIES, Connection, Pool, telling
from kb_mcp.proxy.stores.reads import StoreReads
from kb_mcp.proxy.stores.rows import Seal


class PostgresReads(StoreReads):
    """The reads of one PostgreSQL database."""

    engine = "postgres"
    order = newest = ('time COLLATE "C"', 'node COLLATE "C"', "seq")
    row = "time || '|' || node || '|' || lpad(seq::text, 12, '0')"
    tie = "id"
    join = "JOIN"

    def __init__(self, pool: Pool, unseal: Seal) -> None:
        """Read the migrated store behind `pool`, which is closed with this."""
        super().__init__(unseal)
        self._pool = pool

    @override
    def log_bytes(self) -> None:
        """Return None: the server's log is its own."""

    @override
    def close(self) -> None:
        self._pool.close()

    @override
    async def _read(self, statement: str, values: Mapping[str, Any]) -> list[dict[str, Any]]:
        return await asyncio.to_thread(self._rows, statement, values)

    @override
    def _rows(self, statement: str, values: Mapping[str, Any]) -> list[dict[str, Any]]:
        for left in reversed(range(TRIES)):
            try:
                with self._pool.connection() as connection:
                    return connection.execute(statement.encode(), values).fetchall()
            except psycopg.Error as error:
                if not left or not isinstance(error, psycopg.OperationalError):
                    raise LedgerUnavailableError(str(error)) from error
        return []

    @override
    def _place(self, row: Any) -> Mapping[str, Any]:
        """Take apart the place that `row` names."""
        at, _, rest = (row or "||0").partition("|")
        node, _, seq = rest.rpartition("|")
        return {"time": at, "node": node, "seq": int(seq)}


class PostgresAdmin(StoreAdmin):
    """Facts, operators and archived segments of one PostgreSQL store."""

    def __init__(self, pool: Pool) -> None:
        """Work over connections of `pool`, which is closed with this."""
        super().__init__("postgres")
        self._pool = pool

    @override
    @contextmanager
    def reading(self) -> Iterator[Connection]:
        with telling(), self._pool.connection() as connection:
            yield connection

    @override
    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        with self.reading() as connection, connection.transaction():
            yield connection

    @override
    def schema(self) -> int:
        with self.reading() as connection:
            row = connection.execute("SELECT max(number) AS n FROM schema_versions").fetchone()
            return int(row["n"]) if row and row["n"] is not None else 0

    @override
    def close(self) -> None:
        self._pool.close()
