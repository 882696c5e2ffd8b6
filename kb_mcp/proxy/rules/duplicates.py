"""Duplicates: another live operation that may already be this bill, and what lets one pass.

Floor: above the snapshot, below decide. Pure. The checks hold over every name, so that a legacy
handler and a tool beside each other do not bill twice. A permit is an operator's: a refunded bill
that was reopened may be billed once more, for the same customer, period, reference and currency and
the amount of the permit; a waived one lets one bill pass that was wrongly taken for it. Whoever
takes a permit is noted as its successor, so that a declined successor may be tried again and nobody
else comes in its place.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date

from msgspec.structs import replace

from kb_mcp.instants import day_of
from kb_mcp.money import Money, format_money
from kb_mcp.periods import Period, overlap, parse_period
from kb_mcp.proxy.errors.refusals import Code, Fact, refuse
from kb_mcp.proxy.ledger.records import HOLDING, NamedBy, Operation, State
from kb_mcp.proxy.ledger.snapshot import Snapshot
from kb_mcp.proxy.rules.command import Command, Look, Refuse

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
    charged = bill.period is not None
    return Code.PERIOD_ALREADY_CHARGED if charged else Code.DUPLICATE_SUSPECTED


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
    if period is None and command.named_by is NamedBy.CALLER:
        return False
    if peer.released and (period is None) != (peer.period is None):
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
    if peer.refunded:
        facts["refunded"] = True
    amount = format_money(Money(peer.amount, peer.currency))
    period = f" for {peer.period}" if peer.period else ""
    state = ", refunded since" if peer.refunded else "" if peer.final else ", not final yet"
    shown = f"{shown_as(peer)}, {amount}{period}{state}"
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
    others: list[Operation] = []
    reading = command.reading
    if reading.customer is not None and reading.period is not None:
        others = snapshot.period_peers(reading.customer, reading.reference)
    return any(each.successor is None and opened_for(each, command) for each in (refunded, *others))


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
