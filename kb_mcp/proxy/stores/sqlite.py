"""The ledger in SQLite: WAL, synchronous FULL, one writer thread, group commit.

Floor: a store; built in wiring alone. Waiting steps are taken together into one transaction
(BEGIN IMMEDIATE, so that no decision rests on a row that another process may still change), run
in arrival order, and answered once the commit is on the disk. Several processes may share the
file; each has its own audit chain.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import sqlite3
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from kb_mcp.proxy.clock import StoreClock
from kb_mcp.proxy.ledger import (
    KeyId,
    LedgerUnavailableError,
    Lineage,
    Refs,
    Step,
    StoreSettings,
    VaultKey,
)
from kb_mcp.proxy.sealing import Sealer
from kb_mcp.proxy.standing import Standing
from kb_mcp.proxy.stores.heads import Heads
from kb_mcp.proxy.stores.journal import AUDIT_COLUMNS, Journal
from kb_mcp.proxy.stores.loading import Loader
from kb_mcp.proxy.stores.queries import load_queries
from kb_mcp.proxy.stores.rows import attempt_values, operation_values, upsert, values, window_values
from kb_mcp.proxy.stores.sqlite_schema import register_node

T = TypeVar("T")

BATCH_MAX = 256
IDLE_S = 1
BUSY_TIMEOUT_MS = 10_000
HIGH_WATER_STEP_MS = 1_000
_STATEMENT_CACHE = 256
_AUDIT_INSERT = (
    f"INSERT INTO audit ({', '.join(AUDIT_COLUMNS)}) "  # noqa: S608 column names are ours
    f"VALUES ({', '.join('?' for _ in AUDIT_COLUMNS)})"
)


@dataclass(slots=True)
class Waiting(Generic[T]):
    """A step that waits for the writer, and where its result goes."""

    refs: Callable[[int], Refs]
    step: Step[T]
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[T]
    result: T | None = None
    error: Exception | None = None


class SqliteLedger:
    """The ledger in one SQLite file. `Ledger` says what its methods promise."""

    def __init__(
        self,
        path: Path,
        *,
        settings: StoreSettings,
        clock: StoreClock,
        sealer: Sealer,
        journal: Journal,
        heads: Heads,
        owner: str,
    ) -> None:
        """Serve the migrated and bound store at `path`; `owner` names this process in leases."""
        self._path = path
        self._settings = settings
        self._clock = clock
        self._sealer = sealer
        self._journal = journal
        self._heads = heads
        self._owner = owner
        self._queries = load_queries("sqlite")
        self._queue: queue.SimpleQueue[Waiting[Any] | None] = queue.SimpleQueue()
        self._high_water = 0  # what this process has seen
        self._marked = 0  # what the store holds, as this transaction read it
        self._reader = connect(path)
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="ledger-writer", daemon=True)
        self._thread.start()

    @property
    def settings(self) -> StoreSettings:
        """What the store is bound to and what all its processes agree on."""
        return self._settings

    @property
    def waiting(self) -> int:
        """How many steps wait for the writer."""
        return self._queue.qsize()

    async def transact(self, refs: Callable[[int], Refs], step: Step[T]) -> T:
        """Run `step` in the next transaction; return its result once it is durable.

        Raises: LedgerUnavailableError when the store cannot serve: nothing of it happened.
        """
        if self._closed:
            raise LedgerUnavailableError("the ledger is closed")
        loop = asyncio.get_running_loop()
        item = Waiting(refs, step, loop, loop.create_future())
        self._queue.put(item)
        # The writer will run the step whether or not anybody still waits for it.
        return await asyncio.shield(item.future)

    async def find_key(self, key_id: KeyId) -> tuple[VaultKey, Lineage] | None:
        """Return the key and its lineage as committed right now, or None."""
        try:
            row = self._reader.execute(self._queries["key"], (key_id,)).fetchone()
            if row is None:
                return None
            key = VaultKey(**dict(row))
            lineage = self._reader.execute(self._queries["lineage"], (key.lineage_id,)).fetchone()
        except sqlite3.Error as error:
            raise LedgerUnavailableError(str(error)) from error
        return key, Lineage(**dict(lineage))

    async def close(self) -> None:
        """Run what still waits, export the heads, and end the writer."""
        if self._closed:
            return
        self._closed = True
        self._queue.put(None)
        await asyncio.to_thread(self._thread.join)
        self._reader.close()

    def _run(self) -> None:
        connection = connect(self._path)
        loader = Loader(connection, self._queries, self._sealer.unseal, self._owner)
        running = True
        while running:
            batch, running = self._take()
            if batch:
                self._flush(connection, loader, batch)
                _answer(batch)
            elif running:
                self._heads.export(self._journal.head, force=True)
        self._heads.export(self._journal.head, force=True)
        connection.close()

    def _take(self) -> tuple[list[Waiting[Any]], bool]:
        """Wait for a step, and take with it all that wait already, up to BATCH_MAX."""
        batch: list[Waiting[Any]] = []
        try:
            item = self._queue.get(timeout=IDLE_S)
        except queue.Empty:
            return batch, True
        while item is not None:
            batch.append(item)
            if len(batch) >= BATCH_MAX:
                return batch, True
            try:
                item = self._queue.get_nowait()
            except queue.Empty:
                return batch, True
        return batch, False

    def _flush(
        self, connection: sqlite3.Connection, loader: Loader, batch: list[Waiting[Any]]
    ) -> None:
        head = self._journal.head
        try:
            connection.execute("BEGIN IMMEDIATE")
            standing = self._standing(loader)
            for item in batch:
                _run_step(loader, standing, item)
            self._save(connection, standing)
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            self._journal.rewind(head)
            _roll_back(connection)
            if isinstance(error, sqlite3.IntegrityError) and len(batch) > 1:
                # A constraint stopped one step; the others must not suffer for it.
                for item in batch:
                    self._flush(connection, loader, [item])
                return
            for item in batch:
                item.error = LedgerUnavailableError(str(error))
            return
        if not standing.skewed:
            # A wild clock must not freeze the time of this process once it is right again.
            self._high_water = standing.now
        self._heads.export(self._journal.head)

    def _standing(self, loader: Loader) -> Standing:
        rows = loader.rows("fact", "high_water_ms")
        self._marked = int(rows[0]["value"]) if rows else 0
        high_water = max(self._marked, self._high_water)
        return Standing(
            now=self._clock.now(high_water),
            settings=self._settings,
            skewed=self._clock.skewed,
            turning=self._clock.turning(high_water),
        )

    def _save(self, connection: sqlite3.Connection, standing: Standing) -> None:
        dirty, seal = standing.dirty, self._sealer.seal
        for lineage_id in dirty.lineages:
            connection.execute(
                _UPSERT["lineages"], values("lineages", standing.lineages[lineage_id])
            )
        for key_id in dirty.keys:
            connection.execute(_UPSERT["keys"], values("keys", standing.keys[key_id]))
        for operation_id in dirty.operations:
            operation = standing.operations[operation_id]
            connection.execute(_UPSERT["operations"], operation_values(operation, seal))
        for attempt_id in dirty.attempts:
            attempt = standing.attempts[attempt_id]
            connection.execute(_UPSERT["attempts"], attempt_values(attempt, seal))
        for window_key in dirty.windows:
            window = standing.windows[window_key]
            connection.execute(_UPSERT["windows"], window_values(window))
        for tally_key in dirty.tallies:
            connection.execute(_UPSERT["tallies"], values("tallies", standing.tallies[tally_key]))
        for approval_id in dirty.approvals:
            approval = standing.approvals[approval_id]
            connection.execute(_UPSERT["approvals"], values("approvals", approval))
        self._save_audit(connection, standing)
        if standing.now >= self._marked + HIGH_WATER_STEP_MS and not standing.skewed:
            connection.execute(self._queries["set_fact"], ("high_water_ms", str(standing.now)))

    def _save_audit(self, connection: sqlite3.Connection, standing: Standing) -> None:
        drafts, journal = standing.dirty.audit, self._journal
        if drafts and journal.head[0] == 0:
            # Whoever only reads leaves no node behind.
            register_node(connection, journal.node, journal.chain_key, standing.now)
        rows = (journal.values(draft, standing.now) for draft in drafts)
        connection.executemany(_AUDIT_INSERT, rows)


_UPSERT = {
    table: upsert(table)
    for table in ("operations", "attempts", "windows", "tallies", "keys", "lineages", "approvals")
}


def connect(path: Path) -> sqlite3.Connection:
    """Open the store at `path` with the settings every connection needs.

    Raises: LedgerUnavailableError when the file cannot be opened.
    """
    try:
        _create(path)
        connection = sqlite3.connect(
            path,
            timeout=BUSY_TIMEOUT_MS // 1000,
            isolation_level=None,
            check_same_thread=False,
            cached_statements=_STATEMENT_CACHE,
        )
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
    except (OSError, sqlite3.Error) as error:
        raise LedgerUnavailableError(f"cannot open the ledger {path}: {error}") from error
    return connection


def _create(path: Path) -> None:
    """Create the file for its owner alone; never open one that is there.

    Closing any descriptor of a file drops every lock that this process holds on it, SQLite's own
    too: another process would take itself for the last user and delete the WAL.
    Source: sqlite.org/howtocorrupt.html, section 2.2.
    """
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))


def _run_step(loader: Loader, standing: Standing, item: Waiting[Any]) -> None:
    try:
        loader.load(standing, item.refs(standing.now))
        item.result, changes = item.step(standing)
    except sqlite3.Error:
        raise
    except Exception as error:  # noqa: BLE001 a broken step fails alone; the batch goes on
        item.error = error
        return
    standing.apply(changes)


def _roll_back(connection: sqlite3.Connection) -> None:
    try:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
    except sqlite3.Error:
        # The connection is broken; SQLite rolls back by itself when it is used or closed next.
        return


def _answer(batch: list[Waiting[Any]]) -> None:
    """Hand the results over, with one wake-up per event loop."""
    loops = {item.loop for item in batch}
    for loop in loops:
        mine = [item for item in batch if item.loop is loop]
        try:
            loop.call_soon_threadsafe(_resolve, mine)
        except RuntimeError:
            # That loop is closed: nobody waits any more, and the ledger has what happened.
            continue


def _resolve(items: list[Waiting[Any]]) -> None:
    for item in items:
        if item.future.done():
            continue
        if item.error is not None:
            item.future.set_exception(item.error)
        else:
            item.future.set_result(item.result)
