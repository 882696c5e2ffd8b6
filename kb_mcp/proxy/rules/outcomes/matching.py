"""Matching: whether an object at Stripe is an operation's, how it differs, and which are lost here.

Floor: above the records and evidence, below resolve and conclude. Pure. Marks in the metadata name
the attempt that made an object; they can be edited at Stripe, so that an object without them may be
ours as well. A store that lost commits still has its id, which every object that it made carries:
one that moved or holds money must be the object of its attempt here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from kb_mcp.proxy.ledger.records import (
    HOLDING,
    Attempt,
    AttemptOutcome,
    Operation,
    OperationId,
    State,
)
from kb_mcp.proxy.ledger.snapshot import KnownAttempt, Snapshot
from kb_mcp.proxy.rules.operation_names import asked_by, columns_of
from kb_mcp.proxy.stripe import evidence
from kb_mcp.proxy.stripe.endpoints import ENDPOINTS, Route
from kb_mcp.proxy.stripe.interpret import fingerprint
from kb_mcp.proxy.stripe.messages import SEND_WITHIN_MS

Item = Mapping[str, Any]  # an object as Stripe shows it
TWIN = "unmarked_charge"  # an object without a mark stands there that may be the one
# Stripe's clock and ours may be a minute apart, and `created` has whole seconds.
BEFORE_MS = 90_000
# A failed or canceled object took no money, so that it is nobody's charge.
NO_MONEY = frozenset({"failed", "canceled"})
MAY_HAVE_ARRIVED = frozenset({AttemptOutcome.OPEN, AttemptOutcome.VOIDED})


def match_attempt(item: Item, operation: Operation, attempts: list[Attempt]) -> int | None:
    """Return the number of the attempt that made the listed object `item`, or None.

    The attempt's mark alone is not enough: the operation's must stand beside it, or amount,
    currency and customer must be the operation's. With both marks it is ours whatever it says.
    """
    metadata = evidence.marks(item)
    mark = metadata.get("keybrake_attempt")
    ours = metadata.get("keybrake_operation") == operation.id
    # An operation whose request did not tell its amount has the mark alone.
    if mark is None or not (ours or operation.amount == 0 or is_like(item, operation)):
        return None
    # A declined attempt is settled: its failed object says nothing about the attempts after it.
    sent = (each for each in attempts if each.upstream_key == mark)
    return next((each.number for each in sent if each.outcome is not AttemptOutcome.DECLINED), None)


def twin_names(
    item: Item, operation: Operation, attempts: list[Attempt], grace_ms: int
) -> tuple[str, ...]:
    """Return the names of a listed object without a whole mark that may be the operation's.

    It is of the same customer, amount and currency, and made between the first send that may have
    arrived and the last one's deadline and grace. Empty where it is not.
    """
    mark, owner = map(evidence.marks(item).get, ("keybrake_attempt", "keybrake_operation"))
    known = any(each.upstream_key == mark for each in attempts)
    if known or (mark and owner and owner != operation.id) or not is_like(item, operation):
        return ()
    created, no_money = evidence.created_ms(item.get("created")), item.get("status") in NO_MONEY
    if created is None or no_money or not may_have_made(attempts, created, grace_ms):
        return ()
    return tuple(
        filter(None, (evidence.object_id(item.get(each)) for each in ("id", "payment_intent")))
    )


def may_have_made(attempts: list[Attempt], at_ms: int, grace_ms: int) -> bool:
    """Say whether a send of `attempts` may have done what was done `at_ms`."""
    maybe = [each for each in attempts if each.outcome in MAY_HAVE_ARRIVED] or attempts
    begins = min(each.first_sent_at for each in maybe) - BEFORE_MS
    ends = max(each.last_sent_at for each in maybe) + SEND_WITHIN_MS + grace_ms
    return begins <= at_ms <= ends


def is_like(item: Item, operation: Operation) -> bool:
    """Say whether amount, currency and customer (of a refund, its charge) are the operation's."""
    charge, said = operation.gives_back, (item.get("amount"), item.get("currency"))
    same = (
        evidence.customer_of(item) == operation.customer
        if charge is None
        else item.get("charge") == charge
    )
    return same and said == (operation.amount, operation.currency)


