"""The ledger against Stripe's own list: what each has that the other lacks, and what differs.

Floor: operators, above the records. Pure: charges and refunds arrive as Stripe listed them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from msgspec.structs import replace

from kb_mcp.instants import rfc3339
from kb_mcp.proxy.edge.records import Record, payment_of_invoice
from kb_mcp.proxy.ledger.records import Attempt, Operation
from kb_mcp.proxy.ledger.records import State as S
from kb_mcp.proxy.rules.outcomes.matching import NO_MONEY, Item
from kb_mcp.proxy.stripe.endpoints import CHARGED_BY
from kb_mcp.proxy.stripe.evidence import marks, object_names

Kind = Literal["charge", "refund"]


@dataclass(frozen=True, slots=True)
class Reconciliation:
    """Objects without an operation, operations whose object was not listed, and differences.

    An unlisted object is not yet a missing one: whoever asks Stripe for it by name decides.
    """

    unknown: tuple[Item, ...]
    unlisted: tuple[Operation, ...]
    differing: tuple[Record, ...]


def reconcile(
    operations: Sequence[Operation], items: Iterable[Item], since_ms: int, kind: Kind = "charge"
) -> Reconciliation:
    """Compare operations with Stripe's list of one kind since then; what failed needs none."""
    by_object = {each.object_id: each for each in operations if each.object_id is not None}
    by_id: dict[str, Operation] = {each.id: each for each in operations}
    unknown: list[Item] = []
    differing: list[Record] = []
    seen: set[str] = set()
    billed: list[tuple[Operation, Item]] = []
    for item in items:
        names, mark = object_names(item), marks(item).get("keybrake_operation", "")
        seen.update(names)
        operation = next((by_object[name] for name in names if name in by_object), None)
        if operation is not None:
            differing += _differences(operation, item, kind)
            billed.append((operation, item))
        elif _stands(item) and mark in by_id:
            ours = by_id[mark]
            differing.append(_difference(ours, item, f"{kind}_id", ours.object_id, names[0]))
        elif _stands(item):
            unknown.append(item)
    if kind == "charge":
        differing += _charged_twice(billed)
    expected = (each for each in operations if _may_be_unlisted(each, since_ms, kind))
    unlisted = tuple(each for each in expected if each.object_id not in seen)
    return Reconciliation(tuple(unknown), unlisted, tuple(differing))


def needed(
    items: Sequence[Item], since_ms: int, kind: Kind = "charge"
) -> Callable[[Operation], bool]:
    """Return what says whether an operation of a long ledger matters to `reconcile`."""
    names = {name for item in items for name in object_names(item)}
    marked = {marks(item).get("keybrake_operation", "") for item in items}

    def holds(operation: Operation) -> bool:
        listed = operation.object_id in names or operation.id in marked
        return listed or _may_be_unlisted(operation, since_ms, kind)

    return holds


def as_charged(operation: Operation, attempts: Iterable[Attempt]) -> Operation:
    """Return `operation` by the charge that it made: an invoice has one that paid it."""
    paid_by = payment_of_invoice(operation, attempts)
    if paid_by is None:
        return operation
    return replace(operation, object_id=paid_by, amount=operation.held)


def item_record(item: Item) -> Record:
    """Return a charge or a refund that the ledger lacks, as `reconcile` and `adopt` show it."""
    refund = item.get("object") == "refund"
    named = {
        "kind": "charge",
        "charge_id": item["id"],
        "payment_intent": item.get("payment_intent"),
    }
    if refund:
        named = {"kind": "refund", "refund_id": item["id"], "charge_id": item.get("charge")}
    return {
        **named,
        **{name: item.get(name) for name in ("status", "amount", "currency")},
        "customer_id": item.get("customer"),
        "marked": "keybrake_operation" in marks(item),
        "created_at": rfc3339(int(item["created"]) * 1000),
        "description": item.get("reason" if refund else "description"),
        **({} if refund else {"refunded": bool(item.get("refunded"))}),
    }


def _may_be_unlisted(operation: Operation, since_ms: int, kind: Kind) -> bool:
    is_kind = operation.route in CHARGED_BY if kind == "charge" else operation.kind == "refund"
    return operation.state is S.SUCCEEDED and is_kind and operation.reserved_at >= since_ms


def _differences(operation: Operation, item: Item, kind: Kind) -> Iterator[Record]:
    whose = ("customer_id", operation.customer, item.get("customer") or None)
    if kind == "refund":
        # A refund does not say whose it is: its charge does.
        whose = ("charge", operation.gives_back, item.get("charge"))
    money = [(name, getattr(operation, name), item.get(name)) for name in ("amount", "currency")]
    for name, ours, theirs in (*money, whose):
        if ours != theirs:
            yield _difference(operation, item, name, ours, theirs)
    if _stands(item) != (operation.state is S.SUCCEEDED):
        state = "status" if kind == "refund" else "state"
        yield _difference(operation, item, state, operation.state.value, item.get("status"))


def _stands(item: Item) -> bool:
    """Say whether money moved or is held; an authorisation that was let go of is `succeeded`."""
    released = item.get("captured") is False and item.get("refunded") is True
    return item.get("status") not in NO_MONEY and not released


def _charged_twice(billed: Iterable[tuple[Operation, Item]]) -> Iterator[Record]:
    """Yield each charge that bills a period which another charge, not refunded, bills too."""
    first: dict[tuple[str, str, str], tuple[Operation, Item]] = {}
    for operation, charge in sorted(billed, key=lambda each: each[0].reserved_at):
        stands = charge.get("status") == "succeeded" and charge.get("refunded") is not True
        if not stands or operation.customer is None or operation.period is None:
            continue
        bill = (operation.customer, operation.period, operation.reference or "")
        other = first.setdefault(bill, (operation, charge))
        if other[0].id != operation.id:
            yield _difference(operation, charge, "charged_twice", other[1]["id"], charge["id"])


def _difference(
    operation: Operation, item: Item, field: str, ledger: object, stripe: object
) -> Record:
    return {
        "operation_id": operation.id,
        "charge_id": item.get("charge") if item.get("object") == "refund" else item["id"],
        "field": field,
        "ledger": ledger,
        "stripe": stripe,
    }
