"""The store admin: rows of a SQLite store that no decision touches: facts, operators, old segments.

Floor: wing B, beside the stores. Each write is one transaction of its own; the audit row of an
operator's act is committed before it (the ledger writes the audit, this module never does).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from kb_mcp.proxy.audit.chain import Head
from kb_mcp.proxy.ledger.port import LedgerUnavailableError
from kb_mcp.proxy.store_admin import ARCHIVED, Operator, archived_in

BUSY_TIMEOUT_S = 10
_DELETE_TRIGGER = "audit_refuses_delete"
_SET_FACT = (
    "INSERT INTO facts (name, value) VALUES (?, ?) "
    "ON CONFLICT (name) DO UPDATE SET value = excluded.value"
)


class SqliteAdmin:
    """Facts, operators and archived segments of the migrated store in one file."""

    def __init__(self, path: Path) -> None:
        """Open the store at `path`. Raises: LedgerUnavailableError."""
        with _told():
            self._connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None)
            self._connection.row_factory = sqlite3.Row
            self._connection.execute("PRAGMA synchronous = FULL")

    def schema(self) -> int:
        """Return the number of the store's schema."""
        with _told():
            return int(self._connection.execute("PRAGMA user_version").fetchone()[0])

    def facts(self) -> dict[str, str]:
        """Return every fact of the store."""
        with _told():
            rows = self._connection.execute("SELECT name, value FROM facts").fetchall()
        return {row["name"]: row["value"] for row in rows}

    def set_facts(self, facts: Mapping[str, str]) -> None:
        """Write facts, all or none."""
        with self._transaction():
            self._connection.executemany(_SET_FACT, facts.items())

    def operators(self) -> list[Operator]:
        """Return the operators by name."""
        with _told():
            rows = self._connection.execute("SELECT * FROM operators ORDER BY name").fetchall()
        return [Operator(**dict(row)) for row in rows]

    def operator_hashes(self) -> dict[str, str]:
        """Return the SHA-256 of every operator's token, by name."""
        return {operator.name: operator.token_hash for operator in self.operators()}

    def add_operator(self, operator: Operator) -> bool:
        """Add an operator; False when the name is taken."""
        with self._transaction():
            cursor = self._connection.execute(
                "INSERT INTO operators (name, token_hash, created_at) VALUES (?, ?, ?) "
                "ON CONFLICT (name) DO NOTHING",
                (operator.name, operator.token_hash, operator.created_at),
            )
        return cursor.rowcount == 1

    def remove_operator(self, name: str) -> bool:
        """Remove an operator; False when there is none of that name."""
        with self._transaction():
            cursor = self._connection.execute("DELETE FROM operators WHERE name = ?", (name,))
        return cursor.rowcount == 1

    def archived(self) -> dict[str, Head]:
        """Return, for each node, the end of what was moved out of its chain."""
        return archived_in(self.facts())

    def drop_segments(self, ends: Mapping[str, Head]) -> int:
        """Take the rows up to each end out of the audit; return how many there were.

        The trigger that refuses deletions is away for this one transaction alone. Raises:
        LedgerUnavailableError, with nothing removed, when an end is not what was verified.
        """
        removed = 0
        with self._transaction():
            trigger = self._trigger()
            self._connection.execute(f"DROP TRIGGER {_DELETE_TRIGGER}")
            for node, end in ends.items():
                if self._hash_at(end) != end.hash:
                    raise LedgerUnavailableError(f"row {node}:{end.seq} changed meanwhile")
                cursor = self._connection.execute(
                    "DELETE FROM audit WHERE node = ? AND seq <= ?", (node, end.seq)
                )
                removed += cursor.rowcount
                self._connection.execute(_SET_FACT, (f"{ARCHIVED}{node}", f"{end.seq}:{end.hash}"))
            self._connection.execute(trigger)
        return removed

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _hash_at(self, head: Head) -> str | None:
        row = self._connection.execute(
            "SELECT hash FROM audit WHERE node = ? AND seq = ?", (head.node, head.seq)
        ).fetchone()
        return None if row is None else row["hash"]

    def _trigger(self) -> str:
        row = self._connection.execute(
            "SELECT sql FROM sqlite_master WHERE type = 'trigger' AND name = ?", (_DELETE_TRIGGER,)
        ).fetchone()
        if row is None:
            raise LedgerUnavailableError("the audit's own protection is gone: verify it first")
        return str(row["sql"])

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with _told():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise LedgerUnavailableError(str(error)) from error
