"""Copying an embedded ledger to PostgreSQL, and verifying what arrived: binding, rows and chains.

Floor: wiring. Every row is copied as it is, in one transaction, and read back: what is sealed stays
sealed under the same master key, and audit chains keep their hashes. The target must be new.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import psycopg

from kb_mcp.proxy.audit.chain import derive_key
from kb_mcp.proxy.audit.heads import Heads
from kb_mcp.proxy.ledger.port import LedgerUnavailableError
from kb_mcp.proxy.ledger.snapshot import MOVED_TO
from kb_mcp.proxy.stores.binding import BindingError, Binds, read_facts, write_facts
from kb_mcp.proxy.stores.postgres.connection import Connection, Reach, connector, told
from kb_mcp.proxy.stores.postgres.database import PostgresDatabase
from kb_mcp.proxy.stores.postgres.load import insert, rows_of
from kb_mcp.proxy.stores.rows import TABLES, Row, load_queries, names, plain
from kb_mcp.proxy.stores.sqlite.database import SqliteDatabase, migrate
from kb_mcp.serving.machine import boottime_ms
from kb_mcp.settings import Settings
from kb_mcp.wiring import stores
from kb_mcp.wiring.stores.postgres import configured_master_key

BATCH = 500
Advance = Callable[[int, int], None]
_BROKEN = (psycopg.Error, sqlite3.Error, LedgerUnavailableError)


class CopyError(BindingError):
    """The ledger was not copied: nothing was changed in the new store."""


@dataclass(frozen=True, slots=True)
class Copied:
    """What was copied and read back."""

    rows: int
    audit_rows: int
    chains: int


def copy_ledger(settings: Settings, path: Path, advance: Advance) -> Copied:
    """Move the embedded ledger at `path` into the migrated, empty store of `settings`.

    The old ledger stops sending, for every process on it, before the first row is copied; once it
    is copied it serves no more. `advance` hears (done, total). Raises: StoreError, BindingError,
    CopyError, with nothing changed in the new store, and the old one as it was.
    """
    # What is sealed and chained under another master key than the new store's is of no use there.
    master = stores.proven_master_key(settings, path)
    try:
        with closing(SqliteDatabase(path)) as source:
            migrate(source.connection)
            bound = stores.bind_store(source, settings, master, Binds.ACCOUNT)
            _check_chains(source, path, master)
            _say(source, stores.shown_place(settings))
            try:
                totals = _copy(source, settings, advance)
            except (*_BROKEN, CopyError):
                if not _is_there(settings, bound.store_id):
                    _say(source, "")
                raise
    except _BROKEN as error:
        raise stores.StoreError(f"the ledger was not copied: {told(error)}") from error
    chains = _verify_copy(settings)
    return Copied(sum(totals.values()), totals["audit"], chains)


def _copy(source: SqliteDatabase, settings: Settings, advance: Advance) -> dict[str, int]:
    """Copy every table; return how many rows each has. `advance` hears (done, total).

    Raises: CopyError when the target is not empty or reads back differently, psycopg.Error.
    """
    # A send that was under way may still be concluded: everything is read as of one moment.
    with source.transaction() as old, connector(settings.postgres_url or "")() as target:
        counts = {
            table: old.execute(f"SELECT count(*) FROM {_from(table)}").fetchone()[0]  # noqa: S608 our own names
            for table in TABLES
        }
        done, total = 0, 2 * sum(counts.values())
        with target.transaction():
            # Two copies at once, or a process that begins to serve meanwhile, would mix.
            target.execute("LOCK TABLE facts, operations, audit, nodes IN EXCLUSIVE MODE")
            _empty(target)
            for table in TABLES:
                unread = old.execute(_select(table))
                while rows := unread.fetchmany(BATCH):
                    target.execute(insert(table).encode(), rows_of(table, map(plain, rows)))
                    done += len(rows)
                    advance(done, total)
            for table in TABLES:
                with target.cursor(name=f"copied_{table}") as cursor:
                    copied = cursor.execute(_select(table).encode())
                    if _digest(old.execute(_select(table))) != _digest(copied):
                        raise CopyError(f"the table {table} does not read back as it was written")
                done += counts[table]
                advance(done, total)
    return counts


def _empty(target: Connection) -> None:
    for table in ("operations", "keys", "audit"):
        if target.execute(f"SELECT 1 FROM {table} LIMIT 1".encode()).fetchone():  # noqa: S608 our own names
            raise CopyError("the new store is not empty: an embedded ledger is copied into none")
    target.execute("DELETE FROM facts")
    target.execute("DELETE FROM nodes")


def _from(table: str) -> str:
    # That the old ledger was moved is no fact of the new one.
    return f"facts WHERE name <> '{MOVED_TO}'" if table == "facts" else table


def _select(table: str) -> str:
    return f"SELECT {names(TABLES[table])} FROM {_from(table)}"  # noqa: S608 our own names


def _digest(rows: Iterable[Row]) -> int:
    """Return what tells two sets of rows apart, in whatever order they come."""
    total = 0
    for row in rows:
        same = [int(value) if isinstance(value, bool) else value for value in plain(row)]
        total += int.from_bytes(hashlib.sha256(repr(same).encode()).digest(), "big")
    return total


def _say(source: SqliteDatabase, place: str) -> None:
    """Write, durably, where the old ledger was moved to: whoever decides there reads it first."""
    write_facts(source.connection, source.queries, {MOVED_TO: place})


def _is_there(settings: Settings, store_id: str) -> bool:
    """Say whether the new store holds this ledger, or may: then the old one must not serve."""
    try:
        with connector(settings.postgres_url or "")() as target:
            return read_facts(target, load_queries("postgres")).get("store_id") == store_id
    except psycopg.Error:
        return True


def _check_chains(source: SqliteDatabase, path: Path, master: bytes) -> None:
    heads = Heads(stores.heads_folder(path), "copying", "", boottime_ms)
    outcome = stores.verify_store(source, derive_key(master, "audit"), heads.exported())
    if outcome.breaks:
        raise CopyError(
            f"{outcome.breaks[0]}; nothing was copied (`kb-mcp audit verify` on the old ledger "
            "says more)"
        )


def _verify_copy(settings: Settings) -> int:
    """Verify every chain of the new store; return how many there are. Raises: StoreError."""
    chain_key = derive_key(configured_master_key(settings), "audit")
    with (
        closing(Reach(connector(settings.postgres_url or ""), boottime_ms)) as reach,
        closing(PostgresDatabase(reach)) as database,
    ):
        try:
            outcome = stores.verify_store(database, chain_key, {})
        except LedgerUnavailableError as error:
            raise stores.StoreError(f"the copy cannot be read: {error}") from error
    if outcome.breaks:
        first = outcome.breaks[0]
        raise stores.StoreError(f"the copied audit of {first.node} breaks at row {first.row}")
    return len(outcome.ends)
