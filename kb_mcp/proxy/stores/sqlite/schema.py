"""Migrating a SQLite store, and the transactions that no other writer is in.

Floor: inside the stores. Migrations are numbered .sql files, applied and read back through
sqlite-utils, which is imported only when there is something to do (it costs 90 ms).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from kb_mcp.proxy.stores.binding import SchemaError
from kb_mcp.proxy.stores.queries import load_migrations


def migrate(connection: sqlite3.Connection) -> int:
    """Bring the store to the newest schema and return its number.

    Several first processes may call this at once: each migration is one exclusive transaction.
    Raises: SchemaError when the store is newer than this version.
    """
    migrations = load_migrations("sqlite")
    newest = migrations[-1][0]
    if _version(connection) == newest:
        return newest
    import sqlite_utils

    database = sqlite_utils.Database(connection)
    for number, script in migrations:
        connection.execute("BEGIN EXCLUSIVE")
        if _version(connection) >= number:
            connection.execute("ROLLBACK")
            continue
        _run_script(connection, script)
        connection.execute(f"PRAGMA user_version = {number}")
        connection.execute("COMMIT")
    if "operations" not in database.table_names():
        raise SchemaError("the migrations ran, but the ledger's tables cannot be read back")
    if _version(connection) > newest:
        raise SchemaError(
            f"the store has schema {_version(connection)}, this kb-mcp knows {newest}: "
            "upgrade kb-mcp, or restore the store that belongs to it"
        )
    return newest


@contextmanager
def exclusive(connection: sqlite3.Connection) -> Iterator[None]:
    """Do what is in the block in one transaction that no other writer is in."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _run_script(connection: sqlite3.Connection, script: str) -> None:
    """Run every statement of `script` in the open transaction (executescript would commit it)."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            connection.execute(statement)
            statement = ""
