"""Connections to PostgreSQL: opened when needed, watched while used, and a few of them for reads.

Floor: inside the stores. A connection over which nothing comes back is cut from this side after a
while, since a server that stalls never says so. Times are integer milliseconds.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import psycopg
from psycopg import pq
from psycopg.rows import dict_row

from kb_mcp.proxy.ledger.port import LedgerUnavailableError
from kb_mcp.proxy.ledger.records import Grant, KeyId, Lineage, VaultKey
from kb_mcp.proxy.stores.group_commit import GroupCommit, Queued
from kb_mcp.proxy.stores.rows import key_with_lineage

Connection = psycopg.Connection[dict[str, Any]]
Connect = Callable[[], Connection]

CONNECT_TIMEOUT_S = 3
LOCK_TIMEOUT_MS = 3_500
# A transaction whose process stalled gives its locks back after this; ours take milliseconds.
IDLE_TRANSACTION_MS = 3_000
WATCH_MS = 5_000
POLL_MS = 200
OLDEST_SERVER = 150_000
# Whatever the server says of synchronous_commit, an acknowledged hold is on the disk, and on the
# synchronous replicas where there are any.
_SESSION = (
    "SELECT set_config('lock_timeout', %s, false),"
    " set_config('idle_in_transaction_session_timeout', %s, false),"
    " set_config('synchronous_commit', CASE current_setting('synchronous_commit')"
    " WHEN 'remote_apply' THEN 'remote_apply' ELSE 'on' END, false)"
)
# 40003: the outcome of a statement is unknown; 08: the connection failed.
_UNSAID = ("40003", "08")
READERS_MAX = 4
READER_WAIT_S = 3
TRIES = 2  # a connection may have died while it was idle: once more, on a new one

Name = TypeVar("Name", bound=str)
Value = TypeVar("Value")
Read = Callable[[Iterable[dict[str, Any]]], Mapping[Name, Value]]
"""Turns the rows of a query into what each name stands for."""


def connector(url: str, kind: type[Connection] = psycopg.Connection[dict[str, Any]]) -> Connect:
    """Return what opens a connection to `url`, which may name several hosts: the primary is used.

    The connection commits by itself outside BEGIN. It raises psycopg.OperationalError. `kind` is
    psycopg's own, or one that fails on purpose.
    """

    def connect() -> Connection:
        connection = kind.connect(
            url,
            autocommit=True,
            row_factory=dict_row,
            connect_timeout=CONNECT_TIMEOUT_S,
            prepare_threshold=2,
            application_name="kb-mcp",
            keepalives_idle=5,
            keepalives_interval=2,
            keepalives_count=3,
            target_session_attrs="read-write",
        )
        try:
            connection.execute(_SESSION, (f"{LOCK_TIMEOUT_MS}ms", f"{IDLE_TRANSACTION_MS}ms"))
        except psycopg.Error:
            connection.close()
            raise
        return connection

    return connect


class Watchdog:
    """Cuts connections that were used for longer than they may; one thread for all of them."""

    def __init__(self, boottime_ms: Callable[[], int]) -> None:
        """Begin to watch."""
        self._boottime_ms = boottime_ms
        self._watched: dict[int, tuple[Connection, int]] = {}
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ledger-watchdog", daemon=True)
        self._thread.start()

    @contextmanager
    def over(self, connection: Connection) -> Iterator[None]:
        """Watch `connection` inside the block; after WATCH_MS whatever waits on it fails."""
        with self._lock:
            self._watched[id(connection)] = (connection, self._boottime_ms() + WATCH_MS)
        try:
            yield
        finally:
            with self._lock:
                self._watched.pop(id(connection), None)

    def close(self) -> None:
        """Stop watching."""
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped.wait(POLL_MS / 1000):
            now = self._boottime_ms()
            with self._lock:
                late = [key for key, (_, until) in self._watched.items() if until <= now]
                for key in late:
                    _cut(self._watched.pop(key)[0])


class StoreTime:
    """PostgreSQL's clock, carried on by this host's monotonic one between two looks.

    What this host believes about the time of day plays no part.
    """

    def __init__(self, boottime_ms: Callable[[], int]) -> None:
        """Start without knowing the time."""
        self._boottime_ms = boottime_ms
        self._offset_ms = 0

    def set(self, store_ms: int) -> None:
        """Take `store_ms`, which the store has just told."""
        self._offset_ms = store_ms - self._boottime_ms()

    def now_ms(self) -> int:
        """Return the store's time."""
        return self._boottime_ms() + self._offset_ms


def is_certain(error: psycopg.Error, connection: Connection) -> bool:
    """Say whether `error` proves that the transaction did not commit: the server said so."""
    state = error.sqlstate
    alive = connection.pgconn.status == pq.ConnStatus.OK
    return alive and state is not None and not state.startswith(_UNSAID)


