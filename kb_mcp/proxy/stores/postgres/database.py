"""What stands outside any decision of a PostgreSQL store: its schema, reads for people and of keys.

Floor: a store; built in wiring alone. The owner migrates, each migration in one transaction with
its number; a serving process only looks if it can serve, and says in one line why not. No
connection is used on an event loop's thread, but for the audit's generators, which commands walk.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from queue import Empty, LifoQueue
from typing import Any, LiteralString, TypeVar

import psycopg
from psycopg import errors, sql
from psycopg.pq import TransactionStatus
from typing_extensions import override

from kb_mcp.proxy.stores.binding import SchemaError, add_node, newer_schema
from kb_mcp.proxy.stores.database import Database
from kb_mcp.proxy.stores.group_commit import GroupCommit, Queued
from kb_mcp.proxy.stores.postgres.connection import Connection, Reach, hang_up, telling
from kb_mcp.proxy.stores.postgres.load import Guard, lock
from kb_mcp.proxy.stores.rows import TABLES, load_grants, load_migrations, load_queries

READERS_MAX = 4
READER_WAIT_S = 3
OLDEST_SERVER = 150_000
_TABLES: dict[str, tuple[str, ...]] = TABLES | {
    "guards": ("kind", "value"),
    "flushes": ("node", "token"),
}
_RIGHTS = {
    "audit": ("SELECT", "INSERT"),
    "nodes": ("SELECT", "INSERT"),
    "operators": ("SELECT", "INSERT", "DELETE"),
}
_VERSIONS = (
    "CREATE TABLE IF NOT EXISTS schema_versions (number BIGINT PRIMARY KEY, applied_at TEXT)"
)
_GRANT = "kb-mcp migrate --grant-to ROLE"
_MIGRATE = "Run `kb-mcp migrate` with KEYBRAKE_DATABASE_URL of the tables' owner."
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
            return _version(connection)

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


def committed_reader(
    database: Database, query: str, column: str, make: Callable[[Row], Value]
) -> GroupCommit[str, list[Value]]:
    """Return who reads what a name stands for, for all who ask meanwhile by one named query.

    The `column` of a row tells its name; `make` reads a row. It raises LedgerUnavailableError.
    """

    def answer(batch: list[Queued[str, list[Value]]]) -> None:
        found: defaultdict[str, list[Value]] = defaultdict(list)
        for row in database.ask(query, ids=sorted({item.what for item in batch})):
            found[row[column]].append(make(row))
        for item in batch:
            item.result = found[item.what]

    return GroupCommit("ledger-committed", answer, lambda: None)


def _is_idle(connection: Connection) -> bool:
    status = connection.info.transaction_status
    return not connection.closed and status == TransactionStatus.IDLE


def migrate(connection: Connection, grant_to: str | None = None) -> int:
    """Bring the store to the newest schema and return its number; grant it to a role if given.

    Several may call this at once: each migration locks the table of versions. Raises: SchemaError.
    """
    _check_server(connection)
    try:
        connection.execute(_VERSIONS)
        for number, script in load_migrations("postgres"):
            with connection.transaction():
                connection.execute("LOCK TABLE schema_versions IN EXCLUSIVE MODE")
                if _version(connection) < number:
                    connection.execute(script.encode())
                    connection.execute(
                        "INSERT INTO schema_versions VALUES (%s, now()::text)", (number,)
                    )
        if grant_to is not None:
            _grant(connection, grant_to)
    except psycopg.ProgrammingError as error:
        raise SchemaError(f"the store cannot be migrated: {str(error).splitlines()[0]}") from error
    newest = _check_version(connection)
    _check_columns(connection)
    return newest


def check_schema(connection: Connection) -> int:
    """Return the number of the schema, which this process can serve with its rights.

    Raises: SchemaError when the server is too old, or the schema older, newer, or not whole.
    """
    _check_server(connection)
    number = _check_version(connection)
    _check_columns(connection)
    for table in _TABLES:
        for right in _RIGHTS.get(table, ("SELECT", "INSERT", "UPDATE")):
            if not _one(connection, "SELECT has_table_privilege(%s, %s)", table, right):
                raise SchemaError(
                    f"this role may not {right} on {table}: run `{_GRANT}` as the tables' owner"
                )
    return number


@contextmanager
def exclusive(connection: Connection, kind: Guard) -> Iterator[None]:
    """Do what is in the block in one transaction, while no other process holds that guard."""
    with connection.transaction():
        number, value = lock(kind)
        guards = {"kinds": [number], "values": [value]}
        for name in ("make_guards", "lock_guards"):
            connection.execute(load_queries("postgres")[name], guards)
        yield


def register_node(connection: Connection, node: str, chain_key: bytes, now: int) -> None:
    """Add `node` to the chained registry of processes, and make its fencing row, once."""
    with exclusive(connection, Guard.NODES):
        if connection.execute("SELECT 1 FROM flushes WHERE node = %s", (node,)).fetchone():
            return
        add_node(connection, load_queries("postgres"), node, chain_key, now)
        connection.execute("INSERT INTO flushes (node, token) VALUES (%s, 0)", (node,))


def _version(connection: Connection) -> int:
    """Return the number of the store's schema; 0 where nothing was migrated yet."""
    return int(_one(connection, "SELECT max(number) FROM schema_versions") or 0)


def _one(connection: Connection, statement: LiteralString, *values: str) -> Any:
    """Return the one value of the one row of `statement`."""
    row = connection.execute(statement, values).fetchone() or {}
    return next(iter(row.values()), None)


def _grant(connection: Connection, role: str) -> None:
    schema = _one(connection, "SELECT current_schema()")
    statements = sql.SQL(load_grants()).format(
        role=sql.Identifier(role), schema=sql.Identifier(schema)
    )
    connection.execute(statements.as_string(connection).encode())
    # What may not be granted is warned of, not refused.
    usable = "SELECT has_schema_privilege(%s, current_schema(), 'USAGE')"
    if not _one(connection, usable, role):
        raise SchemaError(f"this role may not grant the use of its schema to {role}")


def _check_server(connection: Connection) -> None:
    version = connection.info.server_version
    if version < OLDEST_SERVER:
        raise SchemaError(
            f"the server is PostgreSQL {version // 10_000}; kb-mcp needs "
            f"{OLDEST_SERVER // 10_000} or newer"
        )


def _check_version(connection: Connection) -> int:
    newest = load_migrations("postgres")[-1][0]
    try:
        number = _version(connection)
    except errors.UndefinedTable:
        raise SchemaError(f"the store has no schema yet that this role sees. {_MIGRATE}") from None
    except errors.InsufficientPrivilege:
        raise SchemaError(
            f"this role may not read the store: run `{_GRANT}` as the tables' owner"
        ) from None
    if number < newest:
        raise SchemaError(f"the store has schema {number}, this kb-mcp needs {newest}. {_MIGRATE}")
    if number > newest:
        raise newer_schema(number, newest)
    return number


def _check_columns(connection: Connection) -> None:
    rows = connection.execute(load_queries("postgres")["schema"]).fetchall()
    there = {(row["table_name"], row["column_name"]) for row in rows}
    wanted = ((table, column) for table, columns in _TABLES.items() for column in columns)
    for table, column in wanted:
        if (table, column) not in there:
            raise SchemaError(
                f"the schema is not whole, or not readable by this role: {table}.{column} is "
                f"missing. Restore the store, or run `{_GRANT}`"
            )
