"""Reads of a store for people and recovery, outside any decision: the same for every store.

Floor: inside the stores. Each read is one statement, so that it sees what is committed and holds
nobody up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from kb_mcp.proxy.ledger import records
from kb_mcp.proxy.stores import rows
from kb_mcp.proxy.stores.binding import stays_sealed
from kb_mcp.proxy.stores.database import Database
from kb_mcp.proxy.stores.gauges import Gauges

Columns = dict[str, Any]
PAGE_ROWS: Final = 500
_ALL = 2**62  # as a limit: every row
# Attempts know whose an object is, but where the request did not tell an amount. A charge finds its
# refunds, too.
_OF_OBJECT = """
    id IN (WITH wanted (object) AS (SELECT :charge_id::text)
        SELECT o.id FROM wanted {join} attempts AS a ON a.object_id = wanted.object
               {join} operations AS o ON o.id = a.operation_id
               AND (o.object_id = wanted.object OR a.outcome = 'succeeded')
        UNION ALL
        SELECT o.id FROM wanted {join} operations AS o ON o.object_id = wanted.object
         WHERE o.amount = 0 AND o.object_id IS NOT NULL
        UNION ALL
        SELECT o.id FROM wanted {join} operations AS o ON o.gives_back = wanted.object)"""
_OPERATION_FILTERS = {
    "customer_id": "customer = :customer_id",
    "billing_period": "period = :billing_period",
    "charge_id": _OF_OBJECT,
    "operation_id": "id = :operation_id",
    "lineage_id": "lineage_id = :lineage_id",
    "ids": "id = ANY(:ids::text[])",
    # Spelled so that a planner looks into an index by the age of that operation.
    "after": """(created_at, {tie}) < ((SELECT created_at FROM operations WHERE id = :after),
                                       (SELECT {tie} FROM operations WHERE id = :after))""",
}
_WINDOW_FILTERS = {
    "scope_id": "scope_id = :scope_id",
    "scope": "scope = :scope",
    "starts": "start = ANY(:starts::text[])",
}
_AUDIT_FILTERS = {
    **{name: f"{name} = :{name}" for name in ("code", "kind", "subject", "node")},
    **{name: f"{name}_id = :{name}" for name in "key customer operation agent session".split()},
    "since": 'time COLLATE "C" >= :since',
    "until": 'time COLLATE "C" < :until',
}


class StoreReads(Gauges):
    """Every read of a store. Raises: LedgerUnavailableError."""

    def __init__(self, database: Database, unseal: rows.Seal = stays_sealed) -> None:
        """Read by `database`, which is closed with this; open answers and bodies by `unseal`."""
        super().__init__(database)
        self._unseal = unseal

    async def ping(self) -> bool:
        """Say whether the store answers."""
        return bool(await self.database.read("SELECT 1 AS one", {}))

    async def operations(
        self, *, limit: int | None = None, ids: Sequence[str] | None = None, **filters: str
    ) -> list[tuple[records.Operation, list[records.Attempt]]]:
        """Return matching operations, newest first, each with its attempts; of `ids` if given.

        The filter `after` is the id of one that came last on the page before; the `kind` "refund"
        leaves out what gives nothing back.
        """
        state, kind = filters.pop("state", None), filters.pop("kind", None)
        fixed = [*_state_clauses(state), *(["gives_back IS NOT NULL"] if kind == "refund" else [])]
        given = filters | {"ids": None if ids is None else list(ids)}
        where, values = _where(_OPERATION_FILTERS, given, fixed)
        tie = self.database.tie
        statement = f"""SELECT * FROM operations {where.format(tie=tie, join=self.database.join)}
            ORDER BY created_at DESC, {tie} DESC LIMIT :most"""  # noqa: S608 our own names
        most = {"most": _ALL if limit is None else limit}
        chosen = await self._select(statement, values | most)
        found = [rows.operation_of(row, self._unseal) for row in chosen]
        attempts: dict[str, list[records.Attempt]] = {operation.id: [] for operation in found}
        for row in await self._ask("attempts_of", ids=list(attempts)) if found else ():
            attempt = rows.attempt_of(row, self._unseal)
            attempts[attempt.operation_id].append(attempt)
        return [(operation, attempts[operation.id]) for operation in found]

    async def windows(
        self, *, scope_id: str | None = None, starts: Sequence[str] = (), scope: str | None = None
    ) -> list[records.Window]:
        """Return windows, by whose they are and by their first day."""
        given = {"scope_id": scope_id, "scope": scope, "starts": list(starts) or None}
        where, values = _where(_WINDOW_FILTERS, given)
        columns = rows.names(rows.COLUMNS["windows"])
        found = await self._select(f"SELECT {columns} FROM windows {where}", values)  # noqa: S608 our own names
        return [rows.window_of(row) for row in found]

    async def keys(self) -> list[tuple[records.VaultKey, records.Lineage]]:
        """Return every key with its lineage, oldest first."""
        return [rows.key_with_lineage(row) for row in await self._ask("every_key")]

    async def approvals(self) -> list[records.Approval]:
        """Return every approval, newest first."""
        return await self._records(records.Approval, "every_approval")

    async def approvals_of(self, ids: Sequence[records.OperationId]) -> list[records.Approval]:
        """Return the approvals that were asked for by these operations."""
        return await self._records(records.Approval, "approvals_of", ids=list(ids))

    async def grants(self) -> list[records.Grant]:
        """Return every grant, oldest first, those that were removed too."""
        return await self._records(records.Grant, "every_grant")

    def audit(
        self, *, limit: int | None = None, newest_first: bool = False, **filters: Any
    ) -> Iterator[Columns]:
        """Yield audit rows as dicts, in the order in which they were written, or newest first.

        The filter `after_row` goes on after the row that a row before it is called by (`row`); 0
        stands for the first.
        """
        fixed, bounds, database = list[str](), dict[str, Any](), self.database

        def bound(name: str, sign: str, columns: Sequence[str], place: Mapping[str, Any]) -> str:
            bounds.update({f"{name}_{column}": value for column, value in place.items()})
            of_place = ", ".join(f":{name}_{column.split()[0]}" for column in columns)
            return f"({', '.join(columns)}) {sign} ({of_place})"

        place = database.place
        if (after := filters.pop("after_row", None)) is not None:
            fixed.append(bound("after", ">", database.order, place(after)))
        if limit is None and not newest_first:
            # What is written meanwhile is the next reader's, or a busy store had no end.
            fixed.append(bound("end", "<=", database.order, place(self.newest_row())))
        # By time where the newest come first, so that the indexes of the filters serve the order.
        order, sign, way = database.order, ">", "ASC"
        if newest_first:
            order, sign, way = database.newest, "<", "DESC"
        sorting = ", ".join(f"{column} {way}" for column in order)

        def page(last: Columns | None, wanted: int) -> Sequence[rows.Row]:
            at = {} if last is None else {"time": last["time"], **place(last["row"])}
            clauses = [*fixed, *([bound("last", sign, order, at)] if at else [])]
            where, values = _where(_AUDIT_FILTERS, filters, clauses)
            statement = f"""SELECT {database.row} AS row, * FROM audit {where}
                ORDER BY {sorting} LIMIT :most"""  # noqa: S608 our own names
            given = bounds | values | {"most": wanted}
            return database.rows(rows.dialect(database.engine, statement), given)

        return _in_pages(page, limit)

    def chain(self, node: str) -> Iterator[Columns]:
        """Yield the audit rows of one node, in the order of its chain."""

        def page(last: Columns | None, wanted: int) -> Sequence[rows.Row]:
            after = 0 if last is None else last["seq"]
            return self.database.ask("audit_chain", node=node, after=after, most=wanted)

        return _in_pages(page)

    def nodes(self) -> list[Columns]:
        """Return the registry of nodes, in its own order."""
        return [dict(row) for row in self.database.ask("nodes")]

    def writers(self) -> list[str]:
        """Return every node that has audit rows."""
        return [row["node"] for row in self.database.ask("writers")]

    def audit_size(self) -> int:
        """Return how many rows the audit has."""
        return int(self.database.ask("audit_size")[0]["size"])

    def hash_at(self, node: str, seq: int) -> str | None:
        """Return the hash of row `seq` of `node`, if it is there."""
        found = self.database.ask("audit_hash", node=node, seq=seq)
        return found[0]["hash"] if found else None

    async def _select(self, statement: str, values: Mapping[str, Any]) -> Sequence[rows.Row]:
        return await self.database.read(rows.dialect(self.database.engine, statement), values)


def _where(
    columns: Mapping[str, str], filters: Mapping[str, Any], fixed: Sequence[str] = ()
) -> tuple[str, dict[str, Any]]:
    given = {name: value for name, value in filters.items() if value is not None}
    if any("\0" in value for value in given.values() if isinstance(value, str)):
        return "WHERE 1 = 0", {}  # PostgreSQL takes no NUL in a text, so that no row has one
    clauses = [*fixed, *(columns[name] for name in given)]
    return (f"WHERE {' AND '.join(clauses)}" if clauses else ""), given


def _state_clauses(state: str | None) -> list[str]:
    """Return the condition on operations in `state`, spelled so that planners see its index.

    A value that is bound later tells a planner nothing; a state that there is not matches nothing.
    """
    if state is None:
        return []
    if state not in set(records.State):
        return ["1 = 0"]
    finished = state == records.State.SUCCEEDED
    return [f"state = '{state}'", *(() if finished else ("state <> 'succeeded'",))]


def _in_pages(
    page: Callable[[Columns | None, int], Sequence[rows.Row]], limit: int | None = None
) -> Iterator[Columns]:
    """Yield rows of `page`, which takes the last row that was read and how many are wanted.

    Each page is one short transaction, and none is open between two of them: a reader that stalls
    (a full pipe, a stopped process) would else keep SQLite from emptying its write-ahead log, and
    PostgreSQL from clearing away dead rows. `limit` is the most rows in all.
    """
    last, left = None, limit
    while left is None or left > 0:
        wanted = PAGE_ROWS if left is None else min(left, PAGE_ROWS)
        read = [dict(row) for row in page(last, wanted)]
        yield from read
        if len(read) < wanted:
            return
        last = read[-1]
        left = None if left is None else left - wanted
