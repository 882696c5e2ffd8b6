"""What stands outside any decision of a SQLite store: migrations, its admin, reads for people.

Floor: a store; built in wiring alone. Reads and admin have a connection each, so that they see what
is committed and hold nobody up. Migrations are numbered .sql files, applied and read back through
sqlite-utils, which is imported only when there is something to do (it costs 90 ms).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from typing_extensions import override

from kb_mcp.proxy.ledger.port import LedgerUnavailableError
from kb_mcp.proxy.stores.admin import StoreAdmin
from kb_mcp.proxy.stores.binding import SchemaError
from kb_mcp.proxy.stores.queries import load_migrations
from kb_mcp.proxy.stores.reads import StoreReads
from kb_mcp.proxy.stores.rows import Seal
from kb_mcp.proxy.stores.sqlite.ledger import as_json, connect, log_bytes

_DELETE_TRIGGER = "audit_refuses_delete"


class SqliteReads(StoreReads):
    """The reads of one SQLite file."""

    engine = "sqlite"
    order = ("rowid",)
    newest = ("time", "rowid")
    row = "rowid"
    tie = "rowid"
    join = "CROSS JOIN"

    def __init__(self, path: Path, unseal: Seal) -> None:
        """Read the migrated store at `path`."""
        super().__init__(unseal)
        self._path = path
        self._connection = connect(path)

    @override
    def log_bytes(self) -> int:
        return log_bytes(self._path)

    @override
    def close(self) -> None:
        self._connection.close()

    @override
    def _rows(self, statement: str, values: Mapping[str, Any]) -> list[sqlite3.Row]:
        with _telling():
            return self._connection.execute(statement, as_json(values)).fetchall()

    @override
    def _place(self, row: Any) -> Mapping[str, Any]:
        return {"rowid": row}


class SqliteAdmin(StoreAdmin):
    """Facts, operators and archived segments of the migrated store in one file."""

    def __init__(self, path: Path) -> None:
        """Open the store at `path`. Raises: LedgerUnavailableError."""
        super().__init__("sqlite")
        self._connection = connect(path)

    @override
    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        with _telling():
            yield self._connection

    @override
    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        with _telling(), exclusive(self._connection):
            yield self._connection

    @override
    def schema(self) -> int:
        with self.reading() as connection:
            return int(connection.execute("PRAGMA user_version").fetchone()[0])

    @override
    def close(self) -> None:
        self._connection.close()

    @override
    @contextmanager
    def _deleting(self, connection: sqlite3.Connection) -> Iterator[None]:
        """Take the trigger that refuses deletions away, for this one transaction alone."""
        row = connection.execute(
            "SELECT sql FROM sqlite_master WHERE type = 'trigger' AND name = ?", (_DELETE_TRIGGER,)
        ).fetchone()
        if row is None:
            raise LedgerUnavailableError("the audit's own protection is gone: verify it first")
        connection.execute(f"DROP TRIGGER {_DELETE_TRIGGER}")
        yield
        connection.execute(row["sql"])


@contextmanager
def _telling() -> Iterator[None]:
    """Turn the driver's errors into the ledger's."""
    try:
        yield
    except sqlite3.Error as error:
        raise LedgerUnavailableError(str(error)) from error


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
