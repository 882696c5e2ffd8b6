"""What stands outside any decision of a SQLite store: reads for people and recovery, and its admin.

Floor: a store; built in wiring alone. Each has a connection of its own, so that it sees what is
committed and holds nobody up.
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
from kb_mcp.proxy.stores.reads import StoreReads
from kb_mcp.proxy.stores.rows import Seal
from kb_mcp.proxy.stores.sqlite.ledger import connect, log_bytes
from kb_mcp.proxy.stores.sqlite.load import as_json
from kb_mcp.proxy.stores.sqlite.schema import exclusive

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
