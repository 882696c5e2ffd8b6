"""What stands outside any decision of a SQLite store: its migrations, and a connection for people.

Floor: a store; built in wiring alone. Reads and admin have a connection each, so that they see what
is committed and hold nobody up. Migrations are numbered .sql files, applied and read back through
sqlite-utils, which is imported only when there is something to do (it costs 90 ms).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from typing_extensions import override

from kb_mcp.proxy.ledger.port import LedgerUnavailableError
from kb_mcp.proxy.stores.binding import SchemaError, Witnesses, newer_schema, witnesses_of
from kb_mcp.proxy.stores.database import Database
from kb_mcp.proxy.stores.rows import load_migrations
from kb_mcp.proxy.stores.sqlite.ledger import as_json, connect, log_bytes

_DELETE_TRIGGER = "audit_refuses_delete"


class SqliteDatabase(Database):
    """The migrated store in one file, by a connection of its own."""

    engine = "sqlite"
    order = ("rowid",)
    newest = ("time", "rowid")
    row = "rowid"
    tie = "rowid"
    join = "CROSS JOIN"

    def __init__(self, path: Path) -> None:
        """Open the store at `path`. Raises: LedgerUnavailableError."""
        super().__init__()
        self._path = path
        self.connection = connect(path)

    @override
    def rows(self, statement: str, values: Mapping[str, Any]) -> list[sqlite3.Row]:
        with telling():
            return self.connection.execute(statement, as_json(values)).fetchall()

    @override
    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        with telling(), exclusive(self.connection):
            yield self.connection

    @override
    @contextmanager
    def deleting(self) -> Iterator[sqlite3.Connection]:
        """Take the trigger that refuses deletions away, for this one transaction alone."""
        with self.transaction() as connection:
            row = connection.execute(
                "SELECT sql FROM sqlite_master WHERE type = 'trigger' AND name = ?",
                (_DELETE_TRIGGER,),
            ).fetchone()
            if row is None:
                raise LedgerUnavailableError("the audit's own protection is gone: verify it first")
            connection.execute(f"DROP TRIGGER {_DELETE_TRIGGER}")
            yield connection
            connection.execute(row["sql"])

    @override
    def place(self, row: Any) -> Mapping[str, Any]:
        return {"rowid": row}

    @override
    def schema(self) -> int:
        with telling():
            return _version(self.connection)

    @override
    def log_bytes(self) -> int:
        return log_bytes(self._path)

    @override
    def close(self) -> None:
        self.connection.close()


@contextmanager
def telling() -> Iterator[None]:
    """Turn the driver's errors into the ledger's."""
    try:
        yield
    except sqlite3.Error as error:
        raise LedgerUnavailableError(str(error)) from error


def witnesses_in(path: Path) -> Witnesses:
    """Return the witnesses in the store at `path`, which need not be there; read only.

    Raises: LedgerUnavailableError.
    """
    if not path.exists():
        return Witnesses()
    place = f"{path.absolute().as_uri()}?mode=ro"
    with telling(), closing(sqlite3.connect(place, uri=True, timeout=10)) as connection:
        connection.row_factory = sqlite3.Row
        tables = connection.execute("SELECT name FROM sqlite_master WHERE name = 'facts'")
        return witnesses_of(connection) if tables.fetchone() else Witnesses()


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

    for number, script in migrations:
        with exclusive(connection):
            if _version(connection) < number:
                _run_script(connection, script)
                connection.execute(f"PRAGMA user_version = {number}")
    if "operations" not in sqlite_utils.Database(connection).table_names():
        raise SchemaError("the migrations ran, but the ledger's tables cannot be read back")
    if _version(connection) > newest:
        raise newer_schema(_version(connection), newest)
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
