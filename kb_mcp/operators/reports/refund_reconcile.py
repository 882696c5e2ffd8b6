"""The ledger's refunds against Stripe's own list of them, both ways.

Floor: beside reconcile. Pure: refunds arrive as Stripe listed them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from kb_mcp.instants import rfc3339
from kb_mcp.operators.reports.reconcile import Reconciliation
from kb_mcp.proxy.edge.records import Record
from kb_mcp.proxy.ledger.records import Operation
from kb_mcp.proxy.ledger.records import State as S
from kb_mcp.proxy.rules.outcomes.matching import NO_MONEY, marks_of

Refund = Mapping[str, Any]


def reconcile_refunds(
    operations: Iterable[Operation], refunds: Iterable[Refund], since_ms: int
) -> Reconciliation:
    """Compare the refunds of the ledger with those that Stripe lists since then.

    A refund that failed gave nothing back and needs no operation.
    """
    ledger = [each for each in operations if each.kind == "refund"]
    by_object = {each.object_id: each for each in ledger if each.object_id is not None}
    by_id: dict[str, Operation] = {each.id: each for each in ledger}
    unknown: list[Refund] = []
    differing: list[Record] = []
    seen: set[str] = set()
    for refund in refunds:
        seen.add(str(refund["id"]))
        operation = by_object.get(str(refund["id"]))
        marked = by_id.get(str(marks_of(refund).get("keybrake_operation", "")))
        if operation is not None:
            differing += _differences(operation, refund)
        elif refund.get("status") in NO_MONEY:
            continue
        elif marked is not None:
            differing.append(_difference(marked, refund, "refund_id", marked.object_id))
        else:
            unknown.append(refund)
    unlisted = (
        each
        for each in ledger
        if each.state is S.SUCCEEDED and each.reserved_at >= since_ms and each.object_id not in seen
    )
    return Reconciliation(tuple(unknown), tuple(unlisted), tuple(differing))


def refund_record(refund: Refund) -> Record:
    """Return a refund that the ledger lacks, as `reconcile` and `adopt` show it."""
    return {
        "kind": "refund",
        "refund_id": refund["id"],
        "charge_id": refund.get("charge"),
        "status": refund.get("status"),
        "amount": refund.get("amount"),
        "currency": refund.get("currency"),
        "customer_id": None,
        "description": refund.get("reason"),
        "marked": "keybrake_operation" in marks_of(refund),
        "created_at": rfc3339(int(refund["created"]) * 1000),
    }


def _differences(operation: Operation, refund: Refund) -> Iterator[Record]:
    pairs = (
        ("amount", operation.amount),
        ("currency", operation.currency),
        ("charge", operation.gives_back),
    )
    for name, ours in pairs:
        if refund.get(name) != ours:
            yield _difference(operation, refund, name, ours)
    if (refund.get("status") not in NO_MONEY) != (operation.state is S.SUCCEEDED):
        yield _difference(operation, refund, "status", operation.state.value)


def _difference(operation: Operation, refund: Refund, field: str, ledger: object) -> Record:
    named = "id" if field == "refund_id" else field
    return {
        "operation_id": operation.id,
        "charge_id": refund.get("charge"),
        "field": field,
        "ledger": ledger,
        "stripe": refund.get(named),
    }
