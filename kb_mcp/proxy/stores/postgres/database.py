"""What stands outside any decision of a PostgreSQL store: reads for people, and the ledger's keys.

Floor: a store; built in wiring alone. No connection is used on an event loop's thread, but for the
audit's generators, which commands walk.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from queue import Empty, LifoQueue
from typing import Any, Generic, TypeVar

import psycopg
from psycopg.pq import TransactionStatus
from typing_extensions import override

from kb_mcp.proxy.stores.database import Database
from kb_mcp.proxy.stores.group_commit import GroupCommit, Queued
from kb_mcp.proxy.stores.postgres.connection import Connection, Reach, hang_up, telling
from kb_mcp.proxy.stores.postgres.load import Guard
from kb_mcp.proxy.stores.postgres.schema import exclusive, version_of

READERS_MAX = 4
READER_WAIT_S = 3
Row = dict[str, Any]
Value = TypeVar("Value")


class PostgresDatabase(Database):
    """The migrated store, by at most READERS_MAX connections, each with one caller at a time.

    Who finds none free waits a little, then gets an error; one that failed is not handed out again.
    psycopg_pool would keep a caller waiting for a server that refuses connections.
    """

    engine = "postgres"
    order = newest = ('time COLLATE "C"', 'node COLLATE "C"', "seq")
    row = "time || '|' || node || '|' || lpad(seq::text, 12, '0')"
    tie = "id"
    join = "JOIN"

    def __init__(self, reach: Reach) -> None:
        """Connect to the store when needed."""
        super().__init__()
        self._reach = reach
        self._closed = False
        # Whoever came back last is taken first, so that one that died gives way to a new one.
        self._places: LifoQueue[Connection | None] = LifoQueue()
        for _ in range(READERS_MAX):
            self._places.put(None)

    @override
    def rows(self, statement: str, values: Mapping[str, Any]) -> list[Row]:
        with telling():
            try:
                return self._rows(statement, values)
            except psycopg.OperationalError:
                # The connection may have died while it was idle: once more, on a new one.
                return self._rows(statement, values)

    @override
    async def read(self, statement: str, values: Mapping[str, Any]) -> list[Row]:
        return await asyncio.to_thread(self.rows, statement, values)

    @override
    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        with telling(), self._connection() as connection, connection.transaction():
            yield connection

    @override
    @contextmanager
    def binding(self) -> Iterator[Connection]:
        with telling(), self._connection() as connection, exclusive(connection, Guard.BINDING):
            yield connection

    @override
    def claim_first_run(self, node: str) -> bool:
        """The file with the first keys is the first host's alone: others are given keys."""
        with self.transaction() as connection:
            claim = (
                "INSERT INTO facts (name, value) VALUES ('first_run', %s) ON CONFLICT DO NOTHING"
            )
            return connection.execute(claim, (node,)).rowcount == 1

    @override
    def place(self, row: Any) -> Mapping[str, Any]:
        """Take apart the place that `row` names."""
        at, _, rest = (row or "||0").partition("|")
        node, _, seq = rest.rpartition("|")
        return {"time": at, "node": node, "seq": int(seq)}

    @override
    def schema(self) -> int:
        with telling(), self._connection() as connection:
            return version_of(connection)

    @override
    def log_bytes(self) -> None:
        """Return None: the server's log is its own."""

    @override
    def close(self) -> None:
        """Close what is idle, and whatever comes back."""
        self._closed = True
        with suppress(Empty):
            while True:
                idle = self._places.get_nowait()
                if idle is not None:
                    hang_up(idle)

    def _rows(self, statement: str, values: Mapping[str, Any]) -> list[Row]:
        with self._connection() as connection:
            return connection.execute(statement.encode(), values).fetchall()

    @contextmanager
    def _connection(self) -> Iterator[Connection]:
        """Hand out a connection for the block, which must be done in a few seconds.

        Raises: psycopg.OperationalError when none can be had.
        """
        if self._closed:
            raise psycopg.OperationalError("the connections to the store are closed")
        try:
            connection = self._places.get(timeout=READER_WAIT_S)
        except Empty:
            message = f"all {READERS_MAX} connections for reads are in use"
            raise psycopg.OperationalError(message) from None
        try:
            connection = connection or self._reach.connect()
            with self._reach.over(connection):
                yield connection
        finally:
            if connection is not None and not _is_idle(connection):
                hang_up(connection)
                connection = None
            self._places.put(connection)
            if self._closed:
                self.close()


class CommittedReader(Generic[Value]):
    """Reads what each name stands for, for all who ask meanwhile by one query over their names."""

    def __init__(
        self, database: Database, query: str, column: str, make: Callable[[Row], Value]
    ) -> None:
        """Read by the named `query`, whose `column` tells the name; `make` reads a row."""
        self._database = database
        self._query = query
        self._column = column
        self._make = make
        self._batches: GroupCommit[str, list[Value]] = GroupCommit(
            "ledger-committed", self._answer, lambda: None
        )

    async def find(self, name: str) -> list[Value]:
        """Return what `name` stands for. Raises: LedgerUnavailableError."""
        return await self._batches.ask(name)

    async def close(self) -> None:
        """Answer what still waits."""
        await self._batches.close()

    def _answer(self, batch: list[Queued[str, list[Value]]]) -> None:
        found: defaultdict[str, list[Value]] = defaultdict(list)
        for row in self._database.ask(self._query, ids=sorted({item.what for item in batch})):
            found[row[self._column]].append(self._make(row))
        for item in batch:
            item.result = found[item.what]


def _is_idle(connection: Connection) -> bool:
    status = connection.info.transaction_status
    return not connection.closed and status == TransactionStatus.IDLE
