"""The ledger in PostgreSQL: many hosts, row locks in one order, group commit, fenced.

Floor: a store; built in wiring alone. Waiting steps are taken together into one transaction: locks
and loads in one round trip, the steps in arrival order, every changed row and the commit in a
second one. A transaction is a closure that may run again: after a serialization failure, after a
commit that turns out not to have happened, or when a step changed a row that was not locked.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from threading import Event

import psycopg
from psycopg import errors
from typing_extensions import override

from kb_mcp.proxy.ledger.clock import MARK
from kb_mcp.proxy.ledger.port import CommitUnknownError, LedgerUnavailableError
from kb_mcp.proxy.ledger.records import Grant, KeyId, Lineage, LineageId, OperationId, VaultKey
from kb_mcp.proxy.ledger.snapshot import Snapshot
from kb_mcp.proxy.stores.binding import SealBrokenError, write_facts
from kb_mcp.proxy.stores.group_commit import Item, LedgerParts, StoreLedger, refs_of, run_step
from kb_mcp.proxy.stores.postgres import load
from kb_mcp.proxy.stores.postgres.connection import Connection, Reach, is_certain, told
from kb_mcp.proxy.stores.postgres.database import PostgresDatabase, committed_reader
from kb_mcp.proxy.stores.postgres.fence import FencedLine, LostCommitsError, Pending, Server
from kb_mcp.proxy.stores.rows import KEYED, add_rows, key_with_lineage

TURNS_MAX = 12
PAUSE_MAX_MS = 40
GIVE_UP_MS = 8_000  # no further turn begins later than this
KNOWN_MAX = 50_000
_AGAIN = (errors.SerializationFailure, errors.DeadlockDetected, errors.ReadOnlySqlTransaction)
# One step's row is not what the schema takes: the others must not suffer for it.
_ONE_BY_ONE = (psycopg.IntegrityError, psycopg.DataError, SealBrokenError)


class _AgainError(Exception):
    """The transaction did not commit, and running its closure again is right, with `locks` too."""

    def __init__(self, locks: Iterable[load.Lock] = ()) -> None:
        """Name the locks that were lacking."""
        super().__init__()
        self.locks = frozenset(locks)


class PostgresLedger(StoreLedger):
    """The ledger in one PostgreSQL database."""

    def __init__(
        self, reach: Reach, parts: LedgerParts, server: Server, jitter: Callable[[int], int]
    ) -> None:
        """Serve the store that `reach` reaches on `server`; `jitter(n)` is chance below n."""
        super().__init__("postgres", parts)
        self._reach = reach
        self._jitter = jitter
        self.line = FencedLine(reach, parts, server)
        self._committed = database = PostgresDatabase(reach)
        self._keys = committed_reader(database, "keys_with_lineages", "id", key_with_lineage)
        self._grants = committed_reader(database, "issuers", "issuer", lambda row: Grant(**row))
        self._known: OrderedDict[OperationId, tuple[str, LineageId]] = OrderedDict()
        self._stopped = Event()
        self.batches = self._begin()

    @override
    async def find_key(self, key_id: KeyId) -> tuple[VaultKey, Lineage] | None:
        return next(iter(await self._keys.ask(key_id)), None)

    @override
    async def find_grants(self, issuer: str) -> list[Grant]:
        return await self._grants.ask(issuer)

    @override
    async def close(self) -> None:
        """Run what still waits, export the heads, and end the threads."""
        if self._stopped.is_set():
            return
        await self.batches.close()
        self._stopped.set()
        self._export(force=True)
        self.line.drop()
        await self._keys.close()
        await self._grants.close()
        self._committed.close()
        self._reach.close()

    @override
    def _rest(self) -> None:
        self._export(force=True)

    def _export(self, *, force: bool) -> None:
        """Export the last head that is known to be committed."""
        pending = self.line.pending
        self._heads.export(self._journal.head if pending is None else pending.before, force=force)

    @override
    def _flush(self, batch: list[Item]) -> None:
        extra: frozenset[load.Lock] = frozenset()
        give_up_at = self._reach.boottime_ms() + GIVE_UP_MS
        for turn in range(TURNS_MAX):
            if self._reach.boottime_ms() > give_up_at:
                break
            if turn > 1:
                self._stopped.wait((1 + self._jitter(PAUSE_MAX_MS)) / 1000)
            try:
                self._run(batch, extra)
            except _AgainError as again:
                extra |= again.locks
                continue
            except LedgerUnavailableError as error:
                # So that the next process on this host knows what must be there.
                self._export(force=isinstance(error, LostCommitsError))
                return _fail(batch, error)
            except _ONE_BY_ONE as error:
                if len(batch) > 1:
                    for item in batch:
                        self._flush([item])
                    return None
                if isinstance(error, errors.UniqueViolation) and turn == 0:
                    # Another process may have written the same row; now the step will see it.
                    continue
                return _fail(batch, error)
            return self._export(force=False)
        return _fail(batch, LedgerUnavailableError("the store did not answer in time"))

    def _run(self, batch: list[Item], extra: frozenset[load.Lock]) -> None:
        """Run the batch once, with the locks that were lacking before.

        Raises: _AgainError, LedgerUnavailableError, and what makes a batch go one by one; then
        nothing happened.
        """
        connection = self.line.open()
        try:
            with self._reach.over(connection):
                snapshot = self._decide(connection, batch, extra)
                if not (snapshot.dirty.audit or _changed(snapshot)):
                    connection.execute("ROLLBACK")
                    return
        except psycopg.Error as error:
            # The commit was not sent: nothing happened.
            self._undo(connection, error)
            raise _retried(error, connection) from error
        except BaseException:
            self._undo(connection)
            raise
        self._commit(connection, snapshot)

    def _decide(
        self, connection: Connection, batch: list[Item], extra: frozenset[load.Lock]
    ) -> Snapshot:
        """Lock, load, and run every step. Raises: _AgainError where a lock was missing."""
        now = self._clock.now()
        asked = refs_of(batch, now)
        refs = [each for each in asked if each is not None]
        locks = load.locks_named(refs, self._known.get) | extra
        node = self._journal.node
        facts, rows = load.lock_and_load(connection, node, sorted(locks), refs, now)
        self._reach.set_time(int(facts.pop("now_ms")))
        snapshot = self._snapshot(facts)
        if abs(snapshot.now - now) > load.SINCE_MARGIN_MS:
            # The store's clock was set: the refs of the time that we took it for may lack rows.
            raise _AgainError
        self._add(snapshot, rows)
        self._add(snapshot, load.load_shown(connection, snapshot, refs))
        before = dict(snapshot.operations)
        runs = [item for item, its in zip(batch, asked, strict=True) if its is not None]
        for item in runs:
            run_step(snapshot, item)
        # A day may have begun between the estimate and the locks: then other rows were needed.
        needed = load.locks_named([item.what[0](snapshot.now) for item in runs], self._known.get)
        needed |= load.locks_changed(snapshot, before)
        self._remember(snapshot)
        if needed - locks:
            raise _AgainError(needed - locks)
        return snapshot

    def _add(self, snapshot: Snapshot, rows: load.Rows) -> None:
        for name, found in rows.items():
            add_rows(snapshot, name, found, self._sealer.unseal, self._gone)

    def _commit(self, connection: Connection, snapshot: Snapshot) -> None:
        head, token = self._journal.head, self.line.token + 1
        self.line.warnings.clear()
        try:
            with self._reach.over(connection):
                self._send(connection, snapshot, token)
        except psycopg.Error as error:
            if is_certain(error, connection):
                self._journal.rewind(head)
                self._undo(connection, error)
                raise _retried(error, connection) from error
            self._find_out(Pending(token, head), error)
        except BaseException:
            # Something of ours broke on the way: the next connection finds out how it ended.
            self.line.drop(Pending(token, head))
            raise
        if self.line.warnings:
            warning = self.line.warnings[0]
            # Committed here, perhaps not on the replica: a failover may still lose it.
            self.line.drop(Pending(token, head))
            raise CommitUnknownError(f"the store committed with a warning: {warning}")
        self.line.token = token

    def _send(self, connection: Connection, snapshot: Snapshot, token: int) -> None:
        rows = [self._journal.values(draft, snapshot.now) for draft in snapshot.dirty.audit]
        with connection.pipeline():
            load.save(connection, snapshot, self._sealer.seal, rows)
            write_facts(connection, self._queries, snapshot.dirty.facts)
            time = dict(self._time_facts(snapshot))
            if (mark := time.pop(MARK, None)) is not None:
                # Another process may be ahead of us: time never runs back.
                connection.execute(self._queries["raise_high_water"], {"value": mark})
            write_facts(connection, self._queries, time)
            fence = {"token": token, "node": self._journal.node}
            connection.execute(self._queries["set_token"], fence)
            done = connection.execute("COMMIT")
        if done.statusmessage != "COMMIT":
            raise errors.SerializationFailure(f"the store answered {done.statusmessage} to COMMIT")

    def _find_out(self, pending: Pending, error: psycopg.Error) -> None:
        """Ask on a new connection whether `pending` committed; return if it did.

        Raises: _AgainError if it did not, CommitUnknownError if that cannot be told.
        """
        self.line.drop(pending)
        try:
            self.line.settle()
        except LedgerUnavailableError as unreachable:
            message = f"the store broke while committing ({told(error)}); {unreachable}"
            raise CommitUnknownError(message) from error
        if self.line.token != pending.token:
            raise _AgainError

    def _undo(self, connection: Connection, error: Exception | None = None) -> None:
        try:
            with self._reach.over(connection):
                connection.execute("ROLLBACK")
        except psycopg.Error:
            self.line.drop()
        if isinstance(error, errors.ReadOnlySqlTransaction):
            # This server was demoted: another one is the primary now.
            self.line.drop()

    def _remember(self, snapshot: Snapshot) -> None:
        for operation in snapshot.operations.values():
            self._known[operation.id] = (operation.name, operation.lineage_id)
            self._known.move_to_end(operation.id)
        while len(self._known) > KNOWN_MAX:
            self._known.popitem(last=False)


def _changed(snapshot: Snapshot) -> bool:
    dirty = snapshot.dirty
    return bool(dirty.facts) or any(getattr(dirty, table) for table in KEYED)


def _retried(error: psycopg.Error, connection: Connection) -> Exception:
    """Return what to do about `error`, after which nothing was committed, as an exception."""
    if isinstance(error, _ONE_BY_ONE):
        return error
    if isinstance(error, _AGAIN) or not is_certain(error, connection):
        # A connection may have died while it was idle: the next one says whether we can serve.
        return _AgainError()
    return LedgerUnavailableError(told(error))


def _fail(batch: list[Item], error: Exception) -> None:
    if isinstance(error, psycopg.Error):
        error = LedgerUnavailableError(told(error))
    for item in batch:
        item.result, item.error = None, error
