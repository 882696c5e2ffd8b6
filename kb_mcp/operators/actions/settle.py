"""Settling an operation by the object that an operator names, in one audited transaction.

Floor: operators, above the ledger. The object was read from Stripe before; everything that it says
is compared here, under the locks, so that no object concludes two operations.
A person's word is checked against everything that the object says: an object of another bill, of
last month or of another operation settles nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec.structs import replace

from kb_mcp.operators.actions.operations import By, Done, NotDone, unresolvable
from kb_mcp.periods import PeriodError, parse_period, period_from_description
from kb_mcp.proxy.audit.chain import clean_text
from kb_mcp.proxy.governor import ending_refs
from kb_mcp.proxy.ledger.port import Ledger
from kb_mcp.proxy.ledger.records import Attempt, AuditDraft, Changes, Operation, Refs
from kb_mcp.proxy.ledger.records import State as S
from kb_mcp.proxy.ledger.snapshot import Snapshot
from kb_mcp.proxy.ledger.windows import windows_then
from kb_mcp.proxy.rules.outcomes.conclude import conclude
from kb_mcp.proxy.rules.outcomes.matching import BEFORE_MS, marks_of
from kb_mcp.proxy.stripe.endpoints import ENDPOINTS
from kb_mcp.proxy.stripe.evidence import Ending, Made, customer_of, prove_object
from kb_mcp.proxy.stripe.json_objects import created_ms, object_id

# What is known to have made nothing is settled by its own mark alone.
_NEEDS_A_MARK = frozenset({S.FAILED, S.AWAITING_APPROVAL})


def names_of(item: Mapping[str, Any]) -> frozenset[str]:
    """Return the ids under which another operation may own `item`: its own, and its intent's."""
    names = {object_id(item.get("id"))}
    if item.get("object") != "refund":
        names.add(object_id(item.get("payment_intent")))
    return frozenset(name for name in names if name is not None)


def why_not_its(snapshot: Snapshot, operation: Operation, item: Mapping[str, Any]) -> str | None:
    """Return why `item` cannot be the object of `operation`, or None where it can."""
    attempts = snapshot.attempts_of(operation)
    if operation.pays_invoice:
        return _another_invoice(operation, item)
    return (
        _of_another(snapshot, operation, item)
        or _wrong_mark(operation, attempts, item)
        or _other_values(snapshot, operation, item)
        or _too_old(operation, attempts, item)
        or _another_bill(operation, item)
    )


def _another_invoice(operation: Operation, item: Mapping[str, Any]) -> str | None:
    """Return why `item` is not the invoice that `operation` paid; it bears no mark of anybody."""
    if item.get("id") != operation.object_id:
        return f"the invoice of this operation is {operation.object_id}"
    if item.get("status") != "paid":
        return f"it is {item.get('status')}, not paid"
    return None


def marked_key(operation: Operation, item: Mapping[str, Any]) -> str | None:
    """Return the upstream key in the mark of `item`, if `operation` may have sent it."""
    mark = marks_of(item).get("keybrake_attempt")
    if not isinstance(mark, str):
        return None
    root, _, number = mark.removeprefix(operation.upstream_name).partition("-")
    is_ours = mark.startswith(operation.upstream_name) and not root
    return mark if is_ours and (not number or number.isdecimal()) else None


def _of_another(snapshot: Snapshot, operation: Operation, item: Mapping[str, Any]) -> str | None:
    owners = {snapshot.object_owners.get(name) for name in names_of(item)}
    other = next(iter(sorted(owners - {None, operation.id}, key=str)), None)
    return None if other is None else f"it already concluded operation {other}"


def _wrong_mark(
    operation: Operation, attempts: list[Attempt], item: Mapping[str, Any]
) -> str | None:
    marks = marks_of(item)
    owner, mark = marks.get("keybrake_operation"), marks.get("keybrake_attempt")
    if owner and owner != operation.id:
        return f"it belongs to operation {owner}"
    known = any(each.upstream_key == mark for each in attempts)
    if mark and not known and marked_key(operation, item) is None:
        return "it belongs to another operation: its mark keybrake_attempt says so"
    if not (owner or mark) and operation.state in _NEEDS_A_MARK:
        return f"it bears no mark of this operation, which is {operation.state.value}"
    return None


def _other_values(snapshot: Snapshot, operation: Operation, item: Mapping[str, Any]) -> str | None:
    live = snapshot.settings.mode == "live"
    whose: tuple[str, object, object] = ("customer", customer_of(item), operation.customer)
    if operation.gives_back is not None:
        # A refund does not say whose it is, nor in which mode: its charge does.
        whose = ("charge", item.get("charge"), operation.gives_back)
    for name, found, wanted in (
        ("amount", item.get("amount"), operation.amount),
        ("currency", item.get("currency"), operation.currency),
        whose,
        ("livemode", item.get("livemode", live), live),
    ):
        # Refunds, payouts and top-ups say no customer.
        if found != wanted and (name != "customer" or "customer" in item):
            return f"its {name} is {found}, the operation's is {wanted}"
    return None


