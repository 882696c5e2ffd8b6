"""Named queries and migrations, records to rows and back: the same for every store.

Floor: above the records, below the stores. SQL comes from the .sql files, in the dialect of each
store; a query begins at "-- name: x", and comment lines under it explain it. Sealing is handed in.
Lists are sorted: sets have no order of their own, and what is loaded first is looked at first.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from importlib.resources import files
from typing import Any

from msgspec import Struct
from msgspec.structs import astuple

from kb_mcp.instants import day_of
from kb_mcp.proxy.audit.chain import AUDIT_COLUMNS
from kb_mcp.proxy.ledger import records
from kb_mcp.proxy.ledger.counts import Delivery, Stopped
from kb_mcp.proxy.ledger.snapshot import Snapshot
from kb_mcp.proxy.ledger.windows import windows_of

_NAME = re.compile(r"^-- name: (\w+)$", re.MULTILINE)
_MIGRATION = re.compile(r"^(\d{4})_\w+\.(\w+)\.sql$")
_PARAMETER = re.compile(r"(?<!:):([a-z_]+)")
# Shared SQL is PostgreSQL's. SQLite takes a list as a JSON array, needs no types named, and
# compares text byte by byte as it is.
_SQLITE = (
    (re.compile(r"= ANY\((:\w+)::text\[\]\)"), r"IN (SELECT value FROM json_each(\1))"),
    (
        re.compile(r"unnest\((:\w+)::text\[\]\) AS (\w+) \((\w+)\)"),
        r"(SELECT value AS \3 FROM json_each(\1)) AS \2",
    ),
    (re.compile(r'::\w+| COLLATE "C"'), ""),
    (re.compile(r"\bstrpos\("), "instr("),
)


@lru_cache
def load_queries(engine: str) -> Mapping[str, str]:
    """Return the named queries of `engine` ("sqlite" or "postgres"), shared ones included."""
    folder = files(__package__)
    found: dict[str, str] = {}
    for file in (folder / "queries.sql", folder / engine / "queries.sql"):
        parts = _NAME.split(file.read_text())[1:]
        for name, body in zip(parts[::2], parts[1::2], strict=True):
            lines = (line for line in body.splitlines() if not line.startswith("--"))
            found[name] = dialect(engine, "\n".join(lines).strip())
    return found


@lru_cache(maxsize=256)
def dialect(engine: str, text: str) -> str:
    """Return shared SQL as the driver of `engine` takes it; parameters are named, like `:id`."""
    if engine == "postgres":
        return _PARAMETER.sub(r"%(\1)s", text)
    for pattern, replacement in _SQLITE:
        text = pattern.sub(replacement, text)
    return text


def load_migrations(engine: str) -> list[tuple[int, str]]:
    """Return (number, script) of every migration of `engine`, in order."""
    found = []
    for file in (files(__package__) / "sql").iterdir():
        match = _MIGRATION.match(file.name)
        if match and match[2] == engine:
            found.append((int(match[1]), file.read_text()))
    return sorted(found)


def load_grants() -> str:
    """Return the statements that give a serving process's role its rights in PostgreSQL."""
    return (files(__package__) / "postgres" / "grants.sql").read_text()


Row = Any  # a driver's own row: maps column names to values
Seal = Callable[[bytes, str], bytes]
GoneOwners = Callable[[Iterable[str]], frozenset[str]]
"""Says which owners of leases are known to be gone."""

# table -> (record, primary key), in the order in which rows refer to each other
KEYED: Mapping[str, tuple[type[Struct], tuple[str, ...]]] = {
    "lineages": (records.Lineage, ("id",)),
    "keys": (records.VaultKey, ("id",)),
    "operations": (records.Operation, ("id",)),
    "attempts": (records.Attempt, ("operation_id", "number")),
    "windows": (records.Window, records.WindowKey.__struct_fields__),
    "tallies": (records.Tally, ("key",)),
    "caller_keys": (records.CallerKey, ("key",)),
    "approvals": (records.Approval, ("id",)),
    "grants": (records.Grant, ("id",)),
    "deliveries": (Delivery, ("key",)),
}
COLUMNS: dict[str, tuple[str, ...]] = {
    table: record.__struct_fields__ for table, (record, _) in KEYED.items()
} | {
    "windows": (*records.WindowKey.__struct_fields__, *records.Window.__struct_fields__[1:])
}  # key is flattened
STOPPED = ("start", "window", "key_id", "agent_id", "why", "kind", "currency", "calls", "amount")
TABLES: dict[str, tuple[str, ...]] = COLUMNS | {
    "stopped": STOPPED,
    "audit": AUDIT_COLUMNS,
    "nodes": ("position", "node", "started_at", "hash"),
    "operators": ("name", "token_hash", "created_at"),
    "facts": ("name", "value"),
}
# Queries that take the ids of their rows alone, called as the part of `Refs` that names them.
LISTS = ("tallies", "caller_keys", "keys", "objects", "approvals", "grants", "issuers",
         "deliveries")  # fmt: skip
