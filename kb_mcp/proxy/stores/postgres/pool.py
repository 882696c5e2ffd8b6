"""A few connections for reads, opened when needed, handed out one caller at a time.

Floor: inside the PostgreSQL store. One that failed is not handed out again.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

from kb_mcp.proxy.stores.postgres.connection import Connect, Connection, Watchdog, hang_up

SIZE_MAX = 4
WAIT_S = 3


class Pool:
    """At most SIZE_MAX connections; who finds none free waits a little, then is told."""

    def __init__(self, connect: Connect, watchdog: Watchdog) -> None:
        """Hand out connections from `connect`."""
        self._connect = connect
        self._watchdog = watchdog
        self._idle: list[Connection] = []
        self._lock = threading.Lock()
        self._places = threading.Semaphore(SIZE_MAX)
        self._closed = False

    @contextmanager
    def connection(self, *, watched: bool = True) -> Iterator[Connection]:
        """Lend a connection for the block; `watched` ones must be done in a few seconds.

        Raises: psycopg.OperationalError when none can be had.
        """
        if not self._places.acquire(timeout=WAIT_S):
            raise psycopg.OperationalError(f"all {SIZE_MAX} connections for reads are in use")
        try:
            connection = self._take()
            try:
                if watched:
                    with self._watchdog.over(connection):
                        yield connection
                else:
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