def told(error: Exception) -> str:
    """Return `error` in one line; psycopg's messages hold no password."""
    return " ".join(str(error).split()) or type(error).__name__


@contextmanager
def telling() -> Iterator[None]:
    """Turn the driver's errors into the ledger's."""
    try:
        yield
    except psycopg.Error as error:
        raise LedgerUnavailableError(told(error)) from error


def hang_up(connection: Connection) -> None:
    """Close `connection`, whatever state it is in."""
    with contextlib.suppress(psycopg.Error, OSError):
        connection.close()


def _cut(connection: Connection) -> None:
    with contextlib.suppress(psycopg.Error, OSError):
        line = socket.socket(fileno=os.dup(connection.fileno()))
        with line:
            line.shutdown(socket.SHUT_RDWR)


class Pool:
    """At most READERS_MAX connections, handed out one caller at a time.

    Who finds none free waits a little, then gets an error; one that failed is not handed out again.
    psycopg_pool would keep a caller waiting for a server that refuses connections.
    """

    def __init__(self, connect: Connect, watchdog: Watchdog) -> None:
        """Hand out connections from `connect`."""
        self._connect = connect
        self._watchdog = watchdog
        self._idle: list[Connection] = []
        self._lock = threading.Lock()
        self._places = threading.Semaphore(READERS_MAX)
        self._closed = False

    @contextmanager
    def connection(self) -> Iterator[Connection]:
        """Hand out a connection for the block, which must be done in a few seconds.

        Raises: psycopg.OperationalError when none can be had.
        """
        if not self._places.acquire(timeout=READER_WAIT_S):
            raise psycopg.OperationalError(f"all {READERS_MAX} connections for reads are in use")
        try:
            connection = self._take()
            try:
                with self._watchdog.over(connection):
                    yield connection
            finally:
                self._give_back(connection)
        finally:
            self._places.release()

    def close(self) -> None:
        """Close what is idle, and whatever comes back."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            hang_up(connection)

    def _take(self) -> Connection:
        with self._lock:
            if self._idle:
                return self._idle.pop()
        return self._connect()

    def _give_back(self, connection: Connection) -> None:
        sound = (
            not connection.closed
            and connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
        )
        with self._lock:
            if sound and not self._closed:
                self._idle.append(connection)
                return
        hang_up(connection)


class CommittedReader(Generic[Name, Value]):
    """Reads what names stand for, by one query with a list of them."""

    def __init__(
        self, connect: Connect, watchdog: Watchdog, query: str, read: Read[Name, Value]
    ) -> None:
        """Read over connections from `connect`, opened when needed."""
        self._connect = connect
        self._query = query
        self._read = read
        self._watchdog = watchdog
        self._connection: Connection | None = None
        self._batches: GroupCommit[Name, Value | None] = GroupCommit(
            "ledger-committed", self._answer, lambda: None
        )

    async def find(self, name: Name) -> Value | None:
        """Return what `name` stands for, or None. Raises: LedgerUnavailableError."""
        return await self._batches.ask(name)

    async def close(self) -> None:
        """Answer what still waits, and hang up."""
        await self._batches.close()
        self._drop()

    def _answer(self, batch: list[Queued[Name, Value | None]]) -> None:
        wanted = sorted({item.what for item in batch})
        for left in reversed(range(TRIES)):
            try:
                found = self._ask(wanted)
            except psycopg.Error as error:
                # The connection may have died while it was idle: one more, on a new one.
                self._drop()
                if left:
                    continue
                for item in batch:
                    item.error = LedgerUnavailableError(told(error))
            else:
                for item in batch:
                    item.result = found.get(item.what)
            return

    def _ask(self, wanted: list[Name]) -> Mapping[Name, Value]:
        if self._connection is None:
            self._connection = self._connect()
        with self._watchdog.over(self._connection):
            rows = self._connection.execute(self._query.encode(), {"ids": wanted}).fetchall()
        return self._read(rows)

    def _drop(self) -> None:
        if self._connection is not None:
            hang_up(self._connection)
            self._connection = None


def read_keys(rows: Iterable[dict[str, Any]]) -> Mapping[KeyId, tuple[VaultKey, Lineage]]:
    """Return the keys with their lineages in `rows`, by id."""
    return {found[0].id: found for found in map(key_with_lineage, rows)}


def read_grants(rows: Iterable[dict[str, Any]]) -> Mapping[str, list[Grant]]:
    """Return the grants in `rows`, by issuer."""
    found: dict[str, list[Grant]] = {}
    for row in rows:
        found.setdefault(row["issuer"], []).append(Grant(**row))
    return found
