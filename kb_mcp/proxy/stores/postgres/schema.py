"""The schema of a PostgreSQL store: migrated by its owner, checked by who serves.

Floor: a store; built in wiring alone. A serving process only looks if it can serve, and says in one
line why not. A migration is one transaction with its number.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, LiteralString

import psycopg
from psycopg import errors, sql

from kb_mcp.proxy.stores.binding import SchemaError, add_node, newer_schema
from kb_mcp.proxy.stores.postgres.connection import Connection
from kb_mcp.proxy.stores.postgres.load import Guard, lock
from kb_mcp.proxy.stores.queries import load_grants, load_migrations, load_queries
from kb_mcp.proxy.stores.rows import TABLES

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
                if version_of(connection) < number:
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


def version_of(connection: Connection) -> int:
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
        number = version_of(connection)
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
    for table, columns in _TABLES.items():
        for column in columns:
            if (table, column) not in there:
                raise SchemaError(
                    f"the schema is not whole, or not readable by this role: {table}.{column} is "
                    f"missing. Restore the store, or run `{_GRANT}`"
                )
