"""Saving to PostgreSQL: what a batch changed, one statement a table, and the commit with them.

Floor: inside the PostgreSQL store. Rows travel as one array a column, so that a statement is
prepared once and serves any number of rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from types import NoneType
from typing import Any, get_args, get_type_hints

from kb_mcp.proxy.audit.chain import AuditRow
from kb_mcp.proxy.ledger.records import WindowKey
from kb_mcp.proxy.ledger.snapshot import Snapshot
from kb_mcp.proxy.stores.postgres.connection import Connection
from kb_mcp.proxy.stores.rows import (
    COLUMNS,
    COUNT_UP,
    KEYED,
    TABLES,
    Seal,
    changed,
    names,
    on_conflict,
    stopped_values,
    values_of,
)

_TYPES = {int: "bigint", bool: "boolean", bytes: "bytea"}  # everything else is text
_WITHOUT_RECORD = dict.fromkeys(("position", "created_at", "calls", "amount"), "bigint")


@cache
def types_of(table: str) -> Mapping[str, str]:
    """Return the types of the columns of `table` that are not text."""
    records: list[Any] = [KEYED[table][0]] if table in KEYED else []
    if table == "windows":
        records.append(WindowKey)
    if table == "audit":
        records.append(AuditRow)
    hints = {name: hint for record in records for name, hint in get_type_hints(record).items()}
    found = {} if records else _WITHOUT_RECORD
    for name, hint in hints.items():
        for kind in set(get_args(hint) or (hint,)) - {NoneType}:
            if kind in _TYPES and (table, name) != ("audit", "time"):  # RFC 3339 there
                found[name] = _TYPES[kind]
    return found


def insert(table: str) -> str:
    """Return the statement that inserts any number of rows, one array a column."""
    columns = TABLES[table]
    arrays = ", ".join(f"%s::{types_of(table).get(name, 'text')}[]" for name in columns)
    # Table and column names are ours, never a caller's: there is nothing to inject.
    return f"INSERT INTO {table} ({names(columns)}) SELECT * FROM unnest({arrays})"  # noqa: S608 see above


def columns_of(rows: Iterable[Sequence[Any]]) -> list[list[Any]]:
    """Turn rows into columns."""
    return [list(column) for column in zip(*rows, strict=True)]


def save(
    connection: Connection, snapshot: Snapshot, seal: Seal, audit: Sequence[tuple[Any, ...]]
) -> None:
    """Send every changed row and the chained rows of `audit`, inside a pipeline."""
    for table, rows in changed(snapshot):
        written = columns_of(values_of(table, now, seal) for _, now in rows)
        connection.execute(_UPSERT[table], written)
    if audit:
        connection.execute(_AUDIT, columns_of(audit))
    if snapshot.dirty.stopped:
        counts = stopped_values(snapshot.dirty.stopped, snapshot.now)
        connection.execute(_STOPPED, columns_of(counts))


_UPSERT = {table: f"{insert(table)} {on_conflict(table)}" for table in COLUMNS}
_AUDIT = insert("audit")
_STOPPED = f"{insert('stopped')} {COUNT_UP}"
