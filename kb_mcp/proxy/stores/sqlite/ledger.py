"""The ledger in SQLite: WAL, synchronous FULL, one writer thread, group commit.

Floor: a store; built in wiring alone. Waiting steps are taken together into one transaction
(BEGIN IMMEDIATE, so that no decision rests on a row that another process may still change), run
in arrival order, and answered once the commit is on the disk. Several processes may share the
file; each has its own audit chain.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import msgspec
from typing_extensions import override

from kb_mcp.proxy.ledger.port import LedgerUnavailableError
from kb_mcp.proxy.ledger.records import Grant, KeyId, Lineage, Refs, VaultKey
from kb_mcp.proxy.ledger.snapshot import Snapshot
from kb_mcp.proxy.stores.binding import SealBrokenError, add_node, write_facts
from kb_mcp.proxy.stores.group_commit import Item, LedgerParts, StoreLedger, refs_of, run_step
from kb_mcp.proxy.stores.rows import (
    COLUMNS,
    COUNT_UP,
    KEYED,
    add_rows,
    changed,
    differing,
    insert,
    key_with_lineage,
    lists_wanted,
    operations_wanted,
    shown_by,
    stopped_values,
    together,
    update,
    upsert,
    values_of,
)

BUSY_TIMEOUT_MS = 10_000
# A charge writes some twenty pages, many of them again for the next one: the fewer checkpoints, the
# fewer copies of each. The index of the WAL holds as many in its first block.
CHECKPOINT_PAGES = 4_000
CACHE_KIB = 8_000  # of the writer: the upper pages of every index, and the newest of the lower
_STATEMENT_CACHE = 256
KEYS_KEPT = 1_024
_AUDIT = insert("audit")
_STOPPED = f"{insert('stopped')} {COUNT_UP}"
KEPT_BYTES: Final = 16 * 1024 * 1024  # what the file of an emptied log may keep
LARGE_BYTES: Final = 64 * 1024 * 1024  # beyond it somebody reads an older state, and holds it
LOOKED_AT_EVERY: Final = 64  # commits
_ENCODER = msgspec.json.Encoder()
_UPSERT = {table: upsert(table) for table in COLUMNS}


class SqliteLedger(StoreLedger):
    """The ledger in one SQLite file."""

    def __init__(self, path: Path, parts: LedgerParts) -> None:
        """Serve the store at `path`."""
        super().__init__("sqlite", parts)
        self._doubted = False  # a commit ended in an error, and the store is not read again yet
        # Each request reads its key twice, and nearly always the very same columns.
        self._known = lru_cache(KEYS_KEPT)(key_with_lineage)
        self._reader = connect(path)
        self._writer = connect(path)
        self._writer.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        self._writer.execute(f"PRAGMA journal_size_limit = {KEPT_BYTES}")
        self._path, self._commits = path, 0
        self._closed = False
        self.batches = self._begin()

    @override
    async def find_key(self, key_id: KeyId) -> tuple[VaultKey, Lineage] | None:
        rows = self._committed("keys_with_lineages", key_id)
        return self._known(rows[0]) if rows else None

    @override
    async def find_grants(self, issuer: str) -> list[Grant]:
        return [Grant(**dict(row)) for row in self._committed("issuers", issuer)]

    @override
    async def close(self) -> None:
        """Run what still waits, export the heads, and end the writer."""
        if self._closed:
            return
        self._closed = True
        await self.batches.close()
        self._heads.export(self._journal.head, force=True)
        self._writer.close()
        self._reader.close()

    @override
    def _rest(self) -> None:
        if not self._doubted:
            self._heads.export(self._journal.head, force=True)
        self._empty_log(KEPT_BYTES)

    def _committed(self, name: str, wanted: str) -> list[sqlite3.Row]:
        try:
            return self._reader.execute(self._queries[name], as_json({"ids": [wanted]})).fetchall()
        except sqlite3.Error as error:
            raise LedgerUnavailableError(str(error)) from error

    @override
    def _flush(self, batch: list[Item]) -> None:
        head = self._journal.head
        try:
            head = self._settle_doubt(head)
            self._writer.execute("BEGIN IMMEDIATE")
            rows = self._rows("deciding_facts")
            snapshot = self._snapshot({row["name"]: row["value"] for row in rows})
            refs = refs_of(batch, snapshot.now)
            self._load(snapshot, [each for each in refs if each is not None])
            for item in batch:
                if item.error is None:
                    run_step(snapshot, item)
            self._save(snapshot)
            self._writer.execute("COMMIT")
        except BaseException as error:
            written = self._journal.head
            self._journal.rewind(head)
            # A broken connection rolls back by itself when it is used or closed next.
            with contextlib.suppress(sqlite3.Error):
                if self._writer.in_transaction:
                    self._writer.execute("ROLLBACK")
            if not isinstance(error, (sqlite3.Error, SealBrokenError)):
                raise
            if isinstance(error, (sqlite3.IntegrityError, SealBrokenError)) and len(batch) > 1:
                # A constraint or a broken row stopped one step; the others must not suffer for it.
                for item in batch:
                    self._flush([item])
                return
            # SQLite may say no and have it on the disk all the same: the audit's head tells.
            self._doubted = written != head
            sealed = isinstance(error, SealBrokenError)
            for item in batch:
                item.error = error if sealed else LedgerUnavailableError(str(error))
            return
        self._heads.export(self._journal.head)
        self._commits += 1
        if self._commits % LOOKED_AT_EVERY == 0:
            self._empty_log(LARGE_BYTES)

    def _settle_doubt(self, head: tuple[int, str]) -> tuple[int, str]:
        """Return where this process's chain really ends, after a commit that ended in an error.

        Whoever waited was told that it did not happen. If it did, nothing was sent on it, and the
        operation is found reserved: sent again under its key, or resolved by reading.
        """
        if self._doubted:
            rows = self._rows("audit_head", node=self._journal.node)
            if rows:
                head = (rows[0]["seq"], rows[0]["hash"])
                self._journal.rewind(head)
            self._doubted = False
        return head

    def _load(self, snapshot: Snapshot, batch: Sequence[Refs]) -> None:
        """Fill `snapshot` with every row that the refs of a batch name.

        One statement a kind, however many steps wait: each costs a turn of the interpreter's lock,
        which the event loop wants, too. Raises: sqlite3.Error, SealBrokenError.
        """
        refs = together(batch)
        wanted = operations_wanted(refs)
        if any(wanted.values()):
            self._add(snapshot, "operations", **wanted)
            if snapshot.operations:
                self._add(snapshot, "attempts_of", ids=list(snapshot.operations))
        for name, ids in lists_wanted(refs).items():
            self._add(snapshot, name, ids=ids)
        for name, ids in shown_by(snapshot, refs).items():
            self._add(snapshot, name, ids=ids, now=snapshot.now)

    def _rows(self, name: str, **values: Any) -> list[sqlite3.Row]:
        return self._writer.execute(self._queries[name], as_json(values)).fetchall()

    def _add(self, snapshot: Snapshot, name: str, **values: Any) -> None:
        add_rows(snapshot, name, self._rows(name, **values), self._sealer.unseal, self._gone)

    def _save(self, snapshot: Snapshot) -> None:
        """Write what `snapshot` changed, inside the transaction that loaded it.

        Of a row that was there, the columns that are new: an index is touched only where one of its
        columns is written, and every page that is touched goes to the disk before a caller is
        answered.
        """
        connection, seal = self._writer, self._sealer.seal
        for table, rows in changed(snapshot):
            for loaded, now in rows:
                if loaded is None:
                    connection.execute(_UPSERT[table], values_of(table, now, seal))
                elif columns := differing(loaded, now):
                    key = (getattr(now, name) for name in KEYED[table][1])
                    row = (*values_of(table, now, seal, columns), *key)
                    connection.execute(update(table, columns), row)
        drafts, journal = snapshot.dirty.audit, self._journal
        if drafts and journal.head[0] == 0:
            # Whoever only reads leaves no node behind.
            add_node(connection, self._queries, journal.node, journal.chain_key, snapshot.now)
        connection.executemany(_AUDIT, (journal.values(each, snapshot.now) for each in drafts))
        if snapshot.dirty.stopped:
            counts = stopped_values(snapshot.dirty.stopped, snapshot.now)
            connection.executemany(_STOPPED, counts)
        for facts in (snapshot.dirty.facts, self._time_facts(snapshot)):
            write_facts(connection, self._queries, facts)

    def _empty_log(self, bytes_max: int) -> None:
        """Cut a log beyond `bytes_max` to nothing, unless somebody reads or writes."""
        if log_bytes(self._path) <= bytes_max:
            return
        # Whoever reads an older state may do so for hours: nobody waits for them. It is tried
        # again later, and what cannot be written shows at the next commit.
        with contextlib.suppress(sqlite3.Error):
            try:
                self._writer.execute("PRAGMA busy_timeout = 0")
                self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            finally:
                self._writer.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")


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
        connection.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
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


def log_bytes(path: Path) -> int:
    """Return the size of the log beside the store at `path`; 0 where there is none."""
    try:
        return path.with_name(f"{path.name}-wal").stat().st_size
    except OSError:
        return 0


def as_json(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return `values` with their lists as JSON arrays, as the queries take them."""
    return {
        name: _ENCODER.encode(value).decode() if isinstance(value, list) else value
        for name, value in values.items()
    }
