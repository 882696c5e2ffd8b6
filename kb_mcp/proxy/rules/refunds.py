"""Refunds: what a refund may give back, by what was read of its charge and what the ledger holds.

Floor: beside duplicates, below reserve. Pure. Whatever callers, keys and hosts do, all refunds of a
charge together are never more than the charge: what Stripe showed as refunded, what the ledger
holds that Stripe did not show yet, and the new one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable

from msgspec.structs import replace

from kb_mcp.money import Money, format_money
from kb_mcp.proxy.errors.refusals import Code, Fact, refuse
from kb_mcp.proxy.ledger.records import Operation, OperationId, State
from kb_mcp.proxy.ledger.snapshot import Snapshot
from kb_mcp.proxy.rules.command import Command, ReadAgain, Refundable, Refuse
from kb_mcp.proxy.rules.duplicates import shown_as

_TAKES_NEW_AMOUNT = frozenset({State.FAILED, State.AWAITING_APPROVAL})


def states_of(refunds: Iterable[Operation]) -> frozenset[tuple[OperationId, str]]:
    """Return what `Refundable.before` holds of `refunds`."""
    return frozenset((each.id, f"{each.state.value} {each.final}") for each in refunds)


def refund_fingerprint(charge: str, money: Money, reference: str | None) -> str:
    """Hash what a refund gives back; its reason and its metadata are wording."""
    parts = ("refund", charge, money.amount, money.currency, reference)
    return hashlib.sha256(json.dumps(parts, separators=(",", ":")).encode()).hexdigest()


def with_amount(snapshot: Snapshot, command: Command, operation: Operation | None) -> Command:
    """Return `command` with the amount that it means, where its request leaves it out.

    That is the amount of the refund that it repeats, else what is left of the charge.
    """
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