_SEALED = {"operations": ("answer", "id"), "attempts": ("body", "upstream_key")}


def names(columns: Iterable[str]) -> str:
    """Return columns as a list in SQL; `window` is a word of PostgreSQL's own."""
    return ", ".join(f'"{name}"' for name in columns)


def on_conflict(table: str) -> str:
    """Return the clause by which an insert into `table` writes a row that is there."""
    key = KEYED[table][1]
    sets = ", ".join(f'"{name}" = excluded."{name}"' for name in COLUMNS[table] if name not in key)
    return f"ON CONFLICT ({names(key)}) DO UPDATE SET {sets}"


def upsert(table: str) -> str:
    """Return SQLite's statement that writes one row of `table`, whether or not it is there."""
    return f"{insert(table)} {on_conflict(table)}"


def insert(table: str) -> str:
    """Return SQLite's statement that inserts one row of `table`."""
    columns = TABLES[table]
    values = ", ".join("?" for _ in columns)
    # Table and column names are ours, never a caller's: there is nothing to inject.
    return f"INSERT INTO {table} ({names(columns)}) VALUES ({values})"  # noqa: S608 see above


# Appended to an insert of STOPPED: what is there already grows by it.
COUNT_UP = (
    f"ON CONFLICT ({names(STOPPED[:-2])}) DO UPDATE SET "
    "calls = stopped.calls + excluded.calls, amount = stopped.amount + excluded.amount"
)


@lru_cache(maxsize=256)
def update(table: str, columns: tuple[str, ...]) -> str:
    """Return the statement that writes `columns` of one row of `table` that is there."""
    sets = ", ".join(f"{name} = ?" for name in columns)
    key = " AND ".join(f"{name} = ?" for name in KEYED[table][1])
    return f"UPDATE {table} SET {sets} WHERE {key}"  # noqa: S608 the names are ours, as above


def differing(before: Struct, after: Struct) -> tuple[str, ...]:
    """Return the names of the columns in which two images of a row differ."""
    pairs = zip(after.__struct_fields__, astuple(before), astuple(after), strict=True)
    return tuple(name for name, old, new in pairs if old != new)


def changed(snapshot: Snapshot) -> Iterator[tuple[str, list[tuple[Struct | None, Struct]]]]:
    """Yield each table that a batch changed, with its rows: as loaded, if known, and now."""
    for table in KEYED:
        dirty, rows = getattr(snapshot.dirty, table), getattr(snapshot, table)
        if dirty:
            loaded = dirty if isinstance(dirty, dict) else {}
            yield table, [(loaded.get(each), rows[each]) for each in dirty]


def stopped_values(stopped: Iterable[Stopped], now: int) -> list[tuple[Any, ...]]:
    """Return what to add to the counts of stopped calls at `now` (ms), in the order of their key.

    Each call counts for its day, and for the day and the month of its vault key and agent.
    """
    day = day_of(now)
    today, month = day.isoformat(), day.replace(day=1).isoformat()
    calls, amounts = Counter[tuple[str, ...]](), Counter[tuple[str, ...]]()
    for each in stopped:
        what = (each.why, each.kind, each.currency)
        for place in (
            (today, "day", "", ""),
            (today, "day", each.key_id, each.agent_id),
            (month, "month", each.key_id, each.agent_id),
        ):
            calls[*place, *what] += 1
            amounts[*place, *what] += each.amount
    return [(*key, calls[key], amounts[key]) for key in sorted(calls)]


def values_of(
    table: str, record: Any, seal: Seal, columns: Sequence[str] | None = None
) -> tuple[Any, ...]:
    """Return the values of `columns` (all of them unless given) of `table` for `record`."""
    if table == "windows":
        return (*astuple(record.key), *astuple(record)[1:])
    values = {name: getattr(record, name) for name in columns or COLUMNS[table]}
    hidden, label = _SEALED.get(table, ("", ""))
    if values.get(hidden) is not None:
        values[hidden] = seal(values[hidden], getattr(record, label))
    return tuple(values.values())


def plain(row: Row) -> tuple[Any, ...]:
    """Return the columns of `row` without their names, which cost, in ten thousand rows."""
    return tuple(row.values()) if isinstance(row, dict) else tuple(row)


def operation_of(row: Row, unseal: Seal) -> records.Operation:
    """Return the operation in `row`."""
    columns = dict(row)
    if columns["answer"] is not None:
        columns["answer"] = unseal(bytes(columns["answer"]), columns["id"])
    columns["state"] = records.State(columns["state"])
    columns["named_by"] = records.NamedBy(columns["named_by"])
    for name in ("final", "reopened", "waived", "released", "overshoot"):
        columns[name] = bool(columns[name])
    return records.Operation(**columns)


