"""What stands outside any decision of a PostgreSQL store: migrations, admin, reads for people.

Floor: a store; built in wiring alone. Migrating is its owner's; a serving process only looks if it
can serve, and says in one line why not. A migration is one transaction with its number.
Connections for reads come from a small pool; none is used on an event loop's thread, but for the
audit's generators, which commands walk.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg import errors, sql
from typing_extensions import override

from kb_mcp.proxy.ledger.port import LedgerUnavailableError
from kb_mcp.proxy.stores.admin import StoreAdmin
from kb_mcp.proxy.stores.binding import SchemaError, add_node
from kb_mcp.proxy.stores.postgres.connection import OLDEST_SERVER, TRIES, Connection, Pool, telling
from kb_mcp.proxy.stores.postgres.load import Guard, lock
from kb_mcp.proxy.stores.queries import load_grants, load_migrations, load_queries
from kb_mcp.proxy.stores.reads import StoreReads
from kb_mcp.proxy.stores.rows import TABLES, Seal

_TABLES: dict[str, tuple[str, ...]] = TABLES | {
    "guards": ("kind", "value"),
    "flushes": ("node", "token"),
}
_RIGHTS = {"audit": "SELECT,INSERT", "nodes": "SELECT,INSERT", "operators": "SELECT,INSERT,DELETE"}
_VERSIONS = (
    "CREATE TABLE IF NOT EXISTS schema_versions (number BIGINT PRIMARY KEY, applied_at TEXT)"
)
_MIGRATE = "Run `kb-mcp migrate` with KEYBRAKE_DATABASE_URL of the tables' owner."


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


def migrate(connection: Connection, grant_to: str | None = None) -> int:
    """Bring the store to the newest schema and return its number; grant it to a role if given.

    Several may call this at once: each migration locks the table of versions. Raises: SchemaError.
    """
    migrations = load_migrations("postgres")
    newest = migrations[-1][0]
    _check_server(connection)
    try:
        connection.execute(_VERSIONS)
        for number, script in migrations:
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
        raise SchemaError(f"the store cannot be migrated: {_line(error)}") from error
    _check_version(connection)
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
        rights = _RIGHTS.get(table, "SELECT,INSERT,UPDATE").split(",")
        for right in rights:
            row = connection.execute(
                "SELECT has_table_privilege(%s, %s) AS granted", (table, right)
            ).fetchone()
            if not (row and row["granted"]):
                raise SchemaError(
                    f"this role may not {right} on {table}: run "
                    "`kb-mcp migrate --grant-to ROLE` as the tables' owner"
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


def claim(connection: Connection, name: str, value: str) -> bool:
    """Write a fact that only the first process writes; say whether this one did."""
    cursor = connection.execute(
        "INSERT INTO facts (name, value) VALUES (%s, %s) ON CONFLICT DO NOTHING", (name, value)
    )
    return cursor.rowcount == 1


def register_node(connection: Connection, node: str, chain_key: bytes, now: int) -> None:
    """Add `node` to the chained registry of processes, and make its fencing row, once."""
    with exclusive(connection, Guard.NODES):
        if connection.execute("SELECT 1 FROM flushes WHERE node = %s", (node,)).fetchone():
            return
        add_node(connection, load_queries("postgres"), node, chain_key, now)
        connection.execute("INSERT INTO flushes (node, token) VALUES (%s, 0)", (node,))


def _grant(connection: Connection, role: str) -> None:
    row = connection.execute("SELECT current_schema() AS name").fetchone() or {}
    statements = sql.SQL(load_grants()).format(
        role=sql.Identifier(role), schema=sql.Identifier(row["name"])
    )
    connection.execute(statements.as_string(connection).encode())
    # What may not be granted is warned of, not refused.
    told = connection.execute(
        "SELECT has_schema_privilege(%s, current_schema(), 'USAGE') AS granted", (role,)
    ).fetchone()
    if not (told and told["granted"]):
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
            "this role may not read the store: run `kb-mcp migrate --grant-to ROLE` as the "
            "tables' owner"
        ) from None
    if number < newest:
        raise SchemaError(f"the store has schema {number}, this kb-mcp needs {newest}. {_MIGRATE}")
    if number > newest:
        raise SchemaError(
            f"the store has schema {number}, this kb-mcp knows {newest}: "
            "upgrade kb-mcp, or restore the store that belongs to it"
        )
    return number


def _check_columns(connection: Connection) -> None:
    rows = connection.execute(load_queries("postgres")["schema"]).fetchall()
    there = {(row["table_name"], row["column_name"]) for row in rows}
    for table, columns in _TABLES.items():
        for column in columns:
            if (table, column) not in there:
                raise SchemaError(
                    f"the schema is not whole, or not readable by this role: {table}.{column} is "
                    "missing. Restore the store, or run `kb-mcp migrate --grant-to ROLE`"
                )


def _version(connection: Connection) -> int:
    row = connection.execute("SELECT max(number) AS number FROM schema_versions").fetchone()
    return 0 if row is None or row["number"] is None else int(row["number"])


def _line(error: Exception) -> str:
    return str(error).splitlines()[0]
