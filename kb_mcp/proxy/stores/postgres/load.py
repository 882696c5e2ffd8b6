"""Locking and loading for PostgreSQL: the rows that a whole batch depends on, in one round trip.

Floor: inside the PostgreSQL store. The statements of a batch are sent together. Each sees what was
committed when it began (READ COMMITTED), so those after the locks see what the locks protect.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kb_mcp.proxy.ledger.clock import TIME_FACTS
from kb_mcp.proxy.ledger.lease_owners import gone_owners
from kb_mcp.proxy.ledger.records import (
    HALTS,
    Approval,
    CallerKey,
    Grant,
    Lineage,
    LineageId,
    OperationId,
    Refs,
    Tally,
    VaultKey,
    Window,
    WindowKey,
)
from kb_mcp.proxy.ledger.snapshot import Snapshot
from kb_mcp.proxy.ledger.windows import windows_of
from kb_mcp.proxy.stores.postgres.connection import Connection
from kb_mcp.proxy.stores.postgres.locks import Lock
from kb_mcp.proxy.stores.rows import Seal, attempt_of, operation_of

# Locks are taken by a time that we estimate: arrivals that matter are loaded from a little before.
SINCE_MARGIN_MS = 60_000
_WINDOW = ("scope", "scope_id", "window", "start", "currency")
_FIGURES = ("reserved", "settled", "sends", "declines")
_BILL = ("customers", "amounts", "currencies", "sinces")
_PERIOD = (
    *("period_customers", "references", "first_labels", "after_labels"),
    *("starts", "ends"),
)
Row = dict[str, Any]


@dataclass(slots=True)
class Loaded:
    """What one round trip brought: the server's time (ms) and rows.

    `facts` are those that every decision depends on, None where the store has none.
    """

    now_ms: int = 0
    facts: Mapping[str, str | None] = field(default_factory=dict)
    token: int | None = None
    rows: dict[str, list[Row]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PostgresLoader:
    """Locks and loads with named queries; `owner` is the lease name of this process."""

    queries: Mapping[str, str]
    unseal: Seal
    owner: str
    node: str

    def lock_and_load(
        self, connection: Connection, locks: Sequence[Lock], refs: Sequence[Refs], now: int
    ) -> Loaded:
        """Begin a transaction, take `locks` (sorted), and load what `refs` name.

        `now` (ms) is about when: the store's own time is in the answer. Raises: psycopg.Error.
        """
        kinds, values = [lock[0] for lock in locks], [lock[1] for lock in locks]
        wanted = _Wanted(refs, now)
        with connection.pipeline():
            connection.execute("BEGIN ISOLATION LEVEL READ COMMITTED")
            fence = connection.execute(self.queries["fence"], (self.node,))
            if locks:
                connection.execute(self.queries["make_guards"], (kinds, values))
                connection.execute(self.queries["lock_guards"], (kinds, values))
            clock = connection.execute(self.queries["clock"])
            cursors = {name: self._ask(connection, name, values) for name, values in wanted.asked()}
        told = clock.fetchone() or {}
        token = fence.fetchone()
        return Loaded(
            now_ms=int(told["now_ms"]),
            facts={
                name: told[name]
                for name in (
                    *("ceilings", "refund_ceilings", "recovery_grace_ms"),
                    *HALTS,
                    *TIME_FACTS,
                )
            },
            token=None if token is None else int(token["token"]),
            rows={name: cursor.fetchall() for name, cursor in cursors.items()},
        )

    def fill(self, connection: Connection, snapshot: Snapshot, loaded: Loaded, refs: Refs) -> None:
        """Put what was loaded into `snapshot`, and fetch what only shows now that it is there.

        Raises: psycopg.Error, SealBrokenError.
        """
        self._add(snapshot, loaded.rows)
        missing = self._missing(snapshot, refs)
        if missing:
            with connection.pipeline():
                cursors = {n: self._ask(connection, n, values) for n, values in missing}
            self._add(snapshot, {name: cursor.fetchall() for name, cursor in cursors.items()})

    def _ask(self, connection: Connection, name: str, values: Any) -> Any:
        text = self.queries[name]
        if name in {"operations", "attempts"}:
            text = f"{self.queries['wanted']}{text}"
        return connection.execute(text, values)

    def _missing(self, snapshot: Snapshot, refs: Refs) -> list[tuple[str, Any]]:
        windows: set[WindowKey] = set()
        for operation_id in refs.operations & snapshot.operations.keys():
            windows.update(windows_of(snapshot.operations[operation_id]).all())
        lineages = {operation.lineage_id for operation in snapshot.operations.values()}
        lineages |= {key.lineage_id for key in snapshot.keys.values()}
        operations = snapshot.operations.values()
        return list(
            _asked(
                snapshot.now,
                windows=windows - snapshot.windows.keys(),
                lineages=lineages - snapshot.unresolved.keys(),
                approvals_of={each.id for each in operations if each.approval_id is not None},
            )
        )

    def _add(self, snapshot: Snapshot, rows: Mapping[str, list[Row]]) -> None:
        for row in rows.get("operations", ()):
            operation = operation_of(row, self.unseal)
            snapshot.operations[operation.id] = operation
            if operation.lease_owner is not None:
                snapshot.gone_owners |= gone_owners((operation.lease_owner,), self.owner)
        for row in rows.get("attempts", ()):
            attempt = attempt_of(row, self.unseal)
            snapshot.attempts[attempt.operation_id, attempt.number] = attempt
        for row in rows.get("windows", ()):
            key = WindowKey(*(row[name] for name in _WINDOW))
            snapshot.windows[key] = Window(key, *(row[name] for name in _FIGURES))
        _add_plain(snapshot, rows)
        for row in rows.get("objects", ()):
            snapshot.object_owners[row["object_id"]] = row["operation_id"]
        for row in (*rows.get("approvals", ()), *rows.get("approvals_of", ())):
            snapshot.approvals[row["id"]] = Approval(**row)
        for row in rows.get("lineages", ()):
            _add_lineage(snapshot, row)


class _Wanted:
    """What all the refs of a batch ask for, as the arguments of the named queries."""

    def __init__(self, refs: Sequence[Refs], now: int) -> None:
        self._refs = refs
        self._now = now

    def asked(self) -> Iterable[tuple[str, Any]]:
        """Yield the queries to run, each with its arguments."""
        chosen = self._operations()
        if any(chosen.values()):
            yield "operations", chosen
            yield "attempts", chosen
        yield from _asked(
            self._now,
            windows=self._all(lambda each: each.windows),
            lineages=self._all(lambda each: each.lineages),
            approvals=self._all(lambda each: each.approvals),
            tallies=self._all(lambda each: each.tallies),
            caller_keys=self._all(lambda each: each.caller_keys),
            keys=self._all(lambda each: each.keys),
            objects=self._all(lambda each: each.objects),
            grants=self._all(lambda each: each.grants),
            issuers=self._all(lambda each: each.issuers),
        )

    def _all(self, part: Callable[[Refs], frozenset[Any]]) -> set[Any]:
        return {item for each in self._refs for item in part(each)}

    def _operations(self) -> dict[str, list[Any]]:
        periods = [
            (each.customer, each.reference, *each.labels, each.start, each.end)
            for each in self._all(lambda each: each.periods)
        ]
        bills = [
            (each.customer, each.amount, each.currency, each.since - SINCE_MARGIN_MS)
            for each in self._all(lambda each: each.bills)
        ]
        return {
            "names": sorted(self._all(lambda each: each.names)),
            "ids": sorted(self._all(lambda each: each.operations)),
            "caller_keys": sorted(self._all(lambda each: each.caller_keys)),
            "tallies": sorted(self._all(lambda each: each.tallies)),
            "charges": sorted(self._all(lambda each: each.charges)),
            **_columns(_PERIOD, periods),
            **_columns(_BILL, bills),
        }


def merged(refs: Sequence[Refs]) -> Refs:
    """Return the ids of operations that any of `refs` names; their windows are loaded with them."""
    return Refs(operations=frozenset[OperationId]().union(*(each.operations for each in refs)))


def _columns(names: Sequence[str], rows: Iterable[tuple[Any, ...]]) -> dict[str, list[Any]]:
    """Return `rows` as one array a column, in one order for every process."""
    columns = list(zip(*sorted(rows), strict=True)) or [()] * len(names)
    return {name: list(column) for name, column in zip(names, columns, strict=True)}


def _asked(
    now: int, *, windows: set[WindowKey], lineages: set[Any], **ids: set[Any]
) -> Iterable[tuple[str, Any]]:
    if windows:
        ordered = [tuple(getattr(key, name) for name in _WINDOW) for key in windows]
        yield "windows", tuple(list(column) for column in zip(*ordered, strict=True))
    if lineages:
        yield "lineages", {"wanted": sorted(lineages), "now": now}
    for name, wanted in ids.items():
        if wanted:
            yield name, (sorted(wanted),)


def _add_plain(snapshot: Snapshot, rows: Mapping[str, list[Row]]) -> None:
    """Add the rows that are records as they come."""
    for row in rows.get("tallies", ()):
        snapshot.tallies[row["key"]] = Tally(**row)
    for row in rows.get("caller_keys", ()):
        snapshot.caller_keys[row["key"]] = CallerKey(**row)
    for row in rows.get("keys", ()):
        snapshot.keys[row["id"]] = VaultKey(**row)
    for row in (*rows.get("grants", ()), *rows.get("issuers", ())):
        snapshot.grants[row["id"]] = Grant(**row)


def _add_lineage(snapshot: Snapshot, row: Row) -> None:
    lineage_id = LineageId(row["id"])
    if row["known"]:
        lineage = Lineage(lineage_id, row["frozen_at"], row["frozen_reason"])
        snapshot.lineages.setdefault(lineage_id, lineage)
    snapshot.unresolved.setdefault(lineage_id, int(row["unresolved"]))
    snapshot.outstanding_approvals.setdefault(lineage_id, int(row["outstanding"]))
