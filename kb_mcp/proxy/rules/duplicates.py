"""Duplicates: another live operation that may already be this bill, and what lets one pass.

Floor: above the snapshot, below reserve. Pure. The checks hold over every name, so that a legacy
handler and a tool beside each other do not bill twice. A permit is an operator's: a refunded bill
that was reopened may be billed once more, for the same customer, period, reference and currency and
the amount of the permit; a waived one lets one bill pass that was wrongly taken for it. Whoever
takes a permit is noted as its successor, so that a declined successor may be tried again and nobody
else comes in its place.

Refunds and invoices are read at Stripe before they are decided. All refunds of a charge together
are never more than the charge: what Stripe showed as refunded, what the ledger holds that Stripe
did not show yet, and the new one. An invoice is one operation, whether finalizing or paying it
begins it; paying one that was finalized here goes on with it, so that its amount is held once:

the operation           the request                    what follows
----------------------  -----------------------------  ----------------------------------------
leased                  another act, or another amount Join, then what became of it decides
reserved, unknown       another act                    Look: reading says what became of the first
reserved, unknown,      another amount                 amount_changed
  voided and live
succeeded, not final    pay, after finalize            ReadAgain: the payment goes on with it
succeeded               any other                      Replay
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from datetime import date
from typing import Final

from msgspec.structs import replace

from kb_mcp.instants import day_of
from kb_mcp.money import Money, format_money
from kb_mcp.periods import Period, overlap, parse_period
from kb_mcp.proxy.errors.refusals import Code, Fact, Refusal, refuse
from kb_mcp.proxy.ledger.records import HOLDING, NamedBy, Operation, OperationId, State
from kb_mcp.proxy.ledger.snapshot import Snapshot
from kb_mcp.proxy.rules.command import (
    Command,
    Decision,
    Join,
    Look,
    Payable,
    ReadAgain,
    Refundable,
    Refuse,
    Replay,
)
from kb_mcp.proxy.stripe.interpret import Reading

# A refund that was read this lately is not read again before the bill is sent once more.
READ_LATELY_MS = 60_000
REFUND_READ_EVERY_MS = 3_600_000


def find_conflict(snapshot: Snapshot, command: Command, operation: Operation) -> Refuse | None:
    """Return the refusal for the first live operation beside `operation` that may be this bill.

    What an operator reopened or waived for it does not conflict: `permits` lists those instead.
    """
    for taken in snapshot.predecessors(operation):
        if not (taken.waived or opened_for(taken, command)):
            # Its permit holds no more: its refund failed, or another amount is asked for now.
            return suspect(known_as(taken), taken)
    for code, peer in _conflicts(snapshot, command, operation):
        if not _permitted(code, peer, command, operation):
            return suspect(code, peer)
    return None


def permits(snapshot: Snapshot, command: Command, operation: Operation) -> list[Operation]:
    """Return the operations whose permit `operation` takes, or took before."""
    found = {
        peer.id: peer
        for code, peer in _conflicts(snapshot, command, operation)
        if _permitted(code, peer, command, operation)
    }
    found |= {each.id: each for each in snapshot.predecessors(operation)}
    older = snapshot.newest(command.name)
    if older is not None and older.id != operation.id and older.successor is None:
        # Of the same name, though it may lie too far back to be suspected.
        found |= {older.id: older} if older.waived or opened_for(older, command) else {}
    return list(found.values())


def known_as(bill: Operation) -> Code:
    """Return the code that refuses a second bill beside `bill`, which stands."""
    return Code.DUPLICATE_SUSPECTED if bill.period is None else Code.PERIOD_ALREADY_CHARGED


def _conflicts(
    snapshot: Snapshot, command: Command, operation: Operation
) -> Iterator[tuple[Code, Operation]]:
    reading, bill = command.reading, command.bill(snapshot.now)
    if reading.customer is not None and reading.period is not None:
        for peer in snapshot.period_peers(reading.customer, reading.reference):
            if peer.id != operation.id and _same_days(command, reading.period, peer):
                yield Code.PERIOD_ALREADY_CHARGED, peer
    if bill is not None:
        for peer in snapshot.bill_peers(bill):
            if peer.id != operation.id and _suspicious(command, peer, snapshot.now, bill.since):
                yield Code.DUPLICATE_SUSPECTED, peer


def _same_days(command: Command, period: Period, peer: Operation) -> bool:
    if peer.period == period.label:
        return True
    # It is the sender's policy that may bill days twice: what the peer's was allowed is past.
    refused = command.policy.overlaps == "refuse" and not peer.released
    return refused and peer.period is not None and overlap(period, parse_period(peer.period))


def _suspicious(command: Command, peer: Operation, now: int, since: int) -> bool:
    period = command.reading.period
    if peer.period is None and peer.period_start is not None and peer.period_end is not None:
        # It was adopted, and nobody knows for what: any bill of those days may be it.
        today = day_of(now)
        spans = [(today, today)] if period is None else [(today, today), (period.start, period.end)]
        first, last = map(date.fromisoformat, (peer.period_start, peer.period_end))
        if any(start <= last and end >= first for start, end in spans):
            return True
    if period is not None and peer.period is not None:
        # Both say what they are for: the guard of periods has judged them.
        return False
    by_caller = period is None and command.named_by is NamedBy.CALLER
    if by_caller or (peer.released and (period is None) != (peer.period is None)):
        return False
    unresolved = peer.state in HOLDING or peer.state is State.VOIDED
    return unresolved or peer.first_arrival_at > since


def suspect(code: Code, peer: Operation) -> Refuse:
    """Refuse by `code`, naming the operation `peer` and its charge."""
    facts: dict[str, Fact] = {
        "operation": peer.id,
        "charge_id": peer.object_id,
        "amount": peer.amount,
        "currency": peer.currency,
        "billing_period": peer.period,
        "state": peer.state.value,
    }
    facts |= {"refunded": True} if peer.refunded else {}
    period = f" for {peer.period}" if peer.period else ""
    state = ", refunded since" if peer.refunded else "" if peer.final else ", not final yet"
    shown = f"{shown_as(peer)}, {format_money(Money(peer.amount, peer.currency))}{period}{state}"
    return Refuse(refuse(code, facts=facts, charge=shown), peer)


def shown_as(operation: Operation) -> str:
    """Return what people find `operation` by: its object, else itself and its outcome."""
    unnamed = f"operation {operation.id}, whose outcome is {operation.state.value}"
    return operation.object_id or unnamed


def unknown(operation: Operation, **facts: Fact) -> Refuse:
    """Refuse to send `operation`, of which nobody knows the outcome; `facts` say more."""
    named = {"operation": operation.id, "charge_id": operation.object_id, **facts}
    return Refuse(refuse(Code.OUTCOME_UNKNOWN, facts=named), operation)


def _permitted(code: Code, peer: Operation, command: Command, operation: Operation) -> bool:
    """Say whether `peer`, a duplicate by `code`, lets `operation` pass as `command` asks for it."""
    if peer.successor not in {None, operation.id}:
        return False
    return opened_for(peer, command) or (peer.waived and code is Code.DUPLICATE_SUSPECTED)


def opened_for(peer: Operation, command: Command) -> bool:
    """Say whether `peer` was reopened for just the bill that `command` asks for."""
    reading, money = command.reading, command.money
    if not peer.reopened or (peer.reference or "") != (reading.reference or ""):
        return False
    if peer.gives_back is not None:
        # Another refund of its charge may be of another amount.
        return command.refund is not None and peer.gives_back == command.refund.charge
    period = None if reading.period is None else reading.period.label
    amount = peer.amount if peer.permit_amount is None else peer.permit_amount
    opened = (peer.customer, peer.period, amount, peer.currency)
    return opened == (reading.customer, period, money.amount, money.currency)


def may_bill_again(snapshot: Snapshot, command: Command, refunded: Operation) -> bool:
    """Say whether `command` begins another generation of its `refunded` bill.

    The permit may be that of the bill that took its place under another amount.
    """
    reading, bills = command.reading, [refunded]
    if reading.customer is not None and reading.period is not None:
        bills += snapshot.period_peers(reading.customer, reading.reference)
    return any(each.successor is None and opened_for(each, command) for each in bills)


def take_permits(
    snapshot: Snapshot, command: Command, operation: Operation
) -> tuple[Operation, ...] | Look:
    """Return the bills whose permit `operation` takes, with it as their successor.

    Where the refund of one was not read lately, that comes first.
    """
    opened = permits(snapshot, command, operation)
    lately = snapshot.now + REFUND_READ_EVERY_MS - READ_LATELY_MS
    for each in opened:
        if each.refunded and (each.refund_read_at or 0) < lately:
            return Look(each)
    return tuple(
        replace(each, successor=operation.id, updated_at=snapshot.now)
        for each in opened
        if each.successor is None
    )


FINALIZE: Final = "POST /v1/invoices/*/finalize"
PAY: Final = "POST /v1/invoices/*/pay"
_TAKES_NEW_AMOUNT = frozenset({State.FAILED, State.AWAITING_APPROVAL})


def states_of(refunds: Iterable[Operation]) -> frozenset[tuple[OperationId, str]]:
    """Return what `Refundable.before` holds of `refunds`."""
    return frozenset((each.id, f"{each.state.value} {each.final}") for each in refunds)


def refund_fingerprint(charge: str, money: Money, reference: str | None) -> str:
    """Hash what a refund gives back; its reason and its metadata are wording."""
    return _digest("refund", charge, money.amount, money.currency, reference)


def with_amount(snapshot: Snapshot, command: Command, operation: Operation | None) -> Command:
    """Return `command` with the amount it leaves out: of the refund it repeats, or what is left."""
    view = command.refund
    if view is None or view.said:
        return command
    amount = 0 if view.left is None else max(_left(snapshot, view, operation), 0)
    if operation is not None and operation.state not in _TAKES_NEW_AMOUNT:
        amount = operation.amount
    elif operation is not None and operation.state is State.AWAITING_APPROVAL:
        amount = min(operation.amount, amount) if view.left is not None else operation.amount
    money, reading = Money(amount, view.currency), command.reading
    return replace(
        command,
        reading=replace(reading, money=money, form=reading.form.with_({"amount": str(amount)})),
        money=money,
        fingerprint=refund_fingerprint(view.charge, money, reading.reference),
    )


def refund_conflict(
    snapshot: Snapshot, command: Command, operation: Operation
) -> Refuse | ReadAgain | None:
    """Return why the refund `operation` may not be made as `command` asks, or None."""
    view = command.refund
    if view is None:
        return None
    siblings = [each for each in snapshot.refunds_of(view.charge) if each.id != operation.id]
    if view.left is None or _moved(view, siblings):
        return ReadAgain()
    other, left = other_refund(snapshot, command, operation), _left(snapshot, view, operation)
    if other is not None:
        return already_refunded(other, left)
    facts: dict[str, Fact] = {"charge_id": view.charge, "currency": view.currency}
    if view.left <= 0:
        in_full = f"{view.charge}, in full"
        return Refuse(refuse(Code.ALREADY_REFUNDED, facts=facts | {"left": 0}, refund=in_full))
    if command.money.amount > left or command.money.amount <= 0:
        facts |= {"amount": command.money.amount, "left": max(left, 0)}
        return Refuse(refuse(Code.REFUND_EXCEEDS_CHARGE, param="amount", facts=facts))
    return None


def other_refund(snapshot: Snapshot, command: Command, operation: Operation) -> Operation | None:
    """Return a refund of the same charge under another name that leaves no room for `operation`."""
    if command.refund is None:
        return None
    siblings = snapshot.refunds_of(command.refund.charge)
    names = {each.name for each in siblings if each.id != operation.id} - {command.name}
    heads = [head for name in sorted(names) if (head := snapshot.newest(name)) is not None]
    live = [head for head in heads if head.live]
    if not live:
        return None
    further = command.reading.reference is not None
    return None if further and len(live) < command.policy.max_refunds_per_charge else live[-1]


def already_refunded(refund: Operation, left: int | None = None) -> Refuse:
    """Refuse, naming `refund`, and what is `left` of the charge where it is known."""
    left = None if left is None else max(left, 0)
    facts: dict[str, Fact] = {
        "operation": refund.id,
        "charge_id": refund.gives_back,
        "refund_id": refund.object_id,
        "amount": refund.amount,
        "currency": refund.currency,
        "state": refund.state.value,
        "left": left,
    }
    shown = f"{shown_as(refund)}, {format_money(Money(refund.amount, refund.currency))}"
    if left is not None:
        shown += f"; {format_money(Money(left, refund.currency))} is left"
    return Refuse(refuse(Code.ALREADY_REFUNDED, facts=facts, refund=shown), refund)


def _moved(view: Refundable, siblings: list[Operation]) -> bool:
    """Say whether another refund ended since the charge was read, one that Stripe did not show."""
    ended = [each for each in siblings if each.state in {State.SUCCEEDED, State.FAILED}]
    changed = {name for name, _ in states_of(ended) - view.before}
    return any(each.id in changed and each.object_id not in view.listed for each in ended)


def _left(snapshot: Snapshot, view: Refundable, operation: Operation | None) -> int:
    """Return what is left once every refund of the ledger is counted that Stripe did not show."""
    own = None if operation is None else operation.id
    unseen = sum(
        each.amount
        for each in snapshot.refunds_of(view.charge)
        if each.id != own and each.live and not _shown(snapshot, view, each)
    )
    return (view.left or 0) - unseen


def _shown(snapshot: Snapshot, view: Refundable, refund: Operation) -> bool:
    if refund.state is State.SUCCEEDED and refund.object_id in view.listed:
        return True
    # Only its last attempt: an earlier one may be listed, and have come to nothing.
    attempt = snapshot.attempt(refund)
    return attempt is not None and attempt.upstream_key in view.listed


def invoice_fingerprint(reading: Reading, view: Payable) -> str:
    """Hash what is done to an invoice and what was read of it."""
    # Who is there (`off_session`) changes nothing of what is paid.
    form = sorted(reading.form.without("off_session").items())
    read = (view.invoice, view.left, view.currency, view.customer)
    return _digest("invoice", reading.route.endpoint, *read, form)


def _digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, separators=(",", ":")).encode()).hexdigest()


def goes_on_with(operation: Operation, reading: Reading) -> bool:
    """Say whether `reading` pays what `operation` has finalized."""
    held = operation.state is State.SUCCEEDED and not operation.final
    return held and operation.route == FINALIZE and reading.route.endpoint == PAY


def decide_again(
    snapshot: Snapshot, command: Command, operation: Operation, *, same: bool
) -> Decision | None:
    """Decide where an invoice differs from any other operation that is known; else None."""
    view = command.invoice
    if view is None or same:
        return None
    another_act = operation.route != command.reading.route.endpoint
    if operation.state in HOLDING and snapshot.leased(operation):
        return Join(operation)
    if operation.state in HOLDING and another_act:
        return Look(operation)
    made = operation.state is State.SUCCEEDED
    if operation.live and not made:
        return Refuse(amount_changed(operation, view), operation)
    if goes_on_with(operation, command.reading):
        return ReadAgain()
    return Replay(operation) if made and not operation.refunded else None


def decide_payment_of_finalized(snapshot: Snapshot, command: Command) -> Decision | None:
    """Decide where what is gone on with is over meanwhile; None where it stands."""
    read = command.continues
    operation = None if read is None else snapshot.operations.get(read.id)
    if command.invoice is None or operation is None:
        return None
    if operation.state is not State.SUCCEEDED:
        return ReadAgain()
    return Replay(operation) if operation.final else None


def amount_changed(operation: Operation, view: Payable) -> Refusal:
    """Refuse to go on with `operation`, which reserved something else than `view` shows."""
    held = format_money(Money(operation.amount, operation.currency))
    now = format_money(Money(view.left, view.currency))
    reason = f"{held} was reserved, and now {now} is left to pay and it is {view.status}"
    return refuse(Code.AMOUNT_CHANGED, facts=changed_facts(operation, view), reason=reason)


def changed_facts(operation: Operation, view: Payable) -> dict[str, Fact]:
    """Return what was reserved for an invoice, and what is left of it now."""
    return {
        "operation": operation.id,
        "invoice_id": view.invoice,
        "amount": operation.amount,
        "currency": operation.currency,
        "amount_now": view.left,
        "currency_now": view.currency,
        "status": view.status,
    }