def attempt_of(row: Row, unseal: Seal) -> records.Attempt:
    """Return the attempt in `row`."""
    columns = dict(row)
    columns["body"] = unseal(bytes(columns["body"]), columns["upstream_key"])
    columns["outcome"] = records.AttemptOutcome(columns["outcome"])
    return records.Attempt(**columns)


def key_with_lineage(row: Row) -> tuple[records.VaultKey, records.Lineage]:
    """Return the vault key and its lineage in a row that joins the two."""
    columns = dict(row)
    frozen_at, reason = columns.pop("lineage_frozen_at"), columns.pop("lineage_frozen_reason")
    key = records.VaultKey(**columns)
    return key, records.Lineage(key.lineage_id, frozen_at, reason)


def window_of(row: Row) -> records.Window:
    """Return the window in `row`."""
    columns, width = plain(row), len(records.WindowKey.__struct_fields__)
    return records.Window(records.WindowKey(*columns[:width]), *columns[width:])


def together(batch: Sequence[records.Refs]) -> records.Refs:
    """Return what all of `batch` depend on."""
    if len(batch) == 1:
        return batch[0]
    parts = {
        name: [getattr(refs, name) for refs in batch] for name in records.Refs.__struct_fields__
    }
    return records.Refs(**{name: frozenset().union(*each) for name, each in parts.items()})


def operations_wanted(refs: records.Refs, margin_ms: int = 0) -> dict[str, list[Any]]:
    """Return what the query `operations` takes; bills also match what came `margin_ms` earlier."""
    periods = [
        (each.customer, each.reference, *each.labels, each.start, each.end) for each in refs.periods
    ]
    bills = [
        (each.customer, each.amount, each.currency, each.since - margin_ms) for each in refs.bills
    ]
    wanted: dict[str, Iterable[Any]] = {
        **{name: getattr(refs, name) for name in ("names", "caller_keys", "tallies", "charges")},
        "ids": refs.operations,
        "periods": periods,
        "bills": bills,
    }
    return {name: sorted(each) for name, each in wanted.items()}


def lists_wanted(refs: records.Refs) -> dict[str, list[Any]]:
    """Return the ids that each query of LISTS takes, where there are any."""
    return {name: sorted(ids) for name in LISTS if (ids := getattr(refs, name))}


def shown_by(snapshot: Snapshot, refs: records.Refs) -> dict[str, list[Any]]:
    """Return what else a batch needs, now that its operations and keys are in `snapshot`.

    A step may change any operation it sees, so the lineage of each is loaded too. Windows are
    those that are named and those of operations that are named.
    """
    operations = snapshot.operations.values()
    windows = set(refs.windows)
    for each in refs.operations & snapshot.operations.keys():
        windows.update(windows_of(snapshot.operations[each]).all())
    lineages = set(refs.lineages)
    lineages |= {each.lineage_id for each in operations}
    lineages |= {each.lineage_id for each in snapshot.keys.values()}
    wanted: dict[str, list[Any]] = {
        "windows": sorted(map(astuple, windows - snapshot.windows.keys())),
        "lineages": sorted(lineages - snapshot.unresolved.keys()),
        "approvals_of": sorted({each.id for each in operations if each.approval_id is not None}),
    }
    return {name: ids for name, ids in wanted.items() if ids}


def add_rows(
    snapshot: Snapshot, name: str, rows: Iterable[Row], unseal: Seal, gone: GoneOwners
) -> None:
    """Put the rows of the query called `name` into `snapshot`; `gone` says who leases no more.

    Raises: SealBrokenError.
    """
    for row in rows:
        match name:
            case "operations":
                operation = operation_of(row, unseal)
                snapshot.operations[operation.id] = operation
                if operation.lease_owner is not None:
                    snapshot.gone_owners |= gone((operation.lease_owner,))
            case "attempts" | "attempts_of":
                attempt = attempt_of(row, unseal)
                snapshot.attempts[attempt.operation_id, attempt.number] = attempt
            case "windows":
                window = window_of(row)
                snapshot.windows[window.key] = window
            case "objects":
                snapshot.object_owners[row["object_id"]] = row["operation_id"]
            case "lineages":
                _add_lineage(snapshot, row)
            case _:
                table = {"approvals_of": "approvals", "issuers": "grants"}.get(name, name)
                record, (key,) = KEYED[table]
                getattr(snapshot, table)[row[key]] = record(**dict(row))


def _add_lineage(snapshot: Snapshot, row: Row) -> None:
    lineage_id = records.LineageId(row["id"])
    if row["known"]:
        lineage = records.Lineage(lineage_id, row["frozen_at"], row["frozen_reason"])
        snapshot.lineages[lineage_id] = lineage
    snapshot.unresolved[lineage_id] = int(row["unresolved"])
    snapshot.outstanding_approvals[lineage_id] = int(row["outstanding"])
