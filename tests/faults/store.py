"""The shipped SQLite ledger, run inside the loop instead of on a thread of its own.

Everything that decides, loads, saves, commits and rolls back is the product's. What is replaced:
who calls `_flush` and when (drawn from the seed), and a connection on which a process may die, or
the disk may fail, at every statement of a transaction.
"""

from __future__ import annotations

import asyncio
import sqlite3
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from random import Random  # noqa: TID251 seeded by the world
from typing import Any, TypeVar, cast

from typing_extensions import override

from kb_mcp.proxy.audit.chain import Journal, derive_key
from kb_mcp.proxy.audit.heads import Heads
from kb_mcp.proxy.ledger.clock import StoreClock
from kb_mcp.proxy.ledger.port import LedgerUnavailableError, Step
from kb_mcp.proxy.ledger.records import KeyId, Lineage, Refs, VaultKey
from kb_mcp.proxy.ledger.snapshot import Snapshot, StoreSettings
from kb_mcp.proxy.stores.binding import Sealer
from kb_mcp.proxy.stores.group_commit import Item, LedgerParts, Queued
from kb_mcp.proxy.stores.sqlite.ledger import SqliteLedger, connect
from tests.faults.loop import SimulatedLoop

T = TypeVar("T")

MASTER = b"simulated-master-key"
CHAIN_KEY = derive_key(MASTER, "audit")
SEAL_KEY = derive_key(MASTER, "answers")

# Where a process may die while it flushes a batch, and how the disk may fail there.
DEATHS = ("before_begin", "after_load", "before_commit", "after_commit")
DISK_FAULTS = ("busy_begin", "broken_write", "broken_commit")


class DiedError(BaseException):
    """The process ends here; nothing of it runs any more."""


@dataclass(slots=True)
class Plan:
    """What happens to one flush; `at` is one of DEATHS or DISK_FAULTS, or empty."""

    at: str = ""
    written: bool = False


class FaultyConnection(sqlite3.Connection):
    """A connection whose transactions follow a plan."""

    plan = Plan()
    on_commit: Callable[[], None] = staticmethod(lambda: None)
    on_integrity: Callable[[str], None] = staticmethod(lambda _: None)

    @override
    def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
        self._fail_before(sql)
        try:
            done = super().execute(sql, parameters)
        except sqlite3.IntegrityError as error:
            self.on_integrity(f"{error} in {sql[:60]}")
            raise
        if sql == "COMMIT":
            self.on_commit()
            self._die("after_commit")
        return done

    def _fail_before(self, sql: str) -> None:
        if sql == "BEGIN IMMEDIATE":
            self._die("before_begin")
            self._break("busy_begin", "database is locked")
        elif sql == "COMMIT":
            self._die("before_commit")
            self._break("broken_commit", "disk I/O error")
        elif sql.startswith("INSERT"):
            self._die("after_load")
            self._break("broken_write", "database or disk is full")

    def _die(self, at: str) -> None:
        if self.plan.at == at:
            raise DiedError(at)

    def _break(self, at: str, message: str) -> None:
        if self.plan.at == at:
            raise sqlite3.OperationalError(message)


class SimulatedLedger(SqliteLedger):
    """`SqliteLedger` without its thread; `plan` draws what happens to the next flush."""

    def __init__(
        self,
        path: Path,
        *,
        settings: StoreSettings,
        clock: StoreClock,
        owner: str,
        loop: SimulatedLoop,
        chance: Random,
        plan: Callable[[], Plan],
    ) -> None:
        parts = LedgerParts(
            settings=settings,
            clock=clock,
            sealer=Sealer(SEAL_KEY, chance.randbytes),
            journal=Journal(owner, CHAIN_KEY),
            heads=NoHeads(path, owner, owner, lambda: 0),
            owner=owner,
        )
        super().__init__(path, parts)
        self.alive = True
        self.snapshot: Snapshot | None = None
        self.on_death: Callable[[str], None] = lambda _: None
        self._loop, self._chance, self._plan = loop, chance, plan
        self._pile: list[Item] = []
        self._due = False
        self._writer.close()
        self._writer = self._faulty = open_writer(path)

    @property
    def writer(self) -> FaultyConnection:
        return self._faulty

    @override
    def _begin(self) -> Any:
        """Start no thread: the loop flushes."""

    @override
    async def transact(self, refs: Callable[[int], Refs], step: Step[T]) -> T:
        if not self.alive:
            raise asyncio.CancelledError
        future: asyncio.Future[T] = self._loop.create_future()
        item: Item = Queued((refs, step), cast("Any", self._loop), future)
        self._pile.append(item)
        self._schedule()
        return await asyncio.shield(future)

    @override
    async def find_key(self, key_id: KeyId) -> tuple[VaultKey, Lineage] | None:
        if not self.alive:
            raise asyncio.CancelledError
        if self._plan().at in DISK_FAULTS:
            raise LedgerUnavailableError("disk I/O error")
        return await super().find_key(key_id)

    def end(self) -> None:
        """Close the connections without a goodbye: what is not committed is gone."""
        self.alive = False
        self._closed = True
        self._reader.close()
        self._writer.close()

    def _schedule(self) -> None:
        if not self._due and self._pile:
            self._due = True
            self._loop.call_later(self._chance.choice((0, 1, 3)) / 1000, self._flush_some)

    def _flush_some(self) -> None:
        self._due = False
        if not self.alive:
            return
        size = self._chance.randint(1, len(self._pile))
        batch, self._pile = self._pile[:size], self._pile[size:]
        self._faulty.plan = self._plan()
        try:
            self._flush(batch)
        except DiedError as death:
            self.on_death(str(death))
            return
        self._loop.call_soon(_answer, batch)
        self._schedule()

    @override
    def _save(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        dirty = snapshot.dirty
        # Sets have no order of their own; rows must be written alike in every run of a seed.
        for name in ("windows", "tallies", "keys", "lineages"):
            setattr(dirty, name, _Sorted(getattr(dirty, name)))
        super()._save(snapshot)


class _Sorted(set[Any]):
    @override
    def __iter__(self) -> Any:
        return iter(sorted(super().__iter__(), key=repr))


class NoHeads(Heads):
    """The simulation restores no older store, so that no heads are exported."""

    @override
    def export(self, head: tuple[int, str], *, force: bool = False) -> None:
        """Write nothing."""


def open_writer(path: Path) -> FaultyConnection:
    """Open the store as the product does, without waiting for a disk that never loses power."""
    connection = sqlite3.connect(
        path, isolation_level=None, cached_statements=256, factory=FaultyConnection
    )
    connection.row_factory = sqlite3.Row
    connection.execute("PRAGMA synchronous = OFF")
    connection.execute("PRAGMA foreign_keys = ON")
    return connection


def make_template(make: Callable[[sqlite3.Connection], None]) -> bytes:
    """Return the bytes of a new store on which `make` has run."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "template.db"
        connection = connect(path)
        make(connection)
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.close()
        return path.read_bytes()


def _answer(batch: Iterable[Item]) -> None:
    for item in batch:
        if item.future.done():
            continue
        if item.error is not None:
            item.future.set_exception(item.error)
        else:
            item.future.set_result(cast("Any", item.result))
