"""Loading and saving over one SQLite connection: the rows that a whole batch depends on.

Floor: inside the SQLite store. One statement a kind, however many steps wait: each costs a turn of
the interpreter's lock, which the event loop wants, too.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from kb_mcp.proxy.ledger.records import Refs
from kb_mcp.proxy.ledger.snapshot import Snapshot
from kb_mcp.proxy.stores.loading import (
    add_rows,
    lists_wanted,
    operations_wanted,
    shown_by,
    together,
)
from kb_mcp.proxy.stores.rows import (
    COLUMNS,
    KEYED,
    Seal,
    changed,
    differing,
    update,
    upsert,
    values_of,
)

_ENCODER = msgspec.json.Encoder()
_UPSERT = {table: upsert(table) for table in COLUMNS}


class Loader:
    """Fills snapshots over one connection; statements are prepared once and cached by sqlite3."""

    def __init__(
        self, connection: sqlite3.Connection, queries: Mapping[str, str], unseal: Seal, owner: str
    ) -> None:
        """Read with `queries` over `connection`; `owner` is the lease name of this process."""
        self._connection = connection
        self._queries = queries
        self._unseal = unseal
        self._owner = owner

    def load(self, snapshot: Snapshot, batch: Sequence[Refs]) -> None:
        """Fill `snapshot` with every row that the refs of a batch name.

        Raises: sqlite3.Error, SealBrokenError.
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

    def rows(self, name: str, **values: Any) -> list[sqlite3.Row]:
        """Run the named query and return its rows."""
        return self._connection.execute(self._queries[name], as_json(values)).fetchall()

    def _add(self, snapshot: Snapshot, name: str, **values: Any) -> None:
        add_rows(snapshot, name, self.rows(name, **values), self._unseal, self._owner)


def as_json(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return `values` with their lists as JSON arrays, as the queries take them."""
    return {
        name: _ENCODER.encode(value).decode() if isinstance(value, list) else value
        for name, value in values.items()
    }


def save(connection: sqlite3.Connection, snapshot: Snapshot, seal: Seal) -> None:
    """Write every changed row of `snapshot`, inside the transaction that loaded it.

    Of a row that was there, the columns that are new: an index is touched only where one of its
    columns is written, and every page that is touched goes to the disk before a caller is answered.
    """
    for table, rows in changed(snapshot):
        for loaded, now in rows:
            if loaded is None:
                connection.execute(_UPSERT[table], values_of(table, now, seal))
            elif columns := differing(loaded, now):
                key = (getattr(now, name) for name in KEYED[table][1])
                row = (*values_of(table, now, seal, columns), *key)
                connection.execute(update(table, columns), row)
