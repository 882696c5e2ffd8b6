"""Loading a batch: what its refs ask of the named queries, and the rows put into a snapshot.

Floor: inside the stores. Lists are sorted: sets have no order of their own, and what is
loaded first is looked at first.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from msgspec.structs import astuple

from kb_mcp.proxy.ledger.lease_owners import gone_owners
from kb_mcp.proxy.ledger.records import Lineage, LineageId, Refs, WindowKey
from kb_mcp.proxy.ledger.snapshot import Snapshot
from kb_mcp.proxy.ledger.windows import windows_of
from kb_mcp.proxy.stores.rows import KEYED, Row, Seal, attempt_of, operation_of, window_of

# Queries that take the ids of their rows alone, called as the part of `Refs` that names them.
LISTS = ("tallies", "caller_keys", "keys", "objects", "approvals", "grants", "issuers")


def operations_wanted(batch: Sequence[Refs], margin_ms: int = 0) -> dict[str, list[Any]]:
    """Return what the query `operations` takes; bills also match what came `margin_ms` earlier."""
    parts = ("names", "caller_keys", "tallies", "charges")
    wanted = {name: sorted(_union(batch, name)) for name in parts}
    periods = {
        (each.customer, each.reference, *each.labels, each.start, each.end)
        for refs in batch
        for each in refs.periods
    }
    bills = {
        (each.customer, each.amount, each.currency, each.since - margin_ms)
        for refs in batch
        for each in refs.bills
    }
    return wanted | {
        "ids": sorted(_union(batch, "operations")),
        "periods": sorted(periods),
        "bills": sorted(bills),
    }


def lists_wanted(batch: Sequence[Refs], *more: str) -> dict[str, list[Any]]:
    """Return the ids that each query of LISTS takes, and `more`, where there are any."""
    wanted = {name: _sorted(_union(batch, name)) for name in (*more, *LISTS)}
    return {name: ids for name, ids in wanted.items() if ids}


def shown_by(snapshot: Snapshot, batch: Sequence[Refs]) -> dict[str, list[Any]]:
    """Return what else `batch` needs, now that its operations and keys are in `snapshot`.

    A step may change any operation it sees, so the lineage of each is loaded too. Windows are
    those that are named and those of operations that are named.
    """
    operations = snapshot.operations.values()
    windows = _union(batch, "windows")
    for each in _union(batch, "operations") & snapshot.operations.keys():
        windows.update(windows_of(snapshot.operations[each]).all())
    lineages = _union(batch, "lineages")
    lineages |= {each.lineage_id for each in operations}
    lineages |= {each.lineage_id for each in snapshot.keys.values()}
    wanted = {
        "windows": _sorted(windows - snapshot.windows.keys()),
        "lineages": _sorted(lineages - snapshot.unresolved.keys()),
        "approvals_of": _sorted({each.id for each in operations if each.approval_id is not None}),
    }
    return {name: ids for name, ids in wanted.items() if ids}


def add_rows(snapshot: Snapshot, name: str, rows: Iterable[Row], unseal: Seal, owner: str) -> None:
    """Put the rows of the query called `name` into `snapshot`; `owner` leases for this process.

    Raises: SealBrokenError.
    """
    for row in rows:
        match name:
            case "operations":
                operation = operation_of(row, unseal)
                snapshot.operations[operation.id] = operation
                if operation.lease_owner is not None:
                    snapshot.gone_owners |= gone_owners((operation.lease_owner,), owner)
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
    lineage_id = LineageId(row["id"])
    if row["known"]:
        lineage = Lineage(lineage_id, row["frozen_at"], row["frozen_reason"])
        snapshot.lineages[lineage_id] = lineage
    snapshot.unresolved[lineage_id] = int(row["unresolved"])
    snapshot.outstanding_approvals[lineage_id] = int(row["outstanding"])


def _union(batch: Sequence[Refs], part: str) -> set[Any]:
    return set().union(*(getattr(refs, part) for refs in batch))


def _sorted(named: Iterable[Any]) -> list[Any]:
    """Return ids in order; the keys of windows as tuples."""
    return sorted(astuple(each) if isinstance(each, WindowKey) else each for each in named)