def _too_old(operation: Operation, attempts: list[Attempt], item: Mapping[str, Any]) -> str | None:
    created = created_ms(item.get("created"))
    sent = min((each.first_sent_at for each in attempts), default=operation.first_arrival_at)
    if created is not None and created >= sent - BEFORE_MS:
        return None
    return "it was created before the operation was first sent"


def _another_bill(operation: Operation, item: Mapping[str, Any]) -> str | None:
    if operation.gives_back is not None:
        return None
    marks = marks_of(item)
    reference = marks.get("reference")
    if reference and reference != operation.reference:
        return f"its reference is {reference}, the operation's is {operation.reference}"
    said, described = marks.get("billing_period"), item.get("description")
    try:
        period = parse_period(str(said)) if said else period_from_description(str(described or ""))
    except PeriodError:
        return f"its billing period {said!r} cannot be read"
    if period is None or period.label == operation.period:
        return None
    return f"its billing period is {period.label}, the operation's is {operation.period}"


# What an object says of itself may be anybody's text, and is shown on a terminal.
WHY_MAX = 400
_SETTLED_BY_OBJECT = frozenset({S.UNKNOWN, S.FAILED, S.VOIDED, S.AWAITING_APPROVAL})


async def settle_by_object(
    ledger: Ledger, operation: Operation, item: Mapping[str, Any], by: By, daily_declines: int
) -> Done | NotDone:
    """Conclude an operation with the object `item`, as Stripe shows it.

    One that counted as failed, voided or waiting turns out to be charged: that is recorded as a
    charge that turned up late.
    """
    made = prove_object(item, ENDPOINTS[operation.route])
    if made is None:
        return NotDone(f"{item.get('id')} is not operation {operation.id}: another kind of object")
    if made.verdict == "failed":
        why = f"{made.object_id} is {made.stripe_status}: it took no money"
        return NotDone(why, "Void the operation instead, if it is unknown.")

    def step(snapshot: Snapshot) -> tuple[Done | NotDone, Changes]:
        current = snapshot.operations[operation.id]
        busy = unresolvable(
            snapshot, current, _SETTLED_BY_OBJECT, "its outcome is known or not asked yet"
        )
        if busy is not None:
            return busy, Changes()
        different = why_not_its(snapshot, current, item)
        if different is not None:
            why = f"{made.object_id} is not operation {current.id}: {different}"
            return NotDone(clean_text(why, WHY_MAX)), Changes()
        return _settle(snapshot, current, item, made, by, daily_declines)

    def refs(now: int) -> Refs:
        named = ending_refs(operation, made, now)
        made_in = windows_then(operation, _made_at(item))
        return replace(
            named,
            objects=named.objects | names_of(item),
            windows=named.windows | frozenset(made_in.all()),
        )

    return await ledger.transact(refs, step)


def _settle(
    snapshot: Snapshot,
    current: Operation,
    item: Mapping[str, Any],
    made: Made,
    by: By,
    daily_declines: int,
) -> tuple[Done | NotDone, Changes]:
    attempt = _attempt_of(snapshot, current, item)
    if (current.id, attempt.number) not in snapshot.attempts:
        # A store that lost records knows nothing of this send: it counts when it was made.
        current = replace(current, attempt=attempt.number, reserved_at=_made_at(item))
        snapshot.apply(Changes(operations=(current,), attempts=(attempt,)))
    ending = Ending(
        operation_id=current.id,
        attempt=attempt.number,
        token=current.lease_token,
        proof=made,
        daily_declines=daily_declines,
        request=AuditDraft(kind="admin", agent_id=by.operator),
    )
    after, changes = conclude(snapshot, ending)
    rows = (*changes.audit, by.row("resolve_succeeded", after))
    return Done(after), replace(changes, audit=rows)


def _attempt_of(snapshot: Snapshot, operation: Operation, item: Mapping[str, Any]) -> Attempt:
    """Return the attempt that made `item`: by its mark, else the current one, else a new one."""
    attempts, mark = snapshot.attempts_of(operation), marked_key(operation, item)
    marked = next((each for each in attempts if each.upstream_key == mark), None)
    if marked is not None:
        return marked
    if mark is None and attempts:
        return attempts[-1]
    at = _made_at(item)
    return Attempt(
        operation_id=operation.id,
        number=operation.attempt + 1,
        upstream_key=mark or operation.upstream_name,
        path=ENDPOINTS[operation.route].template,
        stripe_version=None,
        body=b"",
        first_sent_at=at,
        last_sent_at=at,
        key_id=operation.key_id,
    )


def _made_at(item: Mapping[str, Any]) -> int:
    return created_ms(item.get("created")) or 0