def difference(
    snapshot: Snapshot, operation: Operation, made: evidence.Made, *, step: bool = False
) -> str | None:
    """Return in what `made` differs from `operation`, in a sentence for operators, or None.

    What the object does not say differs in nothing. A follow-up (`step`) may change the amount, up
    to what is held; an operation whose request told no amount (0) is compared by its mode alone.
    """
    facts, at_most, charge = made.facts, max(operation.amount, operation.held), operation.gives_back
    wanted: dict[str, object] = {"livemode": snapshot.settings.mode == "live"}
    if operation.pays_invoice or operation.amount > 0:
        wanted |= {"customer": operation.customer} if charge is None else {"charge": charge}
        wanted["currency"] = operation.currency
    if operation.pays_invoice:
        if (comes_to := comes_to_of(operation, made)) > at_most:
            facts, wanted["amount"] = {**facts, "amount": comes_to}, at_most
    elif operation.amount > 0 and (not step or (made.total or 0) > at_most):
        wanted["amount"] = at_most if step else operation.amount
    name = next(
        (each for each in sorted(wanted) if facts.get(each, wanted[each]) != wanted[each]), None
    )
    return None if name is None else f"its {name} at Stripe is {facts[name]}, not {wanted[name]}"


def comes_to_of(operation: Operation, made: evidence.Made) -> int:
    """Return what an invoice took since `operation` began, and still asks for, in minor units."""
    left = 0 if made.verdict == "done" else made.total or 0
    return max(left + (made.moved or 0) - (operation.paid_before or 0), 0)


def as_asked(operation: Operation, attempt: Attempt, proof: evidence.Made) -> Operation:
    """Return `operation` with what `attempt` asked for, where that is what Stripe made.

    A bill that came to nothing may be asked for with other values; a request that was held up for
    hours, or an intent that is paid elsewhere, makes what it was sent for all the same.
    """
    if operation.state in HOLDING and operation.attempt == attempt.number:
        return operation
    asked = asked_by(attempt)
    if asked is None or asked.money is None:
        return operation
    money, label = asked.money, None if asked.period is None else asked.period.label
    known = (operation.amount, operation.currency, operation.period)
    made = (proof.total, proof.facts.get("currency"))
    if (money.amount, money.currency) != made or (money.amount, money.currency, label) == known:
        return operation
    return replace(
        operation,
        held=operation.held if money.currency == operation.currency else 0,
        amount=money.amount,
        currency=money.currency,
        **columns_of(asked.period),
        reference=asked.reference,
        fingerprint=fingerprint(asked),
    )


# The lists to walk, each with the endpoint that makes its objects.
WALKED: tuple[tuple[str, Route], ...] = (
    ("/v1/charges", ENDPOINTS["POST /v1/charges"]),
    ("/v1/payment_intents", ENDPOINTS["POST /v1/payment_intents"]),
    ("/v1/refunds", ENDPOINTS["POST /v1/refunds"]),
)
# Codes of the audit rows that are alerted of.
GAP_FOUND = "ledger_gap"
WALK_FAILED = "walk_unread"


class Whose(Struct, frozen=True, kw_only=True):
    """Which marks count as this store's.

    `lineages` are the store's own, `foreign` those that an operator named as somebody else's.
    `any_store` is for a new store: every mark counts, whichever store made it.
    """

    store_id: str
    lineages: frozenset[str] = frozenset()
    foreign: frozenset[str] = frozenset()
    any_store: bool = False


def is_ours(item: Item, whose: Whose) -> bool:
    """Say whether `item` bears the mark of this store.

    Objects of a version before stores had ids bear a lineage alone: an unknown one counts as ours
    until it is named foreign.
    """
    metadata = evidence.marks(item)
    store, lineage = metadata.get("keybrake_store"), metadata.get("keybrake_key", "")
    if "keybrake_operation" not in metadata and store is None:
        return False
    if whose.any_store and lineage not in whose.foreign:
        return True
    if store is not None:
        return store == whose.store_id
    return lineage in whose.lineages or lineage not in whose.foreign


def holds_money(item: Item, route: Route) -> bool:
    """Say whether `item` moved money or may still: it has not failed, or cannot be read."""
    made = evidence.prove_object(item, route)
    return made is None or made.verdict != "failed"


def lost_among(
    items: Iterable[Item], objects: Iterable[str], attempts: Mapping[str, KnownAttempt]
) -> tuple[list[str], set[OperationId]]:
    """Return which of `items`, all ours, are unknown here, and operations to look at once more.

    `objects` belong to operations here, `attempts` are what marks name. One whose outcome is open
    is recovery's, and so is one that was voided a short while ago: recovery looks for its object
    again, and here it is.
    """
    lost, late, known = list[str](), set[OperationId](), frozenset(objects)
    for item in items:
        if known.intersection(evidence.object_names(item)):
            continue
        trace = attempts.get(evidence.mark_of(item) or "")
        if trace and trace.state == State.VOIDED and trace.next_read_at is not None:
            late.add(trace.operation_id)
        elif not (trace and trace.state in HOLDING and trace.outcome == AttemptOutcome.OPEN):
            lost.append(str(item.get("id")))
    return lost, late
