"""Saving to PostgreSQL: what a batch changed, one statement a table, and the commit with them.

Floor: inside the PostgreSQL store. Rows travel as one array a column, so that a statement is
prepared once and serves any number of rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from msgspec.structs import astuple

from kb_mcp.proxy.audit.journal import AUDIT_COLUMNS
from kb_mcp.proxy.ledger.snapshot import Snapshot
from kb_mcp.proxy.stores.postgres.connection import Connection
from kb_mcp.proxy.stores.rows import (
    COLUMNS,
    KEYED,
    STOPPED,
    Seal,
    attempt_values,
    operation_values,
    stopped_values,
    window_values,
)

_FLAGS = frozenset({"final", "reopened", "waived", "released", "overshoot"})
_BYTES = frozenset({"answer", "body"})
_NUMBERS = frozenset(
    "generation amount held reserved_at first_arrival_at attempt lease_token lease_until "
    "answer_status permit_amount refunded_at refund_read_at voided_at empty_listings "
    "void_look_at next_read_at created_at updated_at number "
    "first_sent_at last_sent_at sends open_sends status reserved settled declines "
    "last_declined_at expires_at decided_at frozen_at revoked_at last_used_at seq stripe_status "
    "duration_ms position removed_at calls".split()
)
# Names that are a number in one table and a word in another.
_WORDS = frozenset({("operations", "stripe_status")})
_KEYS: Mapping[str, tuple[str, ...]] = {table: key for table, (_, key) in KEYED.items()} | {
    "windows": ("scope", "scope_id", "window", "start", "currency")
}


def insert(table: str, columns: Sequence[str]) -> str:
    """Return the statement that inserts any number of rows, one array a column."""
    arrays = ", ".join(f"%s::{_type(table, name)}[]" for name in columns)
    # Table and column names are ours, never a caller's: there is nothing to inject.
    return f"INSERT INTO {table} ({_names(columns)}) SELECT * FROM unnest({arrays})"  # noqa: S608 see above


def upsert(table: str) -> str:
    """Return the statement that writes rows of `table`, whether or not they are there."""
    columns, key = COLUMNS[table], _KEYS[table]
    sets = ", ".join(f'"{name}" = excluded."{name}"' for name in columns if name not in key)
    return f"{insert(table, columns)} ON CONFLICT ({_names(key)}) DO UPDATE SET {sets}"


def columns_of(rows: Iterable[Sequence[Any]]) -> list[list[Any]]:
    """Turn rows into columns."""
    return [list(column) for column in zip(*rows, strict=True)]


def save(
    connection: Connection, snapshot: Snapshot, seal: Seal, audit: Sequence[tuple[Any, ...]]
) -> None:
    """Send every changed row and the chained rows of `audit`, inside a pipeline."""
    for table, rows in _changed(snapshot, seal):
        connection.execute(_UPSERT[table], columns_of(rows))
    if audit:
        connection.execute(_AUDIT, columns_of(audit))
    if snapshot.dirty.stopped:
        counts = stopped_values(snapshot.dirty.stopped, snapshot.now)
        connection.execute(_STOPPED, columns_of(counts))


def _changed(snapshot: Snapshot, seal: Seal) -> Iterable[tuple[str, list[tuple[Any, ...]]]]:
    dirty = snapshot.dirty
    tables = {
        "lineages": [astuple(snapshot.lineages[each]) for each in dirty.lineages],
        "keys": [astuple(snapshot.keys[each]) for each in dirty.keys],
        "operations": [
            operation_values(snapshot.operations[each], seal) for each in dirty.operations
        ],
        "attempts": [attempt_values(snapshot.attempts[each], seal) for each in dirty.attempts],
        "windows": [window_values(snapshot.windows[each]) for each in dirty.windows],
        "tallies": [astuple(snapshot.tallies[each]) for each in dirty.tallies],
        "caller_keys": [astuple(snapshot.caller_keys[each]) for each in dirty.caller_keys],
        "approvals": [astuple(snapshot.approvals[each]) for each in dirty.approvals],
        "grants": [astuple(snapshot.grants[each]) for each in dirty.grants],
    }
    return ((table, rows) for table, rows in tables.items() if rows)


def _type(table: str, column: str) -> str:
    if column in _FLAGS:
        return "boolean"
    if column in _BYTES:
        return "bytea"
    return "bigint" if column in _NUMBERS and (table, column) not in _WORDS else "text"


def _names(columns: Iterable[str]) -> str:
    return ", ".join(f'"{name}"' for name in columns)


_UPSERT = {table: upsert(table) for table in COLUMNS}
_AUDIT = insert("audit", AUDIT_COLUMNS)
_STOPPED = f"""{insert("stopped", STOPPED)} ON CONFLICT ({_names(STOPPED[:-2])}) DO UPDATE
SET calls = stopped.calls + excluded.calls, amount = stopped.amount + excluded.amount"""
