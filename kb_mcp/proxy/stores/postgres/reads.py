"""Reads of a PostgreSQL store for people and recovery, outside any decision.

Floor: a store; built in wiring alone. Each read is one statement, so that it sees what is committed
and holds nobody up. Connections come from a small pool; none is used on an event loop's thread,
but for the audit's generators, which commands walk.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import psycopg
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
from kb_mcp.proxy.stores.postgres.pool import Pool
from kb_mcp.proxy.stores.queries import load_queries, state_clauses
from kb_mcp.proxy.stores.rows import attempt_of, key_with_lineage, operation_of
from kb_mcp.proxy.stores.sealing import Sealer

_PLACE = '(time COLLATE "C", node COLLATE "C", seq)'  # in the order of the audit
# Attempts know whose an object is, but where the request did not tell an amount. A charge finds its
# refunds, too.
_OF_OBJECT = """
    id IN (WITH wanted (object) AS (SELECT %s::text)
        SELECT o.id FROM wanted JOIN attempts a ON a.object_id = wanted.object
               JOIN operations o ON o.id = a.operation_id AND o.object_id = wanted.object
        UNION ALL
        SELECT o.id FROM wanted JOIN operations o ON o.object_id = wanted.object
         WHERE o.amount = 0 AND o.object_id IS NOT NULL
        UNION ALL
        SELECT o.id FROM wanted JOIN operations o ON o.gives_back = wanted.object)"""
_OPERATION_FILTERS = {
    "customer_id": "customer = %s",
    "billing_period": "period = %s",
    "charge_id": _OF_OBJECT,
    "operation_id": "id = %s",
    "lineage_id": "lineage_id = %s",
    # Spelled so that the planner looks into an index by the age of that operation.
    "after": "(created_at, id) < ((SELECT created_at FROM operations WHERE id = %s), %s)",
}
_AUDIT_FILTERS = {
    "key": "key_id = %s",
    "customer": "customer_id = %s",
    "code": "code = %s",
    "operation": "operation_id = %s",
    "agent": "agent_id = %s",
    "session": "session_id = %s",
    "subject": "subject = %s",
    "since": 'time COLLATE "C" >= %s',
    "until": 'time COLLATE "C" < %s',
    "after_row": f"{_PLACE} > (%s, %s, %s)",
    "up_to": f"{_PLACE} <= (%s, %s, %s)",
    "node": "node = %s",
}
_ROW = "time || '|' || node || '|' || lpad(seq::text, 12, '0') AS row"
_ORDER = 'time COLLATE "C" {0}, node COLLATE "C" {0}, seq {0}'


class PostgresRecords(Gauges):
    """`records.Records` over one PostgreSQL database."""

    def __init__(self, pool: Pool, sealer: Sealer) -> None:
        """Read the migrated store behind `pool`."""
        self._pool = pool
        self._queries = load_queries("postgres")
        self._sealer = sealer

    async def ping(self) -> bool:
        """Say whether the store answers."""
        return bool(await self._read("SELECT 1 AS one"))

    async def operations(
        self, *, limit: int | None = None, ids: Sequence[str] | None = None, **filters: str
    ) -> list[tuple[Operation, list[Attempt]]]:
        """Return matching operations, newest first, each with its attempts; of `ids` if given."""
        fixed = state_clauses(filters.pop("state", None))
        where, values = _where(_OPERATION_FILTERS, filters, fixed)
        if ids is not None:
            within = "id = ANY(%s::text[])"
            where = f"{where} AND {within}" if where else f"WHERE {within}"
            values.append(list(ids))
        rows = await self._read(
            f"SELECT * FROM operations {where} ORDER BY created_at DESC, id DESC LIMIT %s",  # noqa: S608 our own column names
            *values,
            limit,
        )
        found = [operation_of(row, self._sealer.unseal) for row in rows]
        attempts: dict[str, list[Attempt]] = {operation.id: [] for operation in found}
        for row in await self._read(
            "SELECT * FROM attempts WHERE operation_id = ANY(%s::text[]) ORDER BY number",
            list(attempts),
        ):
            attempt = attempt_of(row, self._sealer.unseal)
            attempts[attempt.operation_id].append(attempt)
        return [(operation, attempts[operation.id]) for operation in found]

    async def due(self, now: int, limit: int) -> list[OperationId]:
        """Return the operations that recovery should look at, oldest first."""
        rows = await asyncio.to_thread(
            self._rows, self._queries["to_recover"], {"now": now, "limit": limit}
        )
        return [OperationId(row["id"]) for row in rows]

    async def answered_before(self, before: int, limit: int) -> list[OperationId]:
        """Return final operations that still hold an answer from before `before` (ms)."""
        rows = await self._read(self._queries["answered_before"], before, limit)
        return [OperationId(row["id"]) for row in rows]

    async def windows(
        self, *, scope_id: str | None = None, starts: Sequence[str] = (), scope: str | None = None
    ) -> list[Window]:
        """Return windows, by whose they are and by their first day."""
        rows = await self._read(
            'SELECT scope, scope_id, "window", start, currency, reserved, settled, sends, declines'
            " FROM windows WHERE (%s::text IS NULL OR scope_id = %s) AND (%s::text IS NULL"
            " OR scope = %s) AND (%s OR start = ANY(%s::text[]))",
            *(scope_id, scope_id, scope, scope, not starts, list(starts)),
        )
        found = [tuple(row.values()) for row in rows]
        return [Window(WindowKey(*each[:5]), *each[5:]) for each in found]

    async def keys(self) -> list[tuple[VaultKey, Lineage]]:
        """Return every key with its lineage, oldest first."""
        rows = await self._read(
            "SELECT k.*, l.frozen_at AS lineage_frozen_at, l.frozen_reason AS lineage_frozen_reason"
            " FROM keys k JOIN lineages l ON l.id = k.lineage_id ORDER BY k.created_at, k.id"
        )
        return [key_with_lineage(row) for row in rows]

    async def approvals(self) -> list[Approval]:
        """Return every approval, newest first."""
        rows = await self._read("SELECT * FROM approvals ORDER BY created_at DESC, id")
        return [Approval(**row) for row in rows]

    async def grants(self) -> list[Grant]:
        """Return every grant, oldest first, those that were removed too."""
        rows = await self._read("SELECT * FROM grants ORDER BY created_at, id")
        return [Grant(**row) for row in rows]

    def audit(
        self, *, limit: int | None = None, newest_first: bool = False, **filters: Any
    ) -> Iterator[dict[str, Any]]:
        """Yield audit rows as dicts, by time; `row` goes on after one (filter `after_row`)."""
        # 0 is where a reader begins who has seen no row yet.
        given = {name: value for name, value in filters.items() if value != 0}
        if limit is None and not newest_first and (end := self.newest_row()) != 0:
            # What is written meanwhile is the next reader's, or a busy store had no end.
            given["up_to"] = end
        order = _ORDER.format("DESC" if newest_first else "ASC")
        going_on = f"{_PLACE} {'<' if newest_first else '>'} (%s, %s, %s)"

        def page(last: dict[str, Any] | None, wanted: int) -> list[dict[str, Any]]:
            where, values = _where(_AUDIT_FILTERS, given, () if last is None else (going_on,))
            if last is not None:
                values[:0] = [last["time"], last["node"], last["seq"]]
            statement = f"SELECT {_ROW}, * FROM audit {where} ORDER BY {order} LIMIT %s"  # noqa: S608 our own
            return self._rows(statement, (*values, wanted))

        return in_pages(page, limit)

    def chain(self, node: str) -> Iterator[dict[str, Any]]:
        """Yield the audit rows of one node, in the order of its chain."""
        statement = "SELECT * FROM audit WHERE node = %s AND seq > %s ORDER BY seq LIMIT %s"
        return in_pages(
            lambda last, wanted: self._rows(statement, (node, last["seq"] if last else 0, wanted))
        )

    def log_bytes(self) -> None:
        """Return None: the server's log is its own."""

    def nodes(self) -> list[dict[str, Any]]:
        """Return the registry of nodes, in its own order."""
        return self._rows("SELECT * FROM nodes ORDER BY position")

    def writers(self) -> list[str]:
        """Return every node that has audit rows."""
        return [row["node"] for row in self._rows("SELECT DISTINCT node FROM audit")]

    def audit_size(self) -> int:
        """Return how many rows the audit has."""
        return int(self._rows("SELECT count(*) AS n FROM audit")[0]["n"])

    def hash_at(self, node: str, seq: int) -> str | None:
        """Return the hash of row `seq` of `node`, if it is there."""
        rows = self._rows("SELECT hash FROM audit WHERE node = %s AND seq = %s", (node, seq))
        return rows[0]["hash"] if rows else None

    def close(self) -> None:
        """Close the connections."""
        self._pool.close()

    @override
    def newest_row(self) -> str | int:
        """Return the place of the last row, as `audit` names it, or 0 where there is none."""
        rows = self._rows(self._queries["newest_row"])
        return rows[0]["row"] if rows else 0

    @override
    async def _asked(self, name: str, **values: Any) -> list[dict[str, Any]]:
        return await asyncio.to_thread(self._rows, self._queries[name], values)

    @override
    async def _plain(self, name: str, **values: Any) -> list[tuple[Any, ...]]:
        return [tuple(row.values()) for row in await self._asked(name, **values)]

    @override
    def _after(self, row: Any) -> Mapping[str, Any]:
        return dict(zip(("time", "node", "seq"), _row(row) if row else ("", "", 0), strict=True))

    @override
    def _ids(self, ids: Sequence[str]) -> Mapping[str, Any]:
        return {"ids": list(ids)}

    async def _read(self, statement: str, *values: Any) -> list[dict[str, Any]]:
        return await asyncio.to_thread(self._rows, statement, values)

    def _rows(self, statement: str, values: Any = ()) -> list[dict[str, Any]]:
        for left in (True, False):
            try:
                with self._pool.connection() as connection:
                    return connection.execute(statement, values).fetchall()
            except psycopg.OperationalError as error:
                # The connection may have died while it was idle: once more, on another.
                if not left:
                    raise LedgerUnavailableError(str(error)) from error
            except psycopg.Error as error:
                raise LedgerUnavailableError(str(error)) from error
        return []


def _where(
    columns: dict[str, str], filters: dict[str, Any], fixed: Sequence[str] = ()
) -> tuple[str, list[Any]]:
    given = {name: value for name, value in filters.items() if value is not None}
    clauses = [*fixed, *(columns[name] for name in given)]
    values = [part for name, value in given.items() for part in _parts(name, value)]
    return (f"WHERE {' AND '.join(clauses)}" if clauses else ""), values


def _parts(name: str, value: Any) -> tuple[Any, ...]:
    match name:
        case "after_row" | "up_to":
            return _row(value)
        case "after":
            return (value, value)
        case _:
            return (value,)


def _row(place: str) -> tuple[str, str, int]:
    """Take apart the place in the audit's order that `_ROW` names."""
    at, _, rest = place.partition("|")
    node, _, seq = rest.rpartition("|")
    return at, node, int(seq)
