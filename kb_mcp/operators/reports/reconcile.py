"""The ledger against Stripe's own list: what each has that the other lacks, and what differs.

Floor: operators, above the records. Pure: charges arrive as Stripe listed them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from kb_mcp.instants import rfc3339
from kb_mcp.proxy.edge.records import Record
from kb_mcp.proxy.ledger.records import Operation
from kb_mcp.proxy.ledger.records import State as S
from kb_mcp.proxy.stripe.endpoints import CHARGED_BY
from kb_mcp.proxy.stripe.json_objects import marks, object_names

Charge = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Reconciliation:
    """Charges without an operation, operations whose object was not listed, and differences.

    An unlisted object is not yet a missing one: whoever asks Stripe for it by name decides.
    """

    unknown_charges: tuple[Charge, ...]
    unlisted: tuple[Operation, ...]
    differing: tuple[Record, ...]


def reconcile(
    operations: Iterable[Operation], charges: Iterable[Charge], since_ms: int
) -> Reconciliation:
    """Compare the operations of the ledger with the charges that Stripe lists since then.

    A charge that failed moved no money and needs no operation.
    """
    ledger = list(operations)
    by_object = {each.object_id: each for each in ledger if each.object_id is not None}
    by_id: dict[str, Operation] = {each.id: each for each in ledger}
    unknown: list[Charge] = []
    differing: list[Record] = []
    seen: set[str] = set()
    billed: list[tuple[Operation, Charge]] = []
    for charge in charges:
        names = object_names(charge)
        seen.update(names)
        operation = next((by_object[name] for name in names if name in by_object), None)
        marked = by_id.get(marks(charge).get("keybrake_operation", ""))
        if operation is not None:
            differing += _differences(operation, charge)
            billed.append((operation, charge))
        elif charge.get("status") == "failed":
            continue
        elif marked is not None:
            differing.append(_difference(marked, charge, "charge_id", marked.object_id, names[0]))
        else:
            unknown.append(charge)
    differing += _charged_twice(billed)
    unlisted = (
        each for each in ledger if _may_be_unlisted(each, since_ms) and each.object_id not in seen
    )
    return Reconciliation(tuple(unknown), tuple(unlisted), tuple(differing))


@dataclass(frozen=True, slots=True)
class Wanted:
    """Says which operations a comparison needs: a ledger may be much longer than a period."""

    names: frozenset[str]
    marked: frozenset[str]
    since_ms: int

    @classmethod
    def by(cls, charges: Iterable[Charge], since_ms: int) -> Wanted:
        """Return what to look for where these charges were listed since then."""
        names, marked = set[str](), set[str]()
        for charge in charges:
            names.update(object_names(charge))
            marked.add(marks(charge).get("keybrake_operation", ""))
        return cls(frozenset(names), frozenset(marked), since_ms)

    def holds(self, operation: Operation) -> bool:
        """Say whether `reconcile` could say anything else without `operation`."""
        if operation.object_id in self.names or operation.id in self.marked:
            return True
        return _may_be_unlisted(operation, self.since_ms)


def charge_record(charge: Charge) -> Record:
    """Return a charge that the ledger lacks, as `reconcile` and `adopt` show it."""
    return {
        "kind": "charge",
        "charge_id": charge["id"],
        "payment_intent": charge.get("payment_intent"),
        "status": charge.get("status"),
        "amount": charge.get("amount"),
        "currency": charge.get("currency"),
        "customer_id": charge.get("customer"),
        "description": charge.get("description"),
        "refunded": bool(charge.get("refunded")),
        "marked": "keybrake_operation" in marks(charge),
        "created_at": rfc3339(int(charge["created"]) * 1000),
    }


def _may_be_unlisted(operation: Operation, since_ms: int) -> bool:
    charged = operation.state is S.SUCCEEDED and operation.route in CHARGED_BY
    return charged and operation.reserved_at >= since_ms


def _differences(operation: Operation, charge: Charge) -> Iterator[Record]:
    pairs = (
        ("amount", operation.amount, charge.get("amount")),
        ("currency", operation.currency, charge.get("currency")),
        ("customer_id", operation.customer, charge.get("customer") or None),
    )
    for name, ours, theirs in pairs:
        if ours != theirs:
            yield _difference(operation, charge, name, ours, theirs)
    moved = charge.get("status") != "failed"
    if moved != (operation.state is S.SUCCEEDED):
        yield _difference(operation, charge, "state", operation.state.value, charge.get("status"))


def _charged_twice(billed: Iterable[tuple[Operation, Charge]]) -> Iterator[Record]:
    """Yield each charge that bills a period which another charge, not refunded, bills too."""
    first: dict[tuple[str, str, str], tuple[Operation, Charge]] = {}
    for operation, charge in sorted(billed, key=lambda each: each[0].reserved_at):
        stands = charge.get("status") == "succeeded" and charge.get("refunded") is not True
        if not stands or operation.customer is None or operation.period is None:
            continue
        bill = (operation.customer, operation.period, operation.reference or "")
        other = first.setdefault(bill, (operation, charge))
        if other[0].id != operation.id:
            yield _difference(operation, charge, "charged_twice", other[1]["id"], charge["id"])


def _difference(
    operation: Operation, charge: Charge, field: str, ledger: object, stripe: object
) -> Record:
    return {
        "operation_id": operation.id,
        "charge_id": charge["id"],
        "field": field,
        "ledger": ledger,
        "stripe": stripe,
    }
