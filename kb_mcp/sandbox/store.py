"""The sandbox's memory: objects, keys, faults, the clock's offset and what was asked, in SQLite.

Floor: sandbox, ground. Every request is one BEGIN IMMEDIATE transaction, so that processes which
share the file see each other's charges and keys in one order. Losing the last moments in a power
cut is accepted here; a killed process loses nothing.
"""

from __future__ import annotations

import json
import re
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Final

from kb_mcp.sandbox.answers import Json

REQUESTS_KEPT: Final = 1_000
_BUSY_TIMEOUT_MS: Final = 30_000
_PACKAGE = files("kb_mcp.sandbox")
_SQL: Final = {
    match[1]: match[2]
    for match in re.finditer(
        r"-- name: (\w+)\n(.*?);\n", _PACKAGE.joinpath("queries.sql").read_text("utf-8"), re.DOTALL
    )
}
_COLUMNS: Final = ("customer", "charge", "payment_intent", "transfer_group", "email")
_FILTERS: Final = {name: f"{name} = ?" for name in _COLUMNS} | {
    "invoice": "json_extract(body, '$.invoice') = ?",
    "gt": "created > ?",
    "gte": "created >= ?",
    "lt": "created < ?",
    "lte": "created <= ?",
    "before": "seq < (SELECT seq FROM objects WHERE id = ?)",
    "after": "seq > (SELECT seq FROM objects WHERE id = ?)",
}


class Store:
    """One SQLite file, or a private memory when `path` is None; safe to share among threads.

    `clock` gives the host's time in ms UTC.
    Raises: sqlite3.Error, when the file cannot be opened or is no database.
    """

    def __init__(self, path: Path | None, clock: Callable[[], int]) -> None:
        """Open the file, and make its tables if they aren't there."""
        self._clock = clock
        self._lock = threading.RLock()
        self._connection = sqlite3.connect(
            ":memory:" if path is None else path, isolation_level=None, check_same_thread=False
        )
        self._connection.row_factory = sqlite3.Row
        self._connection.execute(f"PRAGMA busy_timeout = {_BUSY_TIMEOUT_MS}")
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = NORMAL")
        self._connection.executescript(
            f"BEGIN IMMEDIATE; {_PACKAGE.joinpath('schema.sql').read_text('utf-8')} COMMIT;"
        )

    @contextmanager
    def transaction(self) -> Iterator[Records]:
        """Open the one transaction of a request; an exception undoes it."""
        with self._lock, self._connection:
            self._connection.execute("BEGIN IMMEDIATE")
            yield Records(self._connection, self._clock())

    def close(self) -> None:
        """Close the file; closing twice is fine."""
        with self._lock:
            self._connection.close()


class Records:
    """What a request reads and writes, inside its transaction.

    `host_ms` is the host's clock, `now_ms` the sandbox's (host's and the offset).
    """

    def __init__(self, connection: sqlite3.Connection, host_ms: int) -> None:
        """Read the clock's offset."""
        self.connection = connection
        self.host_ms = host_ms
        self.offset_ms = self.number("offset_ms")

    @property
    def now_ms(self) -> int:
        """The sandbox's time in ms UTC."""
        return self.host_ms + self.offset_ms

    def advance(self, ms: int) -> None:
        """Turn the sandbox's clock forward."""
        self.run("add_number", ms, "offset_ms")
        self.offset_ms += ms

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """Undo what is written inside when it raises; the transaction itself goes on."""
        self.connection.execute("SAVEPOINT attempt")
        try:
            yield
        except BaseException:
            self.connection.execute("ROLLBACK TO attempt")
            raise
        finally:
            self.connection.execute("RELEASE attempt")

    def run(self, query: str, *values: object) -> list[sqlite3.Row]:
        """Run a named query."""
        return self.connection.execute(_SQL[query], values).fetchall()

    def number(self, name: str) -> int:
        """Return one of the sandbox's few numbers."""
        return int(self.run("get_number", name)[0][0])

    def save(self, body: Json) -> Json:
        """Write a Stripe object, new or changed, and return it."""
        self.run("put_object", body["object"], body["id"], json.dumps(body))
        return body

    def find(self, kind: str, object_id: str) -> Json | None:
        """Return the object of that kind and id, or None."""
        rows = self.run("get_object", object_id, kind)
        body: Json | None = json.loads(rows[0]["body"]) if rows else None
        return body

    def select(
        self, kind: str, wanted: Json | None = None, limit: int = -1, *, oldest_first: bool = False
    ) -> list[Json]:
        """Return objects that have what is `wanted` (names of `_FILTERS`), at most `limit`.

        Newest first, unless `oldest_first`; limit -1 is none.
        """
        wanted = wanted or {}
        clauses = " AND ".join(["kind = ?", *(_FILTERS[name] for name in wanted)])
        order = "ASC" if oldest_first else "DESC"
        rows = self.connection.execute(
            # Only clauses and orders written here are put together; values are bound.
            f"SELECT body FROM objects WHERE {clauses} ORDER BY seq {order} LIMIT ?",  # noqa: S608  see above
            (kind, *wanted.values(), limit),
        )
        return [json.loads(row["body"]) for row in rows]

    def log(
        self, method: str, path: str, key: str | None, customer: str | None, status: int | None
    ) -> None:
        """Count a request and keep it among the last; status None means dropped."""
        self.run("add_number", 1, "request_count")
        self.run("put_request", method, path, key, customer, status)
        self.run("trim_requests", REQUESTS_KEPT)

    def clear(self) -> None:
        """Forget everything, the clock's offset too."""
        for table in ("objects", "keys", "faults", "requests"):
            self.connection.execute(f"DELETE FROM {table}")  # noqa: S608  names written here
        self.connection.execute("UPDATE numbers SET value = 0")
        self.offset_ms = 0
