"""Copying an embedded ledger to PostgreSQL, and verifying what arrived: binding, rows and chains.

Floor: wiring.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import psycopg

from kb_mcp.proxy.audit.chain import derive_key
from kb_mcp.proxy.audit.heads import Heads
from kb_mcp.proxy.ledger.port import LedgerUnavailableError
from kb_mcp.proxy.ledger.snapshot import MOVED_TO
from kb_mcp.proxy.stores.binding import Binds, read_facts, write_facts
from kb_mcp.proxy.stores.postgres.connection import Reach, connector, told
from kb_mcp.proxy.stores.postgres.copying import CopyError, copy_rows
from kb_mcp.proxy.stores.postgres.database import PostgresDatabase
from kb_mcp.proxy.stores.queries import load_queries
from kb_mcp.proxy.stores.sqlite.database import SqliteDatabase, migrate
from kb_mcp.serving.machine import boottime_ms
from kb_mcp.settings import Settings
from kb_mcp.wiring.stores.postgres import configured_master_key
from kb_mcp.wiring.stores.store import (
    StoreError,
    bind_store,
    heads_folder,
    proven_master_key,
    shown_place,
    verify_store,
)

_BROKEN = (psycopg.Error, sqlite3.Error, LedgerUnavailableError)


@dataclass(frozen=True, slots=True)
class Copied:
    """What was copied and read back."""

    rows: int
    audit_rows: int
    chains: int


def copy_ledger(settings: Settings, path: Path, advance: Callable[[int, int], None]) -> Copied:
    """Move the embedded ledger at `path` into the migrated, empty store of `settings`.

    The old ledger stops sending, for every process on it, before the first row is copied; once it
    is copied it serves no more. `advance` hears (done, total). Raises: StoreError, BindingError,
    CopyError, with nothing changed in the new store, and the old one as it was.
    """
    _check_key(settings, path)
    master = proven_master_key(settings, path)
    try:
        with closing(SqliteDatabase(path)) as source:
            migrate(source.connection)
            bound = bind_store(source, settings, master, Binds.ACCOUNT)
            _check_chains(source, path, master)
            _say(source, shown_place(settings))
            try:
                totals = _copy(source, settings, advance)
            except (*_BROKEN, CopyError):
                if not _is_there(settings, bound.store_id):
                    _say(source, "")
                raise
    except _BROKEN as error:
        raise StoreError(f"the ledger was not copied: {told(error)}") from error
    chains = _verify_copy(settings)
    return Copied(sum(totals.values()), totals["audit"], chains)


def _copy(
    source: SqliteDatabase, settings: Settings, advance: Callable[[int, int], None]
) -> dict[str, int]:
    # A send that was under way may still be concluded: everything is read as of one moment.
    with source.transaction() as connection:
        facts = read_facts(connection, source.queries)
        facts.pop(MOVED_TO, None)
        with connector(settings.postgres_url or "")() as target:
            totals = copy_rows(connection, target, advance)
            if read_facts(target, load_queries("postgres")) != facts:
                raise CopyError("the binding does not read back as it was written")
    return totals


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


def _check_key(settings: Settings, path: Path) -> None:
    """Compare the master keys: what is sealed and chained under another one is of no use."""
    file = path.with_name(f"{path.name}.master-key")
    mine = None if settings.master_key is None else settings.master_key.reveal()
    if file.exists() and file.read_text().strip() != mine:
        raise StoreError(
            f"the ledger is sealed under the key in {file}: set KEYBRAKE_MASTER_KEY_FILE to it"
        )


def _check_chains(source: SqliteDatabase, path: Path, master: bytes) -> None:
    heads = Heads(heads_folder(path), "copying", "", boottime_ms)
    outcome = verify_store(source, derive_key(master, "audit"), heads.exported())
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
            outcome = verify_store(database, chain_key, {})
        except LedgerUnavailableError as error:
            raise StoreError(f"the copy cannot be read: {error}") from error
    if outcome.breaks:
        first = outcome.breaks[0]
        raise StoreError(f"the copied audit of {first.node} breaks at row {first.row}")
    return len(outcome.ends)
