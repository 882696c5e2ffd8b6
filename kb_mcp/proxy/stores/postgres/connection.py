"""Connections to PostgreSQL: opened when needed, and watched while they are used.

Floor: inside the stores. A connection over which nothing comes back is cut from this side after a
while, since a server that stalls never says so. Times are integer milliseconds.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg import pq
from psycopg.rows import dict_row

from kb_mcp.proxy.ledger.port import LedgerUnavailableError

Connection = psycopg.Connection[dict[str, Any]]
Connect = Callable[[], Connection]

CONNECT_TIMEOUT_S = 3
LOCK_TIMEOUT_MS = 3_500
# A transaction whose process stalled gives its locks back after this; ours take milliseconds.
IDLE_TRANSACTION_MS = 3_000
WATCH_MS = 5_000
POLL_MS = 200
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


class Reach:
    """How a process reaches its store: by connections that are watched, and the time it tells.

    One thread cuts connections that were used for longer than they may. The time is PostgreSQL's,
    carried on by this host's monotonic clock between two looks: what this host believes about the
    time of day plays no part.
    """

    def __init__(self, connect: Connect, boottime_ms: Callable[[], int]) -> None:
        """Reach the store by `connect`, begin to watch, and start without knowing the time."""
        self.connect = connect
        self.boottime_ms = boottime_ms
        self._offset_ms = 0
        self._watched: dict[int, tuple[Connection, int]] = {}
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="ledger-watchdog", daemon=True)
        self._thread.start()

    def set_time(self, store_ms: int) -> None:
        """Take `store_ms`, which the store has just told."""
        self._offset_ms = store_ms - self.boottime_ms()

    def now_ms(self) -> int:
        """Return the store's time."""
        return self.boottime_ms() + self._offset_ms

    @contextmanager
    def over(self, connection: Connection) -> Iterator[None]:
        """Watch `connection` inside the block; after WATCH_MS whatever waits on it fails."""
        with self._lock:
            self._watched[id(connection)] = (connection, self.boottime_ms() + WATCH_MS)
        try:
            yield
        finally:
            with self._lock:
                self._watched.pop(id(connection), None)

    def close(self) -> None:
        """Stop watching."""
        self._stopped.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stopped.wait(POLL_MS / 1000):
            now = self.boottime_ms()
            with self._lock:
                late = [key for key, (_, until) in self._watched.items() if until <= now]
                for key in late:
                    _cut(self._watched.pop(key)[0])


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
