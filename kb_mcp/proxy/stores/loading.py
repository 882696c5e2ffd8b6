"""Loading a batch: what its refs ask of the named queries, and the rows put into a snapshot.

Floor: inside the stores. Lists are sorted: sets have no order of their own, and what is
loaded first is looked at first.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from msgspec.structs import astuple

from kb_mcp.proxy.ledger.lease_owners import gone_owners
from kb_mcp.proxy.ledger.records import Lineage, LineageId, Refs
from kb_mcp.proxy.ledger.snapshot import Snapshot
from kb_mcp.proxy.ledger.windows import windows_of
from kb_mcp.proxy.stores.rows import KEYED, Row, Seal, attempt_of, operation_of, window_of

# Queries that take the ids of their rows alone, called as the part of `Refs` that names them.
LISTS = ("tallies", "caller_keys", "keys", "objects", "approvals", "grants", "issuers",
         "deliveries")  # fmt: skip


def together(batch: Sequence[Refs]) -> Refs:
    """Return what all of `batch` depend on."""
    if len(batch) == 1:
        return batch[0]
    parts = {name: [getattr(refs, name) for refs in batch] for name in Refs.__struct_fields__}
    return Refs(**{name: frozenset().union(*each) for name, each in parts.items()})


def operations_wanted(refs: Refs, margin_ms: int = 0) -> dict[str, list[Any]]:
    """Return what the query `operations` takes; bills also match what came `margin_ms` earlier."""
    periods = [
        (each.customer, each.reference, *each.labels, each.start, each.end) for each in refs.periods
    ]
    bills = [
        (each.customer, each.amount, each.currency, each.since - margin_ms) for each in refs.bills
    ]
    return {
        "names": sorted(refs.names),
        "caller_keys": sorted(refs.caller_keys),
        "tallies": sorted(refs.tallies),
        "charges": sorted(refs.charges),
        "ids": sorted(refs.operations),
        "periods": sorted(periods),
        "bills": sorted(bills),
    }


def lists_wanted(refs: Refs) -> dict[str, list[Any]]:
    """Return the ids that each query of LISTS takes, where there are any."""
    return {name: sorted(ids) for name in LISTS if (ids := getattr(refs, name))}


def shown_by(snapshot: Snapshot, refs: Refs) -> dict[str, list[Any]]:
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
