"""Saving to SQLite: what a batch changed; of a row that was there, the columns that are new.

Floor: inside the SQLite store. An index is touched only where one of its columns is written, and
every page that is touched goes to the disk once more before a caller is answered.
"""

from __future__ import annotations

import sqlite3

from msgspec.structs import astuple

from kb_mcp.proxy.ledger.records import Attempt, Operation
from kb_mcp.proxy.ledger.snapshot import Snapshot
from kb_mcp.proxy.stores.rows import (
    COLUMNS,
    Seal,
    attempt_values,
    differing,
    operation_values,
    update,
    upsert,
    window_values,
)

_UPSERT = {table: upsert(table) for table in COLUMNS}


def save(connection: sqlite3.Connection, snapshot: Snapshot, seal: Seal) -> None:
    """Write every changed row of `snapshot`, inside the transaction that loaded it."""
    dirty, write = snapshot.dirty, connection.execute
    for lineage_id in dirty.lineages:
        write(_UPSERT["lineages"], astuple(snapshot.lineages[lineage_id]))
    for key_id in dirty.keys:
        write(_UPSERT["keys"], astuple(snapshot.keys[key_id]))
    for operation_id, loaded in dirty.operations.items():
        _save_operation(connection, loaded, snapshot.operations[operation_id], seal)
    for attempt_id, sent in dirty.attempts.items():
        _save_attempt(connection, sent, snapshot.attempts[attempt_id], seal)
    for window_key in dirty.windows:
        write(_UPSERT["windows"], window_values(snapshot.windows[window_key]))
    for tally_key in dirty.tallies:
        write(_UPSERT["tallies"], astuple(snapshot.tallies[tally_key]))
    for caller_key in dirty.caller_keys:
        write(_UPSERT["caller_keys"], astuple(snapshot.caller_keys[caller_key]))
    for approval_id in dirty.approvals:
        write(_UPSERT["approvals"], astuple(snapshot.approvals[approval_id]))
    for grant_id in dirty.grants:
        write(_UPSERT["grants"], astuple(snapshot.grants[grant_id]))


def _save_operation(
    connection: sqlite3.Connection, loaded: Operation | None, now: Operation, seal: Seal
) -> None:
    if loaded is None:
        connection.execute(_UPSERT["operations"], operation_values(now, seal))
    elif columns := differing(loaded, now):
        row = (*operation_values(now, seal, columns), now.id)
        connection.execute(update("operations", columns), row)


def _save_attempt(
    connection: sqlite3.Connection, loaded: Attempt | None, now: Attempt, seal: Seal
) -> None:
    if loaded is None:
        connection.execute(_UPSERT["attempts"], attempt_values(now, seal))
    elif columns := differing(loaded, now):
        row = (*attempt_values(now, seal, columns), now.operation_id, now.number)
        connection.execute(update("attempts", columns), row)
