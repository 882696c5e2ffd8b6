"""Reads of a SQLite store for people and recovery, outside any decision.

Floor: a store; built in wiring alone. Each read is one statement on a connection of its own, so
that it sees what is committed and holds nobody up.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from typing_extensions import override

from kb_mcp.proxy.ledger.port import LedgerUnavailableError
from kb_mcp.proxy.ledger.records import (
    Approval,
    Attempt,
    Grant,
    Lineage,
    Operation,
    OperationId,
    VaultKey,
    Window,
    WindowKey,
)
from kb_mcp.proxy.stores.gauges import Gauges
from kb_mcp.proxy.stores.paging import in_pages
from kb_mcp.proxy.stores.queries import load_queries, state_clauses
from kb_mcp.proxy.stores.rows import attempt_of, operation_of
from kb_mcp.proxy.stores.sealing import Sealer
from kb_mcp.proxy.stores.sqlite.ledger import connect
from kb_mcp.proxy.stores.sqlite.write_ahead_log import log_bytes

# Attempts know whose an object is, but where the request did not tell an amount. A charge finds its
# refunds, too.
_OF_OBJECT = """
    id IN (WITH wanted (object) AS (SELECT ?)
        SELECT o.id FROM wanted CROSS JOIN attempts AS a ON a.object_id = wanted.object
               CROSS JOIN operations AS o ON o.id = a.operation_id AND o.object_id = wanted.object
        UNION ALL
        SELECT o.id FROM wanted CROSS JOIN operations AS o ON o.object_id = wanted.object
         WHERE o.amount = 0 AND o.object_id IS NOT NULL
        UNION ALL
        SELECT o.id FROM wanted CROSS JOIN operations AS o ON o.gives_back = wanted.object)"""
_OPERATION_FILTERS = {
    "customer_id": "customer = ?",
    "billing_period": "period = ?",
    "charge_id": _OF_OBJECT,
    "operation_id": "id = ?",
    "lineage_id": "lineage_id = ?",
    "after": "(created_at, rowid) < (SELECT created_at, rowid FROM operations WHERE id = ?)",
}
_AUDIT_FILTERS = {
    "key": "key_id = ?",
    "customer": "customer_id = ?",
    "code": "code = ?",
    "operation": "operation_id = ?",
    "agent": "agent_id = ?",
    "session": "session_id = ?",
    "subject": "subject = ?",
    "since": "time >= ?",
    "until": "time < ?",
    "after_row": "rowid > ?",
    "up_to": "rowid <= ?",
    "node": "node = ?",
}


class SqliteRecords(Gauges):
    """`records.Records` over one SQLite file."""

    def __init__(self, path: Path, sealer: Sealer) -> None:
        """Read the migrated store at `path`."""
        self._path = path
        self._connection = connect(path)
        self._queries = load_queries("sqlite")
        self._sealer = sealer

    async def ping(self) -> bool:
        """Say whether the store answers."""
        return bool(self._rows("SELECT 1"))

    async def operations(
        self, *, limit: int | None = None, ids: Sequence[str] | None = None, **filters: str
    ) -> list[tuple[Operation, list[Attempt]]]:
        """Return matching operations, newest first, each with its attempts; of `ids` if given."""
        fixed = state_clauses(filters.pop("state", None))
        where, values = _where(_OPERATION_FILTERS, filters, fixed)
        if ids is not None:
            within = "id IN (SELECT value FROM json_each(?))"
            where = f"{where} AND {within}" if where else f"WHERE {within}"
            values.append(json.dumps(list(ids)))
        rows = self._rows(
            f"SELECT * FROM operations {where} ORDER BY created_at DESC, rowid DESC LIMIT ?",  # noqa: S608 our own column names
            *values,
            -1 if limit is None else limit,
        )
        found = [operation_of(row, self._sealer.unseal) for row in rows]
        return [(operation, self._attempts(operation.id)) for operation in found]

    async def due(self, now: int, limit: int) -> list[OperationId]:
        """Return the operations that recovery should look at, oldest first."""
        rows = await self._asked("to_recover", now=now, limit=limit)
        return [OperationId(row["id"]) for row in rows]

    async def answered_before(self, before: int, limit: int) -> list[OperationId]:
        """Return final operations that still hold an answer from before `before` (ms)."""
        statement = self._queries["answered_before"]
        return [OperationId(row["id"]) for row in self._rows(statement, before, limit)]

    async def windows(
        self, *, scope_id: str | None = None, starts: Sequence[str] = (), scope: str | None = None
    ) -> list[Window]:
        """Return windows, by whose they are and by their first day."""
        clauses, values = [], []
        for column, value in (("scope_id", scope_id), ("scope", scope)):
            if value is not None:
                clauses.append(f"{column} = ?")
                values.append(value)
        if starts:
            clauses.append(f"start IN ({', '.join('?' for _ in starts)})")
            values += starts
        where = f"WHERE {' AND '.join(clauses)}" if clauses else ""
        return [
            Window(WindowKey(*tuple(row)[:5]), *tuple(row)[5:])
            for row in self._rows(f"SELECT * FROM windows {where}", *values)  # noqa: S608 our own
        ]

    async def keys(self) -> list[tuple[VaultKey, Lineage]]:
        """Return every key with its lineage, oldest first."""
        lineages = {row["id"]: Lineage(**dict(row)) for row in self._rows("SELECT * FROM lineages")}
        rows = self._rows("SELECT * FROM keys ORDER BY created_at, id")
        keys = [VaultKey(**dict(row)) for row in rows]
        return [(key, lineages[key.lineage_id]) for key in keys]

    async def approvals(self) -> list[Approval]:
        """Return every approval, newest first."""
        rows = self._rows("SELECT * FROM approvals ORDER BY created_at DESC")
        return [Approval(**dict(row)) for row in rows]

    async def grants(self) -> list[Grant]:
        """Return every grant, oldest first, those that were removed too."""
        rows = self._rows("SELECT * FROM grants ORDER BY created_at, id")
        return [Grant(**dict(row)) for row in rows]

    def audit(
        self, *, limit: int | None = None, newest_first: bool = False, **filters: Any
    ) -> Iterator[dict[str, Any]]:
        """Yield audit rows as dicts, in the order in which they were written."""
        if limit is None and not newest_first:
            # What is written meanwhile is the next reader's, or a busy store had no end.
            filters["up_to"] = self.newest_row()
        # By time where the newest come first, so that the indexes of the filters serve the order.
        order = "time DESC, rowid DESC" if newest_first else "rowid ASC"
        going_on = "(time, rowid) < (?, ?)" if newest_first else "rowid > ?"

        def page(last: dict[str, Any] | None, wanted: int) -> list[sqlite3.Row]:
            where, values = _where(_AUDIT_FILTERS, filters, () if last is None else (going_on,))
            if last is not None:
                values[:0] = [last["time"], last["row"]] if newest_first else [last["row"]]
            return self._rows(
                f"SELECT rowid AS row, * FROM audit {where} ORDER BY {order} LIMIT ?",  # noqa: S608 our own
                *values,
                wanted,
            )

        return in_pages(page, limit)

    def chain(self, node: str) -> Iterator[dict[str, Any]]:
        """Yield the audit rows of one node, in the order of its chain."""
        statement = "SELECT * FROM audit WHERE node = ? AND seq > ? ORDER BY seq LIMIT ?"
        return in_pages(
            lambda last, wanted: self._rows(statement, node, last["seq"] if last else 0, wanted)
        )

    def log_bytes(self) -> int:
        """Return the size of the write-ahead log."""
        return log_bytes(self._path)

    def nodes(self) -> list[dict[str, Any]]:
        """Return the registry of nodes, in its own order."""
        return [dict(row) for row in self._rows("SELECT * FROM nodes ORDER BY position")]

    def writers(self) -> list[str]:
        """Return every node that has audit rows."""
        return [row["node"] for row in self._rows("SELECT DISTINCT node FROM audit")]

    def audit_size(self) -> int:
        """Return how many rows the audit has."""
        return int(self._rows("SELECT count(*) FROM audit")[0][0])

    def hash_at(self, node: str, seq: int) -> str | None:
        """Return the hash of row `seq` of `node`, if it is there."""
        rows = self._rows("SELECT hash FROM audit WHERE node = ? AND seq = ?", node, seq)
        return rows[0]["hash"] if rows else None

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    @override
    def newest_row(self) -> int:
        """Return the number of the row that was written last, which may not be the latest by time.

        0 stands where there is none.
        """
        return int(self._rows(self._queries["newest_row"])[0]["row"] or 0)

    @override
    async def _asked(self, name: str, **values: Any) -> list[sqlite3.Row]:
        return self._all(self._queries[name], values)

    @override
    async def _plain(self, name: str, **values: Any) -> list[sqlite3.Row]:
        return await self._asked(name, **values)

    @override
    def _after(self, row: Any) -> Mapping[str, Any]:
        return {"after": row}

    @override
    def _ids(self, ids: Sequence[str]) -> Mapping[str, Any]:
        return {"ids": json.dumps(list(ids))}

    def _attempts(self, operation_id: OperationId) -> list[Attempt]:
        rows = self._rows(f"{self._queries['attempts_of']} ORDER BY number", operation_id)
        return [attempt_of(row, self._sealer.unseal) for row in rows]

    def _rows(self, statement: str, *values: Any) -> list[sqlite3.Row]:
        return self._all(statement, values)

    def _all(self, statement: str, values: Any) -> list[sqlite3.Row]:
        try:
            return self._connection.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise LedgerUnavailableError(str(error)) from error


def _where(
    columns: dict[str, str], filters: dict[str, Any], fixed: Sequence[str] = ()
) -> tuple[str, list[Any]]:
    given = {name: value for name, value in filters.items() if value is not None}
    clauses = [*fixed, *(columns[name] for name in given)]
    return (f"WHERE {' AND '.join(clauses)}" if clauses else ""), list(given.values())
