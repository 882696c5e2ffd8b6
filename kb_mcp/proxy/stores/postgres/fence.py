"""The writer's connection: fenced, so that after any break it can be told what was committed.

Floor: inside the PostgreSQL store. Each process has one row with the number of its last transaction
(`flushes`), locked as long as one runs. Whoever gets that lock on a new connection knows that the
old transaction is over, and by its number how it ended. A restored or promoted
server has another identity: it may lack what the old one acknowledged, on this host's word or
another's. So each host remembers which server it saw last.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import psycopg

from kb_mcp.proxy.ledger.port import LedgerUnavailableError
from kb_mcp.proxy.stores.group_commit import LedgerParts
from kb_mcp.proxy.stores.postgres.connection import Connection, Reach, hang_up, told
from kb_mcp.proxy.stores.postgres.database import register_node
from kb_mcp.proxy.stores.rows import load_queries

# After a failed attempt to connect, callers are refused at once for this long.
BACK_OFF_MS = 500


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

    def __init__(self, reach: Reach, parts: LedgerParts, server: Server) -> None:
        """Begin at token 0, with the `server` that answers now; any will do until `begin`.

        This process's row is made before its first transaction: who only reads has none. The
        journal is taken back when a commit did not happen.
        """
        self._reach = reach
        self._journal = parts.journal
        self._clock = parts.clock
        self._heads = parts.heads
        self._found = server
        self._queries = load_queries("postgres")
        self._server: Server | None = None
        self._registered = False
        self._connection: Connection | None = None
        self._refused_until = 0
        self.token = 0
        self.pending: Pending | None = None
        self.moved: Server | None = None
        self.warnings: list[str] = []

    def begin(self) -> None:
        """Serve from the server that this host saw last, or the first it sees, until `accept`."""
        seen = self._heads.server()
        if not seen:
            self._heads.remember(asdict(self._found))
        self._expect(Server(**seen) if seen else self._found)

    def accept(self, server: Server) -> None:
        """Serve from `server`, the one that answers now: every charge of ours is found in it."""
        self._heads.remember(asdict(server))
        self._expect(server)

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
        if self._reach.boottime_ms() < self._refused_until:
            raise LedgerUnavailableError("the store could not be reached a moment ago")
        try:
            connection = self._reach.connect()
        except psycopg.Error as error:
            self._refused_until = self._reach.boottime_ms() + BACK_OFF_MS
            raise LedgerUnavailableError(told(error)) from error
        try:
            with self._reach.over(connection):
                self._settle(connection)
        except BaseException as error:
            hang_up(connection)
            if isinstance(error, psycopg.Error):
                raise LedgerUnavailableError(told(error)) from error
            raise
        connection.add_notice_handler(self._hear)
        self._connection = connection
        return connection

    def drop(self, pending: Pending | None = None) -> None:
        """Close the connection: the next one will find out how it left things, `pending` too."""
        self.pending = pending or self.pending
        if self._connection is not None:
            hang_up(self._connection)
            self._connection = None

    def _expect(self, server: Server) -> None:
        self._server = server
        self.moved = None
        self.drop()

    def _hear(self, notice: psycopg.errors.Diagnostic) -> None:
        if notice.severity_nonlocalized == "WARNING":
            self.warnings.append(str(notice.message_primary))

    def _settle(self, connection: Connection) -> None:
        if not self._registered:
            node, chain_key = self._journal.node, self._journal.chain_key
            register_node(connection, node, chain_key, self._clock.now(0))
            self._registered = True
        connection.execute("BEGIN ISOLATION LEVEL READ COMMITTED")
        row = connection.execute(self._queries["fence"], {"node": self._journal.node}).fetchone()
        clock = connection.execute(self._queries["clock"]).fetchone() or {}
        connection.execute("ROLLBACK")
        token = None if row is None else int(row["token"])
        if self.pending is not None and token == self.pending.token - 1:
            self._journal.rewind(self.pending.before)
            self.token = self.pending.token - 1
        elif token != (self.token if self.pending is None else self.pending.token):
            raise LostCommitsError(
                "the store has lost transactions that it had acknowledged: nothing is sent until "
                "it is reconciled and this process is started anew"
            )
        else:
            self.token = token
        self.pending = None
        self._reach.set_time(int(clock["now_ms"]))
        server = server_of(connection)
        self.moved = None if self._server in {None, server} else server


def server_of(connection: Connection) -> Server:
    """Return which server answers on `connection`. Raises: psycopg.Error."""
    row: dict[str, Any] = connection.execute(load_queries("postgres")["server"]).fetchone() or {}
    return Server(str(row["system_identifier"]), str(row["timeline"]))
