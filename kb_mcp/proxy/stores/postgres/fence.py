"""The writer's connection: fenced, so that after any break it can be told what was committed.

Floor: inside the PostgreSQL store. Each process has one row with the number of its last transaction
(`flushes`), locked as long as one runs. Whoever gets that lock on a new connection knows that the
old transaction is over, and by its number how it ended. A restored or promoted
server has another identity: it may lack what the old one acknowledged, on this host's word or
another's. So each host remembers which server it saw last.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from typing_extensions import override

from kb_mcp.proxy.audit.heads import Heads
from kb_mcp.proxy.ledger.port import LedgerUnavailableError
from kb_mcp.proxy.stores.postgres.connection import (
    Connect,
    Connection,
    StoreTime,
    Watchdog,
    hang_up,
    told,
)
from kb_mcp.proxy.stores.queries import load_queries

# After a failed attempt to connect, callers are refused at once for this long.
BACK_OFF_MS = 500
_SEEN = "server"


class LostCommitsError(LedgerUnavailableError):
    """The store no longer has what it acknowledged: nothing is sent until it is reconciled."""


class MovedError(LedgerUnavailableError):
    """The store is another server or timeline than it was: it may have lost commits."""


@dataclass(frozen=True, slots=True)
class Server:
    """Which server answers: after a restore or a promotion it is another one."""

    system_identifier: str
    timeline: str


@dataclass(frozen=True, slots=True)
class Pending:
    """A transaction whose commit was sent and never confirmed; `before` is the journal's head."""

    token: int
    before: tuple[int, str]


class FencedLine:
    """Opens the writer's connection when needed, and settles what an earlier one left open."""

    def __init__(
        self,
        *,
        connect: Connect,
        watchdog: Watchdog,
        time: StoreTime,
        node: str,
        rewind: Callable[[tuple[int, str]], None],
        register: Callable[[Connection], None],
        boottime_ms: Callable[[], int],
    ) -> None:
        """Begin at token 0; `rewind` takes the journal back when a commit did not happen.

        `register` makes this process's row before its first transaction: who only reads has none.
        Any server will do until `expect` names one.
        """
        self._connect = connect
        self._queries = load_queries("postgres")
        self._watchdog = watchdog
        self._time = time
        self._node = node
        self._server: Server | None = None
        self._rewind = rewind
        self._register = register
        self._registered = False
        self._boottime_ms = boottime_ms
        self._connection: Connection | None = None
        self._refused_until = 0
        self.token = 0
        self.pending: Pending | None = None
        self.moved: Server | None = None
        self.warnings: list[str] = []

    def open(self) -> Connection:
        """Return a connection on which nothing is open or unsettled.

        Raises: LedgerUnavailableError, MovedError while another server answers than expected.
        """
        connection = self.settle()
        if self.moved is not None:
            raise MovedError(
                "the store is on another PostgreSQL server or timeline than before: nothing is "
                "sent until every charge of ours is found in it"
            )
        return connection

    def settle(self) -> Connection:
        """Connect, if need be, and find out how the last connection left things.

        Raises: LedgerUnavailableError, LostCommitsError.
        """
        if self._connection is not None:
            return self._connection
        if self._boottime_ms() < self._refused_until:
            raise LedgerUnavailableError("the store could not be reached a moment ago")
        try:
            connection = self._connect()
        except psycopg.Error as error:
            self._refused_until = self._boottime_ms() + BACK_OFF_MS
            raise LedgerUnavailableError(told(error)) from error
        try:
            with self._watchdog.over(connection):
                self._settle(connection)
        except BaseException as error:
            hang_up(connection)
            if isinstance(error, psycopg.Error):
                raise LedgerUnavailableError(told(error)) from error
            raise
        connection.add_notice_handler(self._hear)
        self._connection = connection
        return connection

    def drop(self) -> None:
        """Close the connection: the next one will find out how it left things."""
        if self._connection is not None:
            hang_up(self._connection)
            self._connection = None

    def expect(self, server: Server) -> None:
        """Serve from `server` alone, or from the one that the store moved to once it is checked."""
        self._server = server
        self.moved = None
        self.drop()

    def _hear(self, notice: psycopg.errors.Diagnostic) -> None:
        if notice.severity_nonlocalized == "WARNING":
            self.warnings.append(str(notice.message_primary))

    def _settle(self, connection: Connection) -> None:
        if not self._registered:
            self._register(connection)
            self._registered = True
        connection.execute("BEGIN ISOLATION LEVEL READ COMMITTED")
        row = connection.execute(self._queries["fence"], {"node": self._node}).fetchone()
        clock = connection.execute(self._queries["clock"]).fetchone() or {}
        connection.execute("ROLLBACK")
        token = None if row is None else int(row["token"])
        if self.pending is not None and token == self.pending.token - 1:
            self._rewind(self.pending.before)
            self.token = self.pending.token - 1
        elif token != (self.token if self.pending is None else self.pending.token):
            raise LostCommitsError(
                "the store has lost transactions that it had acknowledged: nothing is sent until "
                "it is reconciled and this process is started anew"
            )
        else:
            self.token = token
        self.pending = None
        self._time.set(int(clock["now_ms"]))
        server = server_of(connection, self._queries)
        self.moved = None if self._server in {None, server} else server


def server_of(connection: Connection, queries: Mapping[str, str]) -> Server:
    """Return which server answers on `connection`. Raises: psycopg.Error."""
    row: dict[str, Any] = connection.execute(queries["server"]).fetchone() or {}
    return Server(str(row["system_identifier"]), str(row["timeline"]))


class PostgresHeads(Heads):
    """`Heads`, and the server beside them, in a file that all processes of this host share."""

    def __init__(
        self,
        folder: Path,
        node: str,
        owner: str,
        monotonic_ms: Callable[[], int],
        now_ms: Callable[[], int],
    ) -> None:
        """Export as `node` to `folder`; see `Heads`."""
        super().__init__(folder, node, owner, monotonic_ms, now_ms)
        self._seen = folder / _SEEN

    def seen(self) -> Server | None:
        """Return the server that this host saw last, if any."""
        try:
            record = json.loads(self._seen.read_text())
            return Server(str(record["system_identifier"]), str(record["timeline"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def remember(self, server: Server) -> None:
        """Remember `server`; every charge of ours was found in it, or it is the first."""
        record = {"system_identifier": server.system_identifier, "timeline": server.timeline}
        self._write(_SEEN, record)

    @override
    def forget(self) -> None:
        super().forget()
        self._seen.unlink(missing_ok=True)
