"""Permits: what an operator lets pass beside a bill that stands, and whom.

Floor: above the snapshot, below duplicates. Pure. A refunded bill that was reopened may be billed
once more: the same customer, period, reference and currency, for the amount of the permit. A waived
one lets one bill pass that was wrongly taken for it. Whoever takes a permit is noted as its
successor, so that a declined successor may be tried again and nobody else comes in its place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kb_mcp.proxy.errors.refusals import Code
from kb_mcp.proxy.ledger.records import Operation

if TYPE_CHECKING:
    from kb_mcp.proxy.ledger.snapshot import Snapshot
    from kb_mcp.proxy.rules.command import Command

# A refund that was read this lately is not read again before the bill is sent once more.
READ_LATELY_MS = 60_000
REFUND_READ_EVERY_MS = 3_600_000


def permitted(code: Code, peer: Operation, command: Command, operation: Operation) -> bool:
    """Say whether `peer`, a duplicate by `code`, lets `operation` pass as `command` asks for it."""
    if peer.successor not in {None, operation.id}:
        return False
    return opened_for(peer, command) or (peer.waived and code is Code.DUPLICATE_SUSPECTED)


def opened_for(peer: Operation, command: Command) -> bool:
    """Say whether `peer` was reopened for just the bill that `command` asks for."""
    reading = command.reading
    if peer.gives_back is not None:
        # Another refund of its charge may be of another amount.
        same = command.refund is not None and peer.gives_back == command.refund.charge
        return peer.reopened and same and (peer.reference or "") == (reading.reference or "")
    period = None if reading.period is None else reading.period.label
    amount = peer.amount if peer.permit_amount is None else peer.permit_amount
    return (
        peer.reopened
        and peer.customer == reading.customer
        and peer.period == period
        and (peer.reference or "") == (reading.reference or "")
        and (amount, peer.currency) == (command.money.amount, command.money.currency)
    )


def may_bill_again(snapshot: Snapshot, command: Command, refunded: Operation) -> bool:
    """Say whether `command` begins another generation of its `refunded` bill.

    The permit may be that of the bill that took its place under another amount.
    """
    others: list[Operation] = []
    reading = command.reading
    if reading.customer is not None and reading.period is not None:
        others = snapshot.period_peers(reading.customer, reading.reference)
    return any(each.successor is None and opened_for(each, command) for each in (refunded, *others))


def withdrawn(snapshot: Snapshot, command: Command, operation: Operation) -> Operation | None:
    """Return the bill whose permit `operation` took, where that does not hold any more.

    Its refund failed, or another amount is asked for now.
    """
    for each in snapshot.predecessors(operation):
        if not (each.waived or opened_for(each, command)):
            return each
    return None


def not_read_lately(snapshot: Snapshot, taken: Operation) -> bool:
    """Say whether the refund behind the permit `taken` must be read before anything is sent."""
    lately = snapshot.now + REFUND_READ_EVERY_MS - READ_LATELY_MS
    return taken.refunded and (taken.refund_read_at or 0) < lately
