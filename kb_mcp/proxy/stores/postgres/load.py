"""Locking and loading for PostgreSQL: the rows that a whole batch depends on, in one round trip.

Floor: inside the PostgreSQL store. The statements of a batch are sent together. Each sees what was
committed when it began (READ COMMITTED), so those after the locks see what the locks protect.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from msgspec.structs import astuple

from kb_mcp.proxy.ledger.records import Refs
from kb_mcp.proxy.ledger.snapshot import Snapshot
from kb_mcp.proxy.stores.loading import (
    add_rows,
    lists_wanted,
    operations_wanted,
    shown_by,
    together,
)
from kb_mcp.proxy.stores.postgres.connection import Connection
from kb_mcp.proxy.stores.postgres.locks import Lock
from kb_mcp.proxy.stores.rows import Seal

# Locks are taken by a time that we estimate: arrivals that matter are loaded from a little before.
SINCE_MARGIN_MS = 60_000
# Lists of rows -> the arrays, one a column, by which they travel.
_ARRAYS = {
    "windows": ("scopes", "scope_ids", "kinds", "starts", "currencies"),
    "bills": ("customers", "amounts", "currencies", "sinces"),
    "periods": (
        *("period_customers", "references", "first_labels", "after_labels"),
        *("starts", "ends"),
    ),
}
Row = dict[str, Any]


@dataclass(slots=True)
class Loaded:
    """What one round trip brought: the server's time (ms) and rows.

    `facts` are those that every decision depends on, None where the store has none.
    """

    now_ms: int
    facts: Mapping[str, str | None]
    rows: dict[str, list[Row]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PostgresLoader:
    """Locks and loads with named queries; `owner` is the lease name of this process."""

    queries: Mapping[str, str]
    unseal: Seal
    owner: str
    node: str

    def lock_and_load(
        self, connection: Connection, locks: Sequence[Lock], batch: Sequence[Refs], now: int
    ) -> Loaded:
        """Begin a transaction, take `locks` (sorted), and load what the refs of `batch` name.

        `now` (ms) is about when: the store's own time is in the answer. Raises: psycopg.Error.
        """
        guards = {"kinds": [each[0] for each in locks], "values": [each[1] for each in locks]}
        with connection.pipeline():
            connection.execute("BEGIN ISOLATION LEVEL READ COMMITTED")
            connection.execute(self.queries["fence"], {"node": self.node})
            if locks:
                connection.execute(self.queries["make_guards"], guards)
                connection.execute(self.queries["lock_guards"], guards)
            clock = connection.execute(self.queries["clock"])
            wanted = self._wanted(batch, now)
            cursors = {name: self._ask(connection, name, wanted[name]) for name in wanted}
        facts = clock.fetchone() or {}
        rows = {name: cursor.fetchall() for name, cursor in cursors.items()}
        return Loaded(int(facts.pop("now_ms")), facts, rows)

    def fill(
        self, connection: Connection, snapshot: Snapshot, loaded: Loaded, batch: Sequence[Refs]
    ) -> None:
        """Put what was loaded into `snapshot`, and fetch what only shows now that it is there.

        Raises: psycopg.Error, SealBrokenError.
        """
        self._add(snapshot, loaded.rows)
        missing = shown_by(snapshot, together(batch))
        if missing:
            with connection.pipeline():
                cursors = {
                    name: self._ask(connection, name, _arguments(name, ids, snapshot.now))
                    for name, ids in missing.items()
                }
            self._add(snapshot, {name: cursor.fetchall() for name, cursor in cursors.items()})

    def _wanted(self, batch: Sequence[Refs], now: int) -> dict[str, dict[str, Any]]:
        """Return the queries to run, each with its arguments."""
        refs = together(batch)
        chosen = operations_wanted(refs, SINCE_MARGIN_MS)
        wanted: dict[str, dict[str, Any]] = {}
        if any(chosen.values()):
            for name in ("bills", "periods"):
                chosen |= _columns(name, chosen.pop(name))
            wanted |= {"operations": chosen, "attempts": chosen}
        # What refs name is asked for at once: one round trip less, most of the time.
        lists = lists_wanted(refs)
        lists["windows"] = sorted(map(astuple, refs.windows))
        lists["lineages"] = sorted(refs.lineages)
        for name, ids in lists.items():
            if ids:
                wanted[name] = _arguments(name, ids, now)
        return wanted

    def _ask(self, connection: Connection, name: str, values: Mapping[str, Any]) -> Any:
        text = self.queries[name]
        if name in {"operations", "attempts"}:
            text = f"{self.queries['wanted']}{text}"
        return connection.execute(text, values)

    def _add(self, snapshot: Snapshot, rows: Mapping[str, list[Row]]) -> None:
        for name in rows:
            add_rows(snapshot, name, rows[name], self.unseal, self.owner)


def _arguments(name: str, ids: list[Any], now: int) -> dict[str, Any]:
    return _columns(name, ids) if name in _ARRAYS else {"ids": ids, "now": now}


def _columns(name: str, rows: Sequence[Sequence[Any]]) -> dict[str, Any]:
    """Return `rows` as one array a column."""
    columns = [list(column) for column in zip(*rows, strict=True)]
    return dict(zip(_ARRAYS[name], columns or [[] for _ in _ARRAYS[name]], strict=True))
