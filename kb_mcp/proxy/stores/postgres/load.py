"""Locking, loading and saving for PostgreSQL: what a whole batch depends on, and what it changed.

Floor: inside the PostgreSQL store. Guard rows are locked first, in one global order, that of
`Guard`; a lineage's guard stands for its keys, windows, counts and approvals. The statements of a
batch are sent together. Each sees what was committed when it began (READ COMMITTED), so those after
the locks see what the locks protect. What a statement takes travels as one array a column or as
JSON, so that it is prepared once and serves any number of rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import IntEnum
from functools import partial
from typing import Any

import msgspec
from msgspec.structs import astuple

from kb_mcp.proxy.ledger.records import LineageId, Operation, OperationId, Refs, WindowKey
from kb_mcp.proxy.ledger.snapshot import Snapshot
from kb_mcp.proxy.ledger.windows import REFUNDS
from kb_mcp.proxy.stores import rows
from kb_mcp.proxy.stores.postgres.connection import Connection

Lock = tuple[int, str]
# What never changes about an operation: its name and its lineage at the last look.
Known = Callable[[OperationId], tuple[str, LineageId] | None]
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
Rows = Mapping[str, list[dict[str, Any]]]  # of each query, by its name
_ENCODER = msgspec.json.Encoder()
_QUERIES = dict(rows.load_queries("postgres"))
# Both follow what says which operations are wanted.
_QUERIES |= {name: _QUERIES["wanted"] + _QUERIES[name] for name in ("operations", "attempts")}


class Guard(IntEnum):
    """Kinds of guard rows, in the order in which they are locked."""

    ACCOUNT_DAY = 0
    LINEAGE = 1
    CUSTOMER_DAY = 2
    REFERENCE = 3
    PERIOD = 4
    BILL = 5
    OPERATION = 6
    NODES = 7
    BINDING = 8
    ISSUER = 9


def lock(kind: Guard, *parts: object) -> Lock:
    """Return the guard row of `kind` that stands for `parts`."""
    text = "\x00".join(map(str, parts)).encode("utf-8", "surrogatepass")
    return int(kind), hashlib.blake2b(text, digest_size=16).hexdigest()


def locks_named(refs: Iterable[Refs], known: Known) -> set[Lock]:
    """Return the locks that steps with `refs` are known to need before they run."""
    wanted: set[Lock] = set()
    for each in refs:
        wanted.update(guard(what) for kind, guard in _GUARDS for what in getattr(each, kind))
        for name, lineage in filter(None, map(known, each.operations)):
            wanted |= {lock(Guard.OPERATION, name), lock(Guard.LINEAGE, lineage)}
    return wanted


def locks_changed(snapshot: Snapshot, before: Mapping[OperationId, Operation]) -> set[Lock]:
    """Return the locks that must have been held to change what the steps changed.

    `before` holds the operations as they were loaded. Whoever lacks one of these begins anew.
    """
    dirty = snapshot.dirty
    wanted = {guard(row) for kind, guard in _GUARDS for row in getattr(dirty, kind, ())}
    keys = dirty.keys | {snapshot.grants[grant].key_id for grant in dirty.grants}
    lineages = {snapshot.keys[key_id].lineage_id for key_id in keys}
    lineages |= {snapshot.approvals[approval].lineage_id for approval in dirty.approvals}
    touched = dirty.operations.keys() | {operation_id for operation_id, _ in dirty.attempts}
    for operation_id in touched:
        operation = snapshot.operations[operation_id]
        lineages.add(operation.lineage_id)
        wanted.add(lock(Guard.OPERATION, operation.name))
        earlier = before.get(operation_id)
        if operation.live and (earlier is None or not earlier.live):
            wanted |= _occupied(operation)
    return wanted | {lock(Guard.LINEAGE, lineage) for lineage in lineages}


def _occupied(operation: Operation) -> set[Lock]:
    """Return the guards that a live operation occupies."""
    customer, period, reference = operation.customer, operation.period, operation.reference or ""
    if operation.gives_back is not None:
        return {_charge(operation.gives_back)}
    if customer is None:
        return set()
    bill = {lock(Guard.BILL, customer, operation.amount, operation.currency)}
    if period is None:
        return bill
    row = f"{customer}|{period}|{reference}"
    return bill | {lock(Guard.REFERENCE, customer, reference), lock(Guard.PERIOD, row)}


def _charge(charge: str) -> Lock:
    # All refunds of one charge, which no other bill's guard can be.
    return lock(Guard.BILL, "refunds", charge)


def _window(key: WindowKey) -> Lock:
    # A window of refunds is a row beside the one of charges.
    of = (REFUNDS,) if key.scope.endswith(REFUNDS) else ()
    match key.scope.removesuffix(REFUNDS):
        case "account":
            return lock(Guard.ACCOUNT_DAY, key.start, key.currency, *of)
        case "customer":
            return lock(Guard.CUSTOMER_DAY, key.scope_id, key.start, key.currency, *of)
        case _:
            return lock(Guard.LINEAGE, key.scope_id)


def _tally(key: str) -> Lock:
    # A tally counts for a period, or else for one name (operation_names.tally_of).
    name = key.removeprefix("name|")
    return lock(Guard.PERIOD, key) if name == key else lock(Guard.OPERATION, name)


# What refs name, some of which steps write -> the guard that stands for it.
_GUARDS: Sequence[tuple[str, Callable[[Any], Lock]]] = (
    ("windows", _window),
    ("lineages", partial(lock, Guard.LINEAGE)),
    # Two periods that share days have rows of their own: their one row comes before both.
    ("periods", lambda period: lock(Guard.REFERENCE, period.customer, period.reference)),
    ("periods", lambda period: lock(Guard.PERIOD, period.row)),
    ("bills", lambda bill: lock(Guard.BILL, bill.customer, bill.amount, bill.currency)),
    ("charges", _charge),
    ("tallies", _tally),
    ("deliveries", partial(lock, Guard.PERIOD, "alert")),
    ("names", partial(lock, Guard.OPERATION)),
    ("caller_keys", partial(lock, Guard.OPERATION, "caller_key")),  # each names an operation, too
    ("issuers", partial(lock, Guard.ISSUER)),
)


def lock_and_load(
    connection: Connection, node: str, locks: Sequence[Lock], batch: Sequence[Refs], now: int
) -> tuple[dict[str, Any], Rows]:
    """Begin a transaction of `node`, take `locks` (sorted), and load what a `batch` names.

    `now` (ms) is about when. Returns the facts that every decision depends on, None where the
    store has none, the store's own time among them (`now_ms`), and rows. Raises: psycopg.Error.
    """
    guards = {"kinds": [each[0] for each in locks], "values": [each[1] for each in locks]}
    with connection.pipeline():
        connection.execute("BEGIN ISOLATION LEVEL READ COMMITTED")
        connection.execute(_QUERIES["fence"], {"node": node})
        if locks:
            connection.execute(_QUERIES["make_guards"], guards)
            connection.execute(_QUERIES["lock_guards"], guards)
        clock = connection.execute(_QUERIES["clock"])
        wanted = _wanted(rows.together(batch), now).items()
        cursors = {name: connection.execute(_QUERIES[name], values) for name, values in wanted}
    return clock.fetchone() or {}, {name: each.fetchall() for name, each in cursors.items()}


def load_shown(connection: Connection, snapshot: Snapshot, batch: Sequence[Refs]) -> Rows:
    """Return what only shows now that the rows a `batch` names are in `snapshot`."""
    missing = rows.shown_by(snapshot, rows.together(batch))
    if not missing:
        return {}
    with connection.pipeline():
        cursors = {
            name: connection.execute(_QUERIES[name], _arguments(name, ids, snapshot.now))
            for name, ids in missing.items()
        }
    return {name: cursor.fetchall() for name, cursor in cursors.items()}


def _wanted(refs: Refs, now: int) -> dict[str, dict[str, Any]]:
    """Return the queries to run, each with its arguments."""
    wanted: dict[str, dict[str, Any]] = {}
    chosen = rows.operations_wanted(refs, SINCE_MARGIN_MS)
    if any(chosen.values()):
        for name in ("bills", "periods"):
            chosen |= _columns(name, chosen.pop(name))
        wanted |= {"operations": chosen, "attempts": chosen}
    # What refs name is asked for at once: one round trip less, most of the time.
    lists = rows.lists_wanted(refs)
    lists["windows"] = sorted(map(astuple, refs.windows))
    lists["lineages"] = sorted(refs.lineages)
    return wanted | {name: _arguments(name, ids, now) for name, ids in lists.items() if ids}


def _arguments(name: str, ids: list[Any], now: int) -> dict[str, Any]:
    return _columns(name, ids) if name in _ARRAYS else {"ids": ids, "now": now}


def insert(table: str) -> str:
    """Return the statement that inserts any number of rows, which travel as `rows_of`."""
    columns = rows.names(rows.TABLES[table])
    given = f"SELECT {columns} FROM json_populate_recordset(NULL::{table}, %s)"  # noqa: S608 see below
    # Table and column names are ours, never a caller's: there is nothing to inject.
    return f"INSERT INTO {table} ({columns}) {given}"


def rows_of(table: str, given: Iterable[Sequence[Any]]) -> tuple[str]:
    """Return the one argument of `insert`: rows as JSON, which the server types by its table.

    For the wide rows that a charge writes that takes half as long as an array a column.
    """
    columns = rows.TABLES[table]
    records = [dict(zip(columns, map(_as_text, row), strict=True)) for row in given]
    return (_ENCODER.encode(records).decode(),)


def _as_text(value: object) -> object:
    return f"\\x{value.hex()}" if isinstance(value, bytes) else value


def _columns(name: str, given: Sequence[Sequence[Any]]) -> dict[str, Any]:
    """Return the rows `given` as one array a column."""
    columns = [list(column) for column in zip(*given, strict=True)] or [[] for _ in _ARRAYS[name]]
    return dict(zip(_ARRAYS[name], columns, strict=True))


def save(
    connection: Connection, snapshot: Snapshot, seal: rows.Seal, audit: Sequence[tuple[Any, ...]]
) -> None:
    """Send every changed row and the chained rows of `audit`, inside a pipeline."""
    for table, images in rows.changed(snapshot):
        written = (rows.values_of(table, now, seal) for _, now in images)
        connection.execute(_UPSERT[table], rows_of(table, written))
    if audit:
        connection.execute(_AUDIT, rows_of("audit", audit))
    if snapshot.dirty.stopped:
        counts = rows.stopped_values(snapshot.dirty.stopped, snapshot.now)
        connection.execute(_STOPPED, rows_of("stopped", counts))


_UPSERT = {table: f"{insert(table)} {rows.on_conflict(table)}" for table in rows.COLUMNS}
_AUDIT = insert("audit")
_STOPPED = f"{insert('stopped')} {rows.COUNT_UP}"
