"""Duplicates: another live operation that may already be this bill.

Floor: above the snapshot, below decide. Pure. The checks hold over every name, so that a legacy
handler and a tool beside each other do not bill twice.
"""

from __future__ import annotations

from datetime import date
from typing import TYPE_CHECKING

from kb_mcp.instants import day_of
from kb_mcp.money import Money, format_money
from kb_mcp.periods import overlap, parse_period
from kb_mcp.proxy.errors.refusals import Code, Fact, Refusal, refuse
from kb_mcp.proxy.ledger.records import HOLDING, NamedBy, Operation
from kb_mcp.proxy.ledger.records import State as S
from kb_mcp.proxy.rules.permits import opened_for, permitted, withdrawn

if TYPE_CHECKING:
    from kb_mcp.periods import Period
    from kb_mcp.proxy.ledger.snapshot import Snapshot
    from kb_mcp.proxy.rules.command import Command


def find_conflict(
    snapshot: Snapshot, command: Command, operation: Operation
) -> tuple[Refusal, Operation] | None:
    """Return the refusal for the first live operation beside `operation` that may be this bill.

    What an operator reopened or waived for it does not conflict: `permits` lists those instead.
    """
    stands = withdrawn(snapshot, command, operation)
    if stands is not None:
        return suspect(known_as(stands), stands), stands
    for code, peer in _conflicts(snapshot, command, operation):
        if not permitted(code, peer, command, operation):
            return _refusal(code, peer), peer
    return None


def permits(snapshot: Snapshot, command: Command, operation: Operation) -> list[Operation]:
    """Return the operations whose permit `operation` takes, or took before."""
    found = {
        peer.id: peer
        for code, peer in _conflicts(snapshot, command, operation)
        if permitted(code, peer, command, operation)
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


def suspect(code: Code, peer: Operation) -> Refusal:
    """Return `code` as a refusal that names the operation `peer` and its charge."""
    return _refusal(code, peer)


def _conflicts(
    snapshot: Snapshot, command: Command, operation: Operation
) -> list[tuple[Code, Operation]]:
    reading = command.reading
    found: list[tuple[Code, Operation]] = []
    if reading.customer is not None and reading.period is not None:
        found += [
            (Code.PERIOD_ALREADY_CHARGED, peer)
            for peer in snapshot.period_peers(reading.customer, reading.reference)
            if peer.id != operation.id and _same_days(command, reading.period, peer)
        ]
    bill = command.bill(snapshot.now)
    if bill is not None:
        found += [
            (Code.DUPLICATE_SUSPECTED, peer)
            for peer in snapshot.bill_peers(bill)
            if peer.id != operation.id and _suspicious(command, peer, snapshot.now, bill.since)
        ]
    return found


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
    unresolved = peer.state in HOLDING or peer.state is S.VOIDED
    return unresolved or peer.first_arrival_at > since


def _refusal(code: Code, peer: Operation) -> Refusal:
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
    named = peer.object_id or f"operation {peer.id}, whose outcome is {peer.state.value}"
    amount = format_money(Money(peer.amount, peer.currency))
    period = f" for {peer.period}" if peer.period else ""
    state = ", refunded since" if peer.refunded else "" if peer.final else ", not final yet"
    return refuse(code, facts=facts, charge=f"{named}, {amount}{period}{state}")
