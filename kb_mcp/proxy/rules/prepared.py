"""What was read at Stripe before it is decided: refunds of a charge, and invoices that are paid.

Floor: above duplicates, below reserve. Pure. Whatever callers, keys and hosts do, all refunds of a
charge together are never more than the charge: what Stripe showed as refunded, what the ledger
holds that Stripe did not show yet, and the new one.

An invoice is one operation, whether finalizing or paying it begins it; paying one that was
finalized here goes on with it, so that its amount is held once. It differs from others so:

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
from collections.abc import Iterable
from typing import Final

from msgspec.structs import replace

from kb_mcp.money import Money, format_money
from kb_mcp.proxy.errors.refusals import Code, Fact, Refusal, refuse
from kb_mcp.proxy.ledger.records import HOLDING, Operation, OperationId, State
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
from kb_mcp.proxy.rules.duplicates import shown_as
from kb_mcp.proxy.stripe.interpret import Reading

FINALIZE: Final = "POST /v1/invoices/*/finalize"
PAY: Final = "POST /v1/invoices/*/pay"
# It says who is there, and changes nothing of what is paid.
_WORDING: Final = "off_session"
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
    money = Money(amount, view.currency)
    reading = command.reading
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
    form = sorted(reading.form.without(_WORDING).items())
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
    if operation.state is State.SUCCEEDED and operation.final:
        return Replay(operation)
    return None if operation.state is State.SUCCEEDED else ReadAgain()


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
