"""Guards: another live operation that may already be this bill.

Floor: above standing, below decide. Pure. The guards hold over every name, so that a legacy
handler and a tool beside each other do not bill twice (design: What names an operation).
"""

from __future__ import annotations

from datetime import date
from typing import TYPE_CHECKING

from kb_mcp.money import Money, format_money
from kb_mcp.periods import overlap, parse_period
from kb_mcp.proxy.errors.refusals import Code, Fact, Refusal, refuse
from kb_mcp.proxy.ledger.records import HOLDING, NamedBy, Operation
from kb_mcp.proxy.ledger.records import State as S
from kb_mcp.proxy.ledger.windows import day_of

if TYPE_CHECKING:
    from kb_mcp.periods import Period
    from kb_mcp.proxy.ledger.snapshot import Snapshot
    from kb_mcp.proxy.rules.command import Command


def find_conflict(snapshot: Snapshot, command: Command) -> tuple[Refusal, Operation] | None:
    """Return the refusal for the first other live operation that may be this bill, or None.

    What an operator reopened or waived does not conflict: `permits` lists those instead.
    """
    for code, peer in _conflicts(snapshot, command):
        if not _permitted(code, peer):
            return _refusal(code, peer), peer
    return None


def permits(snapshot: Snapshot, command: Command) -> list[Operation]:
    """Return the operations whose one permit `command` would use up."""
    return [peer for code, peer in _conflicts(snapshot, command) if _permitted(code, peer)]


def suspect(code: Code, peer: Operation) -> Refusal:
    """Return `code` as a refusal that names the operation `peer` and its charge."""
    return _refusal(code, peer)


def _permitted(code: Code, peer: Operation) -> bool:
    # A charge that stands and was only suspected never lets its own period be billed again.
    return peer.reopened or (peer.waived and code is Code.DUPLICATE_SUSPECTED)


def _conflicts(snapshot: Snapshot, command: Command) -> list[tuple[Code, Operation]]:
    reading = command.reading
    found: list[tuple[Code, Operation]] = []
    if reading.customer is not None and reading.period is not None:
        found += [
            (Code.PERIOD_ALREADY_CHARGED, peer)
            for peer in snapshot.period_peers(reading.customer, reading.reference)
            if peer.name != command.name and _same_days(command, reading.period, peer)
        ]
    bill = command.bill(snapshot.now)
    if bill is not None:
        found += [
            (Code.DUPLICATE_SUSPECTED, peer)
            for peer in snapshot.bill_peers(bill)
            if peer.name != command.name and _suspicious(command, peer, snapshot.now, bill.since)
        ]
    return found


def _same_days(command: Command, period: Period, peer: Operation) -> bool:
    if peer.period == period.label:
        return True
    # It is the sender's policy that may bill days twice: what the peer's was allowed is past.
    refused = command.policy.overlaps == "refuse"
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
    named = peer.object_id or f"operation {peer.id}, whose outcome is {peer.state.value}"
    amount = format_money(Money(peer.amount, peer.currency))
    period = f" for {peer.period}" if peer.period else ""
    return refuse(code, facts=facts, charge=f"{named}, {amount}{period}")
