"""Rows as committed right now: everybody who asks at once is answered by one query.

Floor: inside the PostgreSQL store. On a connection of its own, so that admitting a caller never
waits for the writer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Generic, TypeVar

import psycopg

from kb_mcp.proxy.ledger.port import LedgerUnavailableError
from kb_mcp.proxy.ledger.records import Grant, KeyId, Lineage, VaultKey
from kb_mcp.proxy.stores.group_commit import GroupCommit, Queued
from kb_mcp.proxy.stores.postgres.connection import Connect, Connection, Watchdog, hang_up, told
from kb_mcp.proxy.stores.rows import key_with_lineage

TRIES = 2
Name = TypeVar("Name", bound=str)
Value = TypeVar("Value")
Read = Callable[[Iterable[dict[str, Any]]], Mapping[Name, Value]]
"""Turns the rows of a query into what each name stands for."""


class CommittedReader(Generic[Name, Value]):
    """Reads what names stand for, by one query with a list of them."""

    def __init__(
        self, connect: Connect, watchdog: Watchdog, query: str, read: Read[Name, Value]
    ) -> None:
        """Read over connections from `connect`, opened when needed."""
        self._connect = connect
        self._query = query
        self._read = read
        self._watchdog = watchdog
        self._connection: Connection | None = None
        self._batches: GroupCommit[Name, Value | None] = GroupCommit(
            "ledger-committed", self._answer, lambda: None
        )

    async def find(self, name: Name) -> Value | None:
        """Return what `name` stands for, or None. Raises: LedgerUnavailableError."""
        return await self._batches.ask(name)

    async def close(self) -> None:
        """Answer what still waits, and hang up."""
        await self._batches.close()
        self._drop()

    def _answer(self, batch: list[Queued[Name, Value | None]]) -> None:
        wanted = sorted({item.what for item in batch})
        for left in reversed(range(TRIES)):
            try:
                found = self._ask(wanted)
            except psycopg.Error as error:
                # The connection may have died while it was idle: one more, on a new one.
                self._drop()
                if left:
                    continue
                for item in batch:
                    item.error = LedgerUnavailableError(told(error))
            else:
                for item in batch:
                    item.result = found.get(item.what)
            return

    def _ask(self, wanted: list[Name]) -> Mapping[Name, Value]:
        if self._connection is None:
            self._connection = self._connect()
        with self._watchdog.over(self._connection):
            rows = self._connection.execute(self._query.encode(), (wanted,)).fetchall()
        return self._read(rows)

    def _drop(self) -> None:
        if self._connection is not None:
            hang_up(self._connection)
            self._connection = None


def read_keys(rows: Iterable[dict[str, Any]]) -> Mapping[KeyId, tuple[VaultKey, Lineage]]:
    """Return the keys with their lineages in `rows`, by id."""
    return {found[0].id: found for found in map(key_with_lineage, rows)}


def read_grants(rows: Iterable[dict[str, Any]]) -> Mapping[str, list[Grant]]:
    """Return the grants in `rows`, by issuer."""
    found: dict[str, list[Grant]] = {}
    for row in rows:
        found.setdefault(row["issuer"], []).append(Grant(**row))
    return found
