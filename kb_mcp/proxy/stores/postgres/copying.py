"""Copying an embedded ledger into PostgreSQL: every row as it is, in one transaction, read back.

Floor: inside the stores. Rows are copied unopened: what is sealed stays sealed under the same
master key, and audit chains keep their hashes. The target must be new and empty.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

from kb_mcp.proxy.ledger.snapshot import MOVED_TO
from kb_mcp.proxy.stores.binding import BindingError
from kb_mcp.proxy.stores.postgres.connection import Connection
from kb_mcp.proxy.stores.postgres.load import columns_of, insert, types_of
from kb_mcp.proxy.stores.rows import TABLES, names

BATCH = 500
# That the old ledger was moved is no fact of the new one.
_SOURCES = {"facts": f"facts WHERE name <> '{MOVED_TO}'"}
Advance = Callable[[int, int], None]


class CopyError(BindingError):
    """The ledger was not copied: nothing was changed in the new store."""


def copy_rows(source: sqlite3.Connection, target: Connection, advance: Advance) -> dict[str, int]:
    """Copy every table; return how many rows each has. `advance` hears (done, total).

    Raises: CopyError when the target is not empty or reads back differently, psycopg.Error.
    """
    totals = {table: _count(source, table) for table in TABLES}
    done, total = 0, 2 * sum(totals.values())
    with target.transaction():
        # Two copies at once, or a process that begins to serve meanwhile, would mix.
        target.execute("LOCK TABLE facts, operations, audit, nodes IN EXCLUSIVE MODE")
        _check_empty(target)
        for table in TABLES:
            statement = insert(table)
            unread = _read_sqlite(source, table)
            while rows := list(islice(unread, BATCH)):
                target.execute(statement.encode(), columns_of(rows))
                done += len(rows)
                advance(done, total)
        for table in TABLES:
            if _digest(_read_sqlite(source, table)) != _digest(_read_postgres(target, table)):
                raise CopyError(f"the table {table} does not read back as it was written")
            done += totals[table]
            advance(done, total)
    return totals


def _check_empty(target: Connection) -> None:
    for table in ("operations", "keys", "audit"):
        row = target.execute(f"SELECT count(*) AS n FROM {table}".encode()).fetchone()  # noqa: S608 our own names
        if row and row["n"]:
            raise CopyError("the new store is not empty: an embedded ledger is copied into none")
    target.execute("DELETE FROM facts")
    target.execute("DELETE FROM nodes")


def _count(source: sqlite3.Connection, table: str) -> int:
    rows = _SOURCES.get(table, table)
    return int(source.execute(f"SELECT count(*) FROM {rows}").fetchone()[0])  # noqa: S608 our own names


def _read_sqlite(source: sqlite3.Connection, table: str) -> Iterator[tuple[Any, ...]]:
    columns, types = TABLES[table], types_of(table)
    rows = _SOURCES.get(table, table)
    for row in source.execute(f"SELECT {names(columns)} FROM {rows}"):  # noqa: S608 our own names
        yield tuple(
            bool(value) if types.get(name) == "boolean" else value
            for name, value in zip(columns, tuple(row), strict=True)
        )


def _read_postgres(target: Connection, table: str) -> Iterator[tuple[Any, ...]]:
    columns = TABLES[table]
    with target.cursor(name=f"copied_{table}") as cursor:
        cursor.execute(f"SELECT {names(columns)} FROM {table}".encode())  # noqa: S608 our own names
        for row in cursor:
            yield tuple(row[name] for name in columns)


def _digest(rows: Iterator[Sequence[Any]]) -> int:
    """Return what tells two sets of rows apart, in whatever order they come."""
    total = 0
    for row in rows:
        plain = [bytes(value).hex() if isinstance(value, bytes) else value for value in row]
        total += int.from_bytes(hashlib.sha256(repr(plain).encode()).digest(), "big")
    return total
