"""Copying an embedded ledger to PostgreSQL, and verifying what arrived: binding, rows and chains.

Floor: wiring.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psycopg

from kb_mcp.proxy.audit.chain import derive_key
from kb_mcp.proxy.audit.heads import Heads
from kb_mcp.proxy.audit.verification import verify_audit
from kb_mcp.proxy.ledger.snapshot import MOVED_TO
from kb_mcp.proxy.stores.admin import archived_in
from kb_mcp.proxy.stores.binding import Binds, bind, read_facts, write_facts
from kb_mcp.proxy.stores.postgres.connection import Pool, Watchdog, connector, told
from kb_mcp.proxy.stores.postgres.copying import CopyError, copy_rows
from kb_mcp.proxy.stores.postgres.reads import PostgresReads
from kb_mcp.proxy.stores.queries import load_queries
from kb_mcp.proxy.stores.sealing import CHECK, Sealer, check_value
from kb_mcp.proxy.stores.sqlite.ledger import connect
from kb_mcp.proxy.stores.sqlite.reads import SqliteReads, exclusive, migrate
from kb_mcp.serving.machine import boottime_ms, random_bytes
from kb_mcp.settings import Settings
from kb_mcp.wiring.stores.store import (
    StoreError,
    explicit_settings,
    heads_folder,
    proven_master_key,
    shown_place,
    wanted_settings,
)

_SQLITE, _POSTGRES = load_queries("sqlite"), load_queries("postgres")


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
    marks = {CHECK: check_value(proven_master_key(settings, path))}
    try:
        with contextlib.closing(connect(path)) as source:
            migrate(source)
            wanted = wanted_settings(settings)
            with exclusive(source):
                explicit = explicit_settings(settings)
                bound = bind(source, _SQLITE, wanted, explicit, Binds.ACCOUNT, marks)
            _check_chains(path, settings, read_facts(source, _SQLITE))
            _say(source, shown_place(settings))
            try:
                totals = _copy(source, settings, advance)
            except (psycopg.Error, sqlite3.Error, CopyError):
                if not _is_there(settings, bound.store_id):
                    _say(source, "")
                raise
    except (psycopg.Error, sqlite3.Error) as error:
        raise StoreError(f"the ledger was not copied: {told(error)}") from error
    chains = _verify_copy(settings)
    return Copied(sum(totals.values()), totals["audit"], chains)


def _copy(
    source: sqlite3.Connection, settings: Settings, advance: Callable[[int, int], None]
) -> dict[str, int]:
    # A send that was under way may still be concluded: everything is read as of one moment.
    source.execute("BEGIN IMMEDIATE")
    try:
        facts = {name: value for name, value in read_facts(source, _SQLITE).items()
                 if name != MOVED_TO}  # fmt: skip
        with connector(settings.postgres_url or "")() as target:
            totals = copy_rows(source, target, advance)
            if read_facts(target, _POSTGRES) != facts:
                raise CopyError("the binding does not read back as it was written")
        return totals
    finally:
        source.execute("ROLLBACK")


def _say(source: sqlite3.Connection, place: str) -> None:
    """Write, durably, where the old ledger was moved to: whoever decides there reads it first."""
    write_facts(source, _SQLITE, {MOVED_TO: place})


def _is_there(settings: Settings, store_id: str) -> bool:
    """Say whether the new store holds this ledger, or may: then the old one must not serve."""
    try:
        with connector(settings.postgres_url or "")() as target:
            return read_facts(target, _POSTGRES).get("store_id") == store_id
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


def _check_chains(path: Path, settings: Settings, facts: dict[str, str]) -> None:
    master = proven_master_key(settings, path)
    records = SqliteReads(path, Sealer(derive_key(master, "answers"), random_bytes).unseal)
    heads = Heads(heads_folder(path), "copying", "", boottime_ms)
    known = {each.head.node: each.head for each in heads.check(lambda _node, _seq: None)}
    outcome = verify_audit(records, derive_key(master, "audit"), known, archived_in(facts))
    records.close()
    if outcome.breaks:
        raise CopyError(
            f"{outcome.breaks[0]}; nothing was copied (`kb-mcp audit verify` on the old ledger "
            "says more)"
        )


def _verify_copy(settings: Settings) -> int:
    master = b"" if settings.master_key is None else settings.master_key.reveal().encode()
    connect_to, watchdog = connector(settings.postgres_url or ""), Watchdog(boottime_ms)
    sealer = Sealer(derive_key(master, "answers"), random_bytes)
    records = PostgresReads(Pool(connect_to, watchdog), sealer.unseal)
    try:
        with connect_to() as connection:
            archived = archived_in(read_facts(connection, _POSTGRES))
        outcome = verify_audit(records, derive_key(master, "audit"), {}, archived)
    except psycopg.Error as error:
        raise StoreError(f"the copy cannot be read: {told(error)}") from error
    finally:
        records.close()
        watchdog.close()
    if outcome.breaks:
        first = outcome.breaks[0]
        raise StoreError(f"the copied audit of {first.node} breaks at row {first.row}")
    return len(outcome.ends)
