"""Records to rows and back, the same for every store.

Floor: above the records, below the stores. Pure but for sealing, which a store hands in.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from msgspec import Struct
from msgspec.structs import astuple

from kb_mcp.instants import day_of
from kb_mcp.proxy.ledger.records import (
    Approval,
    Attempt,
    AttemptOutcome,
    CallerKey,
    Grant,
    Lineage,
    NamedBy,
    Operation,
    State,
    Tally,
    VaultKey,
    Window,
)
from kb_mcp.proxy.ledger.stopped import Stopped

Row = Any  # a driver's own row: maps column names to values
Seal = Callable[[bytes, str], bytes]

# table -> (record, primary key); WINDOW is flattened by hand below.
KEYED: Mapping[str, tuple[type[Struct], tuple[str, ...]]] = {
    "operations": (Operation, ("id",)),
    "attempts": (Attempt, ("operation_id", "number")),
    "tallies": (Tally, ("key",)),
    "caller_keys": (CallerKey, ("key",)),
    "keys": (VaultKey, ("id",)),
    "lineages": (Lineage, ("id",)),
    "approvals": (Approval, ("id",)),
    "grants": (Grant, ("id",)),
}
COLUMNS: Mapping[str, tuple[str, ...]] = {
    table: record.__struct_fields__ for table, (record, _) in KEYED.items()
} | {
    "windows": (
        *("scope", "scope_id", "window", "start", "currency"),
        *("reserved", "settled", "sends", "declines"),
    )
}
STOPPED = ("start", "window", "key_id", "agent_id", "why", "kind", "currency", "calls", "amount")
_WINDOW_KEY = ("scope", "scope_id", "window", "start", "currency")


def upsert(table: str, placeholder: str = "?") -> str:
    """Return the statement that writes one row of `table`, whether or not it is there."""
    columns = COLUMNS[table]
    key = _WINDOW_KEY if table == "windows" else KEYED[table][1]
    sets = ", ".join(f"{name} = excluded.{name}" for name in columns if name not in key)
    values = ", ".join(placeholder for _ in columns)
    # Table and column names are ours, never a caller's: there is nothing to inject.
    return (
        f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({values}) "  # noqa: S608 see above
        f"ON CONFLICT ({', '.join(key)}) DO UPDATE SET {sets}"
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


def window_values(window: Window) -> tuple[Any, ...]:
    """Return the column values of `window`."""
    key = window.key
    return (
        *(key.scope, key.scope_id, key.window, key.start, key.currency),
        *(window.reserved, window.settled, window.sends, window.declines),
    )


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


def operation_values(
    operation: Operation, seal: Seal, columns: Sequence[str] = COLUMNS["operations"]
) -> tuple[Any, ...]:
    """Return the values of `columns` (all of them unless given), the answer sealed."""
    return _sealed(operation, columns, "answer", operation.id, seal)


def attempt_values(
    attempt: Attempt, seal: Seal, columns: Sequence[str] = COLUMNS["attempts"]
) -> tuple[Any, ...]:
    """Return the values of `columns` (all of them unless given), the body sealed."""
    return _sealed(attempt, columns, "body", attempt.upstream_key, seal)


def operation_of(row: Row, unseal: Seal) -> Operation:
    """Return the operation in `row`."""
    plain = dict(row)
    if plain["answer"] is not None:
        plain["answer"] = unseal(bytes(plain["answer"]), plain["id"])
    plain["state"] = State(plain["state"])
    plain["named_by"] = NamedBy(plain["named_by"])
    for name in ("final", "reopened", "waived", "released", "overshoot"):
        plain[name] = bool(plain[name])
    return Operation(**plain)


def attempt_of(row: Row, unseal: Seal) -> Attempt:
    """Return the attempt in `row`."""
    plain = dict(row)
    plain["body"] = unseal(bytes(plain["body"]), plain["upstream_key"])
    plain["outcome"] = AttemptOutcome(plain["outcome"])
    return Attempt(**plain)


def key_with_lineage(row: Row) -> tuple[VaultKey, Lineage]:
    """Return the vault key and its lineage in a row that joins the two."""
    plain = dict(row)
    frozen_at, reason = plain.pop("lineage_frozen_at"), plain.pop("lineage_frozen_reason")
    key = VaultKey(**plain)
    return key, Lineage(key.lineage_id, frozen_at, reason)


def tally_of_row(row: Row) -> Tally:
    """Return the tally in `row`."""
    return Tally(**dict(row))


def _sealed(
    record: Struct, columns: Sequence[str], hidden: str, label: str, seal: Seal
) -> tuple[Any, ...]:
    plain = [getattr(record, name) for name in columns]
    if hidden in columns:
        at = columns.index(hidden)
        plain[at] = None if plain[at] is None else seal(plain[at], label)
    return tuple(plain)
