"""Vault keys as committed right now: everybody who asks at once is answered by one query.

Floor: inside the PostgreSQL store. On a connection of its own, so that admitting a caller never
waits for the writer.
"""

from __future__ import annotations

from collections.abc import Mapping

import psycopg

from kb_mcp.proxy.ledger.port import LedgerUnavailableError
from kb_mcp.proxy.ledger.records import KeyId, Lineage, VaultKey
from kb_mcp.proxy.stores.group_commit import GroupCommit, Queued
from kb_mcp.proxy.stores.postgres.connection import Connect, Connection, Watchdog, hang_up, told
from kb_mcp.proxy.stores.rows import key_with_lineage

Found = tuple[VaultKey, Lineage] | None
TRIES = 2


class KeyReader:
    """Reads vault keys with their lineages."""

    def __init__(self, connect: Connect, queries: Mapping[str, str], watchdog: Watchdog) -> None:
        """Read over connections from `connect`, opened when needed."""
        self._connect = connect
        self._query = queries["keys_with_lineages"]
        self._watchdog = watchdog
        self._connection: Connection | None = None
        self._batches: GroupCommit[KeyId, Found] = GroupCommit(
            "ledger-keys", self._answer, lambda: None
        )

    async def find(self, key_id: KeyId) -> Found:
        """Return the key and its lineage, or None. Raises: LedgerUnavailableError."""
        return await self._batches.ask(key_id)

    async def close(self) -> None:
        """Answer what still waits, and hang up."""
        await self._batches.close()
        self._drop()

    def _answer(self, batch: list[Queued[KeyId, Found]]) -> None:
        wanted = sorted({item.what for item in batch})
        for left in reversed(range(TRIES)):
            try:
                found = self._read(wanted)
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

    def _read(self, wanted: list[KeyId]) -> dict[KeyId, Found]:
        if self._connection is None:
            self._connection = self._connect()
        with self._watchdog.over(self._connection):
            rows = self._connection.execute(self._query, (wanted,)).fetchall()
        found: dict[KeyId, Found] = {}
        for row in rows:
            key, lineage = key_with_lineage(row)
            found[key.id] = (key, lineage)
        return found

    def _drop(self) -> None:
        if self._connection is not None:
            hang_up(self._connection)
            self._connection = None
